"""Products of each token with a copy of its expert's weight, which become one for each expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

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
        write = _Writer(model.graph, ctx)
        for product in found:
            write.grouped(product)
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


@dataclass(frozen=True)
class _Route:
    """shape: of the places. order: of tokens, by expert. back: where each is then.

    counts: how many each expert has.
    """

    shape: ir.Value
    order: ir.Value
    back: ir.Value
    counts: ir.Value


class _Writer:
    """Writes what products become; those of one choice share its order, and their rows."""

    def __init__(self, graph: ir.Graph, ctx: Context) -> None:
        self._graph, self._ctx = graph, ctx
        self._routes: dict[tuple[ir.Value, int], _Route] = {}
        self._parts: dict[tuple[ir.Value, _Route], tuple[ir.Value, ...]] = {}

    def grouped(self, product: _Product) -> None:
        """Put one product for each expert in place of one for each token."""
        node, (_, outputs) = product.node, product.sizes
        name, kind = node.outputs[0].name, product.rows.type
        key = product.places, product.experts
        if key not in self._routes:
            self._routes[key] = self._route(product)
        route = self._routes[key]
        if (product.rows, route) not in self._parts:
            self._parts[product.rows, route] = self._split(product, route)
        results = []
        for expert, part in enumerate(self._parts[product.rows, route]):
            weight = add_initializer(self._graph, _weight(product, expert))
            results.append(
                self._step(node, "MatMul", [part, weight], f"{name}/from-{expert}", kind)
            )
        made = self._step(node, "Concat", results, f"{name}/by-expert", kind, axis=0)
        made = self._step(node, "Gather", [made, route.back], f"{name}/flat", kind, axis=0)
        vector = self._stored(f"{name}/vector", (outputs, 1) if product.first else (1, outputs))
        shape = self._step(node, "Concat", [route.shape, vector], f"{name}/shape", axis=0)
        replace_node(
            node, self._step(node, "Reshape", [made, shape], f"{name}/out", kind, allowzero=1)
        )

    def _route(self, product: _Product) -> _Route:
        node, flat, name = product.node, product.places, product.places.name
        shape = self._step(node, "Shape", [flat], f"{name}/shape")
        if flat.dtype != ir.DataType.INT64:
            flat = self._step(node, "Cast", [flat], f"{name}/whole", to=int(ir.DataType.INT64))
        flat = self._step(
            node, "Reshape", [flat, self._stored(f"{name}/flat", [-1])], f"{name}/list"
        )
        order = self._sorted(node, flat, f"{name}/by-expert")
        column = self._step(
            node, "Unsqueeze", [flat, self._stored(f"{name}/last", [1])], f"{name}/column"
        )
        every = self._stored(f"{name}/experts", [range(product.experts)])
        same = self._step(
            node, "Equal", [column, every], f"{name}/same", ir.TensorType(ir.DataType.BOOL)
        )
        ones = self._step(node, "Cast", [same], f"{name}/ones", to=int(ir.DataType.INT64))
        first = self._stored(f"{name}/first", [0])
        counts = self._step(node, "ReduceSum", [ones, first], f"{name}/tokens", keepdims=0)
        return _Route(shape, order, self._sorted(node, order, f"{name}/back"), counts)

    def _split(self, product: _Product, route: _Route) -> tuple[ir.Value, ...]:
        """The rows of each expert."""
        node, rows, (inputs, _) = product.node, product.rows, product.sizes
        name, kind = f"{rows.name}/for-{product.places.name}", rows.type
        known, places = (self._ctx.shapes[v.name or ""] for v in (rows, product.places))
        own = [sizes[: places.rank] for sizes in (known.first, known.second)]
        if own != [places.first, places.second]:  # one vector for several places
            ones = self._stored(f"{name}/ones", (1, 1))
            wide = self._step(node, "Concat", [route.shape, ones], f"{name}/wide", axis=0)
            rows = self._step(node, "Expand", [rows, wide], f"{name}/each", kind)
        flat = self._stored(f"{name}/matrix", (-1, inputs))
        rows = self._step(node, "Reshape", [rows, flat], f"{name}/rows", kind)
        rows = self._step(node, "Gather", [rows, route.order], f"{name}/by-expert", kind, axis=0)
        names = [f"{name}/of-{expert}" for expert in range(product.experts)]
        parts = insert_before(node, "Split", [rows, route.counts], names, {"axis": 0})
        for part in parts:
            part.type = kind
        return parts

    def _sorted(self, node: ir.Node, numbers: ir.Value, name: str) -> ir.Value:
        """Places of numbers, the least first."""
        count = self._step(node, "Shape", [numbers], f"{name}/count")
        ascending = {"axis": 0, "largest": 0, "sorted": 1}
        _, order = insert_before(
            node, "TopK", [numbers, count], [f"{name}/numbers", name], ascending
        )
        order.type = _INT64
        return order

    def _step(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        kind: ir.TypeProtocol | None = _INT64,
        **attributes: int,
    ) -> ir.Value:
        (value,) = insert_before(anchor, op_type, inputs, [name], attributes)
        value.type = kind
        return value

    def _stored(self, name: str, numbers: ArrayLike) -> ir.Value:
        return add_constant(self._graph, name, np.asarray(numbers, np.int64))


def _weight(product: _Product, expert: int) -> ir.LazyTensor:
    """[inputs, outputs] of one expert."""
    tensor, turned = product.tensor, product.turned

    def values() -> NDArray[np.generic]:
        matrix = np.asarray(read_array(tensor))[expert]
        return np.asarray(matrix.T if turned else matrix)

    return lazy_tensor(tensor.dtype, product.sizes, f"{product.table.name}/{expert}", values)
