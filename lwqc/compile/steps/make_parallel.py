"""The step that lets adjacent residual branches read one stream."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from lwqc.passes.fold_norms import FoldNorms
from lwqc.passes.join_equal import JoinEqual
from lwqc.passes.merge_parallel import MergeParallel
from lwqc.passes.parallel_branches import ParallelBranches
from lwqc.plans.plan import ParallelPair


def parallel_planned(model: ir.Model, pairs: Sequence[ParallelPair]) -> ir.Model:
    """A copy whose pairs are parallel and merged. Raises InputError."""
    copy = model.clone()
    rewrite = ParallelBranches((pair.first, pair.second) for pair in pairs)
    rewrite(copy)
    nodes = {node for branch in rewrite.branches for node in branch.nodes}
    FoldNorms(nodes)(copy)
    JoinEqual(nodes)(copy)
    MergeParallel(nodes)(copy)
    return copy
