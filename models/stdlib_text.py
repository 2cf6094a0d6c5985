"""The Python standard library's sources as text, split by file."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SKIPPED = frozenset({"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo",
                      "__pycache__", "ensurepip", "pydoc_data", "encodings"})  # fmt: skip


def source_files() -> list[Path]:
    """Sources of the running Python's standard library, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = (f for f in root.rglob("*.py") if not _SKIPPED & set(f.relative_to(root).parts))
    return sorted(files)


def is_held_back(file: Path) -> bool:
    """About one file in twenty, chosen by its name alone."""
    return hashlib.sha256(file.name.encode()).digest()[0] < 13


def text(*, held_back: bool) -> NDArray[np.uint8]:
    """All files of one side of the split as bytes, each ended by a zero byte."""
    chosen = [f for f in source_files() if is_held_back(f) == held_back]
    return np.frombuffer(b"\0".join(f.read_bytes() for f in chosen) + b"\0", np.uint8)
