"""Operators that draw numbers: torch draws them, by its own seed, and never as onnxruntime does."""

from __future__ import annotations

import torch

from lwqc.learn.operation import Call, Operation, Table, Tensor


def _normal(call: Call, like: Tensor | None = None) -> Tensor:
    made = torch.randn(_shape(call, like), dtype=_type(call, like), device=_device(like))
    return made * call.real("scale", 1.0) + call.real("mean", 0.0)


def _uniform(call: Call, like: Tensor | None = None) -> Tensor:
    low, high = call.real("low", 0.0), call.real("high", 1.0)
    made = torch.rand(_shape(call, like), dtype=_type(call, like), device=_device(like))
    return made * (high - low) + low


def _shape(call: Call, like: Tensor | None) -> list[int]:
    return list(call.get("shape") if like is None else like.shape)


def _type(call: Call, like: Tensor | None) -> torch.dtype:
    usual = torch.float32 if like is None else like.dtype
    return call.get("dtype", usual) or usual


def _device(like: Tensor | None) -> torch.device | None:
    return None if like is None else like.device


def _bernoulli(call: Call, x: Tensor) -> Tensor:
    return torch.bernoulli(x).to(call.get("dtype", x.dtype))


def _multinomial(call: Call, x: Tensor) -> Tensor:
    """x: logarithms of what the classes weigh."""
    drawn = torch.multinomial(torch.softmax(x, -1), call.get("sample_size", 1), True)
    return drawn.to(call.get("dtype", torch.int32))


def _dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Drops only where the graph itself says so, whatever the module's mode."""
    if training is None or not bool(training.item()):
        return x, torch.ones_like(x, dtype=torch.bool)
    share = 0.5 if ratio is None else float(ratio.item())
    mask = torch.rand(x.shape, device=x.device) >= share
    return torch.where(mask, x / (1 - share), torch.zeros_like(x)) if share < 1 else x * 0, mask


TABLE: Table = {
    ("", "Bernoulli"): Operation(_bernoulli, drawn_from=1),
    ("", "Dropout"): Operation(_dropout, numbers=(1, 2), drawn_from=3),
    ("", "Multinomial"): Operation(_multinomial, drawn_from=1),
    ("", "RandomNormal"): Operation(_normal, drawn_from=0),
    ("", "RandomNormalLike"): Operation(_normal, drawn_from=1),
    ("", "RandomUniform"): Operation(_uniform, drawn_from=0),
    ("", "RandomUniformLike"): Operation(_uniform, drawn_from=1),
}
