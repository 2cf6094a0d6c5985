"""Codes of a weight while a method sets them, one input column at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.block_scale import stored_scale
from lwqc.quant.grid import Codes, Encoded, Float
from lwqc.quant.range_search import encode
from lwqc.quant.unit_grid import codes_of, round_to_grid, unit_values


class ColumnGrid:
    """The grid of an encoded weight [N, K] and its current codes.

    Columns of the weight are rows here, so that one is contiguous: codes [padded K, N], scales
    and zero points [blocks, N]. Starts from the codes, scales and zero points of `start`.
    """

    def __init__(self, start: Encoded) -> None:
        self._start = start
        self.k = start.k
        self.block = start.codes.shape[2]
        self._codes: Codes = start.codes.reshape(len(start.codes), -1).T.copy()
        self._scale: Float = start.scale.T.copy()
        self._zero = start.zero.T.astype(np.float32)

    def spans(self) -> list[slice]:
        """The columns of each block, without padding."""
        return [slice(i, min(i + self.block, self.k)) for i in range(0, self.k, self.block)]

    def centred(self, columns: slice) -> Float:
        """Values at scale 1 [columns, N] of columns within one block."""
        zero = self._zero[columns.start // self.block]
        return unit_values(self._codes[columns], zero, self._start.format)

    def values(self) -> Float:
        """The weight that the codes stand for, transposed: [K, N]."""
        parts = [self.centred(span) * self._scale[i] for i, span in enumerate(self.spans())]
        return np.concatenate(parts)

    def round(self, column: int | NDArray[np.intp], target: NDArray[np.floating]) -> Float:
        """Set the codes of a column nearest to the target [N]; returns their values [N].

        column: that of all rows of the weight, or of each [N]. The arithmetic is that of
        `range_search`: the same weight gets the same code.
        """
        every = ... if isinstance(column, int) else np.arange(len(column))
        block, fmt = column // self.block, self._start.format
        zero, scale = self._zero[block, every], self._scale[block, every]
        values = round_to_grid(target.astype(np.float32), scale, zero, fmt)
        self._codes[column, every] = codes_of(values, zero, fmt)
        values *= scale
        return values

    def fit(
        self, columns: slice, weight: NDArray[np.floating], importance: NDArray[np.floating]
    ) -> None:
        """Search scales and zero points of one block for other weights of its columns.

        weight: [columns, N]; importance: [columns] or [N, columns], see `range_search.encode`.
        """
        block = columns.start // self.block
        found = encode(weight.T, self._start.format, importance=importance)
        self._scale[block], self._zero[block] = found.scale[:, 0], found.zero[:, 0]

    def improve_scale(
        self, block: int, slope: NDArray[np.float64], curvature: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Move the scales of a block to the least of curvature · step² - 2 slope · step.

        slope, curvature: [N]. No scale more than doubles or falls below half, and one that gets
        no better after rounding to its stored type stays. Returns the steps taken [N].
        """
        old = self._scale[block].astype(np.float64)
        step = np.divide(slope, curvature, out=np.zeros_like(old), where=curvature > 0)
        wanted = old + np.clip(step, -np.abs(old) / 2, np.abs(old))
        stored = stored_scale(wanted.astype(np.float32), self._start.format)
        step = stored - old
        better = curvature * step**2 < 2 * slope * step
        self._scale[block] = np.where(better, stored, self._scale[block])
        return np.where(better, step, 0.0)

    def encoded(self) -> Encoded:
        """The weight with the current codes, scales and zero points."""
        self._codes[self.k :] = self._zero[-1]  # a fit may have moved the zero point
        codes = np.ascontiguousarray(self._codes.T).reshape(self._start.codes.shape)
        scale, zero = np.ascontiguousarray(self._scale.T), np.ascontiguousarray(self._zero.T)
        return replace(self._start, codes=codes, scale=scale, zero=zero.astype(np.uint8))
