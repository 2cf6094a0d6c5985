"""What residual branches compute, and the blocks that models repeat."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Literal, get_args

import onnx_ir as ir

from lwqc.graph.branches import LINEAR, Branch, BranchAnalysis, find_branches
from lwqc.graph.cost import NodeCost
from lwqc.graph.dataflow import Dataflow
from lwqc.model.refusal import Refusal
from lwqc.model.weights import static_shape, trace_weight

Kind = Literal["attention", "mlp", "convolution", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_FUSED_ATTENTION = frozenset(
    {"Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "QAttention"}
    | {"DecoderMaskedSelfAttention", "DecoderMaskedMultiHeadAttention", "LongformerAttention"}
    | {"PackedMultiHeadAttention", "SparseAttention", "PagedAttention", "DecoderAttention"}
)
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "FusedMatMul"})
_CONVOLUTIONS = frozenset(
    {"Conv", "ConvTranspose", "FusedConv", "ConvInteger", "QLinearConv", "DeformConv"}
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True)
class TypedBranch:
    """A branch with what it computes.

    kind: `attention` (a softmax between two products of activations, or a fused operator), `mlp`
    (matrix products, 1x1 convolutions), `convolution` or `other`. cross: attention to values that
    the branch does not compute from its stream. block: number of the block it belongs to.
    """

    branch: Branch
    kind: Kind
    cross: bool
    block: int

    @property
    def name(self) -> str:
        """The branch's name."""
        return self.branch.name


@dataclass(frozen=True)
class BranchTree:
    """Typed branches in topological order, and the residual additions that are none."""

    branches: tuple[TypedBranch, ...]
    refused: tuple[Refusal, ...]

    @cached_property
    def blocks(self) -> tuple[tuple[TypedBranch, ...], ...]:
        """Branches by block."""
        order = sorted(self.branches, key=lambda b: b.block)
        return tuple(tuple(found) for _, found in groupby(order, key=lambda b: b.block))

    @cached_property
    def by_name(self) -> dict[str, TypedBranch]:
        """Branches by name."""
        return {b.name: b for b in self.branches}

    def count(self, kind: Kind) -> int:
        """How many branches are of a kind."""
        return sum(b.kind == kind for b in self.branches)


def branch_tree(graph: ir.Graph) -> BranchTree:
    """Find, type and group the branches of the main graph.

    A block is what models repeat: a transformer layer, a unit of a ResNet stage. Along each stream
    it ends before a kind of branch comes again; where all are of one kind, with the period of
    their operators (a mixer's token and channel MLPs), else it is a single branch.
    """
    flow = Dataflow(graph)
    found = find_branches(graph)
    kinds = {b.name: branch_kind(b) for b in found.branches}
    cross = {b.name: kinds[b.name] == "attention" and _is_cross(b) for b in found.branches}
    blocks: dict[str, int] = {}
    for chain in _chains(found, flow):
        symbols = [(kinds[b.name], cross[b.name]) for b in chain]
        for group in _grouped(chain, symbols):
            number = len(set(blocks.values()))
            blocks.update((b.name, number) for b in group)
    typed = (TypedBranch(b, kinds[b.name], cross[b.name], blocks[b.name]) for b in found.branches)
    return BranchTree(tuple(typed), found.refused)


def branch_kind(branch: Branch) -> Kind:
    """What a branch computes; see `TypedBranch`."""
    ops = {node.op_type for node in branch.nodes}
    if ops & _FUSED_ATTENTION or _has_attention(branch):
        return "attention"
    spatial = [n for n in branch.nodes if n.op_type in _CONVOLUTIONS and not _is_pointwise(n)]
    if spatial:
        return "convolution"
    if ops & _RECURRENT or not ops & LINEAR:
        return "other"
    return "mlp"


def removed_nodes(branch: Branch, flow: Dataflow) -> list[ir.Node]:
    """Nodes that go with a branch: also those that only serve it, such as a decoder's keys."""
    return flow.dying(branch.branch, branch.add, branch.nodes)


def removed_cost(
    removed: Iterable[ir.Node], costs: Sequence[NodeCost], graph: ir.Graph
) -> tuple[int, int | None]:
    """Parameters and multiply-accumulates that go with nodes; None where MACs are not known.

    costs: of all nodes of the graph, as `node_costs` gives them. A tensor that nodes which stay
    read too does not go.
    """
    gone = set(removed)
    inside = [(node in gone, cost) for node, cost in zip(graph.all_nodes(), costs, strict=True)]
    kept = {w.name for is_gone, cost in inside if not is_gone for w in cost.weights}
    stored = {w.name: w for is_gone, cost in inside if is_gone for w in cost.weights}
    macs = [cost.macs for is_gone, cost in inside if is_gone]
    known = [m for m in macs if m is not None]
    parameters = sum(w.parameters for name, w in stored.items() if name not in kept)
    return parameters, sum(known) if len(known) == len(macs) else None


def feature_axis(branch: Branch) -> int:
    """The axis of the stream that holds a token's or pixel's features: 1 in images, else -1.

    Followed from the branch's last learned layer (1 after a convolution, -1 after a matrix product)
    through transpositions; where there is no such layer, rank 4 is taken for an image. Features
    have a known number: where the model says that the other axis alone has one, it is that.
    """
    axis, other = _traced_axis(branch), {1: -1, -1: 1}
    shape = branch.stream.shape
    if shape is None or shape.rank() < 3 or axis not in other:
        return axis
    known = {a: isinstance(shape[a], int) for a in (1, -1)}
    return other[axis] if known[other[axis]] and not known[axis] else axis


