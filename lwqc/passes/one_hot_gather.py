"""Products with one-hot vectors, which are rows of the other factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.operands import made_by
from lwqc.model.edit import add_constant, add_initializer, insert_before, replace_node
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

OPSET = 13  # the first in which axes are an operand; whole numbers are clipped since 12
_WHOLE = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8, ir.DataType.INT8})


@dataclass(frozen=True)
class _Places:
    """value: whole numbers; the one-hot row of each is 1 there and 0 elsewhere, or all 0.

    column: they have a last axis of one, that the classes take. wraps: negative numbers count
    from the end.
    """

    value: ir.Value
    column: bool
    wraps: bool


@dataclass(frozen=True)
class _OneHot:
    """The operands of a product. weight, table: one factor, and what is stored of it.

    shape: that the one-hot rows are brought into before the product, the classes left out.
    """

    weight: ir.Value
    table: ir.TensorProtocol
    places: _Places
    shape: NDArray[np.int64] | None


@dataclass(frozen=True)
class OneHotGather(Pass):
    """Read rows of a weight instead of multiplying it with one-hot vectors.

    Matches: MatMul or Gemm of a stored weight [classes, outputs] and a one-hot tensor: OneHot of 0
        and 1 over the last axis, or Equal with 0, 1, ... in this order, cast to a float, and maybe
        reshaped in front of its last axis. So lookups come out of JAX and of Keras.
    Rewrites to: Gather on the weight with a row of zeros behind it, for numbers that are no class.
        Exact.
    Refuses: opsets below 13, weights that something else reads, that are not finite or among
        `whole`.

    whole: names of stored weights of which something else is known than their numbers.
    """

    needs_sizes: ClassVar[bool] = True
    keeps_sizes: ClassVar[bool] = True
    whole: tuple[str, ...] = ()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        found: list[tuple[ir.Node, _OneHot]] = []
        products = [n for n in model.graph if _is_product(n)]
        if not any(n.op_type in ("OneHot", "Equal") for n in model.graph):
            return 0
        for node in products:
            hot = _one_hot(node, ctx)
            if hot is None:
                continue
            refused = self._refused(hot, model.opset_imports.get("", 1))
            if refused:
                ctx.refuse(node.outputs[0].name or "", f"product with one-hot vectors: {refused}")
            else:
                found.append((node, hot))
        for node, hot in found:
            _rewrite(model.graph, node, hot)
        return len(found)

    def _refused(self, hot: _OneHot, opset: int) -> str:
        weight = hot.weight
        if opset < OPSET:
            return f"opset {opset} is below {OPSET}"
        if weight.name in self.whole or len(list(weight.uses())) > 1 or weight.is_graph_output():
            return "its weight has another use"
        if not np.isfinite(np.asarray(read_array(hot.table), np.float32)).all():
            return "its weight is not finite"
        return ""


def _is_product(node: ir.Node) -> bool:
    """Whether it multiplies its operands, and perhaps adds a third, as they are."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return False
    factors = [node.attributes[n].as_float() for n in ("alpha", "beta") if n in node.attributes]
    return not _flag(node, "transA") and all(factor == 1 for factor in factors)


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())


def _one_hot(node: ir.Node, ctx: Context) -> _OneHot | None:
    """What the first operand of a product is, if the second is a stored matrix."""
    weight = node.inputs[1]
    tensor = stored_tensor(weight)
    if weight is None or tensor is None or len(tensor.shape) != 2:
        return None
    if not tensor.dtype.is_floating_point():
        return None
    classes = static_shape(tensor)[1 if _flag(node, "transB") else 0]
    value, shape = node.inputs[0], None
    while (step := made_by(value, "Reshape", "Cast", "Identity")) is not None:
        if step.op_type == "Reshape":
            target = stored_tensor(step.inputs[1])
            if shape is not None or target is None or not _keeps_last(step, target, classes):
                return None
            shape = np.asarray(read_array(target), np.int64)[:-1]
        value = step.inputs[0]
    for told in (_of_one_hot, _of_equal):
        places = told(value, classes, ctx)
        if places is not None:
            return _OneHot(weight, tensor, places, shape)
    return None


