"""Weights that move by products of two thin matrices, as LoRA has it (arXiv 2106.09685).

Gradients, moments and copies are those of the thin ones: with a rank of 4 a hundredth of what the
weights take. In the end the products are added to the weights, which have the form that they had.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from lwqc.learn.distill import LEAST_SIZE
from lwqc.learn.module import OnnxModule
from lwqc.learn.zero_patterns import ZeroPattern


class Update:
    """What is added to a weight [rows, ...]: left [rows, rank] times right [rank, the others].

    left begins at 0. Steps change it by a share of `LEAST_SIZE`, so that the product is in units of
    the weight's size over that: then they change weights by that share, as elsewhere.
    """

    def __init__(self, weight: torch.Tensor, rank: int, draws: torch.Generator) -> None:
        rows, columns = len(weight), weight[0].numel()
        self.left = torch.nn.Parameter(weight.new_zeros(rows, rank))
        drawn = torch.randn(rank, columns, generator=draws, dtype=weight.dtype)
        self.right = torch.nn.Parameter(drawn.to(weight.device))
        size = float(weight.detach().square().mean().sqrt())
        self._unit = size / LEAST_SIZE / math.sqrt(rank)
        self._zeros = ZeroPattern.of(weight, coded=False)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it is now; zeros of a sparse one stay."""
        still = weight.detach()
        moved = still + self._unit * (self.left @ self.right).reshape(still.shape)
        return moved if self._zeros is None else torch.where(self._zeros.free, moved, still)


class LowRankUpdates:
    """A module of which matrices move by updates of low rank; vectors move freely, codes stay."""

    def __init__(self, whole: OnnxModule, rank: int, seed: int) -> None:
        """Weights of no more rows or columns than twice the rank move freely."""
        draws = torch.Generator().manual_seed(seed)
        self._whole = whole
        self._updates: dict[str, Update] = {}
        self._free: list[torch.nn.Parameter] = []
        for name, parameter in whole.named_parameters():
            if name in whole.codes:
                continue
            if parameter.ndim > 1 and min(len(parameter), parameter[0].numel()) > 2 * rank:
                self._updates[name] = Update(parameter.detach(), rank, draws)
            else:
                self._free.append(parameter)

    @property
    def output_names(self) -> Sequence[str]:
        """Of the module."""
        return self._whole.output_names

    @property
    def coded(self) -> Sequence[torch.nn.Parameter]:
        """None."""
        return ()

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What is fitted."""
        for update in self._updates.values():
            yield from (update.left, update.right)
        yield from self._free

    def values(self, inputs: Mapping[str, Any], inner: Iterable[str] = ()) -> dict[str, Any]:
        """Of the module, with the weights as they are now."""
        moved = {
            self._whole.held[name].number: self._whole.held[name].read(update(weight))
            for name, update, weight in self._now()
        }
        return self._whole.values(inputs, inner, moved)

    @torch.no_grad()
    def fold(self) -> None:
        """Let the weights be what they are with their updates."""
        for _, update, weight in self._now():
            weight.copy_(update(weight))

    def _now(self) -> Iterator[tuple[str, Update, torch.nn.Parameter]]:
        for name, update in self._updates.items():
            yield name, update, getattr(self._whole, name)
