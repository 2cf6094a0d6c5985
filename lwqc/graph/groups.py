"""Prunable groups: factors whose indices can go, and every slice that goes with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.axes import STATISTICS, Factor, positions
from lwqc.graph.axis_analysis import AxisAnalysis, Use, analyse_axes
from lwqc.graph.rules.context import Rules
from lwqc.graph.sampled import Sampled
from lwqc.model.refusal import Refusal
from lwqc.model.weights import is_float, stored_tensor

if TYPE_CHECKING:
    import networkx as nx

_READS_CODES = {"DequantizeLinear", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits"}


@dataclass(frozen=True)
class Occurrence:
    """One axis of a stored tensor in which a group takes part. operand: None for all readers."""

    value: ir.Value
    axis: int
    dimension: Factor
    operand: Use | None = None

    @property
    def name(self) -> str:
        """Name of the stored tensor."""
        return self.value.name or ""


@dataclass(frozen=True)
class Group:
    """Indices that can go one by one (`size` of them), with all that goes along.

    name: `<tensor>:<axis>` of the first weight that has it, with `/<n>` where that axis holds
    several groups. marks: `statistics` when what remains is normalised without the removed index,
    `heads`, `head dims`, `convolution groups` for what the indices are.
    """

    name: str
    factor: Factor
    occurrences: tuple[Occurrence, ...]
    marks: frozenset[str]

    @property
    def size(self) -> int:
        """Number of indices."""
        return self.factor.size

    @property
    def statistics(self) -> bool:
        """Whether removing an index changes what remains by more than its own contribution."""
        return STATISTICS in self.marks

    @property
    def weights(self) -> tuple[Occurrence, ...]:
        """Occurrences in weights; the others are index tables and the like."""
        return tuple(o for o in self.occurrences if is_weight(o.value))

    @cached_property
    def parameters(self) -> int:
        """Stored weights that any index of the group covers."""
        names = {o.value: None for o in self.weights}
        return sum(tensor.size for v in names if (tensor := stored_tensor(v)) is not None)

    def slices(self, index: int) -> Iterator[tuple[Occurrence, NDArray[np.intp]]]:
        """What goes with one index: positions along each axis, in the original tensor."""
        for occurrence in self.occurrences:
            yield occurrence, np.flatnonzero(self.owner(occurrence) == index)

    def owner(self, occurrence: Occurrence) -> NDArray[np.intp]:
        """Index of the group at each position of the axis, -1 where another one sits."""
        found = self._owners.get(id(occurrence))
        if found is None:
            found = positions(occurrence.dimension, self.factor)
            self._owners[id(occurrence)] = found
        return found

    @cached_property
    def _owners(self) -> dict[int, NDArray[np.intp]]:
        return {}


@dataclass(frozen=True)
class FrozenAxis:
    """An axis of a weight that stays whole, and why."""

    tensor: str
    axis: int
    size: int
    reason: str


@dataclass(frozen=True)
class Groups:
    """All groups of a graph, in topological order, and what is frozen."""

    analysis: AxisAnalysis
    groups: tuple[Group, ...]
    frozen: tuple[FrozenAxis, ...]

    def __iter__(self) -> Iterator[Group]:
        """The groups."""
        return iter(self.groups)

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.groups)

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    @property
    def barriers(self) -> tuple[Refusal, ...]:
        """Nodes through which nothing could be told, and why."""
        return tuple(self.analysis.barriers)

    def to_networkx(self) -> nx.Graph[tuple[str, str]]:
        """Groups and stored tensors as a bipartite graph.

        Nodes carry `kind` (`group` or `tensor`) and, for groups, `size`, `statistics` and `marks`;
        edges carry `axes`, the axes of the tensor that shrink with the group.
        """
        import networkx as nx

        graph: nx.Graph[tuple[str, str]] = nx.Graph()
        for group in self.groups:
            marks = sorted(group.marks)
            key = ("group", group.name)
            graph.add_node(
                key, kind="group", size=group.size, statistics=group.statistics, marks=marks
            )
            for occurrence in group.occurrences:
                tensor = ("tensor", occurrence.name)
                graph.add_node(tensor, kind="tensor")
                axes = graph.edges[key, tensor]["axes"] if graph.has_edge(key, tensor) else []
                graph.add_edge(key, tensor, axes=sorted({*axes, occurrence.axis}))
        return graph


def is_weight(value: ir.Value) -> bool:
    """Whether a stored tensor holds weights: floats, or codes that are read as such."""
    tensor = stored_tensor(value)
    if tensor is None:
        return False
    return is_float(tensor) or any(
        use.node.op_type in _READS_CODES and use.idx < 2 for use in value.uses()
    )


def find_groups(
    model: ir.Model,
    shapes: Mapping[str, Sampled],
    *,
    rules: Rules | None = None,
    resizable_outputs: Collection[str] = (),
) -> Groups:
    """Analyse a model; see `analyse_axes` for the arguments."""
    analysis = analyse_axes(model, shapes, rules=rules, resizable_outputs=resizable_outputs)
    ordered = list(_in_order(analysis))
    found: dict[Factor, list[Occurrence]] = {}
    for occurrence in ordered:
        for leaf in dict.fromkeys(occurrence.dimension.leaves()):
            if not leaf.frozen:
                found.setdefault(leaf, []).append(occurrence)
    taken: set[str] = set()
    groups = [
        Group(_name(leaf, occurrences, taken), leaf, tuple(occurrences), frozenset(leaf.marks))
        for leaf, occurrences in found.items()
        if any(is_weight(o.value) for o in occurrences)
    ]
    return Groups(analysis, tuple(groups), tuple(_frozen(ordered)))


def _in_order(analysis: AxisAnalysis) -> Iterator[Occurrence]:
    """Axes of the stored tensors in the order in which nodes read them."""
    seen: set[Use | ir.Value] = set()
    for node in analysis.graph:
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            use = Use(value, node, index)
            key: Use | ir.Value = use if use in analysis.stored else value
            if key in seen or key not in analysis.stored:
                continue
            seen.add(key)
            for axis, dimension in enumerate(analysis.stored[key]):
                yield Occurrence(value, axis, dimension, use if key is use else None)


def _name(leaf: Factor, occurrences: Iterable[Occurrence], taken: set[str]) -> str:
    first = next(o for o in occurrences if is_weight(o.value))
    inside = [f for f in dict.fromkeys(first.dimension.leaves()) if not f.frozen]
    name = f"{first.name}:{first.axis}"
    if len(inside) > 1:
        name += f"/{inside.index(leaf)}"
    base, count = name, 1
    while name in taken:
        count += 1
        name = f"{base}#{count}"
    taken.add(name)
    return name


def _frozen(occurrences: Iterable[Occurrence]) -> Iterator[FrozenAxis]:
    for o in occurrences:
        if o.dimension.size == 1 or not is_weight(o.value):
            continue
        leaves = list(o.dimension.leaves())
        if all(leaf.frozen for leaf in leaves):
            reasons = dict.fromkeys(leaf.frozen for leaf in leaves)
            yield FrozenAxis(o.name, o.axis, o.dimension.size, "; ".join(reasons))
