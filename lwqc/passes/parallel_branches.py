"""Feeds branches that follow each other from one stream: y = x + f1(x) + f2(x)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.adjacent import Adjacency, Pair, adjacent_pairs, chains
from lwqc.graph.branch_kinds import BranchTree, branch_tree
from lwqc.graph.branches import Branch


class ParallelBranches(ir.passes.InPlacePass):
    """Let the second branch of each pair read what the first reads.

    Matches: pairs of branch names that `adjacent_pairs` finds.
    Rewrites to: y1 = x + f1(x), y2 = y1 + f2(x), an approximation that drops the terms of higher
        order of (I + f2)(I + f1). Of pairs in a chain, (a, b) and (b, c), all branches read what
        the first reads.
    Refuses: with InputError, names that the model does not have, and branches that are not
        adjacent: a norm between them, a scaled shortcut, several branches in one sum.

    After `call`, `branches` are those of all pairs, in order, as they were before.
    Source: Make Deep Networks Shallow Again, arXiv 2309.08414.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        super().__init__()
        self._pairs = tuple(dict.fromkeys(pairs))
        self.branches: tuple[Branch, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewire the pairs. Raises InputError for a pair that the model does not have."""
        tree = branch_tree(model.graph)
        adjacency = chosen_pairs(tree, self._pairs)
        chosen = {name for pair in self._pairs for name in pair}
        self.branches = tuple(b.branch for b in tree.branches if b.name in chosen)
        for second, first in chains(adjacency, self._pairs).items():
            stream = tree.by_name[first].branch.stream
            feed(tree.by_name[second].branch, stream)
        return ir.passes.PassResult(model, bool(self._pairs))


def chosen_pairs(tree: BranchTree, pairs: Iterable[Pair]) -> Adjacency:
    """All adjacent pairs. Raises InputError when some of `pairs` are not among them."""
    adjacency = adjacent_pairs(tree)
    refused = {r.name: r.reason for r in tree.refused}
    for first, second in pairs:
        for name in (first, second):
            if name not in tree.by_name:
                why = f": {refused[name]}" if name in refused else ""
                raise InputError(f"{name}: is no branch{why}; see lwqc inspect --branches")
        if adjacency.first_of.get(second) != first:
            raise InputError(
                f"{second}: cannot be parallel to {first}: {_why(adjacency, first, second)}"
            )
    return adjacency


def feed(branch: Branch, value: ir.Value) -> None:
    """Let a branch start from `value`; the sum that joins it reads its stream as before."""
    nodes = set(_with_bodies(branch.nodes))
    for use in list(branch.entry.uses()):
        if use.node in nodes:
            use.node.replace_input_with(use.idx, value)


def _why(adjacency: Adjacency, first: str, second: str) -> str:
    if second in adjacency.first_of:
        return f"it follows {adjacency.first_of[second]}"
    return adjacency.reasons.get(second, "it follows no branch")


def _with_bodies(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from attribute.as_graph().all_nodes()
            elif attribute.type == ir.AttributeType.GRAPHS:
                yield from (n for graph in attribute.as_graphs() for n in graph.all_nodes())
