"""Codes of weights as parameters: whole numbers of a range, which gradients pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir
import torch
import torch.nn.functional as F

from lwqc.learn.functions.codes import RANGES, rounded, to_codes
from lwqc.learn.functions.packed_weights import unpacked


@dataclass(frozen=True)
class ZeroPoint:
    """A zero point as a parameter: a share of all codes that its type has."""

    kind: ir.DataType

    @property
    def _count(self) -> int:
        low, high = RANGES[self.kind]
        return high - low

    def parameter(self, stored: torch.Tensor) -> torch.Tensor:
        """The share, of which float32 holds every code."""
        return stored.to(torch.float32) / self._count

    def code(self, parameter: torch.Tensor) -> torch.Tensor:
        """What operators read: a whole number, whose slopes go straight through."""
        return to_codes(parameter * self._count, self.kind)


@dataclass(frozen=True)
class Grid:
    """The codes that a stored tensor may hold.

    bits: of each, where bytes hold several of them. shape: of the codes where ordinary arithmetic
    unpacks them, which may be fewer than the bytes [rows, bytes] hold.
    """

    kind: ir.DataType
    bits: int | None = None
    shape: tuple[int, ...] | None = None

    @property
    def range(self) -> tuple[int, int]:
        """Least and largest code."""
        return RANGES[self.kind] if self.bits is None else (0, 2**self.bits - 1)

    def parameter(self, stored: torch.Tensor) -> torch.Tensor:
        """Codes as floats, unpacked. Those of 32 bits need float64."""
        wide = torch.float64 if self.kind is ir.DataType.INT32 else torch.float32
        codes = stored if self.bits is None else unpacked(stored, self.bits)
        if self.shape is not None:
            codes = codes[:, : math.prod(self.shape[1:])].reshape(self.shape)
        return codes.to(wide)

    def codes(self, parameter: torch.Tensor) -> torch.Tensor:
        """What operators read: unpacked ones as floats, whose type tells that they are."""
        if self.bits is None:
            return to_codes(parameter, self.kind)
        return rounded(parameter).clamp(*self.range)

    def stored(self, parameter: torch.Tensor) -> torch.Tensor:
        """As the model stores them; what is left of the last byte of a row is 0."""
        codes = torch.round(parameter.detach()).clamp(*self.range)
        if self.bits is None:
            return codes
        each = 8 // self.bits
        if self.shape is not None:
            codes = codes.reshape(len(codes), -1)
            codes = F.pad(codes, (0, -codes.shape[1] % each))
        groups = codes.to(torch.int32).reshape(*codes.shape[:-1], -1, each)
        shifts = torch.arange(each, device=codes.device, dtype=torch.int32) * self.bits
        return (groups << shifts).sum(-1)
