"""What codes would be if they were not rounded: from the weights that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from lwqc.learn.module import OnnxModule
from lwqc.learn.parts import Part
from lwqc.learn.program import Program, Scope, Step
from lwqc.learn.table import OPERATIONS

_FAR = 1.0  # codes that weights lie from them in the mean, from which they are other weights
_DECODES = OPERATIONS["com.microsoft", "MatMulNBits"].run  # a product of codes themselves


def unrounded(module: OnnxModule, floats: OnnxModule, part: Part) -> dict[str, torch.Tensor]:
    """Codes as fractions, by parameter of the part; those that cannot be told are left out.

    floats: the model with the weights that the codes stand for. A weight belongs to a product if
    the results of both have one name. Wherever codes lie in a file, weights are a linear function
    of them, each of one code: the transpose of its derivative leads back.
    """
    names = {place: name for name, place in module.places.items()}
    theirs = {o: step for step in floats.program.steps for o in step.outputs}
    coded = [name for name in part.trained if name in module.codes]
    program = module.program.part(part.begin, part.end)
    found = {}
    with torch.enable_grad():
        stored = module.stored(program.reads)
        fixed = _fixed(program, stored)
        for step in program.steps:
            other = theirs.get(floats.places.get(names.get(step.outputs[0], ""), -1))
            if other is None:
                continue
            for weight in _weights(step, fixed):
                for wanted in _their_weights(floats, other, weight.shape):
                    for name in coded:
                        moved = _moved(getattr(module, name), weight, wanted)
                        if moved is not None:
                            found[name] = moved
    return found


def _fixed(program: Program, stored: Scope) -> Scope:
    """Values that depend on no inputs."""
    scope = dict(stored)
    for step in program.steps:
        if step.reads <= scope.keys():
            Program((), (), [step]).run(scope, frozenset(step.outputs) | step.reads)
    return scope


def _weights(step: Step, fixed: Scope) -> Iterator[torch.Tensor]:
    """Matrices that meet inputs of the model in a step."""
    if step.reads <= fixed.keys():
        return
    if step.run is _DECODES:
        count = step.call.get("K")
        others = [None if i is None else fixed.get(i) for i in step.inputs[1:5]]
        yield step.run(step.call, torch.eye(count), *others)
    yield from _matrices(fixed.get(place) for place in step.reads)


def _matrices(values: Iterable[object]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1:
            yield value


def _their_weights(floats: OnnxModule, step: Step, shape: torch.Size) -> Iterator[torch.Tensor]:
    stored = floats.stored(step.reads)
    for value in _matrices(stored.get(place) for place in step.reads):
        if value.shape == shape:
            yield value


def _moved(codes: torch.Tensor, weight: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor | None:
    """The codes that give a wanted weight; None where the weight is not made of them."""
    if not weight.requires_grad:
        return None
    error = (wanted - weight).detach()
    (scale,) = torch.autograd.grad(weight.sum(), codes, retain_graph=True, allow_unused=True)
    if scale is None:
        return None
    (back,) = torch.autograd.grad((weight * error).sum(), codes, retain_graph=True)
    moved = torch.where(scale == 0, 0.0, back / scale.square())
    if float(moved.abs().mean()) > _FAR:
        return None
    return codes.detach() + moved
