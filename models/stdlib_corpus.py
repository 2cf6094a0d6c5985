"""The Python standard library's sources as text to learn from, split by file."""

from __future__ import annotations

import sysconfig
import zlib
from pathlib import Path

# Tests and generated tables: their text is either repeated or not language at all.
_SKIPPED = {"site-packages", "test", "tests", "idlelib", "encodings", "lib2to3", "__pycache__"}
_SKIPPED_PREFIXES = ("config-", "lib-dynload")


def files() -> list[Path]:
    """Sources of the running interpreter's standard library, sorted by relative path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(p for p in root.rglob("*.py") if _wanted(p.relative_to(root)))


def is_held_back(path: Path) -> bool:
    """Whether a file belongs to the held-back part: one in 25, by its relative path alone."""
    relative = path.relative_to(sysconfig.get_paths()["stdlib"]).as_posix()
    return zlib.crc32(relative.encode()) % 25 == 0


def texts(*, held_back: bool) -> list[bytes]:
    """Contents of one part of the split."""
    return [p.read_bytes() for p in files() if is_held_back(p) == held_back]


def _wanted(relative: Path) -> bool:
    return not any(
        part in _SKIPPED or part.startswith(_SKIPPED_PREFIXES) for part in relative.parts[:-1]
    )
