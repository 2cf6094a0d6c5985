"""A part of a graph as boxes and lines: a node stands below all that it reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from itertools import count

import onnx_ir as ir

from lwqc.cli.report.html.page import Box, Drawing, Line, Tone

_WIDE, _HIGH = 130, 20  # of a box
_LANE, _ROW = 146, 38  # from one box to the next
_LANES = 24  # beside each other; what finds no room there stands a row lower
_END = 8  # of a line that leaves the drawing


def layered(
    nodes: Sequence[ir.Node],
    title: Callable[[ir.Node], str],
    tone: Callable[[ir.Node], Tone],
    hidden: Collection[ir.Node] = (),
) -> Drawing:
    """nodes: in an order in which none comes before what it reads. hidden: drawn nowhere.

    Rows are the longest ways from the top (as in Sugiyama's layering); in a row a node stands as
    near below what it reads as there is room. What is read from, or by, other parts is a short end.
    """
    own = {node: number for number, node in enumerate(nodes)}
    reads = [list(dict.fromkeys(own[p] for p in _read(node) if p in own)) for node in nodes]
    rows, lanes = _places(reads)
    boxes = [
        Box(x, y, _WIDE, _HIGH, node.op_type, title(node), tone(node))
        for node, x, y in zip(
            nodes, (_LANE * n for n in lanes), (_ROW * n + _END for n in rows), strict=True
        )
    ]
    lines = [
        Line(*_foot(boxes[above]), *_head(boxes[below]))
        for below, found in enumerate(reads)
        for above in found
    ]
    for node, box in zip(nodes, boxes, strict=True):
        (top, head), (bottom, foot) = _head(box), _foot(box)
        if _from_elsewhere(node, {*own, *hidden}):
            lines.append(Line(top, head - _END, top, head))
        if _read_elsewhere(node, own):
            lines.append(Line(bottom, foot, bottom, foot + _END))
    return Drawing(
        (max(lanes, default=0) + 1) * _LANE - (_LANE - _WIDE),
        max(rows, default=0) * _ROW + _HIGH + 2 * _END,
        tuple(boxes),
        tuple(lines),
    )


def _places(reads: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Row and lane of each node."""
    rows: list[int] = []
    lanes: list[int] = []
    taken: set[tuple[int, int]] = set()
    for found in reads:
        row = 1 + max((rows[above] for above in found), default=-1)
        wished = round(sum(lanes[above] for above in found) / len(found)) if found else 0
        places = ((row + more, at) for more in count() for at in _near(wished))
        row, lane = next(place for place in places if place not in taken)
        taken.add((row, lane))
        rows.append(row)
        lanes.append(lane)
    return rows, lanes


@cache
def _near(wished: int) -> Sequence[int]:
    """Lanes by their distance, those on the right first."""
    return sorted(range(_LANES), key=lambda lane: (abs(lane - wished), -lane))


def _read(node: ir.Node) -> Iterable[ir.Node]:
    """Nodes that this one reads, also from inside of its subgraphs."""
    for value in _values(node):
        if (above := value.producer()) is not None:
            yield above


def _values(node: ir.Node) -> Iterable[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def _from_elsewhere(node: ir.Node, own: Collection[ir.Node]) -> bool:
    return any(
        value.producer() not in own and not value.is_initializer()
        for value in node.inputs
        if value is not None
    )


def _read_elsewhere(node: ir.Node, own: Collection[ir.Node]) -> bool:
    return any(
        value.is_graph_output() or any(reader not in own for reader in value.consumers())
        for value in node.outputs
    )


def _head(box: Box) -> tuple[int, int]:
    return box.x + box.width // 2, box.y


def _foot(box: Box) -> tuple[int, int]:
    return box.x + box.width // 2, box.y + box.height
