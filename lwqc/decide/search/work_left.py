"""What fewer tokens leave of the work of each part of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_ir as ir

from lwqc.compile.prunable import Prunable
from lwqc.compile.version import Version
from lwqc.decide.search.shorter import Shorter
from lwqc.decide.search.space import Stored, Tokens
from lwqc.graph.branch_kinds import branch_tree
from lwqc.graph.cost import node_costs
from lwqc.graph.shapes import shapes_at
from lwqc.graph.sites import find_sites


class RunWork:
    """What a run of a model takes, at the sizes of the first feeds."""

    def __init__(self, model: ir.Model, work: Version) -> None:
        self.model, graph = model, model.graph
        first = work.job.data.fit.first()
        self.shapes = shapes_at(model, {n: a.shape for n, a in first.items()})
        costs = node_costs(graph, self.shapes)
        self.macs = dict(zip(graph.all_nodes(), (c.macs or 0 for c in costs), strict=True))

    @cached_property
    def sites(self) -> dict[str, float]:
        """Products of each site."""
        found = find_sites(self.model).sites
        return {s.name: float(sum(self.macs.get(u.node, 0) for u in s.uses)) for s in found}

    def of_site(self, name: str, whole: RunWork) -> float:
        """What is left here of a site's work; 1 where it does none."""
        before = whole.sites.get(name, 0.0)
        return self.sites.get(name, before) / before if before else 1.0

    def of_value(self, name: str, whole: RunWork) -> float:
        """What is left here of the elements of a value; 1 where they are not known."""
        before, after = (math.prod(w.shapes.get(name, (0,))) for w in (whole, self))
        return min(after / before, 1.0) if before and after else 1.0


def tokens_left(
    item: int,
    whole: RunWork,
    shorter: Sequence[Shorter],
    stored: Sequence[Stored],
    written: int,
    branches: Mapping[int, str],
) -> Tokens:
    """The item of tokens. written: number of nodes. branches: by item, the names."""
    by_level = [RunWork(Prunable(s.version.model).model, s.version) for s in shorter]
    outputs = [node.outputs[0].name or "" for node in whole.model.graph]
    left = np.ones((len(by_level) + 1, len(stored) + written))
    for level, work in enumerate(by_level):
        for part, tensor in enumerate(stored):
            left[level, part] = work.of_site(tensor.name, whole)
        for part, name in enumerate(outputs, len(stored)):
            left[level, part] = work.of_value(name, whole)
    removable = [{b.name for b in branch_tree(work.model.graph).branches} for work in by_level]
    held = (frozenset(i for i, n in branches.items() if n not in own) for own in removable)
    return Tokens(item, (*held, frozenset()), left)
