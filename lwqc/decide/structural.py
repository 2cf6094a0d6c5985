"""Jobs that change the structure of a model: channels, branches, streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_args

from lwqc.compile.compressed import Compressed, Decision
from lwqc.compile.execute import execute
from lwqc.compile.losses import check_classes
from lwqc.compile.run_times import run_ms
from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.decide.channels import decide
from lwqc.decide.data_free import without_data
from lwqc.decide.decided import Decided
from lwqc.decide.drop_layers import DropOptions, choose_branches
from lwqc.decide.fewer_tokens import with_tokens
from lwqc.decide.float_plan import with_floats
from lwqc.decide.late_steps import with_late_steps
from lwqc.decide.parallel_layers import ParallelOptions, choose_parallel
from lwqc.decide.profiles import with_profile
from lwqc.decide.prune_options import PruneOptions
from lwqc.decide.scores.channels.score import channel_score
from lwqc.decide.slice_streams import SliceOptions, choose_slices
from lwqc.errors import InputError
from lwqc.model.extensions import CHANNEL_SCORES, expected
from lwqc.model.numerals import share, whole
from lwqc.plans.bounds import Share
from lwqc.plans.goals import Goals, Outcome
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import PruneRecipe, Recipe, find, with_token_share
from lwqc.runtime.measure import NOISE

_ROUNDEST = 16  # widths beyond this multiple gain nothing on the CPU
_UNITS = {"macs": "MACs", "parameters": "parameters", "channels": "MACs"}
_NUMBERS = {
    "count", "share", "keep_first", "keep_last", "protect", "max_divergence", "max_drop", "seed",
}  # fmt: skip


def pruning_recipe(name: str = "", *, has_data: bool) -> Recipe:
    """A recipe that prunes. The default is `obspa`, without data `obspa-datafree`."""
    return find(name or ("obspa" if has_data else "obspa-datafree"))


def dropping_recipe(name: str = "", *, has_data: bool, tokens: bool = False) -> Recipe:
    """A recipe that removes branches. The default is `ablation-refit`, without data `finercut`.

    tokens: only they are to go; then it is `evit`.
    """
    if tokens and not name:
        return find("evit")
    return find(name or ("ablation-refit" if has_data else "finercut"))


def prune_options(recipe: Recipe, **changes: Any) -> PruneOptions:
    """Options of a pruning recipe, some of them replaced. Raises InputError."""
    if recipe.prune is None:
        raise InputError(f"recipe {recipe.name} does not prune; see lwqc recipes")
    _check_names(PruneOptions, "pruning", changes)
    wanted = {**recipe.prune.model_dump(), **changes}
    for name, field in PruneRecipe.model_fields.items():
        known = get_args(field.annotation)
        if known and wanted[name] not in known:
            raise InputError(f"--{name} {wanted[name]}: {expected(str(wanted[name]), known)}")
    if "groups" in changes:
        wanted["groups"] = {name: Share(name).read(one) for name, one in changes["groups"].items()}
    score = wanted["score"]
    scaled = score in CHANNEL_SCORES and channel_score(score).own_scale
    if not scaled and wanted["normalise"] == "output" and "normalise" not in changes:
        wanted["normalise"] = "mean"  # the recipe's is for its own score
    return PruneOptions(**{"recipe": recipe.name, **wanted})


def drop_options(recipe: Recipe, goals: Goals | None = None, **changes: Any) -> DropOptions:
    """Options of a recipe that removes branches, some of them replaced. Raises InputError.

    A count takes the place of the recipe's share; `goals.max_drop` is what `accept` may lose.
    """
    if recipe.drop is None:
        raise InputError(f"recipe {recipe.name} does not remove branches; see lwqc recipes")
    _check_names(DropOptions, "removing branches", changes)
    _check_numbers(changes)
    wanted = recipe.drop.model_dump()
    if "count" in changes:
        wanted["share"] = None
    if "share" not in changes and changes.get("score") == "accept":
        wanted["share"] = None
    if goals is not None and goals.max_drop is not None:
        wanted["max_drop"] = goals.max_drop
    if "score" in changes and changes["score"] not in ("ablation", "metric"):
        wanted["protect"] = 0.0  # the recipe's is for its own score
    return DropOptions(**{"recipe": recipe.name, **wanted, **changes})


def parallel_options(recipe: Recipe, **changes: Any) -> ParallelOptions:
    """Options of a recipe that makes branches parallel, some replaced. Raises InputError."""
    if recipe.parallel is None:
        raise InputError(f"recipe {recipe.name} makes no branches parallel; see lwqc recipes")
    _check_names(ParallelOptions, "making branches parallel", changes)
    _check_numbers(changes)
    wanted = recipe.parallel.model_dump()
    if "count" in changes:
        wanted["share"] = None
    return ParallelOptions(**{"recipe": recipe.name, **wanted, **changes})


def slice_options(recipe: Recipe, **changes: Any) -> SliceOptions:
    """Options of a recipe that narrows residual streams, some replaced. Raises InputError."""
    if recipe.slice is None:
        raise InputError(f"recipe {recipe.name} narrows no residual streams; see lwqc recipes")
    _check_names(SliceOptions, "narrowing streams", changes)
    return SliceOptions(**{"recipe": recipe.name, **recipe.slice.model_dump(), **changes})


def branch_amount(branches: str | float | None) -> dict[str, Any]:
    """How many branches: a count, a share, or either as text, `25%`. Raises InputError."""
    if branches is None:
        return {}
    if not isinstance(branches, str):
        return {"share" if isinstance(branches, float) else "count": branches}
    try:
        if branches.endswith("%"):
            return {"share": share(branches)}
        return {"count": whole(branches)}
    except ValueError as error:
        raise InputError(
            f"--branches {branches}: expected a count or a share such as 25%"
        ) from error


def _check_numbers(changes: Mapping[str, Any]) -> None:
    for name in _NUMBERS & changes.keys():
        value = changes[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise InputError(f"{name} {value!r}: expected a number")


def _check_names(options: type, job: str, changes: Mapping[str, Any]) -> None:
    fields = [f.name for f in dataclasses.fields(options)]
    for name in changes:
        if name not in fields:
            raise InputError(f"{name}: {job} has no such option; {expected(name, fields)}")


def _decided(work: Version, goals: Goals, decision: Decision) -> Decided:
    plan = _for_target(work, decision.plan)
    return Decided(
        work,
        goals,
        plan,
        lambda: dataclasses.replace(execute(work, goals, plan), decision=decision),
    )


def _unchanged(work: Version, goals: Goals, recipe: Recipe) -> Decided:
    plan = _for_target(work, planning.unchanged(work, recipe.name))
    return Decided(work, goals, plan, lambda: execute(work, goals, plan))


def _for_target(work: Version, plan: Plan) -> Plan:
    """The plan with the target's float type, and sizes to build for."""
    return with_profile(work, with_floats(work, plan), {})


