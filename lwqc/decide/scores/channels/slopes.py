"""Slopes of a loss along stored weights, by one backward pass over each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.learn.needed import require_torch
from lwqc.model.user_code import running
from lwqc.runtime.stats.collector import Array, Feeds

if TYPE_CHECKING:
    from collections.abc import Callable


def is_differentiable(loss: Callable[..., Any]) -> bool:
    """Whether a loss takes tensors of torch and gives one, as its attribute says."""
    return bool(getattr(loss, "differentiable", False))


def slopes(
    model: ir.Model,
    weights: Mapping[str, Array],
    batches: Sequence[Feeds],
    loss: Callable[..., Any],
) -> dict[str, Array]:
    """Gradient of the mean loss over the batches with respect to each weight.

    model: has the weights as inputs. loss: of outputs, tensors of torch by name, and feeds.
    Raises InputError without torch, for operators that gradients are not known of, and for a loss
    that depends on no weight.
    """
    require_torch()
    import torch

    from lwqc.learn.to_torch import module_of

    module = module_of(model, "none")
    given = {name: torch.from_numpy(np.array(w)).requires_grad_() for name, w in weights.items()}
    for feeds in batches:
        outputs = module.values({**feeds, **given})
        with running("--loss: loss(outputs, feeds) failed"):
            value = loss(outputs, feeds)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            raise InputError(
                "--loss: is differentiable, so it must give one number of torch that depends on "
                "the outputs"
            )
        (value.reshape(()) / len(batches)).backward()  # type: ignore[no-untyped-call]
    return {
        name: np.zeros(w.shape) if w.grad is None else w.grad.double().numpy()
        for name, w in given.items()
    }
