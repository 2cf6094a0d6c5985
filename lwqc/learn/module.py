"""An ONNX model as a torch module."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from lwqc.errors import InputError
from lwqc.learn.building import Builder
from lwqc.learn.code_scales import scaled
from lwqc.learn.grids import Grid, ZeroPoint
from lwqc.learn.program import Program, Scope
from lwqc.learn.segments import Segments
from lwqc.learn.stored import Place

_KERNEL = 4  # dimensions: outputs, inputs, height, width


@dataclass(frozen=True)
class Held:
    """A parameter or buffer. number: its place in the program. place: where the model stores it.

    grid: of codes that are trained. narrow: the type that operators read, where it is another one.
    moving: batches change it. base: scales, of which the parameter is the share that is left. zero:
    what a zero point may be.
    """

    number: int
    place: Place
    kind: ir.DataType
    grid: Grid | None = None
    narrow: torch.dtype | None = None
    moving: bool = False
    base: torch.Tensor | None = None
    zero: ZeroPoint | None = None

    def read(self, value: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        """What operators read of a parameter or buffer. more: of scales, other shares."""
        if self.grid is not None:
            return self.grid.codes(value)
        if self.zero is not None:
            return self.zero.code(value)
        if self.base is not None:
            return scaled(self.base.to(value.device), value, *more)
        return value if self.narrow is None else value.to(self.narrow)


@dataclass(frozen=True)
class Follower:
    """A stored tensor that goes by parameters of others. leaders: their names."""

    held: Held
    leaders: tuple[str, ...]


class OnnxModule(torch.nn.Module):
    """A model as a torch module: called with its inputs, it gives its outputs by name.

    Statistics of normalisations are what the file says, and so is dropout, in both modes of the
    module; with `batch_statistics` those of the batch are used, and move the file's, in `train()`.
    held: parameters and buffers by their names in torch, see `tensors`. followers: stored tensors
    that are computed of parameters: scales of the same codes, and those of biases.
    untrained: stored tensors that are no parameters, by name in the model, each with the reason.
    drawn: nodes that draw random numbers in every run, by torch's generator.
    program: all steps. places: of tensors of the main graph, by name. segments: what is run in its
    place where memory is short; batches must not change statistics then.
    """

    def __init__(self, model: ir.Model, builder: Builder) -> None:
        super().__init__()
        self.program: Program = builder.program
        self._inputs = {v.name or "": builder.place(v) for v in model.graph.inputs}
        typed = {v.name: v.dtype for v in model.graph.inputs if v.dtype is not None}
        self._whole = {name for name, dtype in typed.items() if dtype.is_integer()}
        self._outputs = {v.name or "": builder.place(v) for v in model.graph.outputs}
        self.places: dict[str, int] = {
            v.name or "": n for v, n in builder.places.items() if v.graph is model.graph
        }
        self._constants: Scope = {}
        self.held: dict[str, Held] = {}
        self.followers: list[Follower] = []
        self.untrained: dict[str, str] = {}
        self.drawn: tuple[str, ...] = tuple(builder.drawn)
        self._mode = builder.mode
        self.segments: Segments | None = None

    @property
    def tensors(self) -> dict[str, str]:
        """Name in the model by name of parameter or buffer: torch allows fewer names."""
        return {name: held.place[-1] for name, held in self.held.items()}

    @property
    def codes(self) -> dict[str, Grid]:
        """Parameters that are codes, in units of a code, unpacked."""
        return {name: h.grid for name, h in self.held.items() if h.grid is not None}

    @property
    def coded(self) -> list[torch.nn.Parameter]:
        """Those parameters themselves."""
        return [getattr(self, name) for name in self.codes]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(self._inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(self._outputs)

    def channels_last(self) -> None:
        """Hold kernels of two dimensions so that convolutions compute with the channels innermost.

        On a CPU that takes about half of the time where they have few channels in a group.
        """
        for parameter in self.parameters():
            if parameter.ndim == _KERNEL:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)

    def constant(self, number: int, value: torch.Tensor) -> None:
        """Hold what never changes and stays on the CPU, where shapes are computed."""
        self._constants[number] = value

    def hold(self, held: Held, value: torch.Tensor, *, trained: bool) -> str:
        """Hold a parameter or a buffer, under a name that torch allows, which is returned."""
        name = self._allowed(held.place[-1])
        self.held[name] = held
        if trained:
            self.register_parameter(name, torch.nn.Parameter(value))
        else:
            self.register_buffer(name, value)
        return name

    def _allowed(self, name: str) -> str:
        usable = name.replace(".", "_") or "unnamed"
        number, tried = 1, usable
        while hasattr(self, tried):
            number += 1
            tried = f"{usable}_{number}"
        return tried

    def forward(self, *positional: Any, **named: Any) -> dict[str, Any]:
        """Outputs by name. Inputs: tensors or arrays, in order or by name.

        Raises InputError for inputs that the model has not, for those that are missing, and for
        those of sizes or types that torch does not compute a node for.
        """
        if len(positional) > len(self._inputs):
            raise InputError(f"{len(positional)} inputs; the model has {len(self._inputs)}")
        return self.values(dict(zip(self._inputs, positional, strict=False)) | named)

    def values(
        self, inputs: Mapping[str, Any], inner: Iterable[str] = (), moved: Scope | None = None
    ) -> dict[str, Any]:
        """Outputs by name, and what other tensors of the main graph hold, by name.

        moved: what operators read in some places instead of what is stored. Raises InputError for
        names that the graph has not.
        """
        names = list(inner)
        for name in names:
            if name not in self.places:
                raise InputError(f"{name}: the graph has no such tensor")
        wanted = {name: self.places[name] for name in names} | self._outputs
        scope = {**self._scope(inputs), **(moved or {})}
        if self._mode is not None:
            self._mode.training = self.training
        (self.segments or self.program).run(scope, frozenset(wanted.values()))
        return {name: scope[number] for name, number in wanted.items()}

    def _scope(self, inputs: Mapping[str, Any]) -> Scope:
        """Values that are there before anything runs."""
        return {**self.stored(), **self.given(inputs)}

    def stored(self, places: Collection[int] | None = None) -> Scope:
        """What the model stores; all of it, or what lies in some places."""
        found = dict(self._constants)
        for held, names in self.kept():
            if places is None or held.number in places:
                found[held.number] = held.read(*(getattr(self, name) for name in names))
        return found

    def kept(self) -> Iterator[tuple[Held, tuple[str, ...]]]:
        """All that is held or follows, each with the names of what it is read from."""
        yield from ((held, (name,)) for name, held in self.held.items())
        yield from ((follower.held, follower.leaders) for follower in self.followers)

    def given(self, inputs: Mapping[str, Any]) -> Scope:
        """Inputs by their places.

        Raises InputError for those that are missing or that it lacks, and for floats in place of
        whole numbers.
        """
        scope: Scope = {}
        device = next((getattr(self, name).device for name in self.held), None)
        for name, given in inputs.items():
            if name not in self._inputs:
                raise InputError(f"{name}: no input; expected {', '.join(self._inputs)}")
            value = given if isinstance(given, (torch.Tensor, list)) else torch.as_tensor(given)
            if (
                isinstance(value, torch.Tensor)
                and value.is_floating_point()
                and name in self._whole
            ):
                raise InputError(f"{name}: floats were given for an input of whole numbers")
            on = value.to(device) if isinstance(value, torch.Tensor) else value
            scope[self._inputs[name]] = on
        missing = [n for n, i in self._inputs.items() if i not in scope | self._constants]
        if missing:
            raise InputError(f"{missing[0]}: the input is missing")
        return scope
