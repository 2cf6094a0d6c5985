"""Mixtures of experts: a router's choices that pick rows of stacked weights."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.moved_numbers import readers, takes_rows
from lwqc.model.refusal import Refusal
from lwqc.model.weights import static_shape, stored_tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """One router.

    places: what its TopK chose, numbers of experts. tables: stored weights [experts, ...] whose
    rows they pick, and which nothing else reads. taken: how many are chosen at a time.
    """

    places: ir.Value
    tables: tuple[ir.Value, ...]
    taken: int

    @property
    def name(self) -> str:
        """Of the tensor that says which experts are chosen."""
        return self.places.name or ""

    @property
    def experts(self) -> int:
        """How many there are."""
        tensor = stored_tensor(self.tables[0])
        assert tensor is not None
        return static_shape(tensor)[0]


def tables_chosen(node: ir.Node, size: int) -> tuple[ir.Value, ...]:
    """Stored tables of that many rows that the places of a TopK pick rows of.

    None of them where the places are read for something else too.
    """
    if len(node.outputs) < 2:
        return ()
    found: dict[ir.Value, None] = {}
    for _, reader, index in readers(node.outputs[1]):
        if reader is None or reader.graph is not node.graph or not takes_rows(reader, index):
            return ()
        table = reader.inputs[0]
        tensor = stored_tensor(table)
        if table is None or tensor is None or static_shape(tensor)[0] != size:
            return ()
        found[table] = None
    return tuple(found)


def find_mixtures(graph: ir.Graph) -> tuple[list[Mixture], list[Refusal]]:
    """Those of the main graph, and routers whose experts cannot be told, with the reason."""
    found, refused = list[Mixture](), list[Refusal]()
    for node in graph:
        if (node.domain, node.op_type) != ("", "TopK") or len(node.outputs) < 2:
            continue
        scores, count = node.inputs[0], stored_tensor(node.inputs[1])
        axis = node.attributes.get("axis")
        name = node.outputs[1].name or ""
        rank = None if scores is None or scores.shape is None else len(scores.shape)
        if rank is None or (axis.as_int() if axis else -1) not in (-1, rank - 1):
            continue
        assert scores is not None
        assert scores.shape is not None
        size = scores.shape[-1]
        tables = tables_chosen(node, size) if isinstance(size, int) else ()
        if not tables or count is None:
            refused.append(Refusal(name, "its choices pick no rows of stored weights"))
        elif other := _read_elsewhere(node, tables):
            refused.append(Refusal(name, f"{other} is read by something else too"))
        else:
            found.append(Mixture(node.outputs[1], tables, int(count.numpy().ravel()[0])))
    return found, refused


def _read_elsewhere(node: ir.Node, tables: tuple[ir.Value, ...]) -> str:
    takers = {reader for _, reader, _ in readers(node.outputs[1])}
    for table in tables:
        if not table.is_initializer() or table.is_graph_output():
            return table.name or ""
        if any(use.node not in takers or use.idx != 0 for use in table.uses()):
            return table.name or ""
    return ""
