"""Residual branches from graph structure alone: y = x + f(x)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx_ir as ir

from lwqc.graph.dataflow import SHAPE_ONLY, Dataflow
from lwqc.graph.shapes import known_equal
from lwqc.model.refusal import Refusal
from lwqc.model.weights import trace_weight

_JOINS = frozenset({"Add", "Sum"})
_FUSED_JOINS = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
_NOT_LEARNED = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
# What a shortcut may do and still be one: scale by constants, move data, change its number type.
_SCALES = frozenset({"Mul", "Div"})
_MOVES = frozenset({"Identity", "Dropout", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})
_MOVES |= {"Flatten", "QuantizeLinear", "DequantizeLinear"}
# Operators that mix features with learned weights: what makes a sum of two a residual one.
LINEAR = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"})
LINEAR |= {"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DeformConv"}
LINEAR |= {"FusedMatMul", "FusedGemm", "FusedConv", "MatMulNBits", "MatMulBnb4", "QGemm"}
LINEAR |= {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MoE", "QMoE"}

_LONGEST_CHAIN = 8  # sums of one stream and its parallel branches
_MOST_TERMS = 32  # branches of one stream that are told apart; the rest counts as one


@dataclass(frozen=True)
class Branch:
    """One residual branch.

    add: the node that joins it. stream: x, as the sum reads it. branch: f(x). output: of `add`; y,
    or a part of it where several branches join one stream. nodes: those of f, in order, that no
    parallel branch shares. entry: what f starts from; differs from `stream` where the shortcut is
    scaled, reshaped or quantized. name: the name of `output`, or of `branch` where several
    branches are joined by one node.
    """

    add: ir.Node
    stream: ir.Value
    branch: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]
    entry: ir.Value
    name: str

    @property
    def alone(self) -> bool:
        """Whether the joining node adds this branch to the stream, and nothing else."""
        return set(self.add.inputs) == {self.stream, self.branch}


@dataclass(frozen=True)
class BranchAnalysis:
    """Branches of the main graph and refused additions, both in topological order."""

    branches: tuple[Branch, ...]
    refused: tuple[Refusal, ...]

    @cached_property
    def by_name(self) -> dict[str, Branch]:
        """Branches by name."""
        return {b.name: b for b in self.branches}


def residual_branches(graph: ir.Graph) -> list[Branch]:
    """All branches of the main graph, in topological order; see `find_branches`."""
    return list(find_branches(graph).branches)


def find_branches(graph: ir.Graph) -> BranchAnalysis:
    """All branches of the main graph and the residual additions that are none.

    A term of a sum of computed tensors is a branch when another term, the stream, is its ancestor,
    f reads a learned tensor, and nothing but parallel branches of the same sum reads what f
    computes on the way (its values may be graph outputs: a key/value cache). Sums may be chains:
    x + (attention(n(x)) + mlp(n(x))) has two branches. A scaled, reshaped or quantized shortcut
    counts as the stream. Additions of constants, of masks, and polynomials such as x + c * x^3 are
    no residual additions. Refused are projection shortcuts (neither operand is an ancestor),
    branches that change the stream's shape, and branches that are read elsewhere.
    """
    return _Finder(Dataflow(graph)).run()


@dataclass(frozen=True)
class _Term:
    """An operand of a sum: what `add` adds."""

    add: ir.Node
    value: ir.Value


@dataclass(frozen=True)
class _Joined:
    """A stream and the terms that a chain of sums adds to it."""

    stream: ir.Value
    terms: tuple[_Term, ...]
    chain: frozenset[ir.Node]


class _Finder:
    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.sums = {node for node in flow.graph if _is_sum(node)}
        self._entries: dict[tuple[ir.Value, ir.Value], ir.Value | None] = {}
        self._found: list[Branch] = []
        self._refused: list[tuple[ir.Node, str]] = []

    def run(self) -> BranchAnalysis:
        absorbed: set[ir.Node] = set()
        for node in reversed(list(self.flow.graph)):
            if node.op_type in _FUSED_JOINS:
                self._refused.append((node, _FUSED.format(node.op_type)))
            if node not in self.sums or node in absorbed:
                continue
            joined = self._joined(node)
            if joined is None:
                self._refuse_projection(node)
            else:
                absorbed |= self._take(joined)
        return BranchAnalysis(tuple(self._named()), tuple(self._reasons()))

    def _joined(self, node: ir.Node, depth: int = _LONGEST_CHAIN) -> _Joined | None:
        """The stream of a sum: an operand, or one of a chain of sums that ends in `node`."""
        operands = [v for v in node.inputs if v is not None]
        for stream in operands:
            others = [v for v in operands if v is not stream]
            if all(self._entry(stream, v) is not None for v in others):
                terms = tuple(_Term(node, v) for v in others)
                return _Joined(stream, terms, frozenset({node}))
        for value in operands:
            inner = self._inner(value)
            joined = self._joined(inner, depth - 1) if inner is not None and depth else None
            if joined is None:
                continue
            others = [v for v in operands if v is not value]
            if all(self._entry(joined.stream, v) is not None for v in others):
                terms = (*joined.terms, *(_Term(node, v) for v in others))
                return _Joined(joined.stream, terms, joined.chain | {node})
        return None

    def _inner(self, value: ir.Value) -> ir.Node | None:
        """The sum that computes `value` if one node alone reads it."""
        node = value.producer()
        if node not in self.sums or value.is_graph_output():
            return None
        return node if len(list(self.flow.users(value))) == 1 else None

    def _entry(self, stream: ir.Value, value: ir.Value) -> ir.Value | None:
        """The stream, or what it is a scaled or moved copy of, if `value` is computed from it."""
        key = (stream, value)
        if key not in self._entries:
            roots = _roots(stream)
            self._entries[key] = next((r for r in roots if self._leads(r, value, stream)), None)
        return self._entries[key]

    def _leads(self, root: ir.Value, value: ir.Value, stream: ir.Value) -> bool:
        reached = self._carriers(root, value)
        if value.producer() not in reached:
            return False
        # A rotary embedding x * cos + rotate(x) * sin has a scaled shortcut too, and no layer.
        return root is stream or any(n.op_type in LINEAR for n in reached)

    def _carriers(self, root: ir.Value, value: ir.Value) -> dict[ir.Node, None]:
        return self.flow.reached(root, self.flow.ancestors(value, after=root), SHAPE_ONLY)

    def _take(self, joined: _Joined) -> frozenset[ir.Node]:
        """Record the branches of a sum; returns the sums that are dealt with."""
        terms, chain = list(joined.terms), joined.chain
        while len(terms) < _MOST_TERMS:
            split = next((t for t in terms if self._parts(joined.stream, t, terms)), None)
            if split is None:
                break
            parts = self._parts(joined.stream, split, terms)
            at = terms.index(split)
            terms[at : at + 1] = parts
            chain |= {parts[0].add}
        for term in terms:
            nodes = self._owned(joined.stream, term, terms)
            if not any(map(_is_learned, nodes)):
                continue
            if reason := self._refusal(joined.stream, term, terms, chain):
                if self._is_stream(joined.stream, term.add.outputs[0]):
                    self._refused.append((term.add, reason))
            else:
                self._found.append(self._branch(joined.stream, term, nodes))
        return chain

    def _parts(self, stream: ir.Value, term: _Term, terms: Sequence[_Term]) -> list[_Term]:
        """The operands of a term that is itself a sum of branches parallel to each other."""
        inner = self._inner(term.value)
        if inner is None:
            return []
        parts = [_Term(inner, v) for v in inner.inputs if v is not None]
        related = any(
            a is not b and self._entry(a.value, b.value) is not None for a in parts for b in parts
        )
        if related or any(self._entry(stream, p.value) is None for p in parts):
            return []
        others = [*(t for t in terms if t is not term), *parts]
        own = [self._owned(stream, part, others) for part in parts]
        return parts if all(any(n.op_type in LINEAR for n in nodes) for nodes in own) else []

    def _owned(self, stream: ir.Value, term: _Term, terms: Sequence[_Term]) -> tuple[ir.Node, ...]:
        """Nodes from the stream to the term that none of the other terms needs."""
        entry = self._entry(stream, term.value)
        assert entry is not None
        nodes = self.flow.reached(entry, self.flow.ancestors(term.value, after=entry))
        shared = self._shared(stream, term, terms)
        return tuple(n for n in nodes if n not in shared)

    def _shared(self, stream: ir.Value, term: _Term, terms: Sequence[_Term]) -> set[ir.Node]:
        found: set[ir.Node] = set()
        for other in terms:
            entry = self._entry(stream, other.value)
            if other is not term and entry is not None:
                found.update(self._carriers(entry, other.value))
        return found

    def _refusal(
        self, stream: ir.Value, term: _Term, terms: Sequence[_Term], chain: frozenset[ir.Node]
    ) -> str:
        """Why a branch cannot go as a unit, or ""."""
        entry = self._entry(stream, term.value)
        assert entry is not None
        carriers = self._carriers(entry, term.value)
        allowed = chain | self._shared(stream, term, terms)
        for node in carriers:
            for value in node.outputs:
                for user in self.flow.users(value):
                    if not (user in carriers or user in allowed or user.op_type in SHAPE_ONLY):
                        return f"{value.name}, inside the branch, is also read by {_label(user)}"
        output = term.add.outputs[0]
        if known_equal(stream, output) is False:
            return f"changes the stream's shape from {stream.shape} to {output.shape}"
        return ""

    def _is_stream(self, stream: ir.Value, output: ir.Value) -> bool:
        """Whether a layer computes it, or it has the shape of the sum; a mask is neither."""
        return bool(self._layers_before(stream)) or known_equal(stream, output) is True

    def _branch(self, stream: ir.Value, term: _Term, nodes: tuple[ir.Node, ...]) -> Branch:
        output, entry = term.add.outputs[0], self._entry(stream, term.value)
        assert entry is not None
        return Branch(term.add, stream, term.value, output, nodes, entry, output.name or "")

    def _refuse_projection(self, node: ir.Node) -> None:
        """Record why a sum has no stream, if it joins what layers computed from the same value."""
        left, right = ((v, self._layers_before(v)) for v in node.inputs[:2] if v is not None)
        if not left[1] & right[1] or left[1] == right[1]:
            return
        if left[1] & ~right[1] and right[1] & ~left[1]:
            self._refused.append((node, _PROJECTION))
        else:
            shortcut = right if left[1] & ~right[1] else left
            producer = shortcut[0].producer()
            assert producer is not None
            self._refused.append((node, f"the shortcut passes {_label(producer)}"))

    def _layers_before(self, value: ir.Value) -> int:
        producer = value.producer()
        return 0 if producer is None else self._layers.get(producer, 0)

    @cached_property
    def _layers(self) -> dict[ir.Node, int]:
        """Linear layers that each node's value depends on, one bit each."""
        found: dict[ir.Node, int] = {}
        bit = 1
        for node in self.flow.graph:
            bits = 0
            if node.op_type not in SHAPE_ONLY:
                for producer in (v.producer() for v in self.flow.reads(node)):
                    bits |= 0 if producer is None else found.get(producer, 0)
                if node.op_type in LINEAR and _is_learned(node):
                    bits, bit = bits | bit, bit << 1
            found[node] = bits
        return found

    def _named(self) -> Iterator[Branch]:
        """Branches in order; those that share a joining node take the name of their own value."""
        position = self.flow.position
        joins = Counter(b.add for b in self._found)
        order = sorted(self._found, key=lambda b: (position[b.add], b.branch.name or ""))
        for branch in order:
            shares = joins[branch.add] > 1
            yield replace(branch, name=branch.branch.name or "") if shares else branch

    def _reasons(self) -> Iterator[Refusal]:
        for node, reason in sorted(self._refused, key=lambda r: self.flow.position[r[0]]):
            yield Refusal(node.outputs[0].name or "", reason)


