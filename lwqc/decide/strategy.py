"""The one dispatch: who decides the plan of a recipe and its budgets.

`lwqc plan` and `lwqc compress` both ask here, so that a plan that was made is what is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

from lwqc.compile.budget import asked
from lwqc.compile.compressed import Compressed
from lwqc.compile.execute import execute, finished
from lwqc.compile.losses import check_classes
from lwqc.compile.version import Version
from lwqc.decide.allocate import allocate
from lwqc.decide.allocator import find_allocator
from lwqc.decide.class_bound import within_classes
from lwqc.decide.decided import Decided
from lwqc.decide.embedding_ranks import with_ranks
from lwqc.decide.fewer_experts import with_merged_experts
from lwqc.decide.fewer_tokens import better, may_shorten, with_tokens
from lwqc.decide.late_steps import check_learning, with_late_steps
from lwqc.decide.search.control import SearchControl
from lwqc.decide.search.joint import joint, pareto, searches
from lwqc.decide.structural import branch_job, channel_job, suited
from lwqc.errors import InputError
from lwqc.model.extensions import ALLOCATORS
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import Recipe, TokenRecipe, find, without_tokens


def decide(
    work: Version,
    goals: Goals,
    recipe: Recipe | str = "auto",
    control: SearchControl | None = None,
    *,
    exact: bool = False,
) -> Decided:
    """The plan of a recipe within the goals. Raises InputError.

    exact: the recipe is done as it is or refused, also where it looks at data and none was given.
    """
    check_classes(work, goals)
    if control is not None and control.recover and not work.job.data.fit.given:
        raise InputError("--recover: fits to the original on data: give --data")
    if goals.max_class_drop is not None and not goals.bounds:

        def once(goals: Goals) -> Decided:
            return _once(work, goals, recipe, control, exact=exact)

        return within_classes(work, goals, once)
    return _once(work, goals, recipe, control, exact=exact)


def _once(
    work: Version,
    goals: Goals,
    recipe: Recipe | str,
    control: SearchControl | None,
    *,
    exact: bool,
) -> Decided:
    if exact and isinstance(recipe, Recipe):
        check_learning(work, recipe)
        return _decided(work, goals, recipe, control)
    chosen, notes = _suited(work, goals, recipe)
    return _decided(work, goals, chosen, control).noted(*notes)


def row(
    work: Version, goals: Goals, recipe: Recipe | str, control: SearchControl, count: int
) -> Generator[Compressed, None, None]:
    """Models from little compressed to as much as asked, see `lwqc.decide.search.joint.pareto`."""
    if control.recover:
        raise InputError("--recover fits one model in the time that is left: leave out --pareto")
    chosen, notes = suited(find(recipe) if isinstance(recipe, str) else recipe, work)
    if chosen.embeddings is not None or chosen.experts is not None:
        raise InputError("--embedding-rank and --merge-experts make one model: leave out --pareto")
    _check_budgets(work, goals, chosen)
    for done in pareto(work, goals, chosen, control, count):
        late = {"learn": chosen.learn, "caches": work.job.kv_cache}
        made = finished(done, **{name: value for name, value in late.items() if value is not None})
        yield made.noted(*notes, *_random_trials(work))


def _suited(work: Version, goals: Goals, recipe: Recipe | str) -> tuple[Recipe, tuple[str, ...]]:
    """A recipe as it is, or without data what comes closest to it; and what was done instead."""
    chosen, notes = suited(find(recipe) if isinstance(recipe, str) else recipe, work)
    if searches(work, goals, chosen):
        notes += _random_trials(work)
    return chosen, notes


def _random_trials(work: Version) -> tuple[str, ...]:
    """The note on a search that compares on made-up data."""
    compared = "no data was given: candidates are compared on random inputs"
    return () if work.job.data.fit.given else (compared,)


def _decided(work: Version, goals: Goals, recipe: Recipe, control: SearchControl | None) -> Decided:
    if recipe.embeddings is not None:
        same = recipe.model_copy(update={"embeddings": None})
        return with_ranks(partial(_on, goals, same, control), recipe.embeddings)(work)
    if recipe.experts is not None:
        same = recipe.model_copy(update={"experts": None})
        return with_merged_experts(partial(_on, goals, same, control), recipe.experts)(work)
    if recipe.tokens is not None:
        rest = without_tokens(recipe)

        def job(goals: Goals) -> Callable[[Version], Decided]:
            return partial(_on, goals, rest, control)

        return with_tokens(job, recipe.tokens, goals)(work)
    structure = goals.max_drop is not None  # who says what may be lost wants it used
    if _promises(recipe.allocator):
        goals = goals.promising()  # the loss that such recipes allow where the user says nothing
    _check_budgets(work, goals, recipe)
    control = control or SearchControl()
    late = partial(with_late_steps, recipe=recipe, seconds=control.whole_s)
    if searches(work, goals, recipe):
        work.job.whole("a search under a budget")
        search = partial(_joint, goals, recipe, control.before_fit)
        if recipe.allocator == "auto" and may_shorten(work, goals):
            return late(_or_shorter(goals, recipe, search))(work)
        return late(search)(work)
    if recipe.prune is not None or recipe.slice is not None:
        return channel_job(recipe, goals)(work)
    if recipe.drop is not None or recipe.parallel is not None:
        return branch_job(recipe, goals)(work)
    return late(partial(_allocated, goals, recipe, structure))(work)


def _on(goals: Goals, recipe: Recipe, control: SearchControl | None, work: Version) -> Decided:
    return _decided(work, goals, recipe, control)


def _or_shorter(
    goals: Goals, recipe: Recipe, search: Callable[[Version], Decided]
) -> Callable[[Version], Decided]:
    """What the search finds, or 8 bits and fewer tokens where that loses less."""
    eight = find("w8a8-fused").model_copy(update={"name": recipe.name})

    def job(goals: Goals) -> Callable[[Version], Decided]:
        return partial(_on, goals, eight, None)

    shorter = with_tokens(job, TokenRecipe(by_latency=True), goals)
    return partial(better, search=search, shorter=shorter, goals=goals)


def _joint(goals: Goals, recipe: Recipe, control: SearchControl, work: Version) -> Decided:
    return Decided.of(joint(work, goals, recipe, control))


def _allocated(goals: Goals, recipe: Recipe, structure: bool, work: Version) -> Decided:
    plan = allocate(work, goals, recipe, structure=structure)
    return Decided(work, goals, plan, lambda: execute(work, goals, plan))


def _promises(allocator: str) -> bool:
    """Whether an allocator keeps a bound on the loss where the user gives none."""
    known = allocator in ALLOCATORS
    return allocator == "auto" or (known and find_allocator(allocator).promises)


def _check_budgets(work: Version, goals: Goals, recipe: Recipe) -> None:
    """Budgets that cannot be measured here, or that only searches know. Raises InputError."""
    searched = searches(work, goals, recipe)
    for budget, _ in asked(goals):
        if budget.needs_search and not searched:
            raise InputError(
                f"{budget.flag} needs a search that removes channels or layers, of a model below "
                "1 GB: leave out --recipe or take evopress-joint, evopress-width or evopress-depth"
            )
        reason = budget.unmeasured(work.job)
        if reason:
            raise InputError(f"{budget.flag}{reason}")
