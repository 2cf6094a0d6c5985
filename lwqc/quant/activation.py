"""The 8-bit grid of an activation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ActivationGrid:
    """uint8 grid: value = (code - zero) * scale."""

    scale: float
    zero: int

    def stored_zero(self, *, signed: bool) -> np.uint8 | np.int8:
        """The zero point; signed: of the same grid with all codes 128 lower, as int8."""
        return np.int8(self.zero - 128) if signed else np.uint8(self.zero)


def activation_grid(low: float, high: float) -> ActivationGrid:
    """The uint8 grid that covers [low, high] and represents 0 exactly.

    A non-negative range gets zero point 0, as kernels that absorb a ReLU require.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255)) or 1.0
    return ActivationGrid(scale, int(np.clip(round(-low / scale), 0, 255)))


def symmetric_scale(low: float, high: float) -> float:
    """The step of the int8 grid without a zero point that covers [low, high]: codes -128 to 127."""
    return float(np.float32(max(-low / 128, high / 127, 0.0))) or 1.0
