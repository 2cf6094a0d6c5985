"""The main job: find a plan that meets the goals, execute it, measure the saved result."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from lwqc import io, mixed, planning
from lwqc.backends.session import Session, statistics_session, time_runs
from lwqc.backends.target import Lowered
from lwqc.channels import decide
from lwqc.data import open_data
from lwqc.errors import InputError
from lwqc.goals import Goals, Outcome
from lwqc.graph.sites import find_sites
from lwqc.importance import layer_importance
from lwqc.measure import Latency, Metric, latencies, load_metric, worst_drop
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plan import Plan, Transforms
from lwqc.prunable import PruneOptions
from lwqc.pruned_model import PrunedModel, prune_model, pruning_report
from lwqc.quant.methods import DATA_METHODS, Method
from lwqc.recipe import PruneRecipe, Recipe, find
from lwqc.report.result import Report, SiteRow
from lwqc.sequential import quantize_in_sequence
from lwqc.timing import slow_sites
from lwqc.transforms import choose_transforms, transform, version
from lwqc.workspace import Candidate, Workspace, data_files, make_target

Progress = Callable[[str, int, int], None]
DEFAULT_DROP = 0.01
_LATENCY_SECONDS = 1.5
_BACK_OFFS = 4
_ROUNDEST = 16  # widths beyond this multiple gain nothing on the CPU
_UNITS = {"macs": "MACs", "parameters": "parameters", "channels": "MACs"}
_NOISE = 1.05  # repeated timings of one model differ by this much


@dataclass(frozen=True)
class Compressed:
    """A compressed model in memory, ready to be saved and measured."""

    work: Workspace
    goals: Goals
    decisions: Plan
    lowered: Lowered
    pruned: PrunedModel | None = None

    @property
    def plan(self) -> Plan:
        """What was done, with the digest of the model it was done to."""
        return self.work.stamped(self.decisions)

    @property
    def model(self) -> ir.Model:
        """The compressed model."""
        return self.lowered.model

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        external_data: bool | None = None,
        verify: bool = True,
    ) -> Report:
        """Write the model and measure the file in a fresh session.

        verify: False skips everything that loads a model; the report says so.
        Raises InputError when the file cannot be written; see `lwqc.io.save`.
        """
        source = self.work.model.meta.get("lwqc_path")
        io.check_output(path, [source, *data_files(self.work.model)] if source else [])
        saved = io.save(self.model, path, external_data=external_data)
        return measure(self, saved, verify=verify)


def open_workspace(
    source: ir.Model | str | os.PathLike[str],
    *,
    name: str | None = None,
    target: str = "cpu",
    data: str | os.PathLike[str] | Iterable[Mapping[str, NDArray[Any]]] | None = None,
    metric: str | Callable[..., float] | None = None,
    shapes: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Workspace:
    """Load a model with everything a search needs. Raises InputError."""
    chosen = make_target(target)
    model = _typed(source if isinstance(source, ir.Model) else io.load(source))
    if name is None:
        name = Path(source).name if isinstance(source, (str, os.PathLike)) else "model"
    dataset = open_data(data, model, seed=seed, shapes=shapes)
    return Workspace(model, chosen, dataset, _metric(metric), name, progress=progress)


def _typed(model: ir.Model) -> ir.Model:
    """The model, or where types of tensors are not stored in it, a copy with inferred ones."""
    if all(v.type is not None for node in model.graph for v in node.outputs if v.name):
        return model
    typed = model.clone()
    typed.meta.update(model.meta)
    ShapeInferencePass()(typed)
    return typed


def _metric(metric: str | Callable[..., float] | None) -> Metric | None:
    if metric is None or isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return load_metric(metric)
    better = getattr(metric, "higher_is_better", True)
    return Metric(getattr(metric, "__name__", "metric"), metric, better)


def make_plan(work: Workspace, goals: Goals, recipe: Recipe | str = "auto") -> Plan:
    """Decide what to do, without writing anything."""
    return work.stamped(_decide(work, goals, recipe))


def _decide(work: Workspace, goals: Goals, recipe: Recipe | str) -> Plan:
    chosen = find(recipe) if isinstance(recipe, str) else recipe
    if chosen.prune is not None:
        return decide(work, prune_options(chosen)).plan
    if not work.analysis.sites:
        raise InputError(f"{work.name}: has no weight that could take a number format")
    if chosen.sequential and not work.data.given:
        raise InputError("sequential calibration looks at the data: give --data")
    found = choose_transforms(work, chosen)
    work = version(work, found.transforms, token_weights=chosen.token_weights)
    plan = _ALLOCATORS[chosen.allocator](work, goals, chosen)
    if chosen.allocator in ("uniform", "rank"):
        plan = planning.with_method(work, plan, chosen.method)
        plan = planning.with_side(work, plan, chosen.rank, chosen.columns)
    plan = _repaired(work, plan.model_copy(update={"sequential": chosen.sequential}))
    return plan.model_copy(
        update={
            "transforms": found.transforms,
            "untransformed": dict(found.left),
            "token_weights": chosen.token_weights,
        }
    )


def compress_workspace(work: Workspace, goals: Goals, recipe: Recipe | str = "auto") -> Compressed:
    """Find a plan and execute it."""
    chosen = find(recipe) if isinstance(recipe, str) else recipe
    if chosen.prune is not None:
        return prune_workspace(work, prune_options(chosen), goals)
    return execute(work, goals, _decide(work, goals, chosen))


def pruning_recipe(name: str = "", *, has_data: bool) -> Recipe:
    """A recipe that prunes. The default is `obspa`, without data `obspa-datafree`."""
    return find(name or ("obspa" if has_data else "obspa-datafree"))


def prune_options(recipe: Recipe, **changes: Any) -> PruneOptions:
    """Options of a pruning recipe, some of them replaced. Raises InputError."""
    if recipe.prune is None:
        raise InputError(f"recipe {recipe.name} does not prune; see lwqc recipes")
    fields = {f.name for f in dataclasses.fields(PruneOptions)}
    for name in changes:
        if name not in fields:
            raise InputError(f"{name}: pruning has no such option; it has {', '.join(fields)}")
    wanted = {**recipe.prune.model_dump(), **changes}
    if wanted["score"] != "obs" and wanted["normalise"] == "output" and "normalise" not in changes:
        wanted["normalise"] = "mean"  # the recipe's is for its own score
    for name, field in PruneRecipe.model_fields.items():
        known = get_args(field.annotation)
        if known and wanted[name] not in known:
            expected = ", ".join(map(str, known))
            raise InputError(f"--{name} {wanted[name]}: expected one of {expected}")
    return PruneOptions(**{"recipe": recipe.name, **wanted})


def prune_workspace(
    work: Workspace, options: PruneOptions, goals: Goals | None = None
) -> Compressed:
    """Remove channels; where the result is slower than the original, keep rounder widths.

    Removing channels can leave widths that kernels handle badly. A result that measures slower is
    replaced by the fastest of those with widths rounded to 8 and 16.
    """
    goals = goals or Goals()
    tried = [_pruned(work, options, goals)]
    while not work.skip_checks and options.round_to < _ROUNDEST and _slower(tried[-1]):
        step = 8 if options.round_to < 8 else _ROUNDEST
        options = dataclasses.replace(options, round_to=step)
        tried.append(_pruned(work, options, goals))
    if len(tried) == 1:
        return tried[0]
    sessions = [Session(t.model, label="candidate") for t in tried]
    times = time_runs(sessions, work.search_batches[0], seconds=_LATENCY_SECONDS)
    medians = [sorted(t)[len(t) // 2] for t in times]
    fastest = medians.index(min(medians))
    if medians[fastest] * _NOISE > medians[0]:
        return tried[0]
    best = tried[fastest]
    notes = (
        f"widths as asked ran in {medians[0]:.3g} ms, slower than the original; "
        f"rounder ones in {medians[fastest]:.3g} ms were taken",
    )
    assert best.pruned is not None
    return dataclasses.replace(best, pruned=dataclasses.replace(best.pruned, notes=notes))


def _pruned(work: Workspace, options: PruneOptions, goals: Goals) -> Compressed:
    decision = decide(work, options)
    done = execute(work, goals, decision.plan)
    assert done.pruned is not None
    reached = Outcome(_UNITS[options.by], decision.limit, decision.after, "")
    pruned = dataclasses.replace(done.pruned, whole=decision.whole, outcome=reached)
    return dataclasses.replace(done, pruned=pruned)


def _slower(done: Compressed) -> bool:
    sessions = [done.work.reference, Session(done.model, label="candidate")]
    times = time_runs(sessions, done.work.search_batches[0], seconds=_LATENCY_SECONDS)
    before, after = (sorted(t)[len(t) // 2] for t in times)
    return after > before * _NOISE


def apply_plan(work: Workspace, plan: Plan, goals: Goals | None = None) -> Compressed:
    """Execute a plan made earlier. Raises InputError when it is for another model."""
    if plan.source.digest != work.source.digest:
        raise InputError(
            f"the plan is for {plan.source.name or 'another model'} "
            f"({plan.source.digest[:12]}), not for {work.name} ({work.source.digest[:12]})"
        )
    if not work.data.given and _looks_at_data(plan):
        raise InputError("the plan was made on data and looks at it again; give the same --data")
    unknown = sorted(set(plan.quantize) - set(work.sites))
    if unknown:
        raise InputError(f"the plan names sites that the model does not have: {unknown[0]}")
    return execute(work, goals or Goals(), plan)


def _looks_at_data(plan: Plan) -> bool:
    if plan.prune is not None and plan.prune.calibration == "data":
        compensated = plan.prune.compensate != "none" or plan.prune.batch_norm
    else:
        compensated = False
    return (
        compensated
        or plan.sequential
        or any(e.method in DATA_METHODS for e in plan.quantize.values())
    )


def execute(work: Workspace, goals: Goals, plan: Plan) -> Compressed:
    """Prune, then lower what is left."""
    pruned = prune_model(work, plan.prune) if plan.prune is not None else None
    first = Transforms() if pruned is not None else plan.transforms
    changed = version(work, first, token_weights=plan.token_weights)
    model, weights = changed.model, changed.weights
    if pruned is not None:
        model = transform(pruned.model, plan.transforms) if plan.transforms else pruned.model
        grams = changed.grams_of(model, find_sites(model).sites)
        weights = EncodedWeights(
            model, io.read_array, grams=grams, progress=work.report("encoding")
        )
    if plan.sequential:
        done = quantize_in_sequence(
            model,
            plan.quantize,
            weights.get,
            work.data,
            statistics_session,
            work.report("sequential"),
        )
        model = done.model
        weights = EncodedWeights(model, io.read_array, known=done.encoded)
        apart = {name: f"not in sequence: {reason}" for name, reason in done.apart.items()}
        plan = plan.model_copy(update={"kept_float": {**apart, **plan.kept_float}})
    if plan.quantize or plan.rewrites:
        return Compressed(work, goals, plan, work.target.lower(model, plan, weights), pruned)
    return Compressed(work, goals, plan, Lowered(model, {}), pruned)


def _uniform(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    plan = planning.uniform(
        work,
        recipe.bits,
        recipe.activations,
        search=recipe.search,
        kind=recipe.kind,
        recipe=recipe.name,
    )
    return planning.calibrate(work, plan, recipe.ranges)


def _knapsack(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    score: mixed.Score = "weights" if recipe.score == "weights" else "measured"
    method = _affordable(work, recipe)
    curves = mixed.choices(work, score, method)
    if goals.max_size is not None:
        budget = goals.max_size.resolve(work.float_bytes)
        if goals.avg_bits is not None:
            budget = min(budget, mixed.bytes_at(work, curves, goals.avg_bits))
        if mixed.least_bytes(work, curves, recipe.name) > budget:
            curves = mixed.choices(work, score, method, tiny=True)
        return mixed.within_bytes(work, curves, budget, recipe.name)
    if goals.avg_bits is not None:
        if mixed.least_average_bits(work, curves) > goals.avg_bits:
            curves = mixed.choices(work, score, method, tiny=True)
        return mixed.within_average_bits(work, curves, goals.avg_bits, recipe.name)
    limit = DEFAULT_DROP if goals.max_drop is None else goals.max_drop
    return _smallest_within(work, curves, limit, recipe)


def _smallest_within(
    work: Workspace, curves: Sequence[mixed.Choice], limit: float, recipe: Recipe
) -> Plan:
    """The smallest plan whose drop on all data is allowed.

    The search compares on a few batches; when all of them together show more, it aims lower.
    """
    aim = limit
    for _ in range(_BACK_OFFS):
        found = mixed.within_drop(
            work, curves, lambda plan: work.evaluate(plan)[0], aim, recipe.name
        )
        if _holds(work, *work.evaluate(found.plan), limit):
            break
        aim *= 0.7
    return found.plan


def _rank(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    weights = sum(s.size for s in work.analysis.sites)
    kind: Literal["lim", "zd", "position"] = (
        recipe.score if recipe.score in ("zd", "position") else "lim"
    )
    importance = layer_importance(work, kind)
    budget: float | None
    if goals.max_size is not None:
        rest = io.serialized_bytes(work.model) - sum(s.float_bytes for s in work.analysis.sites)
        budget = goals.max_size.resolve(work.float_bytes) - rest
    elif goals.avg_bits is not None:
        budget = goals.avg_bits / 8 * weights
    elif kind == "position":
        budget = None
    else:
        raise InputError(f"recipe {recipe.name} needs a budget: --max-size or --avg-bits")
    return mixed.ranked(
        work, importance, budget, low=recipe.low, high=recipe.high, recipe=recipe.name
    )


def _affordable(work: Workspace, recipe: Recipe) -> Method:
    """The recipe's method, or rounding to nearest where it would look at made-up data."""
    needs_data = recipe.method in DATA_METHODS and not work.data.given
    return "rtn" if needs_data else recipe.method


