"""A model cut into consecutive parts whose weights fit in memory one at a time.

A cut goes where the fewest bytes of activations are alive: in networks with residual branches
that is the residual stream between two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import onnx_ir as ir
from onnx_ir.convenience import extract

from lwqc.graph.shapes import shapes_at
from lwqc.graph.varying import operands, varying
from lwqc.model.coded_caches import told_of_caches
from lwqc.model.weights import stored_tensor

_T = ir.DataType
# What a run takes and returns as a plain array; the rest cannot be handed from run to run.
_PLAIN = frozenset({
    _T.FLOAT, _T.FLOAT16, _T.DOUBLE, _T.BOOL, _T.INT8, _T.INT16, _T.INT32, _T.INT64,
    _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64,
})  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """Nodes [start, stop) of the main graph.

    inputs: names of the graph inputs and of earlier segments' values that it reads. outputs: those
    of its own values that later segments read, or that are graph outputs. What depends on weights
    alone is in neither: each segment that reads it computes it again. held_bytes: of weights and
    statistics. activation_bytes: the most that a run has alive, as far as sizes are known, and of
    that output_bytes of outputs of the model.
    """

    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    held_bytes: int
    activation_bytes: int = 0
    output_bytes: int = 0

    def model(self, whole: ir.Model, outputs: Iterable[str] | None = None) -> ir.Model:
        """A model of these nodes that shares the weights; they are not read.

        outputs: what it computes, its own `outputs` by default; tensors of its inputs are allowed.
        """
        return part(whole, self.inputs, self.outputs if outputs is None else outputs)


def part(whole: ir.Model, inputs: Iterable[str], outputs: Iterable[str]) -> ir.Model:
    """A model of the nodes between tensors of the main graph that shares the weights.

    They are not read. inputs: all that vary and are needed. outputs: tensors of the inputs are
    allowed.
    """
    graph = extract(whole.graph, list(inputs), list(dict.fromkeys(outputs)))
    found = ir.Model(
        graph,
        ir_version=whole.ir_version,
        functions=[f.clone() for f in whole.functions.values()],
    )
    found.metadata_props.update(told_of_caches(whole.metadata_props))
    return found


def split(
    model: ir.Model,
    max_bytes: int,
    inputs: Mapping[str, Sequence[int]],
    statistics: Mapping[int, Mapping[str, int]] | None = None,
    copies: int = 1,
) -> list[Segment]:
    """Cut the main graph, whose nodes are sorted, into segments of at most `max_bytes`.

    A segment exceeds `max_bytes` when a single node does, or where nothing but a sequence of
    tensors or the like could be cut. inputs: sizes of the graph inputs, for sizing activations.
    statistics: by position of a node, the tensors that are observed there, and the bytes of memory
    that it takes; they are then alive up to this node, and count like its weights. copies: of the
    weights, that a segment holds.
    """
    flow = _Flow(model, inputs, statistics or {}, copies)
    stops = [0]
    while stops[-1] < len(flow.nodes):
        stops.append(flow.next_cut(stops[-1], max_bytes))
    return [flow.segment(*pair) for pair in pairwise(stops)]


class _Flow:
    """What each node reads and holds, and what is alive between two nodes."""

    def __init__(
        self,
        model: ir.Model,
        inputs: Mapping[str, Sequence[int]],
        statistics: Mapping[int, Mapping[str, int]],
        copies: int,
    ) -> None:
        self.nodes = list(model.graph)
        self._outputs = [v.name or "" for v in model.graph.outputs]
        self._values = {v.name or "": v for n in self.nodes for v in n.outputs}
        self._values |= {v.name or "": v for v in model.graph.inputs}
        self._read(model.graph, copies)
        for i, observed in statistics.items():
            names = [n for n in observed if n in self._made]
            self.reads[i] = list(dict.fromkeys([*self.reads[i], *names]))
            self.holds[i] = self.holds[i] | {f"statistics/{n}": b for n, b in observed.items()}
        self._last = {name: i for i, names in enumerate(self.reads) for name in names}
        self._measure(shapes_at(model, inputs))

    def _read(self, graph: ir.Graph, copies: int) -> None:
        """Per node the varying values it reads, and the bytes of each weight it needs."""
        read = operands(graph)
        self._made = varying(graph, read)
        self.reads: list[list[str]] = []
        self.holds: list[dict[str, int]] = []
        stored: dict[str, dict[str, int]] = {}  # by value that depends on weights alone
        for i, (node, values) in enumerate(zip(self.nodes, read, strict=True)):
            names, held = [], _body_bytes(node)
            for value in values:
                name = value.name or ""
                if name in self._made:
                    names.append(name)
                if value.is_initializer() or name not in self._made:
                    held |= stored.get(name) or _stored_bytes(value)
            if not any(self._made.get(v.name or "") == i for v in node.outputs):
                stored |= {v.name or "": held | _stored_bytes(v) for v in node.outputs}
                held = {}  # counted where it is read
            self.reads.append(list(dict.fromkeys(names)))
            self.holds.append({name: copies * size for name, size in held.items()})

    def _measure(self, sizes: Mapping[str, Sequence[int]]) -> None:
        """Bytes alive, and values that cannot be stored, before each node."""
        known = {n: prod(s) * self._item_bytes(n) for n, s in sizes.items() if n in self._made}
        self._known, unknown = known, max(known.values(), default=1)
        live, stuck = [0] * (len(self.nodes) + 2), [0] * (len(self.nodes) + 2)
        for name, last in self._last.items():
            if self._values[name].is_initializer():  # an input with a default: nothing is kept
                continue
            first = self._made[name] + 1
            size = known.get(name, unknown)
            uncuttable = first > 0 and not is_plain(self._values[name])
            live[first] += size
            live[last + 1] -= size
            stuck[first] += uncuttable
            stuck[last + 1] -= uncuttable
        self._live, self._stuck = list(accumulate(live)), list(accumulate(stuck))

    def _item_bytes(self, name: str) -> int:
        dtype = self._values[name].dtype
        return dtype.bitwidth // 8 if dtype in _PLAIN and dtype is not None else 4

    def next_cut(self, start: int, max_bytes: int) -> int:
        """The best place for the end of a segment that starts at `start`."""
        held: set[str] = set()
        totals: list[int] = []
        total = 0
        for holds in self.holds[start:]:
            added = sum(size for name, size in holds.items() if name not in held)
            if held and added and total + added > max_bytes:
                break
            held |= holds.keys()
            total += added
            totals.append(total)
        stop = start + len(totals)
        if stop == len(self.nodes):
            return stop
        # Segments should not be small for the sake of a few bytes: each costs a session.
        allowed = [start + i + 1 for i, total in enumerate(totals) if 2 * total >= totals[-1]]
        best = min(allowed, key=lambda cut: (self._stuck[cut], self._live[cut], -cut))
        while best < len(self.nodes) and self._stuck[best]:
            best += 1
        return best

    def segment(self, start: int, stop: int) -> Segment:
        """Nodes [start, stop) with what crosses their borders."""
        held: dict[str, int] = {}
        for holds in self.holds[start:stop]:
            held |= holds
        read = dict.fromkeys(n for names in self.reads[start:stop] for n in names)
        made = [v.name or "" for n in self.nodes[start:stop] for v in n.outputs]
        given = {n: self._known.get(n, 0) for n in made if n in self._outputs}
        results, unread = (
            sum(given.values()),
            sum(b for n, b in given.items() if n not in self._last),
        )
        return Segment(
            start,
            stop,
            tuple(n for n in read if self._made[n] < start),
            tuple(n for n in made if self._last.get(n, -1) >= stop or n in self._outputs),
            sum(held.values()),
            max(self._live[start + 1 : stop + 1], default=0) + unread,
            results,
        )


def _stored_bytes(value: ir.Value) -> dict[str, int]:
    tensor = value.const_value if value.is_initializer() else stored_tensor(value)
    return {} if tensor is None else {value.name or "": int(tensor.nbytes)}


def _body_bytes(node: ir.Node) -> dict[str, int]:
    """Weights stored inside the bodies of a node."""
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    graphs = [g for body in bodies for g in (body, *body.subgraphs())]
    found: dict[str, int] = {}
    for graph in graphs:
        for value in graph.initializers.values():
            found |= _stored_bytes(value)
    return found


def is_plain(value: ir.Value) -> bool:
    """Whether a value can be an output of one run and an input of another."""
    if value.type is None:
        return True
    return isinstance(value.type, ir.TensorType) and value.type.dtype in _PLAIN