def _at_once(job: Callable[[Version], Decided], recipe: Recipe) -> Callable[[Version], Decided]:
    """`with_late_steps` of a job for which a model is not taken in parts."""

    def checked(work: Version) -> Decided:
        work.job.whole("removing parts of it")
        return job(work)

    return with_late_steps(checked, recipe)


def channel_job(recipe: Recipe, goals: Goals, **changes: Any) -> Callable[[Version], Decided]:
    """The job of a recipe for channels, its options checked before any work is done.

    Raises InputError for a recipe of another kind and for options that it does not have.
    """
    _check_sections(recipe, "tokens", "embeddings", "experts")
    changes = {name: value for name, value in changes.items() if value is not None}
    if recipe.slice is not None:
        if "groups" in changes:
            names = ", ".join(changes["groups"])
            raise InputError(f"{names}: streams are narrowed alike; leave out --group")
        slicing = slice_options(recipe, **changes)
        return _at_once(
            lambda work: _decided(work, goals, choose_slices(work, slicing)).noted(
                *suited(recipe, work)[1]
            ),
            recipe,
        )
    prune_options(recipe, **changes)

    def job(work: Version) -> Decided:
        check_classes(work, goals)
        chosen, notes = suited(recipe, work)
        options = prune_options(chosen, **changes)
        score = channel_score(options.score)
        if options.loss is None and score.takes_loss:
            notes = (*notes, f"no --loss was given: {score.own_loss}")
        return Decided.of(prune_version(work, options, goals)).noted(*notes)

    return _at_once(job, recipe)


