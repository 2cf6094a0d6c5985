"""Files that are on the disk, whole, when a call returns; a kill before that leaves the old one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lwqc.errors import InputError

_DRAFT = ".draft"  # the end of the name of a file in the making


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is on the disk when this returns. Raises OSError."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside `path` and put it in its place. Raises InputError where that fails."""
    draft = path.with_name(path.name + _DRAFT)
    try:
        write_durably(draft, write)
        os.replace(draft, path)
        sync(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
