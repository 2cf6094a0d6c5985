"""Fitting a module to what another model gives for the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lwqc.learn.descent import Descent, Keeper, copies
from lwqc.learn.schedule import Schedule
from lwqc.learn.zero_patterns import ZeroPattern

Array = NDArray[Any]
Loss = Callable[[Mapping[str, Any], Mapping[str, Any]], torch.Tensor]
LEAST_SIZE = 1e-2  # of a parameter near zero, for how far it may move in a step
_CHECKS, _LEAST_CHECKS = 20, 4  # of the held-back inputs during a fit
_PATIENCE = 6  # checks without a better one after which a fit ends
_SETTLING = 0.6  # share of a fit in which steps are so large that it may yet get better
_SURE = 2.0  # standard errors by which held-back losses must fall
_TOLD = 4  # held-back inputs from which that can be said


class Fitted(Protocol):
    """What is fitted: `lwqc.learn.module.OnnxModule`, or a part of one."""

    @property
    def output_names(self) -> Sequence[str]:
        """What is fitted in any case."""

    @property
    def coded(self) -> Sequence[torch.nn.Parameter]:
        """Parameters in units of a code."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What is fitted."""

    def values(self, inputs: Mapping[Any, Any], inner: Iterable[str] = ()) -> dict[str, Any]:
        """Outputs, and other tensors by name."""


@dataclass(frozen=True)
class Batch:
    """What `Fitted.values` takes, and what outputs and inner tensors are to be for it."""

    feeds: Mapping[Any, Any]
    wanted: Mapping[str, Array]


@dataclass(frozen=True)
class Scale:
    """What errors of an output count by. axis: of its channels; variance: of each, or of all.

    logits: its channels are those of classes, whose probabilities count.
    """

    axis: int | None
    variance: Array
    logits: bool = False


@dataclass(frozen=True)
class Settings:
    """How a fit runs. lr: share of a parameter's size that the largest step changes it by."""

    steps: int
    lr: float
    seed: int = 0
    time_limit_s: float | None = None
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Fit:
    """What came of a fit. start, best: mean loss on held-back inputs. steps: those that were made.

    unchanged: why the parameters are as they were; "" where they are the best ones. ended: why
    there were no more steps; "" where all were made.
    """

    start: float
    best: float
    steps: int
    unchanged: str = ""
    ended: str = ""


class Relaxed(Protocol):
    """Codes that are not whole while they are fitted, see `lwqc.learn.soft_rounding`."""

    def begin(self, loss: float) -> None:
        """From now on they are. loss: before the fit."""

    def rate(self, parameter: torch.nn.Parameter) -> float | None:
        """How far a step may change one of its own parameters; None for others."""

    def is_whole(self, done: float) -> bool:
        """Whether it is worth looking at the codes rounded."""

    def penalty(self, done: float) -> torch.Tensor:
        """What is added to the loss. done: share of the fit that is behind."""

    def end(self, *, kept: bool) -> None:
        """They are whole again; as they were before where what was found is not kept."""


