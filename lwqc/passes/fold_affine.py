"""Moves products and sums with stored numbers into the convolutions beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.operands import made_by, only_reader, pads
from lwqc.model.edit import (
    add_constant,
    insert_before,
    lazy_like,
    replace_node,
    replace_stored,
)
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

Vector = NDArray[np.float64]
_OPERATORS = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True, eq=False)
class _Affine:
    """node computes factor * x + shift; the numbers are those of each channel, or of all."""

    node: ir.Node
    x: ir.Value
    factor: Vector
    shift: Vector


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold products and sums with stored numbers into the convolutions beside them.

    Matches: float32 Add, Sub, Mul and Div with a stored number, or one for each channel, whose
        other operand is the result of a convolution that nothing else reads, or whose result only
        a convolution reads.
    Rewrites to: convolutions with other weights and biases. A sum in front of one that pads stays,
        and a product in front of that sum moves through it. Equal to rounding.
    Refuses: weights that something else reads, that are computed, or that are among `whole`.

    whole: names of stored weights of which something else is known than their numbers.
    """

    keeps_sizes: ClassVar[bool] = True
    whole: tuple[str, ...] = ()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Fold at every convolution of the main graph."""
        done = 0
        for node in list(model.graph):
            if node.op_type != "Conv" or node.domain != "" or not _is_own(node):
                continue
            if not any(v is not None and v.name in self.whole for v in node.inputs):
                while _fold_behind(model.graph, node) or _fold_in_front(model.graph, node):
                    done += 1
        return done


def _is_own(conv: ir.Node) -> bool:
    """Whether weights and bias are stored for this convolution alone, in float32."""
    stored = [v for v in conv.inputs[1:] if v is not None]
    return bool(stored) and all(
        (tensor := stored_tensor(v)) is not None
        and tensor.dtype == ir.DataType.FLOAT
        and not v.is_graph_output()
        and len(list(v.uses())) == 1
        for v in stored
    )


def _fold_behind(graph: ir.Graph, conv: ir.Node) -> bool:
    reader = only_reader(conv.outputs[0])
    if reader is None or reader.graph is not graph:  # a body reads it
        return False
    weight = _shape(conv)
    found = _affine(reader, conv.outputs[0], weight[0], len(weight))
    if found is None:
        return False
    factor, shift = (np.broadcast_to(v, weight[:1]) for v in (found.factor, found.shift))
    _change_bias(graph, conv, lambda bias, _: bias * factor + shift)
    _change_weight(conv, lambda w: w * _first(factor, w))
    replace_node(found.node, conv.outputs[0])
    return True


def _fold_in_front(graph: ir.Graph, conv: ir.Node) -> bool:
    weight = _shape(conv)
    attribute = conv.attributes.get("group")
    groups = 1 if attribute is None else attribute.as_int()
    channels, rank = weight[1] * groups, len(weight)
    found = _made(conv.inputs[0], channels, rank)
    if found is None:
        return False
    factor, shift, value, gone = found.factor, found.shift, found.x, [found.node]
    if pads(conv) and shift.any():
        product = _made(value, channels, rank)
        if product is None or product.shift.any() or not product.factor.all():
            return False
        # a * x + b is a * (x + b / a), and what is added stays in front of the padding.
        factor, gone = factor * product.factor, [found.node, product.node]
        if not np.isfinite((shift / product.factor).astype(np.float32)).all():
            return False
        value = _sum(graph, found.node, product.x, shift / factor, rank)
        shift = np.zeros(1)

    def spread(numbers: Vector) -> Vector:
        each = np.broadcast_to(numbers, (channels,)).reshape(groups, -1)
        each = np.repeat(each, weight[0] // groups, axis=0)
        return each.reshape(*weight[:2], *[1] * (rank - 2))

    factors, shifts = spread(factor), spread(shift)
    if shift.any():
        _change_bias(
            graph, conv, lambda bias, w: bias + (w * shifts).reshape(len(w), -1).sum(axis=1)
        )
    _change_weight(conv, lambda w: w * factors)
    conv.replace_input_with(0, value)
    graph.remove(gone, safe=True)
    return True


def _sum(graph: ir.Graph, anchor: ir.Node, x: ir.Value, shift: Vector, rank: int) -> ir.Value:
    name = anchor.outputs[0].name
    stored = shift.astype(np.float32).reshape(_beside(shift, rank))
    constant = add_constant(graph, f"{name}/shift", stored)
    (value,) = insert_before(anchor, "Add", [x, constant], [f"{name}/shifted"])
    value.shape, value.type = anchor.outputs[0].shape, anchor.outputs[0].type
    return value


def _beside(numbers: Vector, rank: int) -> tuple[int, ...]:
    """The shape in which a number, or one for each channel, broadcasts with a tensor."""
    return () if numbers.size == 1 else (-1, *[1] * (rank - 2))


def _made(value: ir.Value | None, channels: int, rank: int) -> _Affine | None:
    """How a value is computed from another that it alone is made of, for one reader."""
    node = made_by(value, *_OPERATORS)
    if node is None or value is None or only_reader(value) is None or len(node.inputs) != 2:
        return None
    x = next((v for v in node.inputs if v is not None and stored_tensor(v) is None), None)
    found = _affine(node, x, channels, rank) if x is not None else None
    if found is None or x is None or x.shape is None or len(x.shape) != rank:
        return None
    # Numbers of each channel may broadcast an operand of one channel.
    single = found.factor.size == found.shift.size == 1
    return found if single or x.shape[1] == channels else None


def _affine(node: ir.Node, x: ir.Value, channels: int, rank: int) -> _Affine | None:
    """A node as what it does to one of its operands, where the other one is stored."""
    if node.domain != "" or node.op_type not in _OPERATORS or x.dtype != ir.DataType.FLOAT:
        return None
    first = node.inputs[0] is x
    numbers = _numbers(node.inputs[1 if first else 0], channels, rank)
    if numbers is None or (node.op_type == "Div" and not (first and numbers.all())):
        return None
    one, none = np.ones(1), np.zeros(1)
    match node.op_type:
        case "Add":
            return _Affine(node, x, one, numbers)
        case "Sub":
            return _Affine(node, x, *((one, -numbers) if first else (-one, numbers)))
        case "Mul":
            return _Affine(node, x, numbers, none)
    return _Affine(node, x, 1 / numbers, none)


def _numbers(value: ir.Value | None, channels: int, rank: int) -> Vector | None:
    """A stored number, or one for each channel."""
    tensor = stored_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    shape = static_shape(tensor)
    whole = (1,) * (rank - len(shape)) + shape
    if len(shape) > rank or whole[:1] + whole[2:] != (1,) * (rank - 1):
        return None
    if whole[1] not in (1, channels):
        return None
    numbers: Vector = tensor.numpy().astype(np.float64).ravel()
    return numbers if np.isfinite(numbers).all() else None


def _stored(conv: ir.Node, index: int) -> tuple[ir.Value, ir.TensorProtocol]:
    """An operand that `_is_own` has looked at."""
    value = conv.inputs[index]
    tensor = stored_tensor(value)
    if value is None or tensor is None:
        raise ValueError(f"operand {index} of {conv.name} is not stored")
    return value, tensor


def _shape(conv: ir.Node) -> tuple[int, ...]:
    return static_shape(_stored(conv, 1)[1])


def _change_weight(conv: ir.Node, change: Callable[[Vector], Vector]) -> None:
    value, tensor = _stored(conv, 1)

    def changed() -> Vector:
        return change(tensor.numpy().astype(np.float64))

    replace_stored(value, lazy_like(tensor, tensor.name, changed))


def _change_bias(
    graph: ir.Graph, conv: ir.Node, change: Callable[[Vector, Vector], Vector]
) -> None:
    """change: of the bias and the weight as they are."""
    of_weight, weight = _stored(conv, 1)
    if len(conv.inputs) < 3 or conv.inputs[2] is None:
        zeros = np.zeros(_shape(conv)[0], np.float32)
        conv.resize_inputs(3)
        conv.replace_input_with(2, add_constant(graph, f"{of_weight.name}/bias", zeros))
    value, tensor = _stored(conv, 2)

    def changed() -> Vector:
        bias, own = tensor.numpy(), weight.numpy()
        return change(bias.astype(np.float64), own.astype(np.float64))

    replace_stored(value, lazy_like(tensor, tensor.name, changed))


def _first(numbers: Vector, weight: Vector) -> Vector:
    """Numbers by output channel, beside a weight."""
    return numbers.reshape(-1, *[1] * (weight.ndim - 1))