def _traced_axis(branch: Branch) -> int:
    rank = None if branch.stream.shape is None else branch.stream.shape.rank()
    path: list[ir.Node] = []
    node = branch.branch.producer()
    while node is not None and not (_is_layer(node) or node.op_type in _FUSED_ATTENTION):
        path.append(node)
        computed = (v for v in node.inputs if v is not None and trace_weight(v) is None)
        node = next((v.producer() for v in computed if v.producer() is not None), None)
    if node is None or any(n.op_type in _PRODUCTS for n in path):
        return 1 if rank == 4 else -1  # a product of activations puts its own axes in order
    convolves = any(n.op_type in _CONVOLUTIONS for n in branch.nodes)
    if rank is not None and rank < 4 and not convolves:
        return -1  # a mixer's token MLP ends in a transposition too
    axis = 1 if node.op_type in _CONVOLUTIONS else -1
    for step in reversed(path):
        if step.op_type == "Transpose" and "perm" in step.attributes:
            perm = list(step.attributes["perm"].as_ints())
            axis = perm.index(axis % len(perm))
            axis = -1 if axis == len(perm) - 1 else axis
    return axis


def _is_layer(node: ir.Node) -> bool:
    """Whether it multiplies with something stored."""
    stored = any(v is not None and trace_weight(v) is not None for v in node.inputs)
    return node.op_type in LINEAR and (stored or node.op_type not in _PRODUCTS)


def _has_attention(branch: Branch) -> bool:
    """Whether a softmax lies between two products of activations."""
    before: set[ir.Value] = set()  # depends on a product
    between: set[ir.Value] = set()  # depends on a softmax of one
    for node in branch.nodes:
        product = _is_activation_product(node)
        if product and any(v in between for v in node.inputs):
            return True
        if any(v in between for v in node.inputs):
            between.update(node.outputs)
        elif any(v in before for v in node.inputs) or product:
            (between if node.op_type == "Softmax" else before).update(node.outputs)
    return _has_written_softmax(branch) if not between else False


def _has_written_softmax(branch: Branch) -> bool:
    """The same for a softmax that is written as Exp, ReduceSum and Div."""
    ops = [node.op_type for node in branch.nodes]
    products = [i for i, node in enumerate(branch.nodes) if _is_activation_product(node)]
    return any(
        {"Exp", "ReduceSum", "Div"} <= set(ops[first:last]) for first, last in pairwise(products)
    )


def _is_activation_product(node: ir.Node) -> bool:
    operands = [v for v in node.inputs[:2] if v is not None]
    computed = all(trace_weight(v) is None for v in operands)
    return node.op_type in _PRODUCTS and len(operands) == 2 and computed


def _is_cross(branch: Branch) -> bool:
    inside = {v for node in branch.nodes for v in node.outputs}
    return any(
        _is_activation_product(node) and any(v not in inside for v in node.inputs[:2])
        for node in branch.nodes
    )


def _is_pointwise(node: ir.Node) -> bool:
    """Whether a convolution is a matrix product at every pixel."""
    weight = trace_weight(node.inputs[1]) if len(node.inputs) > 1 else None
    grouped = "group" in node.attributes and node.attributes["group"].as_int() != 1
    return (
        node.op_type in ("Conv", "FusedConv")
        and weight is not None
        and not grouped
        and set(static_shape(weight.tensor)[2:]) <= {1}
    )


def _chains(found: BranchAnalysis, flow: Dataflow) -> list[list[Branch]]:
    """Branches by stream: an encoder's, a decoder's."""
    joins = {b.add: b for b in found.branches}
    chain_of: dict[ir.Node, list[Branch]] = {}
    chains: list[list[Branch]] = []
    for branch in found.branches:
        earlier = last_join(branch, joins, flow)
        if branch.add in chain_of:  # several branches, one node
            chain = chain_of[branch.add]
        elif earlier is not None and earlier in chain_of:
            chain = chain_of[earlier]
        else:
            chain = []
            chains.append(chain)
        chain.append(branch)
        chain_of[branch.add] = chain
    return chains


def last_join(branch: Branch, joins: Collection[ir.Node], flow: Dataflow) -> ir.Node | None:
    """The nearest joining node before a branch."""
    seen: set[ir.Node] = set()
    todo = [branch.entry.producer()]
    found: list[ir.Node] = []
    while todo:
        node = todo.pop()
        if node is None or node in seen or node not in flow.position:
            continue
        seen.add(node)
        if node in joins:
            found.append(node)
        else:
            todo.extend(v.producer() for v in flow.reads(node))
    return max(found, key=flow.position.__getitem__, default=None)


def _grouped(chain: list[Branch], symbols: list[tuple[Kind, bool]]) -> list[list[Branch]]:
    if len(set(symbols)) > 1:
        return _until_repeated(chain, symbols)
    operators = [tuple(n.op_type for n in b.nodes) for b in chain]
    period = next((p for p in range(2, len(chain) // 2 + 1) if _has_period(operators, p)), 1)
    return [chain[i : i + period] for i in range(0, len(chain), period)]


def _until_repeated(chain: list[Branch], symbols: list[tuple[Kind, bool]]) -> list[list[Branch]]:
    groups: list[list[Branch]] = []
    seen: set[tuple[Kind, bool]] = set()
    for branch, symbol in zip(chain, symbols, strict=True):
        if not groups or symbol in seen:
            groups.append([])
            seen = set()
        groups[-1].append(branch)
        seen.add(symbol)
    return groups


def _has_period(items: Sequence[object], period: int) -> bool:
    """Whether `period` different items come again and again, and nothing else."""
    repeats = all(items[i] == items[i - period] for i in range(period, len(items)))
    return repeats and len(items) % period == 0 and len(set(items[:period])) == period
