"""Products of each token with a copy of its expert's weight, which become one for each expert."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.moved_numbers import origin, takes_rows
from lwqc.graph.operands import made_by, only_reader, stored_ints
from lwqc.model.edit import add_constant, add_initializer, insert_before, lazy_tensor, replace_node
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

OPSET = 14  # the first in which a Reshape takes a size of 0 as it is
_INT64 = ir.TensorType(ir.DataType.INT64)


@dataclass(frozen=True)
class _Product:
    """A product of rows with what a table holds at their places.

    node: the MatMul. table, tensor: [experts, ...] and what is stored of it. places: which expert
    each row takes. rows: the other factor, one vector for each place. first: whether the table's
    matrices are the first factor, so that the vectors are columns. flipped: whether they are
    transposed in front of it.
    """

    node: ir.Node
    table: ir.Value
    tensor: ir.TensorProtocol
    places: ir.Value
    rows: ir.Value
    first: bool
    flipped: bool

    @property
    def experts(self) -> int:
        return static_shape(self.tensor)[0]

    @property
    def turned(self) -> bool:
        """Whether a stored matrix is [outputs, inputs]."""
        return self.first != self.flipped

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs of an expert."""
        _, a, b = static_shape(self.tensor)
        return (b, a) if self.turned else (a, b)


@dataclass(frozen=True)
class GroupedExperts(Pass):
    """Multiply the tokens of each expert with its weight, not each token with a copy of one.

    Matches: MatMul of one vector for each token, a row or a column, with matrices that Gather or
        GatherND picks from a stored table [experts, ...], perhaps transposed. So mixtures of
        experts come out of PyTorch, and for each token a whole matrix is copied.
    Rewrites to: tokens in the order of their experts (TopK), a Split at the number of tokens of
        each (which may be 0), one MatMul with a weight of its own for each expert, Concat, and
        Gather back into the first order. The result is the same but for the order in which numbers
        are added; each expert's weight is one that passes and formats know.
    Refuses: opsets below 14, places that may count from the end, tables that something else reads
        or that are among `whole`, vectors whose sizes are not told.

    whole: names of stored weights that stay as they are.
    """

    needs_sizes: ClassVar[bool] = True
    whole: tuple[str, ...] = ()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        found: list[_Product] = []
        for node in model.graph:
            product = _product(node)
            if product is None:
                continue
            reason = self._refused(product, model.opset_imports.get("", 1), ctx)
            if reason:
                ctx.refuse(node.outputs[0].name or "", f"experts token by token: {reason}")
            else:
                found.append(product)
        routes: dict[tuple[ir.Value, int], _Route] = {}
        for product in found:
            key = product.places, product.experts
            if key not in routes:
                routes[key] = _route(product)
            _rewrite(model.graph, product, routes[key], ctx)
        return len(found)

    def _refused(self, product: _Product, opset: int, ctx: Context) -> str:
        if opset < OPSET:
            return f"opset {opset} is below {OPSET}"
        if product.table.name in self.whole or not _alone(product):
            return "their weights have another use"
        if not _counts_from_the_start(product):
            return "their numbers may count from the end"
        rows, places = (ctx.shapes.get(v.name or "") for v in (product.rows, product.places))
        if rows is None or places is None or rows.rank != places.rank + 2:
            return "sizes of tokens and places are not known"
        single = -1 if product.first else -2
        for own, other in ((rows.first, places.first), (rows.second, places.second)):
            fits = all(a in (1, b) for a, b in zip(own, other, strict=False))
            if own[single] != 1 or not fits:
                return "tokens and places do not have the same sizes"
        return ""


@dataclass(frozen=True)
class _Route:
    """order: places of tokens, by expert. back: where each token is then. counts: by expert."""

    order: ir.Value
    back: ir.Value
    counts: ir.Value


def picks_experts(graph: ir.Graph) -> bool:
    """Whether tokens are multiplied with copies of weights in a graph."""
    return any(_product(node) is not None for node in graph)


def _product(node: ir.Node) -> _Product | None:
    if (node.domain, node.op_type) != ("", "MatMul"):
        return None
    for index, value in enumerate(node.inputs):
        rows = node.inputs[1 - index]
        turn = made_by(value, "Transpose")
        flipped = turn is not None and _swaps_last(turn)
        picked = turn.inputs[0] if turn is not None and flipped else value
        gather = made_by(picked, "Gather", "GatherND")
        if gather is None or rows is None or not takes_rows(gather, 1):
            continue
        table, places = gather.inputs[0], gather.inputs[1]
        tensor = stored_tensor(table)
        if table is None or places is None or tensor is None or len(tensor.shape) != 3:
            continue
        if gather.op_type == "GatherND":
            places = _without_last(places)
        if places is not None and static_shape(tensor)[0] > 1:
            return _Product(node, table, tensor, places, rows, index == 0, flipped)
    return None


