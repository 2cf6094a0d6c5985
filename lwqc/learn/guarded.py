"""The user's loss, and what torch says, in errors of one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lwqc.errors import InputError
from lwqc.learn.program import NodeError
from lwqc.model.user_code import running


def guarded(loss: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """The user's loss of outputs and feeds, whose failures are told as theirs."""

    def run(outputs: Mapping[str, Any], feeds: Mapping[str, Any]) -> torch.Tensor:
        with running("--loss: the function failed"):
            value = loss(outputs, feeds)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise InputError("--loss: expected a torch tensor with one number")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise InputError("--loss: expected a tensor with a gradient, not a detached one")
        return value.reshape(())

    return run


@contextmanager
def torch_errors(where: str) -> Iterator[None]:
    """What torch cannot compute is told with the model, and the node where it is known."""
    try:
        yield
    except NodeError as error:
        raise InputError(f"{where}: {error}") from error
    except RuntimeError as error:
        line = str(error).strip().partition("\n")[0][:300]
        raise InputError(f"{where}: torch says: {line}") from error
