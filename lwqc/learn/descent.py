"""A fit on its way: what has to be known to go on with it as if it had never ended."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
_MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps of each parameter, beside the step
_NUMBERS = "numbers"  # the array with all that is no array: JSON as bytes


# What numbers of a stranger's make numpy, torch and Python raise.
_DAMAGE = (KeyError, TypeError, ValueError, OverflowError, IndexError, RuntimeError, RecursionError)
_Count = Annotated[int, pydantic.Field(ge=0, le=1 << 60)]


class _Numbers(pydantic.BaseModel):
    """All of a state that is no array. torch: the state of its generator, in hexadecimal digits."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    step: _Count
    stale: _Count
    checked: _Count
    lowest: pydantic.FiniteFloat | None
    order: list[_Count]
    checked_step: _Count = 0
    spent_s: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
    rng: dict[str, Any]
    torch: str


class Keeper(Protocol):
    """Where the state of a fit is kept."""

    def state(self) -> Mapping[str, Array] | None:
        """What was kept last; None for nothing."""

    def keep(self, state: Mapping[str, Array]) -> None:
        """Keep this from now on."""


class UnlikeStateError(Exception):
    """A state that is not one of this fit."""


@dataclass
class Descent:
    """Steps towards better parameters, and the best that there were.

    losses: of the best, on each held-back input. lowest: the least mean loss since the start, which
    large steps may lead away from at first. stale: checks since then. checked: the last check that
    was due; checked_step: the step behind which it was. order: inputs that the next steps take,
    from the last one on. spent_s: in earlier runs.
    """

    parameters: Sequence[torch.nn.Parameter]
    optimizer: torch.optim.Adam
    rng: np.random.Generator
    losses: Array
    best: list[torch.Tensor] = field(default_factory=list)
    step: int = 0
    stale: int = 0
    checked: int = 0
    checked_step: int = 0
    lowest: float = math.inf
    order: list[int] = field(default_factory=list)
    spent_s: float = 0.0

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self.best = self.best or copies(self.parameters)

    def check(self, losses: Array, checked: int) -> None:
        """Take note of losses on held-back inputs as the parameters are now."""
        self.checked, self.checked_step = checked, self.step
        mean = float(losses.mean())
        if mean < float(self.losses.mean()):
            self.best, self.losses = copies(self.parameters), losses
        self.stale = 0 if mean < self.lowest else self.stale + 1
        self.lowest = min(self.lowest, mean)

    def state(self) -> dict[str, Array]:
        """All of it as arrays by name."""
        numbers = {
            "step": self.step,
            "stale": self.stale,
            "checked": self.checked,
            "checked_step": self.checked_step,
            "lowest": self.lowest if math.isfinite(self.lowest) else None,
            "order": self.order,
            "spent_s": self.spent_s + time.monotonic() - self._begun,
            "rng": self.rng.bit_generator.state,
            "torch": torch.random.get_rng_state().numpy().tobytes().hex(),
        }
        found = {
            _NUMBERS: np.frombuffer(json.dumps(numbers).encode(), np.uint8),
            "losses": self.losses,
        }
        for i, (parameter, best) in enumerate(zip(self.parameters, self.best, strict=True)):
            found[f"now{i}"] = parameter.detach().cpu().numpy()
            found[f"best{i}"] = best.cpu().numpy()
            moments = self.optimizer.state.get(parameter, {})  # none where it has no gradient
            found.update({f"{n}{i}": moments[n].cpu().numpy() for n in _MOMENTS if n in moments})
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, Array], inputs: int) -> None:
        """Go on from there. inputs: how many there are to fit to.

        Raises UnlikeStateError where it is the state of another fit.
        """
        try:
            found = _Numbers.model_validate_json(state[_NUMBERS].tobytes())
            if not all(i < inputs for i in found.order):
                raise ValueError("it has more inputs")
            losses = _like(state["losses"], self.losses)
            rng = np.random.default_rng()
            rng.bit_generator.state = found.rng
            drawn = torch.frombuffer(bytearray.fromhex(found.torch), dtype=torch.uint8)
            torch.random.set_rng_state(drawn)
            arrays = [
                {n: _like(state[f"{n}{i}"], p.numpy()) for n in self._kept(state, i)}
                for i, p in enumerate(t.detach().cpu() for t in self.parameters)
            ]
        except (*_DAMAGE, pydantic.ValidationError) as error:
            raise UnlikeStateError(" ".join(str(error).split())[:200]) from error
        self.losses, self.rng, self.order = losses, rng, found.order
        self.step, self.stale = found.step, found.stale
        self.checked, self.checked_step = found.checked, found.checked_step
        self.lowest = math.inf if found.lowest is None else found.lowest
        self.spent_s = found.spent_s
        for i, (parameter, own) in enumerate(zip(self.parameters, arrays, strict=True)):
            parameter.copy_(torch.from_numpy(own["now"].copy()))
            self.best[i] = torch.from_numpy(own["best"].copy()).to(parameter.device)
            moments = {n: torch.from_numpy(own[n].copy()).to(parameter.device) for n in _MOMENTS
                       if n in own}  # fmt: skip
            if moments:
                steps = torch.tensor(float(found.step))
                self.optimizer.state[parameter] = {"step": steps, **moments}

    @staticmethod
    def _kept(state: Mapping[str, Array], index: int) -> list[str]:
        """What there is of a parameter."""
        moments = [name for name in _MOMENTS if f"{name}{index}" in state]
        if len(moments) not in (0, len(_MOMENTS)):
            raise ValueError("a moment is missing")
        return ["now", "best", *moments]


def copies(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The numbers of parameters, on their own."""
    return [p.detach().clone() for p in parameters]


def _like(array: Array, like: Array) -> Array:
    if (array.shape, array.dtype) != (like.shape, like.dtype) or not np.isfinite(array).all():
        raise ValueError(f"an array is {array.dtype}{list(array.shape)}, or not finite")
    return array