def _swaps_last(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    order = list(perm.as_ints()) if perm is not None else []
    swapped = list(range(len(order)))
    swapped[-2:] = swapped[-2:][::-1]
    return len(order) > 2 and order == swapped


def _without_last(places: ir.Value) -> ir.Value | None:
    """What was given a last axis of one."""
    node = made_by(places, "Unsqueeze")
    axes = stored_ints(node.inputs[1]) if node is not None and len(node.inputs) > 1 else None
    if node is None or axes is None or len(axes) != 1 or places.shape is None:
        return None
    return node.inputs[0] if axes[0] in (-1, len(places.shape) - 1) else None


def _alone(product: _Product) -> bool:
    """Whether nothing else reads the table, nor what is picked from it."""
    value: ir.Value | None = product.node.inputs[0 if product.first else 1]
    while value is not None and value is not product.table:
        if only_reader(value) is None:
            return False
        node = value.producer()
        value = node.inputs[0] if node is not None else None
    return only_reader(product.table) is not None


def _counts_from_the_start(product: _Product) -> bool:
    source = origin(product.places)
    node = made_by(source, "TopK", "ArgMax", "Gather")
    if node is None or source is None:
        return False
    if node.op_type == "Gather":
        numbers = stored_ints(node.inputs[0])
        return numbers is not None and all(number >= 0 for number in numbers)
    return node.op_type == "ArgMax" or source is node.outputs[1]


def _route(product: _Product) -> _Route:
    """The order of the tokens by expert, and how many each has."""
    node, name = product.node, product.places.name
    graph = node.graph
    assert isinstance(graph, ir.Graph)

    def stored(what: str, numbers: object) -> ir.Value:
        return add_constant(graph, f"{name}/{what}", np.asarray(numbers, np.int64))

    def step(op_type: str, inputs: Sequence[ir.Value], what: str, **attributes: int) -> ir.Value:
        (value,) = insert_before(node, op_type, inputs, [f"{name}/{what}"], attributes)
        value.type = _INT64
        return value

    flat = product.places
    if flat.dtype != ir.DataType.INT64:
        flat = step("Cast", [flat], "whole", to=int(ir.DataType.INT64))
    flat = step("Reshape", [flat, stored("flat", [-1])], "list")
    count = step("Shape", [flat], "count")

    def sorted_places(values: ir.Value, what: str) -> ir.Value:
        _, order = insert_before(
            node,
            "TopK",
            [values, count],
            [f"{name}/{what}/values", f"{name}/{what}"],
            {"axis": 0, "largest": 0, "sorted": 1},
        )
        order.type = _INT64
        return order

    order = sorted_places(flat, "by-expert")
    column = step("Unsqueeze", [flat, stored("last", [1])], "column")
    every = stored("experts", [list(range(product.experts))])
    (same,) = insert_before(node, "Equal", [column, every], [f"{name}/is-expert"])
    same.type = ir.TensorType(ir.DataType.BOOL)
    ones = step("Cast", [same], "ones", to=int(ir.DataType.INT64))
    counts = step("ReduceSum", [ones, stored("first", [0])], "tokens", keepdims=0)
    return _Route(order, sorted_places(order, "back"), counts)


def _rewrite(graph: ir.Graph, product: _Product, route: _Route, ctx: Context) -> None:
    node = product.node
    name, (inputs, outputs) = node.outputs[0].name, product.sizes

    def stored(what: str, numbers: Collection[int]) -> ir.Value:
        return add_constant(graph, f"{name}/{what}", np.asarray(numbers, np.int64))

    def step(op_type: str, given: Sequence[ir.Value], what: str, **attributes: int) -> ir.Value:
        (value,) = insert_before(node, op_type, given, [f"{name}/{what}"], attributes)
        value.type = product.rows.type
        return value

    rows, places = ctx.shapes[product.rows.name or ""], ctx.shapes[product.places.name or ""]
    leading = [places.first, places.second]
    flat = product.rows
    if [s[: places.rank] for s in (rows.first, rows.second)] != leading:
        lead = step("Shape", [product.places], "tokens")
        ones = stored("vector", (1, 1))
        lead.type = _INT64
        wide = step("Concat", [lead, ones], "wide", axis=0)
        wide.type = _INT64
        flat = step("Expand", [flat, wide], "for-each")
    flat = step("Reshape", [flat, stored("vectors", (-1, inputs))], "flat")
    ordered = step("Gather", [flat, route.order], "by-expert", axis=0)
    parts = insert_before(
        node,
        "Split",
        [ordered, route.counts],
        [f"{name}/of-{expert}" for expert in range(product.experts)],
        {"axis": 0},
    )
    results = []
    for expert, part in enumerate(parts):
        part.type = product.rows.type
        weight = add_initializer(graph, _weight(product, expert))
        results.append(step("MatMul", [part, weight], f"from-{expert}"))
    together = step("Concat", results, "by-expert/out", axis=0)
    result = step("Gather", [together, route.back], "flat/out", axis=0)
    lead = step("Shape", [product.places], "tokens")
    lead.type = _INT64
    last = stored("last", (outputs, 1) if product.first else (1, outputs))
    shape = step("Concat", [lead, last], "shape", axis=0)
    shape.type = _INT64
    replace_node(node, step("Reshape", [result, shape], "out", allowzero=1))


def _weight(product: _Product, expert: int) -> ir.LazyTensor:
    """[inputs, outputs] of one expert."""
    tensor, turned = product.tensor, product.turned

    def values() -> NDArray[np.generic]:
        matrix = np.asarray(read_array(tensor))[expert]
        return np.asarray(matrix.T if turned else matrix)

    return lazy_tensor(tensor.dtype, product.sizes, f"{product.table.name}/{expert}", values)
