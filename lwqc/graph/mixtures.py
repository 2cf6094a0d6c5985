"""Mixtures of experts: a router's choices that pick rows of stacked weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.moved_numbers import readers, takes_rows
from lwqc.model.refusal import Refusal
from lwqc.model.weights import static_shape, stored_tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Experts of one router.

    router: the TopK that chooses among them. tables: stored weights [experts, ...] whose rows its
    choices pick, and which nothing else reads; tensors: what they hold.
    """

    router: ir.Node
    tables: tuple[ir.Value, ...]
    tensors: tuple[ir.TensorProtocol, ...]

    @property
    def places(self) -> ir.Value:
        """What the router chose, numbers of experts."""
        return self.router.outputs[1]

    @property
    def name(self) -> str:
        """Of the tensor that says which experts are chosen."""
        return self.places.name or ""

    @property
    def experts(self) -> int:
        """How many there are."""
        return static_shape(self.tensors[0])[0]


def tables_chosen(node: ir.Node, size: int) -> dict[ir.Value, ir.TensorProtocol]:
    """Stored tables of that many rows that the places of a TopK pick rows of, and what they hold.

    None of them where the places are read for something else too.
    """
    if len(node.outputs) < 2:
        return {}
    found: dict[ir.Value, ir.TensorProtocol] = {}
    for _, reader, index in readers(node.outputs[1]):
        if reader is None or reader.graph is not node.graph or not takes_rows(reader, index):
            return {}
        table = reader.inputs[0]
        tensor = stored_tensor(table)
        if table is None or tensor is None or static_shape(tensor)[0] != size:
            return {}
        found[table] = tensor
    return found


def find_mixtures(graph: ir.Graph) -> tuple[list[Mixture], list[Refusal]]:
    """Those of the main graph, and routers whose experts cannot be told, with the reason."""
    found, refused = list[Mixture](), list[Refusal]()
    for node in graph:
        if (node.domain, node.op_type) != ("", "TopK") or len(node.outputs) < 2:
            continue
        size = _choices(node)
        tables = tables_chosen(node, size) if isinstance(size, int) else {}
        if isinstance(size, str):
            why = size
        elif not tables:
            why = "its choices pick no rows of stored weights"
        elif other := _read_elsewhere(node, tables):
            why = f"{other} is read by something else too"
        else:
            found.append(Mixture(node, tuple(tables), tuple(tables.values())))
            continue
        refused.append(Refusal(node.outputs[1].name or "", why))
    return found, refused


def _choices(node: ir.Node) -> int | str:
    """Among how many a TopK chooses, or why that is not told."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return "the shape of its scores is not known"
    axis = node.attributes.get("axis")
    if axis is not None and axis.as_int() not in (-1, len(shape) - 1):
        return "its scores are not along the last axis"
    size = shape[-1]
    return size if isinstance(size, int) else "it chooses among a number that is not fixed"


def _read_elsewhere(node: ir.Node, tables: Iterable[ir.Value]) -> str:
    takers = {reader for _, reader, _ in readers(node.outputs[1])}
    for table in tables:
        if not table.is_initializer() or table.is_graph_output():
            return table.name or ""
        if any(use.node not in takers or use.idx != 0 for use in table.uses()):
            return table.name or ""
    return ""
