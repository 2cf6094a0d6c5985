"""What a model is made of as one graph: prunable groups, stored tensors, branches and blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lwqc.decide.explain.inspection import Inspection

if TYPE_CHECKING:
    import networkx as nx

Key = tuple[str, str]  # kind and name
_LOOKS = {
    "group": "shape=box style=filled fillcolor=lightblue",
    "tensor": "shape=ellipse",
    "branch": "shape=box style=rounded",
    "block": "shape=box style=filled fillcolor=lightgrey",
}
_FROZEN = "shape=ellipse color=red"


def structure(found: Inspection, *, groups: bool = True, branches: bool = True) -> nx.DiGraph[Key]:
    """The parts of a model and how they hang together.

    Nodes are (kind, name) with attributes `kind` and, by kind: `group` has `size`, `parameters`,
    `statistics`, `marks`; `tensor` has `frozen`, {axis: reason} for axes that stay whole; `branch`
    has `computes`, `cross`, `parameters`, `macs` (None where unknown); `block` is numbered. Edges
    go from a group to the tensors that shrink with it (`axes`), from a block to its branches, and
    from a branch or block to the next one of its kind (`next`).
    """
    import networkx as nx

    graph: nx.DiGraph[Key] = nx.DiGraph()
    if groups:
        _add_groups(graph, found)
    if branches:
        _add_branches(graph, found)
    return graph


def to_dot(graph: nx.DiGraph[Key]) -> str:
    """The graph in Graphviz's language: blue groups, tensors, red ones with a frozen axis."""
    names = {key: f"n{number}" for number, key in enumerate(graph.nodes)}
    lines = ["digraph model {", "  rankdir=LR; node [fontname=Helvetica fontsize=10];"]
    for key, facts in graph.nodes.items():
        looks = _FROZEN if facts.get("frozen") else _LOOKS[facts["kind"]]
        lines.append(f"  {names[key]} [label={_quoted(_label(key, facts))} {looks}];")
    for first, second, facts in graph.edges(data=True):
        axes = ", ".join(map(str, facts.get("axes", ())))
        label = f" [label={_quoted(f'axis {axes}')}]" if axes else ""
        look = " [style=dashed constraint=false]" if facts.get("next") else label
        lines.append(f"  {names[first]} -> {names[second]}{look};")
    return "\n".join([*lines, "}", ""])


def _add_groups(graph: nx.DiGraph[Key], found: Inspection) -> None:
    for group in found.groups:
        graph.add_node(
            ("group", group.name),
            kind="group",
            size=group.size,
            parameters=group.parameters,
            statistics=group.statistics,
            marks=sorted(group.marks),
        )
    for first, second, facts in found.groups.to_networkx().edges(data=True):
        shrinking, tensor = sorted((first, second))  # by kind, "group" before "tensor"
        graph.add_node(tensor, kind="tensor", frozen={})
        graph.add_edge(shrinking, tensor, axes=facts["axes"])
    for axis in found.groups.frozen:
        if ("tensor", axis.tensor) not in graph:
            graph.add_node(("tensor", axis.tensor), kind="tensor", frozen={})
        graph.nodes["tensor", axis.tensor]["frozen"][axis.axis] = axis.reason


def _add_branches(graph: nx.DiGraph[Key], found: Inspection) -> None:
    last_block: Key | None = None
    last: Key | None = None
    for number, block in enumerate(found.branches.blocks):
        block_key = ("block", str(number))
        graph.add_node(block_key, kind="block")
        if last_block is not None:
            graph.add_edge(last_block, block_key, next=True)
        last_block = block_key
        for branch in block:
            cost = found.branch_costs[branch.name]
            key = ("branch", branch.name)
            graph.add_node(
                key,
                kind="branch",
                computes=branch.kind,
                cross=branch.cross,
                parameters=cost.parameters,
                macs=cost.macs,
            )
            graph.add_edge(block_key, key)
            if last is not None:
                graph.add_edge(last, key, next=True)
            last = key


def _label(key: Key, facts: dict[str, object]) -> str:
    if facts["kind"] == "group":
        marks = facts["marks"]
        more = f", {', '.join(marks)}" if isinstance(marks, list) and marks else ""
        return f"{key[1]}\n{facts['size']} indices{more}"
    if facts["kind"] == "branch":
        return f"{key[1]}\n{facts['computes']}, {facts['parameters']:,} parameters"
    return f"block {key[1]}" if facts["kind"] == "block" else key[1]


def _quoted(text: str) -> str:
    """A string of Graphviz, which knows three escapes: a backslash, a quote and a line break."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(plain, escaped)
    return f'"{text}"'
