"""Codes that ordinary arithmetic unpacks: which nodes a parameter stands in place of."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.folded_codes import packed_codes, plain_codes
from lwqc.learn.grids import Grid
from lwqc.model.weights import stored_tensor


@dataclass(frozen=True)
class Unpacking:
    """codes: the stored tensor. end: the codes one by one, as they are before they become floats.

    nodes: all between the two.
    """

    codes: ir.Value
    end: ir.Value
    grid: Grid
    nodes: frozenset[ir.Node] = frozenset()


def unpackings(model: ir.Model) -> list[Unpacking]:
    """All of the main graph whose codes nothing else reads."""
    found = []
    for node in model.graph:
        if node.op_type != "Mul":
            continue
        if plain_codes(node) is not None:
            value = _operand(_operand(node).producer())
            only = all(use.node.op_type == "Cast" for use in value.uses())
            made = Unpacking(value, value, Grid(ir.DataType.INT8)) if only else None
        else:
            made = _packed(node)
        if made is not None:
            found.append(made)
    return found


def _operand(node: ir.Node | None) -> ir.Value:
    assert node is not None
    value = node.inputs[0]
    assert value is not None
    return value


def _packed(node: ir.Node) -> Unpacking | None:
    packed = packed_codes(node)
    if packed is None:
        return None
    # The last thing that is done to codes themselves is to give them the shape of their blocks.
    reshape = _operand(node).producer()
    while reshape is not None and reshape.op_type != "Reshape":
        reshape = _operand(reshape).producer()
    if reshape is None:
        return None
    target, end = stored_tensor(reshape.inputs[1]), reshape.outputs[0]
    nodes, codes = _behind(end)
    if target is None or codes is None or not _closed(end, codes, nodes):
        return None
    shape = tuple(int(n) for n in target.numpy())
    return Unpacking(codes, end, Grid(ir.DataType.UINT8, 8 // packed[1], shape), nodes)


def _behind(end: ir.Value) -> tuple[frozenset[ir.Node], ir.Value | None]:
    """The nodes that make a value, and the one stored tensor of bytes in rows that they read."""
    nodes: set[ir.Node] = set()
    codes, waiting = None, [end]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        value = node.inputs[0]
        for given in node.inputs:
            if given is None or stored_tensor(given) is None:
                waiting += [given] if given is not None else []
            elif given is value:
                codes = given
    return frozenset(nodes), codes


def _closed(end: ir.Value, codes: ir.Value, nodes: frozenset[ir.Node]) -> bool:
    """Whether nothing else reads what is inside."""
    inner = {v for node in nodes for v in node.outputs} - {end}
    alone = all(use.node in nodes for value in (*inner, codes) for use in value.uses())
    return alone and not any(v.is_graph_output() for v in (*inner, end))
