"""Residual branches that follow each other on one stream: y1 = x + f1(x), y2 = y1 + f2(y1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from lwqc.graph.branch_kinds import BranchTree, last_join
from lwqc.graph.branches import Branch
from lwqc.graph.dataflow import Dataflow
from lwqc.model.refusal import Refusal

Pair = tuple[str, str]


@dataclass(frozen=True)
class Adjacency:
    """Pairs of branches whose second could read what the first reads, in graph order.

    refused: for every other branch that comes after one, why it could not; name: of the second.
    A branch is the second of one pair at most.
    """

    pairs: tuple[Pair, ...]
    refused: tuple[Refusal, ...]

    @cached_property
    def first_of(self) -> dict[str, str]:
        """Second -> first."""
        return {second: first for first, second in self.pairs}

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why a branch is the second of no pair."""
        return {r.name: r.reason for r in self.refused}


def adjacent_pairs(tree: BranchTree) -> Adjacency:
    """Pairs of branches, one right after the other, each the only one that its sum joins.

    The second's stream must be the first's output, and what it computes from it must start there:
    no norm between them, no scaled or reshaped shortcut.
    """
    branches = [b.branch for b in tree.branches]
    graph = branches[0].add.graph if branches else None
    if not isinstance(graph, ir.Graph):
        return Adjacency((), ())
    flow, joins = Dataflow(graph), {b.add: b for b in branches}
    pairs: list[Pair] = []
    refused: list[Refusal] = []
    for second in branches:
        join = last_join(second, joins, flow)
        if join is None:
            continue
        first = joins[join]
        if reason := _refusal(first, second):
            refused.append(Refusal(second.name, reason))
        else:
            pairs.append((first.name, second.name))
    return Adjacency(tuple(pairs), tuple(refused))


def _refusal(first: Branch, second: Branch) -> str:
    """Why the second cannot read what the first reads, or ""."""
    for branch in (first, second):
        if not branch.alone:
            return f"{branch.name} is joined together with other branches"
    if second.entry is not second.stream:
        return "its shortcut is scaled, reshaped or quantized"
    if second.stream is not first.output:
        producer = second.stream.producer()
        between = producer.op_type if producer is not None else "a graph input"
        return f"it reads the output of {between}, not that of {first.name}"
    return ""


def chains(adjacency: Adjacency, chosen: Iterable[Pair]) -> dict[str, str]:
    """Second -> the branch whose stream it is to read: the first of an unbroken chain of pairs."""
    firsts = {second: first for first, second in chosen}
    order = [second for _, second in adjacency.pairs if second in firsts]
    source: dict[str, str] = {}
    for second in order:  # a pair's first comes before its second, so it is dealt with
        first = firsts[second]
        source[second] = source.get(first, first)
    return source
