"""A graph as a list of steps, each a torch function with places of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lwqc.errors import InputError
from lwqc.learn.operation import Call, Function

Scope = dict[int, Any]  # values by the number of their place


class NodeError(InputError):
    """A node that torch does not compute for what it is given, such as sizes that do not fit."""


@dataclass(frozen=True)
class Step:
    """One node. inputs: places; None where one is left out. dead: places that no later step reads.

    numbers: inputs that need not be where the others are. captured: places that its bodies read.
    """

    run: Function
    call: Call
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    numbers: tuple[int, ...] = ()
    scoped: bool = False
    dead: tuple[int, ...] = ()
    captured: tuple[int, ...] = ()

    @property
    def reads(self) -> set[int]:
        """All places whose values it may look at."""
        return {i for i in self.inputs if i is not None} | set(self.captured)


@dataclass
class Program:
    """The steps of a graph, a body or a function.

    empty: for each output a tensor of no rows of what it declares, None where that is not known.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: list[Step] = field(default_factory=list)
    empty: tuple[torch.Tensor | None, ...] = ()

    @staticmethod
    def of(
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        steps: Sequence[Step],
        empty: tuple[torch.Tensor | None, ...],
    ) -> Program:
        """Steps in the order that they are done in, which know what is read for the last time."""
        ordered = _late(steps, inputs)
        return Program(inputs, outputs, _with_dead(ordered, inputs, outputs), empty)

    @property
    def reads(self) -> set[int]:
        """All places whose values it may look at, its own among them."""
        return {place for step in self.steps for place in step.reads} | set(self.outputs)

    def part(self, begin: int, end: int) -> Program:
        """Some of its steps, for a scope that holds what the steps before them computed."""
        return Program((), (), self.steps[begin:end])

    def run(self, scope: Scope, kept: frozenset[int] = frozenset()) -> None:
        """Compute everything in a scope that holds the inputs and what is stored.

        kept: places whose values stay there although nothing reads them any more.
        Raises NodeError for what torch does not compute.
        """
        for step in self.steps:
            values = [None if i is None else scope[i] for i in step.inputs]
            values = _together(values, step.numbers)
            try:
                made = (
                    step.run(step.call, scope, *values)
                    if step.scoped
                    else step.run(step.call, *values)
                )
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                line = str(error).strip().partition("\n")[0][:300]
                raise NodeError(f"{step.call.label}: torch says: {line}") from error
            if isinstance(made, tuple):
                # Outputs that nobody asked for may be more than those of the node.
                scope.update(zip(step.outputs, made, strict=False))
            else:
                scope[step.outputs[0]] = made
            for place in step.dead:
                if place not in kept:
                    scope.pop(place, None)

    def run_body(self, scope: Scope, inputs: Iterable[Any]) -> list[Any]:
        """The outputs of a body, which may read everything in the scope around it."""
        scope.update(zip(self.inputs, inputs, strict=True))
        self.run(scope)
        return [scope[i] for i in self.outputs]


def _late(steps: Sequence[Step], inputs: Iterable[int]) -> list[Step]:
    """What depends on no input, such as weights that are decoded, just before it is first read."""
    moving, fixed = set(inputs), [False] * len(steps)
    for index, step in enumerate(steps):
        fixed[index] = moving.isdisjoint(step.reads)
        if not fixed[index]:
            moving.update(step.outputs)
    at, first = [0] * len(steps), dict[int, int]()
    for index in reversed(range(len(steps))):
        step, end = steps[index], len(steps)
        at[index] = min((first.get(o, end) for o in step.outputs), default=end)
        if not fixed[index]:
            at[index] = index
        for place in step.reads:
            first[place] = min(first.get(place, end), at[index])
    order = sorted(range(len(steps)), key=lambda i: (at[i], not fixed[i]))
    return [steps[i] for i in order]


def _with_dead(steps: Sequence[Step], inputs: Iterable[int], outputs: Iterable[int]) -> list[Step]:
    """Steps that know which values of this graph are read for the last time."""
    own = {*inputs, *(place for step in steps for place in step.outputs)}
    alive, made = set(outputs), []
    for step in reversed(steps):
        touched = step.reads | set(step.outputs)
        made.append(replace(step, dead=tuple(sorted((touched & own) - alive))))
        alive |= touched
    return made[::-1]


def _together(values: list[Any], numbers: Sequence[int]) -> list[Any]:
    """Inputs on one device: shapes are computed on the CPU, where some of them stay."""
    device = next(
        (v.device for v in values if isinstance(v, torch.Tensor) and v.device.type != "cpu"), None
    )
    if device is None:
        return values
    return [
        v.to(device) if isinstance(v, torch.Tensor) and i not in numbers else v
        for i, v in enumerate(values)
    ]


def function_call(program: Program) -> Function:
    """What a call of a function computes: its program, in the scope of the call."""

    def run(call: Call, scope: Scope, *inputs: Any) -> Any:
        missing = len(program.inputs) - len(inputs)
        return tuple(program.run_body(scope, (*inputs, *[None] * missing)))

    return run
