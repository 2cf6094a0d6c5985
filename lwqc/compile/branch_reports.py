"""What became of residual branches and streams, as data."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.compile.decisions import (
    DropDecision,
    ParallelDecision,
    SliceDecision,
    TokenDecision,
)
from lwqc.compile.result import (
    BranchRow,
    ParallelReport,
    RemovalReport,
    SlicingReport,
    TokensReport,
)
from lwqc.compile.steps.removed_branches import RemovedBranches
from lwqc.graph.branch_kinds import branch_tree
from lwqc.passes.remove_branches import Removal
from lwqc.plans.plan import Plan


def removal_report(
    graph: ir.Graph, removed: RemovedBranches | None, decision: DropDecision | None
) -> RemovalReport:
    """The report; graph: of the model as it was.

    removed: None when nothing went. decision: None when the plan was given.
    """
    tree = branch_tree(graph)
    done = removed.removal if removed is not None else Removal(())
    compensated = removed.compensated if removed is not None else {}
    steps = decision.curve if decision is not None else ()
    step_of = {name: (i + 1, step) for i, step in enumerate(steps) for name in step.branches}
    rows = []
    for number, name in enumerate(done.branches, 1):
        at, step = step_of.get(name, (number, None))
        rows.append(
            BranchRow(
                name=name,
                kind=tree.by_name[name].kind,
                step=at,
                score=None if step is None else step.score,
                divergence=None if step is None else step.divergence,
                compensation=compensated.get(name, ""),
            )
        )
    return RemovalReport(
        branches=tuple(rows),
        there_were=len(tree.branches),
        measure="" if decision is None else decision.measure,
        refused=tuple((r.name, r.reason) for r in tree.refused),
        dropped_inputs=tuple(done.dropped_inputs),
        dropped_outputs=tuple(done.dropped_outputs),
        passed_through=done.passed_through,
        still_computed=done.still_computed,
        left=tuple(done.left),
        notes=() if decision is None else decision.notes,
    )


def parallel_report(plan: Plan, decision: ParallelDecision | None) -> ParallelReport:
    """The report. decision: None when the plan was given."""
    if decision is None:
        pairs = tuple((p.first, p.second, None) for p in plan.parallel)
        return ParallelReport(pairs, pairs, None, "", None, "")
    tried = tuple((*s.pair, s.divergence) for s in decision.curve)
    return ParallelReport(
        pairs=tried if decision.plan.parallel else (),
        tried=tried,
        there_were=decision.pairs,
        measure=decision.measure,
        latency_ms=decision.latency_ms,
        note=decision.note,
    )


def slicing_report(plan: Plan, decision: SliceDecision | None) -> SlicingReport:
    """The report. decision: None when the plan was given."""
    streams = tuple((entry.group, entry.width) for entry in plan.slice)
    if decision is None:
        return SlicingReport(streams, None, "", {})
    macs = (decision.before.macs, decision.after.macs)
    return SlicingReport(streams, macs, decision.note, decision.left)


def tokens_report(plan: Plan, decision: TokenDecision | None) -> TokensReport:
    """The report. decision: None when the plan was given."""
    if decision is None:
        return TokensReport(tuple((e.branch, e.keep, e.of, None) for e in plan.tokens))
    steps = zip(plan.tokens, decision.divergences, strict=True)
    return TokensReport(
        tuple((e.branch, e.keep, e.of, divergence) for e, divergence in steps),
        plan.tokens[0].importance,
        decision.saved,
        decision.measure,
        decision.left,
    )