def _bisect(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    importance = mixed.augmented_sensitivity(work)
    if goals.wants_size:
        raise InputError(f"recipe {recipe.name} takes --max-drop, not a size")
    limit = DEFAULT_DROP if goals.max_drop is None else goals.max_drop
    method = _affordable(work, recipe)
    return mixed.bisected(
        work, importance, limit, low=recipe.low, high=recipe.high, method=method, recipe=recipe.name
    )


def _auto(work: Workspace, goals: Goals, recipe: Recipe) -> Plan:
    if goals.wants_size or (goals.max_drop is not None and goals.max_latency is None):
        return _knapsack(work, goals, recipe)
    return _fastest(work, goals, recipe).plan


def _fastest(work: Workspace, goals: Goals, recipe: Recipe) -> Candidate:
    """The fastest of a few plans whose drop is allowed; the original's graph if none is faster."""
    limit = DEFAULT_DROP if goals.max_drop is None else goals.max_drop
    found: list[tuple[Candidate, Session]] = []
    plans = list(_speed_plans(work, recipe))
    report = work.report("candidates")
    for done, plan in enumerate(plans):
        candidate, session = work.evaluate(_repaired(work, plan))
        if candidate.drop > limit:
            candidate, session = _relaxed(work, candidate, session, limit)
        if candidate.drop <= limit:
            found.append((candidate, session))
        report(done + 1, len(plans))
    sessions = [work.reference, *(session for _, session in found)]
    times = time_runs(sessions, work.search_batches[0], seconds=_LATENCY_SECONDS)
    medians = [sorted(t)[len(t) // 2] for t in times]
    order = sorted(range(len(found)), key=lambda i: medians[i + 1])
    for i in order:
        if medians[i + 1] <= medians[0] and _holds(work, *found[i], limit):
            return found[i][0]
    return _unslowed(work, recipe)


def _holds(work: Workspace, candidate: Candidate, session: Session, limit: float) -> bool:
    """Whether the drop is allowed on all data; a metric was already taken on all of its own."""
    drop = candidate.drop if work.metric is not None else work.full_drop(session)
    return drop <= limit


def _speed_plans(work: Workspace, recipe: Recipe) -> Iterable[Plan]:
    """Plans worth timing, the least intrusive last. Static ones need real data."""
    kinds: list[planning.Activations] = ["dynamic", "none"]
    if work.data.kind == "real":
        kinds.insert(0, "static")
    for kind in kinds:
        plan = planning.uniform(work, 8, kind, recipe=recipe.name)
        plan = planning.without(plan, slow_sites(work, plan))
        yield planning.calibrate(work, plan, recipe.ranges)


def _relaxed(
    work: Workspace, candidate: Candidate, session: Session, limit: float
) -> tuple[Candidate, Session]:
    """Leave the activations of the most sensitive sites float until the drop is allowed.

    Sites are ordered by what their own 8-bit activation costs; bisection over that order.
    """
    plan = candidate.plan
    integer = [n for n, e in plan.quantize.items() if e.activation != "none"]
    order = planning.by_activation_error(work, plan, integer)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        trial, loaded = work.evaluate(planning.weight_only(work, plan, order[: middle + 1]))
        if trial.drop <= limit:
            candidate, session, high = trial, loaded, middle
        else:
            low = middle + 1
    return candidate, session


def _unslowed(work: Workspace, recipe: Recipe) -> Candidate:
    """Smaller but not slower: weights that the runtime unpacks at load, kernels as they were."""
    plan = planning.folded(work, recipe.name)
    return work.evaluate(plan)[0]


_ALLOCATORS: Mapping[str, Callable[[Workspace, Goals, Recipe], Plan]] = {
    "auto": _auto,
    "uniform": _uniform,
    "knapsack": _knapsack,
    "rank": _rank,
    "bisect": _bisect,
}


def _repaired(work: Workspace, plan: Plan) -> Plan:
    """The plan without sites for which the runtime does not choose the expected kernel."""
    if work.skip_checks:
        return plan
    trial = planning.nearest(plan) if plan.sequential else plan  # those codes are set later
    wrong = work.target.misplaced(work.lower(trial))
    return planning.without(plan, wrong) if wrong else plan


def measure(result: Compressed, saved: io.SavedModel, *, verify: bool = True) -> Report:
    """The report on a saved file: everything in it is measured on the file."""
    work = result.work
    report = Report(
        source=work.name,
        source_bytes=work.float_bytes,
        output=str(saved.path),
        output_bytes=saved.size_bytes,
        recipe=result.decisions.recipe,
        target=result.decisions.target,
        data=work.data.description,
        data_kind=work.data.kind,
        sites=_rows(result),
        skipped=work.analysis.skipped,
        rewrites=result.decisions.rewrites,
        untransformed=result.decisions.untransformed,
    )
    if result.pruned is not None:
        report = report.with_measurements(pruning=pruning_report(work, result.pruned))
    if verify:
        report = _verified(result, saved, report)
    return report.with_outcomes(_outcomes(result, report))


def _verified(result: Compressed, saved: io.SavedModel, report: Report) -> Report:
    work = result.work
    session = Session(saved.path, label=str(saved.path))
    before, after = latencies([work.reference, session], work.data.first())
    metric_before = metric_after = metric_drop = None
    if work.metric is not None:
        metric_before, metric_after = work.metric_reference, work.metric(session)
        metric_drop = work.metric.drop(metric_before, metric_after)
    return report.with_measurements(
        divergence=work.divergence(session),
        latency_before=before,
        latency_after=after,
        metric=work.metric.name if work.metric else None,
        metric_before=metric_before,
        metric_after=metric_after,
        metric_drop=metric_drop,
    )


def _rows(result: Compressed) -> tuple[SiteRow, ...]:
    plan, forms = result.decisions, result.lowered.forms
    left = result.pruned.sites if result.pruned is not None else {}
    rows = []
    for site in result.work.analysis.sites:
        entry = plan.quantize.get(site.name)
        now = left.get(site.name, site)
        after = entry.size_bytes(now.n, now.k) if entry else now.float_bytes
        rows.append(
            SiteRow(
                name=site.name,
                op="+".join(sorted(site.ops)),
                shape=site.shape,
                format=str(entry.weight) if entry else "float",
                activation=entry.activation if entry else "none",
                kernel=forms.get(site.name, "float"),
                bytes_before=site.float_bytes,
                bytes_after=after,
                reason=plan.kept_float.get(site.name, ""),
            )
        )
    return tuple(rows)


def _outcomes(result: Compressed, report: Report) -> list[Outcome]:
    goals, work = result.goals, result.work
    found = []
    if result.pruned is not None and result.pruned.outcome is not None:
        found.append(result.pruned.outcome)
    if goals.max_size is not None:
        asked = goals.max_size.resolve(work.float_bytes)
        found.append(Outcome("size", asked, report.output_bytes, "bytes"))
    if goals.avg_bits is not None:
        found.append(Outcome("average bits", goals.avg_bits, report.average_bits, "bits"))
    drop = report.drop
    if drop is not None and goals.max_drop is not None:
        found.append(Outcome("drop", goals.max_drop, drop, ""))
    before, after = report.latency_before, report.latency_after
    if goals.max_latency is not None and before is not None and after is not None:
        asked = goals.max_latency.resolve(before.median_ms)
        found.append(Outcome("latency", asked, after.median_ms, "ms"))
    return found


__all__ = [
    "Compressed",
    "Latency",
    "apply_plan",
    "compress_workspace",
    "make_plan",
    "measure",
    "open_workspace",
    "worst_drop",
]
