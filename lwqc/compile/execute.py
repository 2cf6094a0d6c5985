"""Executes plans."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.backends.target import Lowered
from lwqc.compile.budget import counted
from lwqc.compile.cleaned import cleaned
from lwqc.compile.compressed import Compressed
from lwqc.compile.lifted import raised
from lwqc.compile.locks import differences, looks_at_data
from lwqc.compile.prunable import calibration
from lwqc.compile.steps.make_parallel import parallel_planned
from lwqc.compile.steps.pruned_model import prune_model
from lwqc.compile.steps.removed_branches import without_branches
from lwqc.compile.steps.restored import restored
from lwqc.compile.steps.sequential import quantize_in_sequence
from lwqc.compile.steps.slice_streams import slice_planned
from lwqc.compile.steps.transforms import transform, version
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.sparsify import Sparsify
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan, Transforms
from lwqc.runtime.session import statistics_session


def apply_plan(work: Version, plan: Plan, *, allow_drift: bool = False) -> Compressed:
    """Execute a plan made earlier.

    allow_drift: also where the model, the data or versions are others than those of the plan; how
    they differ is in the notes then. Raises InputError where they differ, see `lwqc.compile.locks`,
    and for a plan that needs data when there is none.
    """
    found = differences(plan, work.begun.source, lambda: work.original.data_source)
    if found and not allow_drift:
        raise InputError(f"{'; '.join(found)}; --allow-drift replays the plan all the same")
    if not work.job.data.fit.given and looks_at_data(plan):
        raise InputError("the plan was made on data and looks at it again; give the same --data")
    return execute(work, Goals(), plan).noted(*(f"replayed although {line}" for line in found))


def execute(work: Version, goals: Goals, plan: Plan) -> Compressed:
    """Change the structure in the order of the plan's fields, then lower what is left."""
    _check_target(work, plan)
    base = restored(work, plan.restore) if plan.restore is not None else work
    base = raised(base, plan.opset) if plan.opset is not None else base
    base = cleaned(base, plan.clean) if plan.clean is not None else base
    removed = without_branches(base, plan.remove) if plan.remove else None
    base = removed.work if removed is not None else base
    if plan.parallel:
        base = base.derived(parallel_planned(base.model, plan.parallel))
    if plan.slice:
        data = calibration(work, plan.slice[0].calibration)
        model = slice_planned(base.model, data, plan.slice, statistics_session)
        base = base.derived(model)
    pruned = prune_model(base, plan.prune) if plan.prune is not None else None
    first = Transforms() if pruned is not None else plan.transforms
    changed = version(base, first, token_weights=plan.token_weights)
    model, weights = changed.model, changed.weights
    sites = changed.sites if pruned is None else pruned.sites
    unknown = sorted({*plan.quantize, *plan.sparse} - set(sites))
    if unknown:
        raise InputError(f"the plan names sites that the model does not have: {unknown[0]}")
    if pruned is not None:
        model = transform(pruned.model, plan.transforms) if plan.transforms else pruned.model
        grams = changed.grams_of(model, find_sites(model).sites)
        weights = EncodedWeights(
            model, io.read_array, grams=grams, progress=work.job.report("encoding")
        )
    if plan.sequential:
        done = quantize_in_sequence(
            model,
            plan.quantize,
            weights.get,
            work.job.data.fit,
            statistics_session,
            work.job.report("sequential"),
        )
        model = done.model
        weights = EncodedWeights(model, io.read_array, known=done.encoded)
        apart = {name: f"not in sequence: {reason}" for name, reason in done.apart.items()}
        plan = plan.model_copy(update={"kept_float": {**apart, **plan.kept_float}})
    if plan.sparse:
        model = model.clone()
        Sparsify(plan.sparse, changed.grams)(model)
    lowered = Lowered(model, {})
    if plan.quantize or plan.rewrites or plan.floats or plan.sparse:
        lowered = work.job.target.lower(model, plan, weights)
    return Compressed(
        work,
        goals,
        plan,
        lowered,
        sites,
        pruned,
        removed,
        fallbacks=_fallbacks(work, lowered.model, plan),
        # Of the model before formats, which change what a product takes but not how many there are.
        counted=counted(goals, work, model),
    )


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
            f"target {work.job.target.name}: {found[0]}{more}{why}; --allow-fallback accepts that"
        )
    return tuple(found)