def _keeps_last(node: ir.Node, target: ir.TensorProtocol, classes: int) -> bool:
    sizes = np.asarray(read_array(target), np.int64)
    zeros = node.attributes.get("allowzero")
    return (
        sizes.ndim == 1
        and len(sizes) > 1
        and int(sizes[-1]) == classes
        and not (sizes == 0).any()
        and (zeros is None or not zeros.as_int())
    )


def _of_one_hot(value: ir.Value | None, classes: int, ctx: Context) -> _Places | None:
    node = made_by(value, "OneHot")
    if node is None or value is None:
        return None
    places, depth, values = node.inputs
    numbers = [stored_tensor(v) for v in (depth, values)]
    if places is None or places.dtype not in _WHOLE or any(n is None for n in numbers):
        return None
    count, pair = (np.asarray(read_array(n)).reshape(-1).tolist() for n in numbers if n is not None)
    axis = node.attributes.get("axis")
    known = ctx.shapes.get(value.name or "")
    ends = (-1,) if known is None else (-1, known.rank - 1)
    if (axis is not None and axis.as_int() not in ends) or count != [classes] or pair != [0, 1]:
        return None
    return _Places(places, column=False, wraps=True)


def _of_equal(value: ir.Value | None, classes: int, ctx: Context) -> _Places | None:
    node = made_by(value, "Equal")
    if node is None or value is None:
        return None
    for places, other in (node.inputs, node.inputs[::-1]):
        table = stored_tensor(other)
        if table is None or places is None or places.dtype not in _WHOLE:
            continue
        sizes = static_shape(table)
        known = ctx.shapes.get(places.name or "")
        if known is None or table.size != classes or sizes[-1:] != (classes,):
            continue
        single = known.first[-1:] == known.second[-1:] == (1,) and known.rank >= len(sizes)
        if single and (np.asarray(read_array(table)).reshape(-1) == np.arange(classes)).all():
            return _Places(places, column=True, wraps=False)
    return None


def _rewrite(graph: ir.Graph, node: ir.Node, hot: _OneHot) -> None:
    name, source = node.outputs[0].name, hot.places
    stored_rows = np.asarray(read_array(hot.table))
    rows = stored_rows.T if _flag(node, "transB") else stored_rows
    classes = len(rows)
    padded = np.concatenate([rows, np.zeros_like(rows[:1])])
    table = add_initializer(
        graph, ir.Tensor(padded, dtype=hot.table.dtype, name=f"{hot.weight.name}/rows")
    )

    def step(op_type: str, inputs: list[ir.Value], what: str, **attributes: int) -> ir.Value:
        (value,) = insert_before(node, op_type, inputs, [f"{name}/{what}"], attributes)
        kind = ir.DataType.BOOL if op_type == "Less" else ir.DataType.INT64
        value.type = ir.TensorType(kind)
        return value

    def stored(what: str, numbers: object) -> ir.Value:
        return add_constant(graph, f"{name}/{what}", np.asarray(numbers, np.int64))

    places = source.value
    if source.column:
        (places,) = insert_before(
            node, "Squeeze", [places, stored("last", [-1])], [f"{name}/column"]
        )
        places.type = source.value.type
    if source.value.dtype != ir.DataType.INT64:
        places = step("Cast", [places], "whole", to=int(ir.DataType.INT64))
    count = stored("classes", classes)
    if source.wraps:
        negative = step("Less", [places, stored("zero", 0)], "negative")
        behind = step("Add", [places, count], "from-the-end")
        places = step("Where", [negative, behind, places], "from-the-start")
    # The last row is that of no class, from either side.
    places = step("Clip", [places, stored("none", -1), count], "class")
    if hot.shape is not None:
        places = step("Reshape", [places, stored("shape", hot.shape)], "shaped")
    (result,) = insert_before(node, "Gather", [table, places], [f"{name}/rows"], {"axis": 0})
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        (result,) = insert_before(node, "Add", [result, bias], [f"{name}/biased"])
    replace_node(node, result)
