"""The step that lets adjacent residual branches read one stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from lwqc.compile.steps.step import Made, Step
from lwqc.passes.fold_norms import FoldNorms
from lwqc.passes.join_equal import JoinEqual
from lwqc.passes.merge_parallel import MergeParallel
from lwqc.passes.parallel_branches import ParallelBranches
from lwqc.plans.plan import ParallelPair, Plan
from lwqc.plans.wording import amount_text, names_text


def parallel_planned(model: ir.Model, pairs: Sequence[ParallelPair]) -> ir.Model:
    """A copy whose pairs are parallel and merged. Raises InputError."""
    copy = model.clone()
    rewrite = ParallelBranches((pair.first, pair.second) for pair in pairs)
    rewrite(copy)
    nodes = {node for branch in rewrite.branches for node in branch.nodes}
    FoldNorms(only=_names(nodes))(copy)
    JoinEqual(only=_names(nodes))(copy)
    MergeParallel(only=_names(nodes))(copy)
    return copy


def _names(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    """Names of the first outputs as they are now, of nodes that are still there."""
    return tuple(node.outputs[0].name or "" for node in nodes if node.graph is not None)


def _run(made: Made) -> Made:
    version = made.version
    return made.on(version.derived(parallel_planned(version.model, made.plan.parallel)))


def _text(plan: Plan) -> Iterator[str]:
    pairs = (f"{pair.first} and {pair.second}" for pair in plan.parallel)
    yield f"{len(plan.parallel)} pairs of branches become parallel: {names_text(pairs)}"


STEP = Step(
    "parallel",
    _run,
    _text,
    short=lambda plan: amount_text(len(plan.parallel), "pairs of branches made parallel"),
)
