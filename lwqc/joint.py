"""One search over formats, widths and branches under budgets, checked on what it gives.

Cheap statistics rank every level; several starts share the budget out between structure and bits;
the best of them is refined by evolution on measured divergence; layers make up for what the winner
lost; and what comes out is measured. Where it misses a budget, the budget of the search is
tightened by as much and the winner repaired.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lwqc import io
from lwqc.cleaned import cleaned, cleaning
from lwqc.compressed import Compressed
from lwqc.errors import InputError
from lwqc.execute import execute
from lwqc.goals import Goals
from lwqc.joint_plan import planned
from lwqc.measure import medians_ms
from lwqc.plan import CleanUp, Plan
from lwqc.planning import without
from lwqc.recipe import Recipe, SearchRecipe
from lwqc.report.result import SearchReport
from lwqc.search.evolutionary import Candidate, Generation, Settings, evolve
from lwqc.search.knapsack import choose
from lwqc.search.rate_distortion import allocate as curves
from lwqc.search_items import SearchModel, search_model
from lwqc.search_log import SearchLog
from lwqc.search_overhead import measure_overhead
from lwqc.search_scores import block_angles, filled_widths, measured_errors, zeroth_order
from lwqc.search_space import Cost
from lwqc.search_start import lowered, starts
from lwqc.search_times import measure_times, scaled_times
from lwqc.search_workers import Evaluate, workers
from lwqc.workspace import Workspace

Effort = Literal["low", "medium", "high"]
_EFFORTS: Mapping[str, Settings] = {
    "low": Settings(generations=10, offspring=12, survivors=(3,)),
    "medium": Settings(generations=40, offspring=16, survivors=(4, 2)),
    "high": Settings(generations=150, offspring=32, survivors=(8, 3)),
}
EFFORTS = tuple(_EFFORTS)
_PATIENCE = 12  # generations without a better candidate
_ROUNDS = 4  # of tightening a budget that was missed
_KEPT_STARTS = 4
_LATENCY_AIM = 0.98  # of the asked time: repeated timings differ by more
_LATENCY_LEFT = 0.93  # a result faster than that share of it could have been better
_REFERENCE_TIME = "milliseconds of the original"
_MOST_BYTES = 1_000_000_000  # of weights: a trial session holds them all


@dataclass(frozen=True)
class SearchControl:
    """How to run a search.

    time_limit_s: of the evolution; then it ends with the best so far. log: file of scores, see
    `SearchLog`. resume: go on from it. processes: None where they pay. cluster: a Dask scheduler.
    """

    effort: Effort = "medium"
    time_limit_s: float = math.inf
    log: Path | None = None
    resume: bool = False
    processes: int | None = None
    cluster: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise InputError(f"--effort {self.effort}: expected one of {', '.join(EFFORTS)}")
        if not self.time_limit_s > 0:
            raise InputError(f"--time-limit {self.time_limit_s:g}: expected seconds above 0")
        if self.processes is not None and self.processes < 1:
            raise InputError(f"--workers {self.processes}: expected at least 1")


@dataclass(frozen=True)
class Limits:
    """Upper bounds of a candidate's cost."""

    size_bytes: float = math.inf
    macs: float = math.inf
    latency_ms: float = math.inf

    def excess(self, cost: Cost) -> float:
        """Cost over limit of the budget that binds most; 1 is just within."""
        return max((getattr(cost, name) / limit for name, limit in self._bounded()), default=0.0)

    def binding(self, cost: Cost) -> str:
        """The budget that binds most."""
        return max(self._bounded(), key=lambda b: getattr(cost, b[0]) / b[1])[0]

    def _bounded(self) -> list[tuple[str, float]]:
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return [(name, limit) for name, limit in pairs if math.isfinite(limit)]


def searches(work: Workspace, goals: Goals, recipe: Recipe) -> bool:
    """Whether a recipe searches over whole plans; `auto` does, for a budget and on given data."""
    if recipe.search_in is None:
        return False
    if recipe.allocator == "search":
        return True
    small = io.weight_bytes(work.model) <= _MOST_BYTES
    budget = goals.wants_size or goals.max_latency is not None
    return bool(budget and work.data.given and small)


