"""Searches over whole plans: what recipes and `lwqc compress` with a budget run."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lwqc.compile.budget import asked
from lwqc.compile.compressed import Compressed
from lwqc.compile.lifted import lifted
from lwqc.compile.timing import slow_products, take_slow_products
from lwqc.compile.version import Version
from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.base import copies_experts, fused_base
from lwqc.decide.search.bounded import bounded, by_cost, every
from lwqc.decide.search.control import EFFORTS, SearchControl
from lwqc.decide.search.limits import Limits
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.overhead import measure_overhead
from lwqc.decide.search.scores import by_metric
from lwqc.decide.search.search_model import Judged, SearchModel, search_model
from lwqc.decide.search.shorter import Shorter, shorter_models
from lwqc.decide.search.whole import Result, WholeSearch
from lwqc.decide.search.workers import remembering, workers
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.plans.plan import CleanUp
from lwqc.plans.recipe import Recipe, SearchRecipe

_MOST_BYTES = 1_000_000_000  # of weights: a trial session holds them all
_MILDEST = 0.5  # of the original: where a row of budgets begins
_SHORTEST = 6  # generations for each of them


def searches(work: Version, goals: Goals, recipe: Recipe) -> bool:
    """Whether a recipe searches over whole plans.

    `auto` does for a budget, if it has data or nothing else can keep the budget.
    """
    if recipe.search_in is None:
        return False
    if recipe.allocator == "search":
        return True
    small = io.weight_bytes(work.model) <= _MOST_BYTES
    only_so = any(budget.needs_search for budget, _ in asked(goals))
    return bool(goals.bounds) and small and (work.job.data.fit.given or only_so)


def joint(work: Version, goals: Goals, recipe: Recipe, control: SearchControl) -> Compressed:
    """Search, make up for what the winner loses, measure, and back off if a budget is missed.

    Ctrl-C ends the evolution with the best so far. Raises InputError.
    """
    newer, notes = _newer(work, recipe)
    with _opened(work, newer, goals, recipe, control) as (search, limits, clean):
        result = search.run(search.aimed(limits))
        done, result = search.verified(goals, limits, result, clean)
        return _finished(work, search, done, result, limits).noted(*notes)


def pareto(
    work: Version, goals: Goals, recipe: Recipe, control: SearchControl, count: int
) -> Generator[Compressed, None, None]:
    """Models from little compressed to as much as asked, from one space and one set of scores.

    Budgets are in a geometric row; each search starts from its own starts and from the winner of
    the one before. Raises InputError.
    """
    if count < 2:
        raise InputError(f"--pareto {count}: expected at least 2 models")
    newer, notes = _newer(work, recipe)
    with _opened(work, newer, goals, recipe, control) as (search, limits, clean):
        whole = search.found.space.cost(search.found.space.top)
        budget = next(iter(search.budgets.values()))
        last, top = limits[budget.cost], whole[budget.cost]
        original = budget.reference(work, search.log)
        first = _MILDEST * top
        search.settings = dataclasses.replace(
            search.settings, generations=max(search.settings.generations // count, _SHORTEST)
        )
        before: Candidate | None = None
        for step in range(count):
            bound = max(first, last) * (last / max(first, last)) ** (step / (count - 1))
            own = Limits({budget.cost: bound})
            share = Amount(bound / original, True)
            wanted = Goals.of({budget.as_share or budget.option: share})
            also = None if before is None else search.repaired(before, search.aimed(own))
            done, result = search.verified(wanted, own, search.run(search.aimed(own), also), clean)
            before = result.best
            yield _finished(work, search, done, result, own).noted(*notes)


def _newer(work: Version, recipe: Recipe) -> tuple[Version, tuple[str, ...]]:
    """The work in the operator set that formats need, where the recipe chooses any; and notes."""
    section = recipe.search_in
    return lifted(work) if section is not None and "format" in section.kinds else (work, ())


@contextmanager
def _opened(
    work: Version, newer: Version, goals: Goals, recipe: Recipe, control: SearchControl
) -> Iterator[tuple[WholeSearch, Limits, CleanUp | None]]:
    """A search that is ready to run; its file of scores goes in the end.

    newer: the work on the model in the operator set that is searched.
    It stays where the search is interrupted, killed or out of memory, and what was there before
    stays.
    """
    work.job.report("preparing the search")(0, 1)
    section = recipe.search_in
    if section is None:
        raise InputError(f"recipe {recipe.name} searches nothing; see lwqc recipes")
    if section.measure == "metric" and work.job.metric is None:
        raise InputError(f"recipe {recipe.name} compares by a metric; give --metric")
    budgets = [budget for budget, _ in bounded(goals)]
    for kinds in (budget.kinds for budget in budgets if budget.kinds is not None):
        section = section.model_copy(update={"kinds": kinds})
    base, clean = newer, None
    measured = any(budget.noisy for budget in budgets)
    pays = (recipe.clean and measured) or copies_experts(newer)
    if pays and not any(budget.as_given for budget in budgets):
        fused = fused_base(newer)
        base, clean = fused.work, fused.clean
    log = SearchLog(control.log, resume=control.resume)
    try:
        with _searching(work, base, clean, goals, recipe, section, control, log) as (
            search,
            limits,
        ):
            yield search, limits, clean
    except (InputError, GeneratorExit):  # of which another try makes nothing else
        log.close(remove=not control.resume)
        raise
    except BaseException:
        log.close(remove=False)
        raise
    log.close(remove=True)


@contextmanager
def _searching(
    work: Version,
    base: Version,
    clean: CleanUp | None,
    goals: Goals,
    recipe: Recipe,
    section: SearchRecipe,
    control: SearchControl,
    log: SearchLog,
) -> Iterator[tuple[WholeSearch, Limits]]:
    """base: the work on the graph that is searched. clean: what led from the work to it."""
    log.must_equal("model", work.begun.source.digest)
    limits = _limits(base, goals, log)
    if "format" in section.kinds:  # the space depends on times that a resumed run would take anew
        slow = log.fact(
            "slow products",
            lambda: {str(b): sorted(s) for b, s in slow_products(base).items()},
            dict[int, list[str]],
        )
        take_slow_products(base, {int(bits): frozenset(sites) for bits, sites in slow.items()})
    found = _model(
        base, section, recipe, goals, limits, _shorter(work, base, goals, clean, section, log)
    )
    log.must_equal("search space", [list(found.space.sizes), control.seed, recipe.name])
    budgets = by_cost(budget for budget, _ in bounded(goals))
    for budget in budgets.values():
        budget.prepare(found, log)
    settings = dataclasses.replace(EFFORTS[control.effort], seed=control.seed)
    expected = settings.generations * settings.offspring
    with workers(found.spec, control.processes, control.cluster, expected) as evaluate:
        score = remembering(evaluate, log, "joint")
        if section.measure == "metric":
            score = by_metric(found, score, log)
        yield WholeSearch(found, recipe, settings, control, score, log, budgets), limits


def _finished(
    work: Version, search: WholeSearch, done: Compressed, result: Result, limits: Limits
) -> Compressed:
    report = result.report(search.found, search.control, search.section)
    if search.recovered is not None and search.recovered.ratios:
        report = dataclasses.replace(report, notes=(*report.notes, search.recovered.told))
    trace = search.trace(result, limits)
    return dataclasses.replace(done, work=work, search=report, trace=trace)


def _limits(work: Version, goals: Goals, log: SearchLog) -> Limits:
    found: dict[str, float] = {}
    for budget, bound in bounded(goals):
        limit = budget.limit(work, bound, log)
        found[budget.cost] = min(limit, found.get(budget.cost, limit))
    if not found:
        *flags, last = (budget.flag for budget in every())
        raise InputError(f"a search needs a budget: give {', '.join(flags)} or {last}")
    return Limits(found)


def _shorter(
    work: Version,
    base: Version,
    goals: Goals,
    clean: CleanUp | None,
    section: SearchRecipe,
    log: SearchLog,
) -> tuple[Shorter, ...]:
    """Models with fewer tokens, where that is a way to keep a budget."""
    wanted = any(budget.shortens for budget, _ in bounded(goals)) and "token" in section.kinds
    return tuple(shorter_models(work, base, clean, log)) if wanted else ()


def _model(
    work: Version,
    section: SearchRecipe,
    recipe: Recipe,
    goals: Goals,
    limits: Limits,
    shorter: Sequence[Shorter],
) -> SearchModel:
    """What can be chosen; see `mixed.fitting_forms`."""
    options: dict[str, Any] = {
        "method": recipe.method if work.job.data.fit.given else "rtn",
        "by": Judged(
            outputs="auto" if section.measure == "metric" else section.measure,
            channels=section.score,
            shorter=shorter,
        ),
        "small": False,
    }
    budgets = [budget for budget, _ in bounded(goals)]
    for budget in budgets:
        options |= budget.choices(work, limits)
    if "format" in section.kinds:  # the last budget that has a say
        said = (budget.forms(work, goals, limits) for budget in reversed(budgets))
        options |= next((forms for forms in said if forms is not None), {})
    found = search_model(work, section.kinds, **options)
    measure_overhead(found)
    return found
