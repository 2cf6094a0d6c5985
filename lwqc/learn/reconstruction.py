"""Fitting a module part by part, each on what the fitted parts before it give.

As BRECQ does (arXiv 2102.05426): parts are residual blocks, and each is to give what the teacher's
gives for the same inputs of the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lwqc.learn.distill import Array, Batch, Distillation, Fit, Scale, Settings, is_sparse
from lwqc.learn.module import OnnxModule
from lwqc.learn.parts import Part, parts
from lwqc.learn.program import Program, Scope
from lwqc.learn.soft_rounding import SoftCodes, SoftRounding
from lwqc.learn.unrounded import unrounded
from lwqc.model.limits import beyond, limits

Inputs = Mapping[str, Any]
_ALIKE = 1.0  # error, as a share of the variance, from which tensors are two different ones


@dataclass(frozen=True)
class Reconstruction:
    """How parts of a module are fitted to those of its teacher.

    floats: the model with the weights that codes stand for: codes are learned between the two
    neighbours of those; None: they are rounded in every run. layers: each weight is a part,
    otherwise blocks of at least two.
    """

    module: OnnxModule
    teacher: OnnxModule
    floats: OnnxModule | None = None
    layers: bool = False

    def run(
        self,
        inputs: Sequence[Inputs],
        fitted: int,
        scales: Callable[[Sequence[Batch]], Mapping[str, Scale]],
        settings: Settings,
    ) -> list[Fit]:
        """Fit each part; what came of each, in their order.

        fitted: how many of the inputs, from the first one on; the others judge. settings: steps
        are those of each part, and the time is that of all.
        """
        known = shared(self.module, self.teacher, inputs[0])
        found = parts(self.module, known, least=1 if self.layers else 2)
        walk, taught = Walk(self.module, inputs), Walk(self.teacher, inputs)
        begin, fits = time.monotonic(), list[Fit]()
        for index, part in enumerate(found):
            own = _of_part(settings, index, len(found), time.monotonic() - begin)
            walk.to(part.begin)
            wanted = taught.to(taught.end_of(part.wanted), part.wanted)
            batches = [Batch(s, w) for s, w in zip(walk.scopes, wanted, strict=True)]
            fit, held = batches[:fitted], batches[fitted:]
            codes = self._soft_codes(part)
            soft = SoftRounding(codes)
            made = PartModule(self.module, part, soft)
            relaxed = soft if codes else None
            fits.append(Distillation(made, scales(fit), own, relaxed=relaxed).run(fit, held))
        return fits

    def _soft_codes(self, part: Part) -> dict[int, SoftCodes]:
        """Codes whose weights are known without rounding, by the place they are read at."""
        module = self.module
        known = {} if self.floats is None else unrounded(module, self.floats, part)
        return {
            module.held[name].number: SoftCodes.between(
                getattr(module, name), module.codes[name], target
            )
            for name, target in known.items()
            if not is_sparse(getattr(module, name), coded=True)
        }


def _of_part(settings: Settings, index: int, count: int, behind: float) -> Settings:
    """What one part gets of the progress and of the time that is left."""

    def told(done: int, total: int) -> None:
        settings.progress(index * total + done, count * total)

    limit = settings.time_limit_s
    left = None if limit is None else max(limit - behind, 0.0) / (count - index)
    return replace(settings, progress=told, time_limit_s=left)


class Walk:
    """Inputs on their way through a module. scopes: what later steps read of each of them."""

    def __init__(self, module: OnnxModule, inputs: Iterable[Inputs]) -> None:
        """All begin at the first step."""
        self._module, self._at = module, 0
        self.scopes: list[Scope] = [module.given(given) for given in inputs]

    @torch.no_grad()
    def to(self, end: int, wanted: Collection[str] = ()) -> list[dict[str, Array]]:
        """Go on to a step that lies ahead; what some tensors hold there, for each of the inputs.

        Raises LimitError where what is kept of all inputs takes more than `Limits.traces`.
        """
        steps, end = self._module.program.steps, max(end, self._at)
        program = self._module.program.part(self._at, end)
        places = {name: self._module.places[name] for name in wanted}
        later = {place for step in steps[end:] for place in step.reads}
        stored = self._module.stored(program.reads)
        found, held = [], 0
        for index, scope in enumerate(self.scopes):
            now = {**stored, **scope}
            program.run(now, frozenset(places.values()))
            found.append({name: now[place].cpu().numpy() for name, place in places.items()})
            own = scope.keys() | (now.keys() - stored.keys())
            self.scopes[index] = {place: now[place] for place in own & now.keys() & later}
            held += sum(getattr(value, "nbytes", 0) for value in self.scopes[index].values())
            if held > limits().traces:
                whole = held / (index + 1) * len(self.scopes)
                raise beyond("keeping what a part of the model reads", "traces", whole)
        self._at = end
        return found

    def end_of(self, names: Collection[str]) -> int:
        """The step behind which all of these tensors are there."""
        places = {self._module.places[name] for name in names}
        steps = self._module.program.steps
        made = [i for i, step in enumerate(steps, 1) if not places.isdisjoint(step.outputs)]
        return max(made, default=0)


class PartModule:
    """A part of a module, for values by place instead of inputs by name."""

    def __init__(self, whole: OnnxModule, part: Part, soft: SoftRounding) -> None:
        """Its parameters are those of the whole that the part trains, or soft codes."""
        self._soft = soft
        self._stored = whole.stored
        self._program: Program = whole.program.part(part.begin, part.end)
        self._places = {name: whole.places[name] for name in part.wanted}
        self._read = self._program.reads
        self.output_names = part.wanted
        self.trained = {name: getattr(whole, name) for name in part.trained}
        self.coded = [p for name, p in self.trained.items() if name in whole.codes]

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What is fitted now."""
        learned = self._soft.codes if self._soft.active else ()
        yield from (p for p in self.trained.values() if not any(p is c for c in learned))
        if self._soft.active:
            yield from self._soft.parameters()

    def values(self, inputs: Mapping[Any, Any], inner: Iterable[str] = ()) -> dict[str, Any]:
        """What the part gives, by name."""
        scope = {**self._stored(self._read), **inputs}
        if self._soft.active:
            scope.update(self._soft.read())
        self._program.run(scope, frozenset(self._places.values()))
        return {name: scope[place] for name, place in self._places.items()}


@torch.no_grad()
def shared(module: OnnxModule, teacher: OnnxModule, inputs: Inputs) -> set[str]:
    """Tensors of floats that both models have by that name and in that shape, and much alike."""
    names = _made(module) & _made(teacher)
    ours, theirs = (m.values(inputs, names) for m in (module, teacher))
    return {name for name in names if _alike(ours[name], theirs[name])}


def _made(module: OnnxModule) -> set[str]:
    """Tensors of the main graph that depend on its inputs."""
    given, made = set(module.program.inputs), set[int]()
    for step in module.program.steps:
        if not given.isdisjoint(step.reads):
            made.update(step.outputs)
            given.update(step.outputs)
    return {name for name, place in module.places.items() if name and place in made}


def _alike(ours: Any, theirs: Any) -> bool:
    if not (isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)):
        return False
    if ours.shape != theirs.shape or not (ours.is_floating_point() and theirs.is_floating_point()):
        return False
    a, b = ours.double(), theirs.double()
    return float((a - b).square().sum()) < _ALIKE * float((b - b.mean()).square().sum())
