"""Codes of weights as parameters: whole numbers of a range, which gradients pass."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch

from lwqc.learn.functions.codes import RANGES, rounded, to_codes
from lwqc.learn.functions.packed_weights import unpacked


@dataclass(frozen=True)
class Grid:
    """The codes that a stored tensor may hold. bits: of each, where bytes hold several of them."""

    kind: ir.DataType
    bits: int | None = None

    @property
    def range(self) -> tuple[int, int]:
        """Least and largest code."""
        return RANGES[self.kind] if self.bits is None else (0, 2**self.bits - 1)

    def parameter(self, stored: torch.Tensor) -> torch.Tensor:
        """Codes as floats, unpacked. Those of 32 bits need float64."""
        wide = torch.float64 if self.kind is ir.DataType.INT32 else torch.float32
        return (stored if self.bits is None else unpacked(stored, self.bits)).to(wide)

    def codes(self, parameter: torch.Tensor) -> torch.Tensor:
        """What operators read: unpacked ones as floats, whose type tells that they are."""
        if self.bits is None:
            return to_codes(parameter, self.kind)
        return rounded(parameter).clamp(*self.range)

    def stored(self, parameter: torch.Tensor) -> torch.Tensor:
        """As the model stores them."""
        codes = torch.round(parameter.detach()).clamp(*self.range)
        if self.bits is None or self.bits == 8:
            return codes
        each = 8 // self.bits
        groups = codes.to(torch.int32).reshape(*codes.shape[:-1], -1, each)
        shifts = torch.arange(each, device=codes.device, dtype=torch.int32) * self.bits
        return (groups << shifts).sum(-1)
