"""Codes of a weight as another tool, or an earlier run, stored them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.formats import ScaleType

Array = NDArray[np.generic]


@dataclass(frozen=True)
class StoredCodes:
    """Codes of one weight as they were stored.

    codes: unsigned, in the shape of the operand. axis: the one that scales go along, None for one
    scale; with block, the one that is cut into blocks. zero: like scale, unsigned, or None for the
    middle of the range. activation: what the codes met. matrix: the shape in which scales apply,
    None for that of the operand.
    """

    bits: int
    codes: Callable[[], Array]
    scale: Callable[[], NDArray[np.floating]]
    zero: Callable[[], Array] | None
    scale_type: ScaleType
    axis: int | None
    block: int | None
    activation: Literal["none", "dynamic"] = "none"
    matrix: tuple[int, int] | None = None

    def turned(self) -> StoredCodes:
        """The transposed matrix."""
        codes, scale, zero = self.codes, self.scale, self.zero
        blocked = self.block is not None
        return dataclasses.replace(
            self,
            codes=lambda: codes().T,
            scale=lambda: scale().T if blocked else scale(),
            zero=None if zero is None else (lambda: zero().T if blocked else zero()),
            axis=None if self.axis is None else 1 - self.axis,
        )

    def decode(self) -> NDArray[np.float32]:
        """The float weight, in the shape of the operand."""
        found = np.array(self.codes(), np.float32)
        shape = found.shape
        zero = self.zero() if self.zero is not None else np.full(1, 2 ** (self.bits - 1))
        within = found.reshape(self.matrix or shape)  # numbers of a large weight are in place
        self._each(np.subtract, within, zero)
        self._each(np.multiply, within, self.scale())
        return within.reshape(shape)

    def _each(
        self, combine: np.ufunc, numbers: NDArray[np.float32], values: NDArray[np.generic]
    ) -> None:
        """Combine every number in place with what stands for it."""
        values = values.astype(np.float32)
        if values.size == 1 or self.axis is None:
            values = values.reshape(())
        elif self.block is None:
            values = values.reshape([-1 if i == self.axis else 1 for i in range(numbers.ndim)])
        elif numbers.shape[self.axis] % self.block:  # the last block is not whole
            cut = tuple(slice(0, n) for n in numbers.shape)
            values = np.repeat(values, self.block, self.axis)[cut]
        else:
            after = self.axis + 1
            numbers = numbers.reshape(
                *numbers.shape[: self.axis],
                numbers.shape[self.axis] // self.block,
                self.block,
                *numbers.shape[after:],
            )
            values = np.expand_dims(values, after)
        combine(numbers, values, out=numbers)