def joint(work: Workspace, goals: Goals, recipe: Recipe, control: SearchControl) -> Compressed:
    """Search, make up for what the winner loses, measure, and back off if a budget is missed.

    Ctrl-C ends the evolution with the best so far. Raises InputError.
    """
    section = recipe.search_in
    if section is None:
        raise InputError(f"recipe {recipe.name} searches nothing; see lwqc recipes")
    base, clean = work, None
    if recipe.clean:
        clean, _ = cleaning(work, CleanUp(merge=recipe.merge))
        base = cleaned(work, clean)
    log = SearchLog(control.log, resume=control.resume)
    log.must_equal("model", work.source.digest)
    limits = _limits(work, goals, log)
    found = _model(base, section, recipe, limits)
    log.must_equal("search space", [list(found.space.sizes), control.seed, recipe.name])
    if math.isfinite(limits.latency_ms):
        measure_times(found, log)
    settings = dataclasses.replace(_EFFORTS[control.effort], seed=control.seed)
    expected = settings.generations * settings.offspring
    with workers(found.spec, control.processes, control.cluster, expected) as evaluate:
        search = _Search(
            found, recipe, settings, control, _remembering(evaluate, log, "joint"), log
        )
        result = search.run(limits)
        done, result = search.verified(goals, limits, result, clean)
    log.close(remove=True)
    return dataclasses.replace(done, work=work, search=result.report(found, control))


def _limits(work: Workspace, goals: Goals, log: SearchLog) -> Limits:
    size = latency = math.inf
    if goals.max_size is not None:
        size = goals.max_size.resolve(work.float_bytes)
    if goals.avg_bits is not None:
        weights = sum(s.size for s in work.analysis.sites)
        rest = io.serialized_bytes(work.model) - sum(s.float_bytes for s in work.analysis.sites)
        size = min(size, rest + goals.avg_bits / 8 * weights)
    if goals.max_latency is not None:
        whole = log.fact(
            _REFERENCE_TIME,
            lambda: medians_ms([work.reference], work.search_batches[0])[0],
        )
        latency = goals.max_latency.resolve(whole)
    if not math.isfinite(min(size, latency)):
        raise InputError("a search needs a budget: give --max-size, --avg-bits or --max-latency")
    return Limits(size_bytes=size, latency_ms=latency)


def _model(work: Workspace, section: SearchRecipe, recipe: Recipe, limits: Limits) -> SearchModel:
    """What can be chosen; with 2-bit formats where 4 bits everywhere are too many."""
    options: dict[str, Any] = {
        "method": recipe.method if work.data.given else "rtn",
        "measure": section.measure,
        "small": math.isfinite(limits.size_bytes),
        "fast": math.isfinite(limits.latency_ms),
    }
    tiny = "format" in section.kinds and _least_bytes(work) > limits.size_bytes
    found = search_model(work, section.kinds, tiny=tiny, **options)
    measure_overhead(found)
    return found


def _least_bytes(work: Workspace) -> float:
    """About what the model takes with every site in its smallest format but 2 bits."""
    saved = 0
    for site in work.analysis.sites:
        entries = work.target.candidates(site, work.opset)
        sizes = [e.size_bytes(site.n, site.k) for e in entries]
        saved += site.float_bytes - min(sizes, default=site.float_bytes)
    return io.serialized_bytes(work.model) - saved


def _remembering(evaluate: Evaluate, log: SearchLog, key: str) -> Evaluate:
    """Scores from the log where it has them; new ones go there."""

    def score(candidates: Sequence[Candidate], stage: int) -> list[float]:
        new = [c for c in dict.fromkeys(candidates) if log.get(key, stage, c) is None]
        if new:
            log.add(key, stage, dict(zip(new, evaluate(new, stage), strict=True)))
        found = [log.get(key, stage, c) for c in candidates]
        return [math.inf if v is None or math.isnan(v) else v for v in found]

    return score


@dataclass(frozen=True)
class _Result:
    """The best candidate of a search, and how it was found."""

    best: Candidate
    score: float
    start: Candidate
    start_score: float
    generations: int
    evaluations: int
    seconds: float
    notes: tuple[str, ...] = ()

    def followed_by(self, again: _Result, note: str) -> _Result:
        """The result of another search after this one."""
        return dataclasses.replace(
            again,
            start=self.start,
            start_score=self.start_score,
            notes=(*self.notes, note, *again.notes),
            generations=self.generations + again.generations,
            seconds=self.seconds + again.seconds,
        )

    def report(self, found: SearchModel, control: SearchControl) -> SearchReport:
        """For readers."""
        space = found.space
        count = {kind: len(space.of_kind(kind)) for kind in ("format", "width", "branch")}
        changed = {
            kind: sum(self.best[i] < space.items[i].top for i in space.of_kind(kind))
            for kind in ("format", "width", "branch")
        }
        return SearchReport(
            measure=found.measure,
            effort=control.effort,
            seed=control.seed,
            items={k: (changed[k], n) for k, n in count.items() if n},
            start=self.start_score,
            best=self.score,
            generations=self.generations,
            evaluations=self.evaluations,
            seconds=self.seconds,
            left_out=space.left_out,
            notes=self.notes,
        )