_PROJECTION = "a projection shortcut: both sides of the sum have layers of their own"
_FUSED = "the addition is part of {}; start from the model as it was before the runtime fused it"


def _is_sum(node: ir.Node) -> bool:
    """Whether a node adds two or more different computed tensors."""
    if node.domain != "" or node.op_type not in _JOINS:
        return False
    operands = list(node.inputs)
    if len(operands) < 2 or None in operands or len(set(operands)) < len(operands):
        return False
    return all(trace_weight(v) is None for v in operands)


def _roots(value: ir.Value) -> list[ir.Value]:
    """The value and what it is a scaled or moved copy of, nearest first."""
    found = [value]
    while (node := found[-1].producer()) is not None and node.domain == "":
        if node.op_type in _MOVES and node.inputs[0] is not None:
            found.append(node.inputs[0])
        elif node.op_type in _SCALES and len(node.inputs) == 2:
            computed = [v for v in node.inputs if v is not None and trace_weight(v) is None]
            if len(computed) != 1:
                break
            found.append(computed[0])
        else:
            break
    return found


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {node.name}" if node.name else node.op_type


def _is_learned(node: ir.Node) -> bool:
    """Whether a node reads a stored tensor that is neither a scalar nor indices or sizes."""
    weights = (trace_weight(v) for v in node.inputs if v is not None)
    return any(
        w is not None and w.tensor.size > 1 and w.tensor.dtype not in _NOT_LEARNED for w in weights
    ) or any(g.num_nodes() for g in _subgraphs(node))


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
