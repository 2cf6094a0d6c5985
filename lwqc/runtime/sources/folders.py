"""Which files of a folder are samples, and of which kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lwqc.errors import InputError

KINDS = {
    "images": (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    "sounds": (".wav",),
    "texts": (".txt",),
    "tables": (".csv", ".parquet"),
}
_SUFFIXES = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}


@dataclass(frozen=True)
class Found:
    """Files of one kind, in the order of their names. left_out: how many others there are."""

    kind: str
    root: Path
    files: Sequence[Path]
    left_out: int = 0


def find(path: Path) -> Found | None:
    """What a file or folder holds, subfolders included; None for nothing that is known.

    Raises InputError where a folder holds several kinds, or a table among others.
    """
    if not path.is_dir():
        kind = kind_of(path)
        return Found(kind, path, [path]) if kind else None
    files = sorted(
        (f for f in path.rglob("*") if not _hidden(f.relative_to(path)) and f.is_file()),
        key=lambda f: f.relative_to(path).parts,
    )
    # Tables beside samples are labels or notes about them.
    kinds = {kind for f in files if (kind := kind_of(f)) and kind != "tables"}
    kinds = kinds or {kind for f in files if (kind := kind_of(f))}
    if not kinds:
        return None
    if len(kinds) > 1:
        raise InputError(f"{path}: holds {' and '.join(sorted(kinds))}: give a folder of one kind")
    (kind,) = kinds
    own = [f for f in files if kind_of(f) == kind]
    if kind == "tables" and len(own) > 1:
        raise InputError(f"{path}: holds {len(own)} tables: name one of them")
    root = own[0] if kind == "tables" else path
    return Found(kind, root, own, len(files) - len(own))


def kind_of(path: Path) -> str:
    """The kind of a file, or "" for one that is no sample."""
    return _SUFFIXES.get(path.suffix.lower(), "")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
