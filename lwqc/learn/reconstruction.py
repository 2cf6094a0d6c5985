"""Fitting a module part by part, each on what the fitted parts before it give.

As BRECQ does (arXiv 2102.05426): parts are residual blocks, and each is to give what the teacher's
gives for the same inputs of the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch

from lwqc.learn.descent import UnlikeStateError
from lwqc.learn.distill import Array, Batch, Distillation, Fit, Scale, Settings
from lwqc.learn.entropy import entropies
from lwqc.learn.module import OnnxModule
from lwqc.learn.parts import Part, joined_parts, parts
from lwqc.learn.program import Program, Scope, Step
from lwqc.learn.soft_rounding import SoftCodes, SoftRounding
from lwqc.learn.unrounded import unrounded
from lwqc.learn.zero_patterns import ZeroPattern
from lwqc.model.limits import beyond, limits

Inputs = Mapping[str, Any]
_LOOKED_AT = 8  # inputs that entropies are taken of
_ALIKE = 1.0  # error, as a share of the variance, from which tensors are two different ones


@dataclass(frozen=True)
class PartDone:
    """What came of the fit of a part, and its parameters then, by name."""

    fit: Fit
    numbers: Mapping[str, Array]


class PartsKeeper(Protocol):
    """Where parts that are done are kept."""

    def parts(self) -> Sequence[PartDone]:
        """Those that are there, from the first one on."""

    def keep_part(self, done: PartDone) -> None:
        """Keep the next one."""


@dataclass(frozen=True)
class Reconstruction:
    """How parts of a module are fitted to those of its teacher.

    floats: the model with the weights that codes stand for: codes are learned between the two
    neighbours of those; None: they are rounded in every run. kind: `layers`, each weight is a part;
    `blocks` of at least two; or as many parts, `entropy` saying what is joined.
    """

    module: OnnxModule
    teacher: OnnxModule
    floats: OnnxModule | None = None
    kind: Literal["layers", "blocks", "entropy"] = "blocks"

    def run(
        self,
        inputs: Sequence[Inputs],
        fitted: int,
        scales: Callable[[Sequence[Batch]], Mapping[str, Scale]],
        settings: Settings,
        keeper: PartsKeeper | None = None,
    ) -> tuple[list[Part], list[Fit]]:
        """Fit each part; all parts and what came of each, in their order.

        fitted: how many of the inputs, from the first one on; the others judge. settings: steps
        are those of each part, and the time is that of all. keeper: of parts that are done; those
        that it has are taken from there. Raises UnlikeStateError where they are others.
        """
        found = self._parts(inputs[:fitted])
        earlier = () if keeper is None else keeper.parts()
        if len(earlier) > len(found):
            raise UnlikeStateError(f"it has {len(earlier)} parts, the model {len(found)}")
        for part, kept in zip(found, earlier, strict=False):
            self._take(part, kept)
        fits = [kept.fit for kept in earlier]
        wanted = {name for part in found[len(fits) :] for name in part.wanted}
        walk, taught = Walk(self.module, inputs), Walk(self.teacher, inputs, wanted)
        begin = time.monotonic()
        for index, part in list(enumerate(found))[len(fits) :]:
            own = _of_part(settings, index, len(found), time.monotonic() - begin)
            walk.to(part.begin)
            given = taught.to(taught.end_of(part.wanted), part.wanted)
            batches = [Batch(s, w) for s, w in zip(walk.scopes, given, strict=True)]
            fit, held = batches[:fitted], batches[fitted:]
            codes = self._soft_codes(part)
            soft = SoftRounding(codes)
            made = PartModule(self.module, part, soft)
            relaxed = soft if codes else None
            fits.append(Distillation(made, scales(fit), own, relaxed=relaxed).run(fit, held))
            if keeper is not None:
                keeper.keep_part(PartDone(fits[-1], self._numbers(part)))
        return found, fits

    def _parts(self, inputs: Sequence[Inputs]) -> list[Part]:
        known = shared(self.module, self.teacher, inputs[0])
        if self.kind == "entropy":
            own = partial(entropies, self.teacher, inputs[:_LOOKED_AT])
            return joined_parts(self.module, known, own)
        return parts(self.module, known, least=1 if self.kind == "layers" else 2)

    def _numbers(self, part: Part) -> dict[str, Array]:
        """What the part has fitted, as it is now."""
        return {name: getattr(self.module, name).detach().cpu().numpy() for name in part.trained}

    @torch.no_grad()
    def _take(self, part: Part, kept: PartDone) -> None:
        """Let the part be as it was when it was done."""
        now = self._numbers(part)
        if now.keys() != kept.numbers.keys():
            raise UnlikeStateError("it has other parts")
        for name, array in kept.numbers.items():
            if (array.shape, array.dtype) != (now[name].shape, now[name].dtype):
                raise UnlikeStateError(f"{name} is {array.dtype}{list(array.shape)}")
            getattr(self.module, name).copy_(torch.from_numpy(array.copy()))

    def _soft_codes(self, part: Part) -> dict[int, SoftCodes]:
        """Codes whose weights are known without rounding, by the place they are read at."""
        module = self.module
        known = {} if self.floats is None else unrounded(module, self.floats, part)
        return {
            module.held[name].number: SoftCodes.between(
                getattr(module, name), module.codes[name], target
            )
            for name, target in known.items()
            if ZeroPattern.of(getattr(module, name), coded=True) is None
        }


def _of_part(settings: Settings, index: int, count: int, behind: float) -> Settings:
    """What one part gets of the progress and of the time that is left."""

    def told(done: int, total: int) -> None:
        settings.progress(index * total + done, count * total)

    limit = settings.time_limit_s
    left = None if limit is None else max(limit - behind, 0.0) / (count - index)
    return replace(settings, progress=told, time_limit_s=left)


class Walk:
    """Inputs on their way through a module."""

    def __init__(
        self, module: OnnxModule, inputs: Iterable[Inputs], wanted: Collection[str] = ()
    ) -> None:
        """All begin at the first step. wanted: tensors that `to` will be asked for."""
        self._module, self._at = module, 0
        self._moving = dependent(module)
        self._pending = {module.places[name] for name in wanted}
        self._fixed: Scope = {}
        self._own: list[Scope] = [module.given(given) for given in inputs]

    @property
    def scopes(self) -> list[Scope]:
        """What later steps read of each of the inputs."""
        return [{**self._fixed, **own} for own in self._own]

    @torch.no_grad()
    def to(self, end: int, wanted: Collection[str] = ()) -> list[dict[str, Array]]:
        """Go on to a step that lies ahead; what some tensors hold there, for each of the inputs.

        Raises LimitError where what is kept of all inputs takes more than `Limits.traces`.
        """
        steps, end = self._module.program.steps, max(end, self._at)
        mine = steps[self._at : end]
        places = {name: self._module.places[name] for name in wanted}
        later = {p for step in steps[end:] for p in step.reads} | self._pending
        self._pending -= set(places.values())
        fixed = self._decoded([s for s in mine if self._moving.isdisjoint(s.outputs)], mine)
        program = Program((), (), [s for s in mine if not self._moving.isdisjoint(s.outputs)])
        found, held = [], 0
        for index, own in enumerate(self._own):
            now = {**fixed, **own}
            program.run(now, frozenset(places.values()) | self._pending)
            found.append({name: now[place].cpu().numpy() for name, place in places.items()})
            kept = (own.keys() | self._moving) & now.keys() & later
            self._own[index] = {place: now[place] for place in kept}
            held += sum(getattr(value, "nbytes", 0) for value in self._own[index].values())
            if held > limits().traces:
                whole = held / (index + 1) * len(self._own)
                raise beyond("keeping what a part of the model reads", "traces", whole)
        stored = {held.number for held, _ in self._module.kept()}
        self._fixed = {p: v for p, v in fixed.items() if p in later and p not in stored}
        self._at = end
        return found

    def _decoded(self, steps: Sequence[Step], mine: Sequence[Step]) -> Scope:
        """What depends on no input, such as decoded weights: the same for all of them."""
        read = {place for step in mine for place in step.reads}
        fixed = {**self._module.stored(read), **self._fixed}
        made = frozenset(place for step in steps for place in step.outputs)
        Program((), (), list(steps)).run(fixed, made | fixed.keys())
        return fixed

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
    places = dependent(module)
    return {name for name, place in module.places.items() if name and place in places}


def dependent(module: OnnxModule) -> set[int]:
    """Places of results that depend on inputs."""
    given, made = set(module.program.inputs), set[int]()
    for step in module.program.steps:
        if not given.isdisjoint(step.reads):
            made.update(step.outputs)
            given.update(step.outputs)
    return made


def _alike(ours: Any, theirs: Any) -> bool:
    if not (isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)):
        return False
    if ours.shape != theirs.shape or not (ours.is_floating_point() and theirs.is_floating_point()):
        return False
    a, b = ours.double(), theirs.double()
    return float((a - b).square().sum()) < _ALIKE * float((b - b.mean()).square().sum())
