"""What is in a model: sites and costs, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.prunable import Prunable
from lwqc.decide.explain.branch_diagnostics import BranchDiagnostics, diagnose_branches
from lwqc.graph.branch_kinds import BranchTree, branch_tree, removed_cost, removed_nodes
from lwqc.graph.cost import NodeCost, node_costs, total
from lwqc.graph.dataflow import Dataflow
from lwqc.graph.groups import Group, Groups
from lwqc.graph.sites import SiteAnalysis, find_sites
from lwqc.graph.value_types import is_tensor
from lwqc.model import io
from lwqc.model.data_files import stored_bytes
from lwqc.model.numerals import size_text
from lwqc.model.told import Told
from lwqc.passes.one_view import one_view
from lwqc.runtime.data import Dataset, default_sizes, open_data, required_inputs
from lwqc.runtime.legal_sizes import legal_sizes
from lwqc.runtime.proof import prove_first
from lwqc.runtime.session import Session
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.shapes import Shapes


@dataclass(frozen=True)
class BranchCost:
    """What goes with a residual branch. macs: None where they are not known."""

    parameters: int
    macs: int | None


@dataclass(frozen=True, repr=False)
class Inspection(Told):
    """Facts about a model. shapes: how tensor shapes were found. branch_costs: by branch name.

    diagnostics: of branches, where data was given.
    """

    name: str
    size_bytes: int
    weight_bytes: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sites: SiteAnalysis
    costs: tuple[NodeCost, ...]
    shapes: str
    groups: Groups
    branches: BranchTree
    branch_costs: Mapping[str, BranchCost]
    diagnostics: BranchDiagnostics | None = None

    def told(self) -> dict[str, str]:
        """How large it is, and how much of it can be changed."""
        summed = total(self.costs)
        return {
            "model": self.name,
            "size": size_text(self.size_bytes),
            "parameters": f"{summed.parameters:,}",
            "MACs": "unknown" if summed.macs is None else f"{summed.macs:,}",
            "inputs": "; ".join(self.inputs),
            "outputs": "; ".join(self.outputs),
            "sites": str(len(self.sites.sites)),
            "prunable groups": str(len(list(self.groups))),
            "residual branches": str(len(self.branches.branches)),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        summed = total(self.costs)
        return {
            "name": self.name,
            "size_bytes": self.size_bytes,
            "weight_bytes": self.weight_bytes,
            "opset": self.opset,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "parameters": summed.parameters,
            "macs": summed.macs,
            "shapes": self.shapes,
            "sites": [
                {
                    "name": s.name,
                    "op": sorted(s.ops),
                    "shape": s.shape,
                    "n": s.n,
                    "k": s.k,
                    "bytes": s.float_bytes,
                    "uses": [u.node.name for u in s.uses],
                }
                for s in self.sites.sites
            ],
            "skipped": [asdict(s) for s in self.sites.skipped],
            "costs": [asdict(c) for c in self.costs],
            "groups": [_group(g) for g in self.groups],
            "frozen": [asdict(f) for f in self.groups.frozen],
            "barriers": [{"node": b.name, "reason": b.reason} for b in self.groups.barriers],
            "branches": [
                {
                    "name": b.name,
                    "kind": b.kind,
                    "cross": b.cross,
                    "block": b.block,
                    **asdict(self.branch_costs[b.name]),
                    **self._diagnosis(b.name),
                }
                for b in self.branches.branches
            ],
            "not_removable": [{"name": r.name, "reason": r.reason} for r in self.branches.refused],
        }

    def _diagnosis(self, branch: str) -> dict[str, Any]:
        """What a branch does on data, in plain data."""
        if self.diagnostics is None:
            return {}
        found, skips = self.diagnostics.effects[branch], self.diagnostics.skips
        at = skips.names.index(branch)
        return {
            "cosine": found.cosine,
            "angular": found.angular,
            "norm_ratio": found.norm_ratio,
            "void_rate": self.diagnostics.voids[branch],
            "skip_changes_outputs": float(skips.outputs[at]),
            "skip_changes": dict(zip(skips.names, map(float, skips.later[at]), strict=True)),
        }


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "size": group.size,
        "statistics": group.statistics,
        "marks": sorted(group.marks),
        "parameters": group.parameters,
        "axes": [
            {
                "tensor": o.name,
                "axis": o.axis,
                "positions_per_index": int(np.count_nonzero(group.owner(o) == 0)),
            }
            for o in group.occurrences
        ],
    }


def inspect_model(
    model: ir.Model,
    name: str = "model",
    dims: Mapping[str, int] | None = None,
    resizable_outputs: tuple[str, ...] = (),
    data: Dataset | None = None,
) -> Inspection:
    """Analyse a model. dims: sizes of its dynamic dimensions, for the MACs.

    data: runs that tell what residual branches do; without it, none are made.

    Shapes are observed in one run on random inputs where the runtime can run the model, so that
    shape arithmetic in the graph is exact; MACs of nodes without a shape are unknown.
    """
    size_bytes = stored_bytes(model)
    model = one_view(model)
    default_sizes(required_inputs(model), dims or {})  # refuses sizes that the inputs do not have
    shapes, how = _shapes(model, name, dims or {})
    if data is not None:
        prove_first(model, data.first, name)
    costs = tuple(node_costs(model.graph, shapes))
    branches = branch_tree(model.graph)
    return Inspection(
        name=name,
        size_bytes=size_bytes,
        weight_bytes=io.weight_bytes(model),
        opset=int(model.opset_imports.get("", 1)),
        inputs=tuple(_describe(v) for v in model.graph.inputs),
        outputs=tuple(_describe(v) for v in model.graph.outputs),
        sites=find_sites(model),
        costs=costs,
        shapes=how,
        groups=Prunable(model, resizable_outputs).groups,
        branches=branches,
        branch_costs=_branch_costs(model.graph, branches, costs),
        diagnostics=diagnose_branches(model, branches, data)
        if data is not None and branches.branches
        else None,
    )


def _branch_costs(
    graph: ir.Graph, tree: BranchTree, costs: Sequence[NodeCost]
) -> dict[str, BranchCost]:
    flow = Dataflow(graph)
    removed = {b.name: removed_nodes(b.branch, flow) for b in tree.branches}
    return {name: BranchCost(*removed_cost(nodes, costs, graph)) for name, nodes in removed.items()}


def _describe(value: ir.Value) -> str:
    dtype = value.dtype.name.lower() if value.dtype is not None else "?"
    dims = "?" if value.shape is None else ", ".join(map(_size, value.shape))
    return f"{value.name}: {dtype}[{dims}]"


def _size(dim: int | ir.SymbolicDim) -> str:
    return str(dim) if isinstance(dim, int) else dim.value or "?"


def _fed(value: NDArray[Any]) -> str:
    """The size of an input, or the number that it is."""
    return str(list(value.shape)) if value.ndim else f"= {value.item()}"


def _shapes(
    model: ir.Model, name: str, dims: Mapping[str, int]
) -> tuple[dict[str, tuple[int, ...]], str]:
    from lwqc.errors import LwqcError

    names = [
        v.name
        for node in model.graph
        for v in (*node.inputs, *node.outputs)
        if v is not None and v.name and not v.is_initializer() and is_tensor(v)
    ]
    wanted = [Shapes(name) for name in dict.fromkeys(names)]
    try:
        sizes = legal_sizes(model, dims)
        feeds = [open_data("random:1", model, shapes=sizes).first()]
        prove_first(model, lambda: feeds[0], name)
        found = collect(model, wanted, feeds, lambda m: Session(m, label="shapes"))
    except LwqcError as error:
        return {}, f"unknown: {error}"
    inputs = ", ".join(f"{name} {_fed(value)}" for name, value in feeds[0].items())
    return {w.tensor: found[w].last for w in wanted}, f"observed with {inputs}"
