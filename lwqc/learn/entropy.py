"""How much there is to know in activations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from lwqc.learn.module import OnnxModule

_BINS = 256  # the codes of 8 bits


@torch.no_grad()
def entropies(
    module: OnnxModule, inputs: Sequence[Mapping[str, Any]], names: Collection[str]
) -> dict[str, float]:
    """Entropy in bits of the values of tensors, rounded to 256 steps of their range, by name.

    The mean over inputs, each with its own range; 0 where all values are the same.
    """
    found = dict.fromkeys(names, 0.0)
    for given in inputs:
        for name, value in module.values(given, names).items():
            if name in found:
                found[name] += _bits(value) / len(inputs)
    return found


def _bits(value: torch.Tensor) -> float:
    flat = value.detach().float().flatten()
    if flat.numel() == 0 or not bool(flat.max() > flat.min()):
        return 0.0
    shares = torch.histc(flat, _BINS) / flat.numel()
    return float(torch.special.entr(shares).sum() / torch.tensor(2.0).log())
