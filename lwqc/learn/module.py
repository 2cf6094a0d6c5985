"""An ONNX model as a torch module."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from lwqc.errors import InputError
from lwqc.learn.building import Builder
from lwqc.learn.code_scales import scaled
from lwqc.learn.grids import Grid
from lwqc.learn.program import Program, Scope
from lwqc.learn.segments import Segments
from lwqc.learn.stored import Place


@dataclass(frozen=True)
class Held:
    """A parameter or buffer. number: its place in the program. place: where the model stores it.

    grid: of codes that are trained. narrow: the type that operators read, where it is another one.
    moving: batches change it. base: scales, of which the parameter is the share that is left.
    """

    number: int
    place: Place
    kind: ir.DataType
    grid: Grid | None = None
    narrow: torch.dtype | None = None
    moving: bool = False
    base: torch.Tensor | None = None

    def read(self, value: torch.Tensor) -> torch.Tensor:
        """What operators read of a parameter or buffer."""
        if self.grid is not None:
            return self.grid.codes(value)
        if self.base is not None:
            return scaled(self.base.to(value.device), value)
        return value if self.narrow is None else value.to(self.narrow)


class OnnxModule(torch.nn.Module):
    """A model as a torch module: called with its inputs, it gives its outputs by name.

    Statistics of normalisations are what the file says, and so is dropout, in both modes of the
    module; with `batch_statistics` those of the batch are used, and move the file's, in `train()`.
    held: parameters and buffers by their names in torch, see `tensors`.
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

    def constant(self, number: int, value: torch.Tensor) -> None:
        """Hold what never changes and stays on the CPU, where shapes are computed."""
        self._constants[number] = value

    def hold(self, held: Held, value: torch.Tensor, *, trained: bool) -> None:
        """Hold a parameter or a buffer, under a name that torch allows."""
        name = self._allowed(held.place[-1])
        self.held[name] = held
        if trained:
            self.register_parameter(name, torch.nn.Parameter(value))
        else:
            self.register_buffer(name, value)

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
        held = self.held.items() if places is None else self._held_in(places)
        return {**self._constants, **{h.number: h.read(getattr(self, name)) for name, h in held}}

    def _held_in(self, places: Collection[int]) -> list[tuple[str, Held]]:
        return [(name, held) for name, held in self.held.items() if held.number in places]

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
