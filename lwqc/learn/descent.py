"""A fit on its way: what has to be known to go on with it as if it had never ended."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
_MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps of each parameter, beside the step
_NUMBERS = "numbers"  # the array with all that is no array: JSON as bytes


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
    was due. order: inputs that the next steps take, from the last one on. spent_s: in earlier runs.
    """

    parameters: Sequence[torch.nn.Parameter]
    optimizer: torch.optim.Adam
    rng: np.random.Generator
    losses: Array
    best: list[torch.Tensor] = field(default_factory=list)
    step: int = 0
    stale: int = 0
    checked: int = 0
    lowest: float = math.inf
    order: list[int] = field(default_factory=list)
    spent_s: float = 0.0

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self.best = self.best or copies(self.parameters)

    def check(self, losses: Array) -> None:
        """Take note of losses on held-back inputs as the parameters are now."""
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
            "lowest": self.lowest if math.isfinite(self.lowest) else None,
            "order": self.order,
            "spent_s": self.spent_s + time.monotonic() - self._begun,
            "rng": self.rng.bit_generator.state,
        }
        found = {
            _NUMBERS: np.frombuffer(json.dumps(numbers).encode(), np.uint8),
            "losses": self.losses,
        }
        for i, (parameter, best) in enumerate(zip(self.parameters, self.best, strict=True)):
            found[f"now{i}"] = parameter.detach().cpu().numpy()
            found[f"best{i}"] = best.cpu().numpy()
            moments = self.optimizer.state.get(parameter, {})
            for name in _MOMENTS:
                found[f"{name}{i}"] = moments[name].cpu().numpy()
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from there. Raises UnlikeStateError where it is the state of another fit."""
        try:
            numbers = json.loads(state[_NUMBERS].tobytes())
            losses = _like(state["losses"], self.losses.shape)
            rng = np.random.default_rng()
            rng.bit_generator.state = numbers["rng"]
            order = [int(i) for i in numbers["order"]]
            step, stale, checked = (int(numbers[n]) for n in ("step", "stale", "checked"))
            lowest = math.inf if numbers["lowest"] is None else float(numbers["lowest"])
            spent = float(numbers["spent_s"])
            arrays = [
                {n: _like(state[f"{n}{i}"], tuple(p.shape)) for n in ("now", "best", *_MOMENTS)}
                for i, p in enumerate(self.parameters)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise UnlikeStateError(" ".join(str(error).split())[:200]) from error
        if min(step, stale, checked) < 0 or not spent >= 0:
            raise UnlikeStateError("it has a number below zero")
        self.losses, self.rng, self.order = losses, rng, order
        self.step, self.stale, self.checked, self.lowest = step, stale, checked, lowest
        self.spent_s = spent
        for i, (parameter, own) in enumerate(zip(self.parameters, arrays, strict=True)):
            parameter.copy_(torch.from_numpy(own["now"].copy()))
            self.best[i] = torch.from_numpy(own["best"].copy()).to(parameter.device)
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                **{n: torch.from_numpy(own[n].copy()).to(parameter.device) for n in _MOMENTS},
            }


def copies(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The numbers of parameters, on their own."""
    return [p.detach().clone() for p in parameters]


def _like(array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(f"an array is {array.dtype}{list(array.shape)}, not {list(shape)}")
    return array
