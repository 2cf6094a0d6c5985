"""What a row of the operator table is, and what a function is told about the node it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

Tensor = torch.Tensor
Key = tuple[str, str]  # domain, operator
Function = Callable[..., Any]
GridPlaces = tuple[int | None, int, int]  # inputs: codes, scale, zero point


@dataclass(frozen=True)
class Call:
    """One node. label: for messages. opset: version of its domain.

    attributes: those of the node and the defaults of its schema, as Python values; tensors are
    torch's and graphs are `lwqc.learn.program.Program`. wanted: which of its outputs have a name.
    types: of its inputs, where they are known; 4-bit codes lie in tensors of 8 bits.
    """

    label: str
    opset: int
    attributes: Mapping[str, Any]
    wanted: tuple[bool, ...] = (True,)
    types: tuple[ir.DataType | None, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; `default` where neither the node nor its schema says anything."""
        value = self.attributes.get(name)
        return default if value is None else value

    def real(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return float(self.get(name, default))

    def type_of(self, index: int) -> ir.DataType | None:
        """The type of an input, if there is one and it is known."""
        return self.types[index] if index < len(self.types) else None


@dataclass(frozen=True)
class Operation:
    """How torch computes an operator.

    run: `run(call, *inputs)`; one tensor, or a tuple with one for each output. Inputs that are left
    out are None. numbers: inputs that are read as Python numbers (shapes, axes), wherever they are.
    fixed: float inputs that are no weights: statistics, scales, sizes. codes: inputs that may be
    codes of weights; with gradients they are floats that hold whole numbers. packed: codes of bytes
    are packed in them, by the attribute `bits`; floats are not. scale: input that codes of weights
    are multiplied by. grids: of codes that it reads or writes, each as the inputs with the codes
    (None: they are the output), their scale and their zero point. scoped: `run` gets the values
    that bodies may read as its second argument. drawn_from: with so many inputs numbers are drawn
    anew in every run; None for never. by_batch: `run` by the statistics of the batch, which changes
    those that it is given. refused: why a node of the operator cannot be computed, or "", asked
    before anything runs.
    """

    run: Function
    numbers: tuple[int, ...] = ()
    fixed: tuple[int, ...] = ()
    codes: tuple[int, ...] = ()
    packed: bool = False
    scale: int | None = None
    grids: tuple[GridPlaces, ...] = ()
    scoped: bool = False
    drawn_from: int | None = None
    by_batch: Function | None = None
    refused: Callable[[Call, ir.Node], str] = lambda call, node: ""


Table = Mapping[Key, Operation]


def onnx(**functions: Function) -> dict[Key, Operation]:
    """Rows for operators of ONNX's own domain, without special inputs."""
    return {("", name): Operation(function) for name, function in functions.items()}


def unary(function: Callable[[Tensor], Tensor]) -> Function:
    """A function of one tensor that needs nothing of the node."""
    return lambda call, x: function(x)


def numbers(value: Tensor | Sequence[int] | None) -> list[int] | None:
    """The integers that a small tensor or an attribute holds; None for none."""
    if value is None:
        return None
    return [int(n) for n in value.reshape(-1).tolist()] if torch.is_tensor(value) else list(value)