class _Search:
    """One space, its scores, and searches in it."""

    def __init__(
        self,
        found: SearchModel,
        recipe: Recipe,
        settings: Settings,
        control: SearchControl,
        score: Evaluate,
        log: SearchLog,
    ) -> None:
        assert recipe.search_in is not None
        self.log, self.section = log, recipe.search_in
        self.found, self.recipe, self.settings = found, recipe, settings
        self.control, self._score = control, score
        self.evaluations = 0

    def run(self, limits: Limits, also: Candidate | None = None) -> _Result:
        """The best candidate within limits, by starts (and a given one) and evolution."""
        begin = time.perf_counter()
        space = self.found.space

        def fits(candidate: Candidate) -> bool:
            return limits.excess(space.cost(candidate)) <= 1

        start = self._best_start(limits, fits, also)
        if also is None:
            self._count_exactly(start, limits)
            start = self._repaired(start, limits)  # by what was not predicted
        start_score = self.score([start], self.settings.stages - 1)[0]
        if not fits(start):
            note = "no candidate is predicted to meet the budget: the strongest was taken"
            return self._result(start, start_score, start, start_score, 0, begin, note)
        end = begin + self.control.time_limit_s
        report = self.found.work.report("evolution")
        history: list[Generation] = []

        def seen(generation: Generation) -> None:
            history.append(generation)
            report(len(history) - 1, self.settings.generations)

        def stop() -> bool:
            last = [g.score for g in history[-_PATIENCE - 1 :]]
            stuck = len(last) > _PATIENCE and last[0] <= last[-1]
            return not self.section.refine or stuck or time.perf_counter() > end

        note = ""
        try:
            evolve(space.sizes, fits, start, self.score, self.settings, stop=stop, seen=seen)
        except KeyboardInterrupt:
            note = "interrupted: the best so far was taken"
        best = history[-1] if history else Generation(0, start, start_score)
        return self._result(
            best.best, best.score, start, start_score, max(len(history) - 1, 0), begin, note
        )

    def _result(
        self,
        best: Candidate,
        score: float,
        start: Candidate,
        start_score: float,
        generations: int,
        begin: float,
        note: str,
    ) -> _Result:
        seconds = time.perf_counter() - begin
        notes = (note,) if note else ()
        return _Result(
            best, score, start, start_score, generations, self.evaluations, seconds, notes
        )

    def score(self, candidates: Sequence[Candidate], stage: int) -> list[float]:
        """Of candidates on the data of a stage."""
        self.evaluations += len(candidates)
        last = len(self.found.spec.stages) - 1
        return self._score(candidates, last if stage == self.settings.stages - 1 else stage)

    def _count_exactly(self, candidate: Candidate, limits: Limits) -> None:
        """What prediction misses of a candidate's cost is taken to be the same for its kin."""
        space, work = self.found.space, self.found.work
        plan = planned(self.found, candidate, "", compensate=False)
        done = execute(work, Goals(), plan)
        missed = io.serialized_bytes(done.model) - space.cost(candidate).size_bytes
        fixed = space.fixed
        space.fixed = dataclasses.replace(fixed, size_bytes=fixed.size_bytes + missed)
        if math.isfinite(limits.latency_ms):
            measured = self._measured_ms(candidate, done)
            scaled_times(self.found, measured / space.cost(candidate).latency_ms)

    def _best_start(
        self, limits: Limits, fits: Callable[[Candidate], bool], also: Candidate | None
    ) -> Candidate:
        space = self.found.space
        binding = limits.binding(space.cost(space.top))

        def cost(candidate: Candidate) -> float:
            return float(getattr(space.cost(candidate), binding))

        offered = self._offered(cost, getattr(limits, binding), fits)
        if also is not None and also not in offered:
            offered.append(also)
        rough = self.score(offered, 0)
        order = sorted(range(len(offered)), key=lambda i: (rough[i], i))[:_KEPT_STARTS]
        kept = [offered[i] for i in order]
        values = self.score(kept, self.settings.stages - 1)
        return kept[min(range(len(kept)), key=values.__getitem__)]

    def _offered(
        self, cost: Callable[[Candidate], float], limit: float, fits: Callable[[Candidate], bool]
    ) -> list[Candidate]:
        """Starts as the recipe says."""
        section, space = self.section, self.found.space
        if section.errors == "measured":
            measured_errors(space, self.score)
        if section.start == "zeroth-order":
            scores = zeroth_order(self.found, self.control.seed)
            return [filled_widths(space, scores, cost, fits)]
        if section.start == "angles":
            return [filled_widths(space, block_angles(self.found), cost, fits)]
        allocate = curves if section.start == "curves" else choose
        return starts(space, cost, limit, fits, allocate)

    def verified(
        self, goals: Goals, limits: Limits, result: _Result, clean: CleanUp | None
    ) -> tuple[Compressed, _Result]:
        """The winner executed and measured; where time was predicted wrongly, searched again.

        The best of those that meet the time, else the fastest.
        """
        found: list[tuple[bool, float, Compressed, _Result]] = []
        for _ in range(_ROUNDS):
            result = self._sized(limits, result)
            done = self._executed(goals, result.best, clean)
            if not math.isfinite(limits.latency_ms):
                return done, result
            measured = self._measured_ms(result.best, done)
            over = measured > limits.latency_ms * _LATENCY_AIM
            found.append((over, measured if over else result.score, done, result))
            if not over and measured > limits.latency_ms * _LATENCY_LEFT:
                break
            scaled_times(self.found, measured / self.found.space.cost(result.best).latency_ms)
            again = self.run(limits, self._repaired(result.best, limits))
            if again.best == result.best:
                break
            note = f"{measured:.3g} of {limits.latency_ms:.3g} ms measured: searched again"
            result = result.followed_by(again, note)
        _, _, done, best = min(found, key=lambda f: f[:2])
        return done, best

    def _measured_ms(self, candidate: Candidate, done: Compressed) -> float:
        """In the unit of the limit: by what share of the original's time it takes now."""
        work = self.found.work

        def measure() -> float:
            before, after = medians_ms([work.reference, done.model], work.search_batches[0])
            return after / before

        share = self.log.fact(f"time of {candidate}", measure)
        return float(share * self.log.fact(_REFERENCE_TIME, lambda: math.nan))

    def _sized(self, limits: Limits, result: _Result) -> _Result:
        """Sizes need no compensation, so they are checked, and repaired, before it."""
        space, aim = self.found.space, limits.size_bytes
        for _ in range(_ROUNDS if math.isfinite(aim) else 0):
            real = self._real_bytes(result.best)
            if real <= limits.size_bytes:
                break
            aim = space.cost(result.best).size_bytes - (real - limits.size_bytes)
            best = self._repaired(result.best, dataclasses.replace(limits, size_bytes=aim))
            note = f"{real - limits.size_bytes:.0f} bytes over when executed: repaired"
            result = dataclasses.replace(result, best=best, notes=(*result.notes, note))
        return result

    def _repaired(self, candidate: Candidate, limits: Limits) -> Candidate:
        space = self.found.space

        def excess(c: Candidate) -> float:
            return limits.excess(space.cost(c))

        return lowered(space, candidate, excess, lambda c: excess(c) <= 1)

    def _real_bytes(self, candidate: Candidate) -> int:
        plan = planned(self.found, candidate, "", compensate=False)
        return io.serialized_bytes(execute(self.found.work, Goals(), plan).model)

    def _executed(self, goals: Goals, candidate: Candidate, clean: CleanUp | None) -> Compressed:
        work = self.found.work
        plan = planned(self.found, candidate, self.recipe.name)
        done = execute(work, goals, plan)
        wrong = {} if work.skip_checks else work.target.misplaced(done.lowered)
        if wrong:
            plan = without(plan, wrong)
            done = execute(work, goals, plan)
        return dataclasses.replace(done, decisions=_cleaned_first(done.decisions, clean))


def _cleaned_first(plan: Plan, clean: CleanUp | None) -> Plan:
    return plan if clean is None else plan.model_copy(update={"clean": clean})
