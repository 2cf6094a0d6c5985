"""Inputs whose values are ids of tokens, and all that a model knows of each id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.moved_numbers import INTEGERS, readers, takes_rows
from lwqc.model.weights import static_shape, stored_tensor

_COMPARES = frozenset({"Equal"})


@dataclass(frozen=True, eq=False)
class TokenIds:
    """One input of ids. tables: stored [ids, features], of which rows are read by them. compared:
    nodes and operands with the id that the input is compared with. other: readers of a table that
    do not take rows by id, such as a head that shares it.
    """

    name: str
    size: int
    tables: tuple[ir.Value, ...]
    compared: tuple[tuple[ir.Node, int, int], ...]
    other: tuple[tuple[ir.Node, int], ...]


def find_token_ids(graph: ir.Graph, name: str | None = None) -> TokenIds:
    """The input of that name, or the one with the largest tables.

    Raises InputError where no input is known to be used as ids and as nothing else, with reasons.
    """
    wanted = [v for v in graph.inputs if name is None or v.name == name]
    if not wanted:
        raise InputError(f"{name}: the model has no such input")
    found: list[TokenIds] = []
    reasons: list[str] = []
    for value in wanted:
        if value.dtype not in INTEGERS:
            reasons.append(f"{value.name}: is not of whole numbers")
            continue
        one = _followed(graph, value)
        if isinstance(one, TokenIds):
            found.append(one)
        else:
            reasons.append(f"{value.name}: {one}")
    if not found:
        raise InputError(f"no input holds token ids: {'; '.join(reasons) or 'there are no inputs'}")
    return max(found, key=lambda ids: ids.size)


def _followed(graph: ir.Graph, ids: ir.Value) -> TokenIds | str:
    """What becomes of an input, or why it is not known."""
    tables: dict[ir.Value, None] = {}
    compared: list[tuple[ir.Node, int, int]] = []
    takers: set[ir.Node] = set()
    for _, node, index in readers(ids):
        if node is None:
            return "is an output too"
        if node.graph is not graph:
            return "is read in a body of a branch or a loop"
        if takes_rows(node, index):
            assert node.inputs[0] is not None
            tables[node.inputs[0]] = None
            takers.add(node)
        elif (constant := _constant(node, index)) is not None:
            compared.append((node, 1 - index, constant))
        else:
            return f"{node.op_type} {node.name} reads more of them than rows of a table"
    if not tables:
        return "takes no rows of stored floats"
    sizes = {static_shape(t)[0] for table in tables if (t := stored_tensor(table)) is not None}
    if len(sizes) > 1:
        return f"its tables have {' and '.join(map(str, sorted(sizes)))} rows"
    other = [(u.node, u.idx) for t in tables for u in t.uses() if u.node not in takers]
    return TokenIds(ids.name or "", sizes.pop(), tuple(tables), tuple(compared), tuple(other))


def _constant(node: ir.Node, index: int) -> int | None:
    """The one id that a node compares the others with."""
    if node.domain != "" or node.op_type not in _COMPARES:
        return None
    tensor = stored_tensor(node.inputs[1 - index])
    if tensor is None or tensor.size != 1:
        return None
    return int(np.asarray(tensor.numpy()).reshape(-1)[0])
