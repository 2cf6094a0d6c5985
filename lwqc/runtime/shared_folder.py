"""Arrays that lie in a folder which other processes, and perhaps other machines, see too."""

from __future__ import annotations

import hashlib
import math
import secrets
import shutil
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class UnseenError(OSError):
    """A file that is not there, as on a machine that does not see the folder."""


@dataclass(frozen=True)
class LaidArray:
    """An array in a file. by_rows: its numbers lie row by row, else column by column.

    crc: of its bytes, as written.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    by_rows: bool
    crc: int

    def opened(self) -> Array:
        """The array, mapped: what is written to it stays here.

        Raises UnseenError, and another OSError for a file that has changed.
        """
        try:
            flat = np.memmap(self.path, self.dtype, "c")
        except (OSError, ValueError) as error:
            raise UnseenError(f"{self.path}: cannot be read here: {error}") from error
        if flat.size != math.prod(self.shape):
            raise UnseenError(f"{self.path}: has {flat.size} numbers of {math.prod(self.shape)}")
        if zlib.crc32(flat.data) != self.crc:
            raise OSError(f"{self.path}: its bytes are not those that were written")
        return np.asarray(flat).reshape(self.shape, order="C" if self.by_rows else "F")


def array_digest(array: Array) -> str:
    """Of numbers with their type, shape and order in memory, by which sums may be taken."""
    by_rows = bool(array.flags.c_contiguous)
    digest = hashlib.sha256(repr((array.dtype.str, array.shape, by_rows)).encode())
    digest.update(_in_order(array, by_rows).data)
    return digest.hexdigest()


def _in_order(array: Array, by_rows: bool) -> Array:
    return np.ascontiguousarray(array if by_rows else array.T).reshape(-1)


class SharedFolder:
    """Lays arrays out, the same one once, for as long as somebody needs it."""

    def __init__(self, path: Path) -> None:
        """path: of a folder, whose contents go now. Raises OSError where it cannot be made."""
        shutil.rmtree(path, ignore_errors=True)
        self._path = path.absolute() / secrets.token_hex(8)  # elsewhere nothing else has that name
        self._path.mkdir(parents=True)
        self._names = count()
        self._needed: Counter[str] = Counter()
        self._laid: dict[int, tuple[Array, LaidArray]] = {}  # by `id` of arrays that are held here

    def lay(self, array: Array) -> LaidArray:
        """Write an array of numbers unless it is there. Raises OSError where that fails.

        The array may not change until it is released.
        """
        _, laid = self._laid.get(id(array), (array, None))
        if laid is None:
            by_rows, path = bool(array.flags.c_contiguous), self._path / str(next(self._names))
            numbers = _in_order(array, by_rows)
            numbers.tofile(path)
            crc = zlib.crc32(numbers.data)
            laid = LaidArray(str(path), array.dtype.str, array.shape, by_rows, crc)
            self._laid[id(array)] = (array, laid)
        self._needed[laid.path] += 1
        return laid

    def release(self, laid: LaidArray) -> None:
        """It is needed once less."""
        self._needed[laid.path] -= 1
        if not self._needed[laid.path]:
            self._laid = {i: one for i, one in self._laid.items() if one[1].path != laid.path}
            Path(laid.path).unlink(missing_ok=True)

    def remove(self) -> None:
        """Nothing is needed any more."""
        shutil.rmtree(self._path.parent, ignore_errors=True)
