"""Activations that wait between two segments of a model: in memory, beyond a limit in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from lwqc.model.limits import beyond, limits
from lwqc.model.scratch import Scratch, temporary, unwritable
from lwqc.runtime.stats.collector import Array

HELD_BYTES = 256 << 20  # of activations between two segments; more of them go to files


class Crossing:
    """Arrays by tensor name and number of the feed; at most `limit_bytes` of them in memory.

    position, feeds: segments that an earlier process ran, and on how many feeds; 0 where there was
    none.
    """

    position = feeds = 0

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: dict[tuple[str, int], Array | Path] = {}
        self._sizes: dict[tuple[str, int], int] = {}
        self._bytes = self._kept = 0  # in memory, and in all
        self._folder: Scratch | None = None
        self._files = 0

    def put(self, name: str, feed: int, array: Array) -> None:
        """Keep an array; strings stay in memory, as a file of them would have to be pickled.

        Raises LimitError where all that are kept take more than `Limits.traces`.
        """
        self._sizes[name, feed] = array.nbytes
        self._kept += array.nbytes
        if self._kept > limits().traces:
            raise beyond("keeping activations between parts of the model", "traces", self._kept)
        if self._bytes + array.nbytes > self._limit and array.dtype != object:
            self._held[name, feed] = self._spilled(array)
            return
        self._bytes += array.nbytes
        self._held[name, feed] = array

    def get(self, name: str, feed: int) -> Array | None:
        """The array; None when there never was one, as of an input that is left to its default."""
        found = self._held.get((name, feed))
        return np.load(found) if isinstance(found, Path) else found

    def drop(self, name: str, feed: int) -> None:
        """Forget an array."""
        found = self._held.pop((name, feed), None)
        self._kept -= self._sizes.pop((name, feed), 0)
        if isinstance(found, Path):
            found.unlink()
        elif found is not None:
            self._bytes -= found.nbytes

    def commit(self, position: int, feeds: int) -> None:
        """Keep what a process needs that goes on from that segment: nothing, here."""

    @property
    def held_bytes(self) -> int:
        """Bytes in memory."""
        return self._bytes

    @property
    def files(self) -> int:
        """Arrays that are in files."""
        return sum(isinstance(found, Path) for found in self._held.values())

    def _spilled(self, array: Array) -> Path:
        if self._folder is None:
            self._folder = temporary()
        self._files += 1
        path = self._folder.path / f"{self._files}.npy"
        try:
            np.save(path, array)
        except OSError as error:
            raise unwritable(error) from error
        return path


def as_crossed(value: ir.Value, array: Array) -> None:
    """Let an input of a part have the type and the rank of an array that crossed.

    Exporters are often wrong about the sizes inside a graph, never about the rank.
    """
    value.dtype = ir.DataType.from_numpy(array.dtype)
    value.shape = ir.Shape([None] * array.ndim)
