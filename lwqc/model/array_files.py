"""Arrays in `.npy` and `.npz` files that come from a stranger.

What a file says of itself, names, types and sizes, is compared with its bytes before one of them is
unpacked.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.limits import beyond, limits

# What reading a damaged archive raises: zipfile, zlib and numpy each have their own.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, SyntaxError,
           OverflowError, MemoryError, zipfile.BadZipFile, zlib.error)  # fmt: skip


def check_regular(file: Path, what: str = "numpy data") -> None:
    """Raise InputError for what is no file on a disk: reading a pipe or a device may never end."""
    if not file.exists():
        raise InputError(f"{file}: no such data file")
    if not file.is_file():
        raise InputError(f"{file}: is not a regular file; expected {what}")


def read_npy(file: Path) -> NDArray[Any]:
    """The array of an `.npy` file, mapped. Raises InputError."""
    check_regular(file)
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except _DAMAGE as error:
        raise _unreadable(file, error) from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"{file}: is an archive; call it .npz")
    return found


class Archive:
    """An `.npz` file: names and shapes first, then arrays."""

    def __init__(self, file: Path) -> None:
        """Read what the file says of itself. Raises InputError."""
        check_regular(file)
        self.file = file
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                self._members = dict(_checked(archive, members))
        except _DAMAGE as error:
            raise _unreadable(file, error) from error
        if len(self._members) != len(members):
            raise InputError(f"{file}: holds two arrays of one name")
        unpacked = sum(member.file_size for member in members)
        # Packed numbers are a bomb before they are data; others are as large as their file.
        if unpacked > limits().data and unpacked > file.stat().st_size:
            raise beyond(f"{file}: unpacked it", "data", unpacked)

    @property
    def names(self) -> list[str]:
        """Names of the arrays, in the order of the file."""
        return list(self._members)

    def arrays(self, names: Collection[str] | None = None) -> Mapping[str, NDArray[Any]]:
        """All arrays by name, or those of some names. Raises InputError."""
        try:
            with zipfile.ZipFile(self.file) as archive:
                found = {}
                for name, member in self._members.items():
                    if names is not None and name not in names:
                        continue
                    with archive.open(member) as stream:
                        found[name] = npy.read_array(stream, allow_pickle=False)
                return found
        except _DAMAGE as error:
            raise _unreadable(self.file, error) from error


def _checked(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]
) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise ValueError(f"{name[:80]!r} is not a numpy array")
        with archive.open(member) as stream:
            shape, dtype = _header(stream)
            start = stream.tell()
        if dtype.hasobject:
            raise ValueError(f"{name[:80]!r} holds Python objects, which are not loaded")
        if any(size < 0 for size in shape):
            raise ValueError(f"{name[:80]!r} has the shape {list(shape)}")
        need = start + math.prod(shape) * dtype.itemsize
        if need != member.file_size:
            raise ValueError(f"{name[:80]!r} has {member.file_size} bytes; its shape needs {need}")
        yield name, member


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of numpy's format is not supported")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _unreadable(file: Path, error: BaseException) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{file}: cannot be read as numpy data: {type(error).__name__}: {reason}")
