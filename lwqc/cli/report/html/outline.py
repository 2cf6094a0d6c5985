"""A model as a row of parts that can be unfolded: its residual blocks, and what lies between.

A part is drawn. Nodes that hold weights of few bits, and those that are taken out, are marked. What
unpacks weights while a model is loaded belongs to the node that reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from lwqc.cli.report.html.at_load import at_load
from lwqc.cli.report.html.layered import layered
from lwqc.cli.report.html.page import Fold, Outline, Tone
from lwqc.graph.branch_kinds import BranchTree, TypedBranch, branch_tree, removed_nodes
from lwqc.graph.cost import NodeCost, StoredCost, node_costs
from lwqc.graph.dataflow import Dataflow
from lwqc.model.names import bodies
from lwqc.model.numerals import size_text
from lwqc.passes.one_view import one_view

_DRAWN = 1200  # nodes of a model that are drawn: more are too much for a page
_FEW_BITS = 12  # per weight; floats have 16 or more


def side_by_side(*models: tuple[str, ir.Model, Collection[str]]) -> Outline:
    """Models by title, with the names of branches that are removed."""
    return Outline(
        tuple((title, outline(model, gone)) for title, model, gone in models),
        caption="Open a part for its operators, and point at one for its name. Filled: weights of "
        "few bits; dashed: taken out.",
    )


def outline(model: ir.Model, gone: Collection[str] = ()) -> tuple[Fold, ...]:
    """Parts in the order of the graph. gone: names of branches that are removed."""
    view = one_view(model).clone()
    graph = view.graph
    graph.sort()
    tree, running = branch_tree(graph), at_load(graph)
    costs = _costs(graph, running)
    inside = _blocks(graph, tree)
    parts: list[tuple[int | None, list[ir.Node]]] = []
    where: dict[int, int] = {}
    for node in running:
        block = inside.get(node)
        if block is not None and block in where:
            parts[where[block]][1].append(node)
        elif block is None and parts and parts[-1][0] is None:
            parts[-1][1].append(node)
        else:
            if block is not None:
                where[block] = len(parts)
            parts.append((block, [node]))
    taken, hidden = _removed(graph, tree, gone), frozenset(graph) - running.keys()
    folds, room = [], _DRAWN
    for block, nodes in parts:
        folds.append(_fold(block, nodes, tree, costs, taken, hidden, nodes[:room]))
        room = max(room - len(nodes), 0)
    return tuple(folds)


def _costs(
    graph: ir.Graph, running: Mapping[ir.Node, Collection[ir.Node]]
) -> dict[ir.Node, NodeCost]:
    """Of nodes that run each time, with the weights of their bodies and those unpacked for them."""
    own = dict(zip(graph.all_nodes(), node_costs(graph, {}), strict=True))
    found = {}
    for node, unpacking in running.items():
        inner = [one for _, body in bodies(node) for one in body.all_nodes()]
        read = {w.name: w for one in (*unpacking, node) for w in own[one].weights}
        for one in inner:
            read |= {w.name: w for w in (_placed(w, one) for w in own[one].weights)}
        size = sum(w.size_bytes for w in read.values())
        found[node] = replace(own[node], weights=tuple(read.values()), weight_bytes=size)
    return found


def _placed(weight: StoredCost, node: ir.Node) -> StoredCost:
    """A weight that a body owns, by its place: another one may have the same name."""
    owner = node.graph
    owned = isinstance(owner, ir.Graph) and weight.name in owner.initializers
    return replace(weight, name=f"{id(owner)}/{weight.name}") if owned else weight


def _blocks(graph: ir.Graph, tree: BranchTree) -> dict[ir.Node, int]:
    """The block of each node that is in one, with the addition that a branch ends in."""
    flow = Dataflow(graph)
    found: dict[ir.Node, int] = {}
    for branch in tree.branches:
        for node in (*removed_nodes(branch.branch, flow), branch.branch.add):
            found.setdefault(node, branch.block)
    return found


def _removed(
    graph: ir.Graph, tree: BranchTree, gone: Collection[str]
) -> Mapping[str, Collection[ir.Node]]:
    """Nodes that go with each removed branch."""
    flow = Dataflow(graph)
    return {b.name: removed_nodes(b.branch, flow) for b in tree.branches if b.name in gone}


def _fold(
    block: int | None,
    nodes: Sequence[ir.Node],
    tree: BranchTree,
    costs: Mapping[ir.Node, NodeCost],
    taken: Mapping[str, Collection[ir.Node]],
    hidden: Collection[ir.Node],
    drawn: Sequence[ir.Node],
) -> Fold:
    """drawn: the first of the nodes. hidden: nodes that no drawing shows."""
    stored = {w.name: w.size_bytes for node in nodes for w in costs[node].weights}
    text = f"{len(nodes)} nodes, {size_text(sum(stored.values()))} of weights"
    operators = Counter(node.op_type for node in nodes).most_common()
    lines = [", ".join(f"{count} {op}" for op, count in operators)]
    branches: Sequence[TypedBranch] = () if block is None else tree.blocks[block]
    left_out = [b.name for b in branches if b.name in taken]
    lines += [f"{b.kind}: {b.name}{' (removed)' if b.name in taken else ''}" for b in branches]
    if len(drawn) < len(nodes):
        lines.append(f"Drawn: {len(drawn)} of the nodes; a page holds drawings of {_DRAWN}.")
    name = "outside of blocks" if block is None else f"block {block}"
    if left_out:
        text += f", {len(left_out)} of {len(branches)} branches removed"
    going = frozenset(node for found in taken.values() for node in found)

    def tone(node: ir.Node) -> Tone:
        return "bad" if node in going else "note" if _of_few_bits(costs[node]) else ""

    drawing = layered(drawn, lambda node: _line(costs[node]), tone, hidden) if drawn else None
    return Fold(name, text, tuple(lines), "bad" if left_out else "", drawing)


def _of_few_bits(cost: NodeCost) -> bool:
    return any(8 * w.size_bytes < _FEW_BITS * w.parameters for w in cost.weights)


def _line(cost: NodeCost) -> str:
    stored = f", {size_text(cost.weight_bytes)} of weights" if cost.weight_bytes else ""
    return f"{cost.op} {cost.name}{stored}"
