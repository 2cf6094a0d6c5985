"""Executes plans."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from lwqc.backends.target import Lowered
from lwqc.compile.budget import counted
from lwqc.compile.candidates import take_lowered
from lwqc.compile.compressed import Compressed
from lwqc.compile.locks import differences
from lwqc.compile.steps.step import Made
from lwqc.compile.steps.table import looks_at, of
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan

# Steps that need no more of a model than one part at a time.
_IN_PARTS = frozenset({"restore", "opset", "clean", "transforms", "quantize"})


def apply_plan(work: Version, plan: Plan, *, allow_drift: bool = False) -> Compressed:
    """Execute a plan made earlier.

    allow_drift: also where the model, the data or versions are others than those of the plan; how
    they differ is in the notes then. Raises InputError where they differ, see `lwqc.compile.locks`,
    and for a plan that needs data when there is none.
    """
    looked, begun = looks_at(plan), work.begun
    found = differences(
        plan, begun.source, lambda: work.original.data_source, draws="random" in looked
    )
    if found and not allow_drift:
        raise InputError(f"{'; '.join(found)}; --allow-drift replays the plan all the same")
    if not work.job.data.fit.given and "data" in looked:
        raise InputError("the plan was made on data and looks at it again; give the same --data")
    return execute(work, Goals(), plan).noted(*(f"replayed although {line}" for line in found))


def execute(work: Version, goals: Goals, plan: Plan) -> Compressed:
    """Do the steps of a plan, then lower what is left for the target."""
    _check_target(work, plan)
    if work.job.cluster and plan.sequential:
        raise InputError("--cluster encodes weights apart, --sequential one after the other")
    for step in of(plan):
        if step.field not in _IN_PARTS or plan.sequential:
            work.job.whole(f"the plan's step {step.field}")
    made = Made(work, plan, work, work.model)
    for step in of(plan):
        made = step.run(_lowered(made) if step.late else made)
    made = _lowered(made)
    plan, lowered = made.plan, made.lowered
    assert lowered is not None
    return Compressed(
        work,
        goals,
        plan,
        lowered,
        made.version,
        made.found.get("prune"),
        made.found.get("remove"),
        fallbacks=_fallbacks(work, lowered.model, plan),
        # Of the model before formats, which change what a product takes but not how many there are.
        counted=counted(goals, work, made.model),
    )


def finished(done: Compressed, **late: object) -> Compressed:
    """What was executed without them, with late steps at the end, as fields of the plan."""
    plan = done.decisions.model_copy(update=late)
    made = Made(done.work, plan, done.work, done.work.model, lowered=done.lowered)
    for step in of(plan):
        if step.field in late:
            made = step.run(made)
    assert made.lowered is not None
    return replace(done, decisions=made.plan, lowered=made.lowered)


def _lowered(made: Made) -> Made:
    """With what the model becomes for the target, if it is not there yet."""
    if made.lowered is not None:
        return made
    plan, lowered = made.plan, Lowered(made.model, {})
    if plan.quantize or plan.rewrites or plan.floats or plan.sparse:
        plain = made.own_weights is None and made.model is made.version.model
        known = take_lowered(made.version, plan) if plain else None
        lowered = known or made.work.job.target.lower(made.model, plan, made.weights)
    return replace(made, lowered=lowered)


def _check_target(work: Version, plan: Plan) -> None:
    """Raises InputError for what the target has not."""
    name = work.job.target.name
    foreign = sorted(set(plan.rewrites) - set(work.job.target.rewrites))
    if foreign:
        raise InputError(f"the plan has a rewrite that target {name} has not: {foreign[0]}")
    if plan.floats is not None and work.job.target.floats == "float32":
        raise InputError(
            f"the plan has floats of {plan.floats.dtype}, but target {name} computes in float32: "
            "it has no fast kernels for others"
        )


def _fallbacks(work: Version, model: ir.Model, plan: Plan) -> tuple[str, ...]:
    """What the target would not run as it should. Raises InputError unless that is accepted."""
    found = work.job.target.violations(model)
    if found and not work.job.allow_fallback:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        left = sorted(plan.restore.left.items()) if plan.restore is not None else []
        why = f"; {left[0][0]} could not become float: {left[0][1]}" if left else ""
        raise InputError(
            f"target {work.job.target.name}: {found[0]}{more}{why}; "
            "lower --allow-fallback accepts that"
        )
    return tuple(found)
