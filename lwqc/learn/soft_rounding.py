"""Codes that are learned between two neighbours, as AdaRound does (arXiv 2004.10568).

A code is the lower of two whole numbers and a share of one: a sigmoid that reaches 0 and 1. It
begins where the weight of the original lies, and a penalty that grows sharper pushes it to either
end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from lwqc.learn.grids import Grid

_LOW, _HIGH = -0.1, 1.1  # what the sigmoid is stretched to, and cut at 0 and 1
_EDGE = 0.02  # share that a beginning keeps from either end, where there is no gradient
_WARM_UP, _ALL_SHARP = 0.1, 0.8  # shares of the fit between which the penalty gets sharper
_PENALTY = 10.0  # of codes that are all halfway, in units of the loss before the fit
_BLUNT, _SHARP = 20.0, 2.0  # exponents of the penalty at its beginning and at its end
_RATE = 0.25  # of `v` in a step; between its ends lie about five


@dataclass
class SoftCodes:
    """The codes of one stored tensor. lower: of the two neighbours. v: learned."""

    codes: torch.nn.Parameter
    grid: Grid
    lower: torch.Tensor
    v: torch.nn.Parameter

    @staticmethod
    def between(codes: torch.nn.Parameter, grid: Grid, target: torch.Tensor) -> SoftCodes:
        """target: what the codes would be without rounding; further than one off counts as one."""
        now = torch.round(codes.detach()).clamp(*grid.range)
        lower = torch.where(target >= now, now, now - 1)
        low, high = grid.range
        lower = lower.clamp(low, high - 1)
        share = (target - lower).clamp(_EDGE, 1 - _EDGE)
        stretched = (share - _LOW) / (_HIGH - _LOW)
        return SoftCodes(codes, grid, lower, torch.nn.Parameter(torch.logit(stretched)))

    def share(self) -> torch.Tensor:
        """Of each code, how much of one it is above the lower neighbour."""
        return (torch.sigmoid(self.v) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)

    def read(self) -> torch.Tensor:
        """What operators read: whole numbers where no gradients are wanted."""
        share = self.share()
        return self.lower + (share if torch.is_grad_enabled() else (share >= 0.5).to(share))


class SoftRounding:
    """The codes of a part while they are learned."""

    def __init__(self, codes: Mapping[int, SoftCodes]) -> None:
        """codes: by the place that operators read them at."""
        self._codes = codes
        self._weight = 0.0
        self.active = False

    @property
    def codes(self) -> list[torch.nn.Parameter]:
        """Parameters that this stands in place of."""
        return [c.codes for c in self._codes.values()]

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What is learned in place of codes."""
        yield from (c.v for c in self._codes.values())

    def read(self) -> dict[int, torch.Tensor]:
        """What operators read, by place."""
        return {place: c.read() for place, c in self._codes.items()}

    def begin(self, loss: float) -> None:
        """loss: before the fit, which the penalty is weighed by."""
        self._weight, self.active = _PENALTY * loss, True

    def rate(self, parameter: torch.nn.Parameter) -> float | None:
        """How far a step may change one of its own parameters; None for others."""
        return _RATE if any(parameter is own for own in self.parameters()) else None

    def penalty(self, done: float) -> torch.Tensor:
        """On codes that are not whole yet. done: share of the fit that is behind."""
        behind = min(max(done - _WARM_UP, 0.0) / (_ALL_SHARP - _WARM_UP), 1.0)
        if behind == 0:
            return torch.zeros(())
        exponent = _SHARP + (_BLUNT - _SHARP) * (1 - behind)
        if not self._codes:
            return torch.zeros(())
        parts = [1 - (2 * c.share() - 1).abs().pow(exponent) for c in self._codes.values()]
        return self._weight * torch.cat([p.reshape(-1) for p in parts]).mean()

    @torch.no_grad()
    def end(self, *, kept: bool) -> None:
        """Let the module's codes be what was learned, if that is kept."""
        self.active = False
        for soft in self._codes.values() if kept else ():
            soft.codes.copy_(soft.read())
