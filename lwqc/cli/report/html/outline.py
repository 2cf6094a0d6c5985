"""A model as a row of parts that can be unfolded: its residual blocks, and what lies between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from lwqc.cli.report.html.page import Fold
from lwqc.graph.branch_kinds import BranchTree, TypedBranch, branch_tree, removed_nodes
from lwqc.graph.cost import NodeCost, node_costs
from lwqc.graph.dataflow import Dataflow
from lwqc.model.numerals import size_text
from lwqc.passes.one_view import one_view

_SHOWN = 40  # nodes of a part that are listed one by one


def outline(model: ir.Model, gone: Collection[str] = ()) -> tuple[Fold, ...]:
    """Parts in the order of the graph. gone: names of branches that are removed."""
    view = one_view(model).clone()
    graph = view.graph
    graph.sort()
    tree, costs = branch_tree(graph), _costs(graph)
    inside = _blocks(graph, tree)
    parts: list[tuple[int | None, list[ir.Node]]] = []
    where: dict[int, int] = {}
    for node in graph:
        block = inside.get(node)
        if block is not None and block in where:
            parts[where[block]][1].append(node)
        elif block is None and parts and parts[-1][0] is None:
            parts[-1][1].append(node)
        else:
            if block is not None:
                where[block] = len(parts)
            parts.append((block, [node]))
    return tuple(_fold(block, nodes, tree, costs, gone) for block, nodes in parts)


def _costs(graph: ir.Graph) -> dict[ir.Node, NodeCost]:
    return dict(zip(graph.all_nodes(), node_costs(graph, {}), strict=True))


def _blocks(graph: ir.Graph, tree: BranchTree) -> dict[ir.Node, int]:
    """The block of each node that is in one, with the addition that a branch ends in."""
    flow = Dataflow(graph)
    found: dict[ir.Node, int] = {}
    for branch in tree.branches:
        for node in (*removed_nodes(branch.branch, flow), branch.branch.add):
            found.setdefault(node, branch.block)
    return found


def _fold(
    block: int | None,
    nodes: Sequence[ir.Node],
    tree: BranchTree,
    costs: Mapping[ir.Node, NodeCost],
    gone: Collection[str],
) -> Fold:
    stored = {w.name: w.size_bytes for node in nodes for w in costs[node].weights}
    text = f"{len(nodes)} nodes, {size_text(sum(stored.values()))} of weights"
    operators = Counter(node.op_type for node in nodes).most_common()
    lines = [", ".join(f"{count} {op}" for op, count in operators)]
    branches: Sequence[TypedBranch] = () if block is None else tree.blocks[block]
    left_out = [b.name for b in branches if b.name in gone]
    lines += [f"{b.kind}: {b.name}{' (removed)' if b.name in gone else ''}" for b in branches]
    lines += [_line(costs[node]) for node in nodes[:_SHOWN]]
    if len(nodes) > _SHOWN:
        lines.append(f"and {len(nodes) - _SHOWN} more nodes")
    name = "outside of blocks" if block is None else f"block {block}"
    if left_out:
        text += f", {len(left_out)} of {len(branches)} branches removed"
    return Fold(name, text, tuple(lines), "bad" if left_out else "")


def _line(cost: NodeCost) -> str:
    stored = f", {size_text(cost.weight_bytes)} of weights" if cost.weight_bytes else ""
    return f"{cost.op} {cost.name}{stored}"