def suited(recipe: Recipe, work: Version) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe, or without data what comes closest to it; and what was done instead."""
    return (recipe, ()) if work.job.data.fit.given else without_data(recipe)


def _check_sections(recipe: Recipe, *sections: str) -> None:
    """Raises InputError for steps of a recipe that only `compress` takes before another job."""
    for section in sections:
        if getattr(recipe, section) is not None:
            raise InputError(f"recipe {recipe.name} has [{section}]: lwqc compress does that")


def branch_job(recipe: Recipe, goals: Goals, **changes: Any) -> Callable[[Version], Decided]:
    """The job of a recipe for branches, its options checked before any work is done.

    Raises InputError for a recipe of another kind and for options that it does not have.
    """
    _check_sections(recipe, "embeddings", "experts")
    recipe = with_token_share(recipe, changes.pop("tokens", None))
    if recipe.tokens is not None:
        rest = recipe.model_copy(update={"tokens": None})
        return with_tokens(lambda goals: branch_job(rest, goals, **changes), recipe.tokens, goals)
    if recipe.allocator == "none":
        return _at_once(lambda work: _unchanged(work, goals, recipe), recipe)
    if recipe.parallel is not None:
        changes.pop("seed", None)  # which only chooses random branches
        merging = parallel_options(recipe, **changes)
        return _at_once(lambda work: _decided(work, goals, choose_parallel(work, merging)), recipe)
    drop_options(recipe, goals, **changes)

    def job(work: Version) -> Decided:
        check_classes(work, goals)
        chosen, notes = suited(recipe, work)
        removing = drop_options(chosen, goals, **changes)
        decided = _decided(work, goals, choose_branches(work, removing))
        return decided if "compensate" in changes else decided.noted(*notes)

    return _at_once(job, recipe)


def prune_version(work: Version, options: PruneOptions, goals: Goals | None = None) -> Compressed:
    """Remove channels; where the result is slower than the original, keep rounder widths.

    Removing channels can leave widths that kernels handle badly. A result that measures slower is
    replaced by the fastest of those with widths rounded to 8 and 16.
    """
    goals = goals or Goals()
    if options.round_to == 1:  # not asked for
        options = dataclasses.replace(options, round_to=work.job.target.width_multiple)
    tried = [_pruned(work, options, goals)]
    while (
        work.job.timed
        and not work.job.skip_checks
        and options.round_to < _ROUNDEST
        and _slower(tried[-1])
    ):
        step = 8 if options.round_to < 8 else _ROUNDEST
        options = dataclasses.replace(options, round_to=step)
        tried.append(_pruned(work, options, goals))
    if len(tried) == 1:
        return tried[0]
    medians = run_ms(work, *(t.model for t in tried))
    fastest = medians.index(min(medians))
    if medians[fastest] * NOISE > medians[0]:
        return tried[0]
    best = tried[fastest]
    notes = (
        f"widths as asked ran in {medians[0]:.3g} ms, slower than the original; "
        f"rounder ones in {medians[fastest]:.3g} ms were taken",
    )
    assert best.pruned is not None
    return dataclasses.replace(best, pruned=dataclasses.replace(best.pruned, notes=notes))


def _pruned(work: Version, options: PruneOptions, goals: Goals) -> Compressed:
    decision = decide(work, options)
    done = execute(work, goals, _for_target(work, decision.plan))
    assert done.pruned is not None
    reached = Outcome(_UNITS[options.by], decision.limit, decision.after, "")
    pruned = dataclasses.replace(done.pruned, whole=decision.whole, outcome=reached)
    return dataclasses.replace(done, pruned=pruned)


def _slower(done: Compressed) -> bool:
    before, after = run_ms(done.work, done.work.begun.timed_session, done.model)
    return after > before * NOISE
