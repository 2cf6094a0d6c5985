"""Searches over whole plans: what recipes and `lwqc compress` with a budget run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from lwqc.compile.compressed import Compressed
from lwqc.compile.lifted import lifted
from lwqc.compile.timing import slow_products, take_slow_products
from lwqc.compile.version import Version
from lwqc.decide import mixed
from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.fastest import fused_base
from lwqc.decide.search.control import EFFORTS, Limits, SearchControl
from lwqc.decide.search.items import SearchModel, search_model
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.memory import measure_memory, reference_memory
from lwqc.decide.search.overhead import measure_overhead
from lwqc.decide.search.scores import by_metric
from lwqc.decide.search.times import measure_times, reference_ms
from lwqc.decide.search.whole import Result, WholeSearch, aimed
from lwqc.decide.search.workers import remembering, workers
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.goals import Amount, Goals
from lwqc.plans.plan import CleanUp
from lwqc.plans.recipe import Recipe, SearchRecipe

_MOST_BYTES = 1_000_000_000  # of weights: a trial session holds them all
_ROW = {"size_bytes": "max_size", "latency_ms": "max_latency", "macs": "max_macs",
        "memory_bytes": "max_memory"}  # fmt: skip
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
    only_so = goals.max_macs is not None or goals.max_memory is not None
    return goals.budgets and small and (work.job.data.fit.given or only_so)


def joint(work: Version, goals: Goals, recipe: Recipe, control: SearchControl) -> Compressed:
    """Search, make up for what the winner loses, measure, and back off if a budget is missed.

    Ctrl-C ends the evolution with the best so far. Raises InputError.
    """
    newer, notes = _newer(work, recipe)
    with _opened(work, newer, goals, recipe, control) as (search, limits, clean):
        result = search.run(aimed(limits))
        done, result = search.verified(goals, limits, result, clean)
        return _finished(work, search, done, result).noted(*notes)


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
        field, goal = next(
            (field, goal) for field, goal in _ROW.items() if math.isfinite(getattr(limits, field))
        )
        last, top = getattr(limits, field), getattr(whole, field)
        original = work.original.size_bytes if field == "size_bytes" else top
        first = _MILDEST * top
        search.settings = dataclasses.replace(
            search.settings, generations=max(search.settings.generations // count, _SHORTEST)
        )
        before: Candidate | None = None
        for step in range(count):
            budget = max(first, last) * (last / max(first, last)) ** (step / (count - 1))
            own = Limits(**{field: budget})
            wanted = Goals(**{goal: Amount(budget / original, True)})  # type: ignore[arg-type]
            also = None if before is None else search.repaired(before, aimed(own))
            done, result = search.verified(wanted, own, search.run(aimed(own), also), clean)
            before = result.best
            yield _finished(work, search, done, result).noted(*notes)


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
    section = recipe.search_in
    if section is None:
        raise InputError(f"recipe {recipe.name} searches nothing; see lwqc recipes")
    if section.measure == "metric" and work.job.metric is None:
        raise InputError(f"recipe {recipe.name} compares by a metric; give --metric")
    if goals.avg_bits is not None:  # which count what is stored per weight that is left
        section = section.model_copy(update={"kinds": ("format",)})
    base, clean = newer, None
    measured = goals.max_latency is not None or goals.max_memory is not None
    if recipe.clean and measured and goals.max_macs is None:
        # Merged operators do the same products, which are then counted less well.
        fused = fused_base(newer)
        base, clean = fused.work, fused.clean
    log = SearchLog(control.log, resume=control.resume)
    try:
        with _searching(work, base, goals, recipe, section, control, log) as (search, limits):
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
    goals: Goals,
    recipe: Recipe,
    section: SearchRecipe,
    control: SearchControl,
    log: SearchLog,
) -> Iterator[tuple[WholeSearch, Limits]]:
    """base: the work on the graph that is searched."""
    log.must_equal("model", work.begun.source.digest)
    limits = _limits(work, goals, log)
    if "format" in section.kinds:  # the space depends on times that a resumed run would take anew
        slow = log.fact(
            "slow products",
            lambda: {str(b): sorted(s) for b, s in slow_products(base).items()},
            dict[int, list[str]],
        )
        take_slow_products(base, {int(bits): frozenset(sites) for bits, sites in slow.items()})
    found = _model(base, section, recipe, goals, limits)
    log.must_equal("search space", [list(found.space.sizes), control.seed, recipe.name])
    if math.isfinite(limits.latency_ms):
        measure_times(found, log)
    if math.isfinite(limits.memory_bytes):
        measure_memory(found, log)
    settings = dataclasses.replace(EFFORTS[control.effort], seed=control.seed)
    expected = settings.generations * settings.offspring
    with workers(found.spec, control.processes, control.cluster, expected) as evaluate:
        score = remembering(evaluate, log, "joint")
        if section.measure == "metric":
            score = by_metric(found, score, log)
        yield WholeSearch(found, recipe, settings, control, score, log), limits


def _finished(work: Version, search: WholeSearch, done: Compressed, result: Result) -> Compressed:
    report = result.report(search.found, search.control, search.section)
    return dataclasses.replace(done, work=work, search=report)


def _limits(work: Version, goals: Goals, log: SearchLog) -> Limits:
    size = latency = macs = memory = math.inf
    if goals.max_size is not None:
        size = goals.max_size.resolve(work.original.size_bytes)
    if goals.avg_bits is not None:
        weights = sum(s.size for s in work.analysis.sites)
        rest = io.serialized_bytes(work.model) - sum(s.float_bytes for s in work.analysis.sites)
        size = min(size, rest + goals.avg_bits / 8 * weights)
    if goals.max_latency is not None:
        latency = goals.max_latency.resolve(reference_ms(work, log))
    if goals.max_macs is not None:
        macs = goals.max_macs.resolve(work.original.macs)
    if goals.max_memory is not None:
        memory = goals.max_memory.resolve(reference_memory(work, log))
    if not math.isfinite(min(size, latency, macs, memory)):
        raise InputError(
            "a search needs a budget: give --max-size, --avg-bits, --max-macs, --max-memory or "
            "--max-latency"
        )
    return Limits(size_bytes=size, latency_ms=latency, macs=macs, memory_bytes=memory)


def _model(
    work: Version, section: SearchRecipe, recipe: Recipe, goals: Goals, limits: Limits
) -> SearchModel:
    """What can be chosen; see `mixed.fitting_forms`."""
    options: dict[str, Any] = {
        "method": recipe.method if work.job.data.fit.given else "rtn",
        "measure": "auto" if section.measure == "metric" else section.measure,
        "small": math.isfinite(limits.size_bytes),
        "fast": math.isfinite(min(limits.latency_ms, limits.memory_bytes)),
        "held": math.isfinite(limits.memory_bytes),
        "size_bytes": limits.size_bytes,
    }
    if goals.avg_bits is not None:  # which leave out the nodes that unpack; a size does not
        options |= {"tiny": mixed.least_average_bits(work) > goals.avg_bits, "unpack": False}
    elif options["held"]:  # what is unpacked at load takes no less memory
        options["unpack"] = math.isfinite(limits.latency_ms)
    elif "format" in section.kinds and options["small"]:
        options |= mixed.fitting_forms(work, limits.size_bytes)
    found = search_model(work, section.kinds, **options)
    measure_overhead(found)
    return found