@dataclass
class Distillation:
    """A fit of a module to the tensors of `scales`. loss: of outputs and feeds, in its place."""

    module: Fitted
    scales: Mapping[str, Scale]
    settings: Settings
    loss: Loss | None = None
    relaxed: Relaxed | None = None
    _zeros: dict[torch.nn.Parameter, ZeroPattern] = field(default_factory=dict)

    def run(self, fit: Sequence[Batch], held: Sequence[Batch], keeper: Keeper | None = None) -> Fit:
        """Fit to some inputs; the parameters end as those that were best on the others.

        They end as they were where that is no better by more than chance, or cannot be told.
        keeper: of the state at each check; the fit goes on from what it has. Raises
        UnlikeStateError where that is the state of another fit.
        """
        torch.manual_seed(self.settings.seed)  # of models and losses that draw
        before = self.held_losses(held or fit)
        start = float(before.mean())
        if self.loss is None and not self.scales:
            return Fit(start, start, 0, "nothing that could be fitted varies on the data")
        if not math.isfinite(start):
            return Fit(start, start, 0, "the loss is no number on held-back inputs")
        if len(held) < _TOLD:
            return Fit(start, start, 0, f"{len(held)} held-back inputs are too few to judge by")
        if self.relaxed is not None:
            self.relaxed.begin(start)
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        if not parameters:
            return Fit(start, start, 0, "the model has no weights that can be trained")
        first = copies(parameters)
        best, losses, steps, ended = self._descend(parameters, fit, held, before, keeper)
        gain = before - losses
        error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
        sure = float(gain.mean()) > _SURE * error and float(losses.mean()) < start
        _set(parameters, best if sure else first)
        if self.relaxed is not None:
            self.relaxed.end(kept=sure)
        if not sure:
            why = "it got no better on held-back inputs than by chance"
            return Fit(start, start, steps, why, ended)
        return Fit(start, float(losses.mean()), steps, "", ended)

    def _descend(
        self,
        parameters: Sequence[torch.nn.Parameter],
        fit: Sequence[Batch],
        held: Sequence[Batch],
        losses: Array,
        keeper: Keeper | None,
    ) -> tuple[list[torch.Tensor], Array, int, str]:
        """The best parameters, their losses on held-back inputs, steps made, and why no more."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        coded = set(self.module.coded)
        patterns = ((p, ZeroPattern.of(p, coded=p in coded)) for p in parameters)
        self._zeros = {parameter: found for parameter, found in patterns if found is not None}
        sizes = [_size(p) for p in parameters]
        optimizer = torch.optim.Adam([{"params": [p]} for p in parameters])
        way = Descent(parameters, optimizer, np.random.default_rng(settings.seed), losses)
        kept = None if keeper is None else keeper.state()
        if kept is not None:
            way.restore(kept, len(fit))
        schedule = Schedule(settings.steps, settings.time_limit_s, way.spent_s)
        settled = f"no better for {_PATIENCE} checks"
        if self._settled(way, schedule):
            return way.best, way.losses, way.step, settled
        while (done := schedule.done(way.step)) < 1:
            way.order = way.order or way.rng.permutation(len(fit)).tolist()
            for group, size in zip(optimizer.param_groups, sizes, strict=True):
                rate = settings.lr * size * Schedule.factor(done)
                own = None if self.relaxed is None else self.relaxed.rate(group["params"][0])
                group["lr"] = rate if own is None else own
            if not self._step(optimizer, fit[way.order.pop()], done):
                ended = f"the loss is no number after {way.step} steps"
                return way.best, way.losses, way.step, ended
            way.step += 1
            settings.progress(min(round(schedule.done(way.step) * 100), 100), 100)
            due = _is_due(way, schedule.done(way.step), len(held))
            if due and (self.relaxed is None or self.relaxed.is_whole(done)):
                way.check(self.held_losses(held), int(schedule.done(way.step) * _CHECKS))
                if keeper is not None:
                    keeper.keep(way.state())
                if self._settled(way, schedule):
                    return way.best, way.losses, way.step, settled
        ended = "" if way.step >= settings.steps else "the time was over"
        return way.best, way.losses, way.step, ended

    def try_steps(self, fit: Sequence[Batch], count: int) -> None:
        """So many steps that change nothing, such as for a clock."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        if not parameters or not self.scales:
            return
        still = torch.optim.SGD(parameters, lr=0.0)
        for index in range(count):
            self._step(still, fit[index % len(fit)], 0.0)

    def _settled(self, way: Descent, schedule: Schedule) -> bool:
        """Whether nothing more is to be expected, as a check shows it."""
        stale = self.relaxed is None and way.stale >= _PATIENCE
        return stale and schedule.done(way.step) > _SETTLING

    def _step(self, optimizer: torch.optim.Optimizer, batch: Batch, done: float) -> bool:
        """One step; False where the loss is no number."""
        optimizer.zero_grad()
        loss = self._loss(batch)
        if self.relaxed is not None:
            loss = loss + self.relaxed.penalty(done)
        if not bool(torch.isfinite(loss)):
            return False
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for parameter, pattern in self._zeros.items():
            pattern.keep(parameter)
        return True

    def held_losses(self, held: Sequence[Batch]) -> Array:
        """Loss of each batch, as the module is now."""
        with torch.no_grad():
            return np.asarray([float(self._loss(batch)) for batch in held])

    def _loss(self, batch: Batch) -> torch.Tensor:
        inner = [name for name in batch.wanted if name not in self.module.output_names]
        made = self.module.values(batch.feeds, inner)
        if self.loss is not None:
            return self.loss(made, batch.feeds)
        parts = [
            output_error(made[name], batch.wanted[name], scale)
            for name, scale in self.scales.items()
        ]
        return torch.stack(parts).mean() if parts else torch.zeros(())


def checks(steps: int, held: int) -> int:
    """How often a fit is checked on so many held-back inputs.

    Each takes about a third of a step, so that between two there are at least as many steps
    as inputs, where that leaves enough of them.
    """
    return min(_CHECKS, max(_LEAST_CHECKS, -(-steps // max(held, 1))))


def _is_due(way: Descent, done: float, held: int) -> bool:
    """done: share of the fit that is behind."""
    if done * _CHECKS < way.checked + 1:
        return False
    late = done >= 1 or done * _CHECKS >= way.checked + _CHECKS // _LEAST_CHECKS
    return late or way.step - way.checked_step >= held


def output_error(found: torch.Tensor, wanted: Array, scale: Scale) -> torch.Tensor:
    """Divergence of the probabilities in nats, or the relative error."""
    if not scale.logits or scale.axis is None:
        return relative_error(found, wanted, scale)
    target = torch.from_numpy(np.asarray(wanted)).to(found.device, found.dtype)
    own = torch.log_softmax(found, scale.axis)
    known = torch.log_softmax(target, scale.axis)
    there = torch.isfinite(known)  # classes that are ruled out
    parts = known.exp() * (torch.where(there, known, 0.0) - torch.where(there, own, 0.0))
    return parts.sum(scale.axis).mean()


def relative_error(found: torch.Tensor, wanted: Array, scale: Scale) -> torch.Tensor:
    """Mean squared error in units of each channel's variance; what is not finite is left out."""
    target = torch.from_numpy(np.asarray(wanted)).to(found.device, found.dtype)
    variance = torch.from_numpy(np.array(scale.variance)).to(found.device, found.dtype)
    if scale.axis is not None and variance.numel() == found.shape[scale.axis]:
        shape = [-1 if i == scale.axis else 1 for i in range(found.ndim)]
        variance = variance.reshape(shape)
    else:
        variance = variance.mean()
    there = torch.isfinite(target)
    error = torch.where(there, found - torch.where(there, target, 0.0), 0.0)
    return (error.square() / variance).mean()


def _size(parameter: torch.nn.Parameter) -> float:
    """Root mean square of a parameter."""
    size = float(parameter.detach().double().square().mean().sqrt())
    return max(size, LEAST_SIZE)


@torch.no_grad()
def _set(parameters: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
