"""One search over formats, widths and branches, checked on what it gives.

Cheap statistics rank every level; several starts share the budget out between structure and bits;
the best of them is refined by evolution on measured divergence; layers make up for what the winner
lost; and what comes out is measured. Where it misses a budget, the budget of the search is
corrected by as much.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lwqc.compile.compressed import Compressed
from lwqc.compile.execute import execute
from lwqc.compile.result import Chosen, SearchReport, SearchTrace, Tried
from lwqc.decide.allocators.evolutionary import Candidate, Generation, Settings, evolve
from lwqc.decide.allocators.knapsack import choose
from lwqc.decide.allocators.rate_distortion import allocate as curves
from lwqc.decide.planning import without
from lwqc.decide.search.bounded import Bounded
from lwqc.decide.search.control import SearchControl
from lwqc.decide.search.joint_plan import planned
from lwqc.decide.search.limits import Limits
from lwqc.decide.search.log import Amount as Share
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.pace import Parts, fitted
from lwqc.decide.search.recovered import Recovered, ratios
from lwqc.decide.search.scores import (
    block_angles,
    filled_widths,
    measured_errors,
    pairwise_allocator,
    zeroth_order,
)
from lwqc.decide.search.search_model import SearchModel
from lwqc.decide.search.space import SIZE, Kind, SearchSpace
from lwqc.decide.search.start import Allocate, lowered, raised, starts
from lwqc.decide.search.trajectory import Trajectory
from lwqc.decide.search.trial_model import ALL, PART
from lwqc.decide.search.workers import Evaluate
from lwqc.model import io
from lwqc.model.interrupts import taken
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.plans.plan import CleanUp
from lwqc.plans.recipe import Recipe, SearchRecipe

_PATIENCE = 12  # generations without a better candidate
_ROUNDS = 4  # of tightening a budget that was missed
_KEPT_STARTS = 4
_AIM = 0.98  # of the asked time or memory: repeated measurements differ by more
_WHOLE = Amount(1.0, True)  # a bound that asks to count, and allows everything
_USED = 0.93  # a result that takes less than that share of what is allowed could have been better


@dataclass(frozen=True)
class Result:
    """The best candidate of a search, and how it was found."""

    best: Candidate
    score: float
    start: Candidate
    start_score: float
    generations: int
    evaluations: int
    seconds: float
    notes: tuple[str, ...] = ()

    def followed_by(self, again: Result, note: str) -> Result:
        """The result of another search after this one."""
        return dataclasses.replace(
            again,
            start=self.start,
            start_score=self.start_score,
            notes=(*self.notes, note, *again.notes),
            generations=self.generations + again.generations,
            seconds=self.seconds + again.seconds,
        )

    def report(
        self, found: SearchModel, control: SearchControl, section: SearchRecipe
    ) -> SearchReport:
        """For readers."""
        space = found.space
        count = {kind: len(space.of_kind(kind)) for kind in ("format", "width", "branch")}
        changed = {
            kind: sum(self.best[i] < space.items[i].top for i in space.of_kind(kind))
            for kind in ("format", "width", "branch")
        }
        return SearchReport(
            measure="metric" if section.measure == "metric" else found.measure,
            effort=control.effort,
            seed=control.seed,
            items={k: (changed[k], n) for k, n in count.items() if n},
            start=self.start_score,
            best=self.score,
            generations=self.generations,
            evaluations=self.evaluations,
            seconds=self.seconds,
            left_out=space.left_out,
            notes=(*self.notes, *_tokens_told(space, self.best)),
        )


def _tokens_told(space: SearchSpace, best: Candidate) -> list[str]:
    """What was chosen of the tokens, where they were chosen, for readers."""
    items = [(space.items[i], best[i]) for i in space.of_kind("token")]
    return [f"tokens: {item.labels[level]}, of {', '.join(item.labels)}" for item, level in items]


class WholeSearch:
    """One space, its scores, and searches in it."""

    def __init__(
        self,
        found: SearchModel,
        recipe: Recipe,
        settings: Settings,
        control: SearchControl,
        score: Evaluate,
        log: SearchLog,
        budgets: Mapping[str, Bounded],
    ) -> None:
        """budgets: by cost, those that have limits."""
        assert recipe.search_in is not None
        self.log, self.section = log, recipe.search_in
        self.found, self.recipe, self.settings = found, recipe, settings
        self.control, self._score = control, score
        self.budgets = budgets
        self.evaluations = 0
        self.recovered: Recovered | None = None
        self._tried: dict[Candidate, float] = {}
        self._measured: dict[str, list[tuple[Parts, float]]] = {}
        self._guess = dict(found.space.pace)

    def run(self, limits: Limits, also: Candidate | None = None) -> Result:
        """The best candidate within limits, by starts (and a given one) and evolution."""
        begin = time.perf_counter()
        space = self.found.space

        def fits(candidate: Candidate) -> bool:
            return limits.excess(space.cost(candidate)) <= 1

        self.found.work.job.report("starts")(0, 1)
        if also is None:
            self._try_formats(limits)
        start = self._best_start(limits, fits, also)
        if also is None:
            self._count_exactly(start, limits)
            start = self.repaired(start, limits)  # for what was not predicted
        start_score = self.score([start], self.settings.stages - 1)[0]
        if not fits(start):
            note = "no candidate is predicted to meet the budget: the strongest was taken"
            return self._result(start, start_score, start, start_score, 0, begin, note)
        end = begin + self.control.time_limit_s
        report = self.found.work.job.report("evolution")
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
            taken()
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
    ) -> Result:
        seconds = time.perf_counter() - begin
        notes = (note,) if note else ()
        return Result(
            best, score, start, start_score, generations, self.evaluations, seconds, notes
        )

    def score(self, candidates: Sequence[Candidate], stage: int) -> list[float]:
        """Of candidates on the data of a stage."""
        self.evaluations += len(candidates)
        effective = [self.found.space.effective(candidate) for candidate in candidates]
        if stage != self.settings.stages - 1:
            return self._left(candidates, self._score(effective, stage))
        scores = self._left(candidates, self._score(effective, ALL))
        self._tried.update(zip(candidates, scores, strict=True))
        return scores

    def _left(self, candidates: Sequence[Candidate], scores: list[float]) -> list[float]:
        """What of scores a fit will leave, where there will be one."""
        if self.recovered is None:
            return scores
        return [self.recovered.left(c) * s for c, s in zip(candidates, scores, strict=True)]

    def trace(self, result: Result, limits: Limits) -> SearchTrace:
        """What was looked at up to now, and what of it was chosen."""
        space = self.found.space
        cost = limits.binding(space.cost(space.top))

        def tried(candidate: Candidate, score: float) -> Tried:
            return Tried(space.cost(candidate)[cost], score)

        return SearchTrace(
            cost=cost,
            limit=limits[cost],
            tried=tuple(tried(*one) for one in self._tried.items()),
            start=tried(result.start, result.start_score),
            best=tried(result.best, result.score),
            chosen=tuple(
                Chosen(item.name, item.kind, item.labels[level], item.errors[level], item.errors[0])
                for item, level in zip(space.items, result.best, strict=True)
            ),
        )

    def _count_exactly(self, candidate: Candidate, limits: Limits) -> None:
        """What prediction misses of a candidate's cost is taken to be the same for its kin."""
        space = self.found.space
        done = self._plain(candidate)
        space.fixed_bytes += io.serialized_bytes(done.model) - space.cost(candidate)[SIZE]
        self._learn(candidate, self._real(candidate, done, limits))

    def _try_formats(self, limits: Limits) -> None:
        """Measure the cheapest formats of everything, so that nothing is removed that can stay."""
        space = self.found.space
        formats = space.of_kind("format")
        noisy = list(self._limited(limits, noisy=True))
        if not noisy or not formats or len(formats) == len(space.items):
            return

        def cost(item: int, level: int) -> float:
            trial = (*space.top[:item], level, *space.top[item + 1 :])
            return space.cost(trial)[noisy[0]]

        candidate = list(space.top)
        for i in formats:
            candidate[i] = min(range(space.sizes[i]), key=lambda level: cost(i, level))
        known = tuple(candidate)
        self._learn(known, self._real(known, self._plain(known), limits))

    def _limited(self, limits: Limits, *, noisy: bool) -> dict[str, Bounded]:
        """Budgets that have a limit, by cost: those that are measured, or that are counted."""
        return {c: b for c, b in self.budgets.items() if c in limits and b.noisy == noisy}

    def _learn(self, candidate: Candidate, real: Mapping[str, float]) -> None:
        """Predictions are fitted to what candidates took."""
        space = self.found.space
        for kind, cost in real.items():
            known = self._measured.setdefault(kind, [])
            known.append((space.parts(candidate, kind), cost))
            space.pace[kind] = fitted(known, self._guess[kind])

    def _real(self, candidate: Candidate, done: Compressed, limits: Limits) -> dict[str, float]:
        """Measured costs of an executed candidate that have limits."""
        noisy = self._limited(limits, noisy=True)
        return {cost: budget.real(str(candidate), done, self.log) for cost, budget in noisy.items()}

    def _best_start(
        self, limits: Limits, fits: Callable[[Candidate], bool], also: Candidate | None
    ) -> Candidate:
        space = self.found.space
        binding = limits.binding(space.cost(space.top))

        def cost(candidate: Candidate) -> float:
            return space.cost(candidate)[binding]

        offered = self._offered(cost, limits, limits[binding], fits)
        if also is not None:  # as it is, and with what is left of the budget used
            more = (also, raised(space, also, cost, fits))
            offered = list(dict.fromkeys((*offered, *more)))
        rough = self.score(offered, PART)
        order = sorted(range(len(offered)), key=lambda i: (rough[i], i))[:_KEPT_STARTS]
        kept = [offered[i] for i in order]
        values = self.score(kept, self.settings.stages - 1)
        return kept[min(range(len(kept)), key=values.__getitem__)]

    def _expect_recovery(self, limits: Limits) -> None:
        """Let errors be those that a fit afterwards leaves, where there will be one."""
        learn = self.recipe.learn
        if learn is None or self.recovered is not None or not self.found.work.job.data.fit.given:
            return
        space = self.found.space

        def found() -> dict[Kind, float]:
            return ratios(space, limits, lambda c: self._executed(Goals(), c, None), learn)

        self.found.work.job.report("trying fits")(0, 1)
        shares = self.log.fact("shares that fits leave", found, dict[Kind, Share])
        self.recovered = Recovered(space, shares)

    def _offered(
        self,
        cost: Callable[[Candidate], float],
        limits: Limits,
        limit: float,
        fits: Callable[[Candidate], bool],
    ) -> list[Candidate]:
        """Starts as the recipe says."""
        section, space = self.section, self.found.space
        if section.errors == "measured":
            measured_errors(space, lambda trials: self.score(trials, PART))
        if section.errors == "trajectory":
            measured_errors(space, Trajectory(self.found, self.score))
        self._expect_recovery(limits)
        if section.start == "zeroth-order":
            scores = zeroth_order(self.found, self.control.seed)
            return [filled_widths(space, scores, cost, fits)]
        if section.start == "angles":
            return [filled_widths(space, block_angles(self.found), cost, fits)]
        allocate: Allocate = curves if section.start == "curves" else choose
        if section.start == "pairs":
            allocate = pairwise_allocator(space, self.score)
        return starts(space, cost, limit, fits, allocate)

    def verified(
        self, goals: Goals, limits: Limits, result: Result, clean: CleanUp | None
    ) -> tuple[Compressed, Result]:
        """The winner executed and measured; where its time or memory was predicted wrongly, again.

        The best of those that are within the limits, else the one that comes closest.
        """
        self.found.work.job.report("taking the best")(0, 1)
        found: list[tuple[bool, float, Compressed, Result]] = []
        aim = self.aimed(limits)
        for _ in range(_ROUNDS):
            result = self._sized(limits, result)
            done = self._executed(goals, result.best, clean)
            real = self._real(result.best, done, limits)
            if not real:
                return done, result
            excess = max(cost / limits[kind] for kind, cost in real.items())
            over = excess > 1
            found.append((over, excess if over else result.score, done, result))
            counted = Limits({c: limits[c] for c in self._limited(limits, noisy=False)})
            used = max(excess, counted.excess(self.found.space.cost(result.best)))
            if not over and used > _USED:
                break
            self._learn(result.best, real)
            again = self.run(aim, self.repaired(result.best, aim))
            if again.best == result.best:
                break
            result = result.followed_by(again, f"{self._shown(real, limits)}: searched again")
        _, _, done, best = min(found, key=lambda f: f[:2])
        return done, best

    def _sized(self, limits: Limits, result: Result) -> Result:
        """What is counted needs no compensation, so it is checked, and repaired, before it."""
        wanted = self._limited(limits, noisy=False)
        for _ in range(_ROUNDS if wanted else 0):
            name = str(result.best)
            done = self._plain(result.best, Goals.of({b.option: _WHOLE for b in wanted.values()}))
            real = {cost: budget.real(name, done, self.log) for cost, budget in wanted.items()}
            over = {cost: real[cost] - limits[cost] for cost in wanted if real[cost] > limits[cost]}
            if not over:
                break
            predicted = self.found.space.cost(result.best)
            aims = limits.with_bounds({cost: predicted[cost] - more for cost, more in over.items()})
            best = self.repaired(result.best, aims)
            missed = ", ".join(f"{more:.0f} {wanted[cost].unit}" for cost, more in over.items())
            note = f"{missed} over when executed: repaired"
            result = dataclasses.replace(result, best=best, notes=(*result.notes, note))
        return result

    def repaired(self, candidate: Candidate, limits: Limits) -> Candidate:
        """The candidate lowered where it errs least until it is predicted to fit."""
        space = self.found.space

        def excess(c: Candidate) -> float:
            return limits.excess(space.cost(c))

        return lowered(space, candidate, excess, lambda c: excess(c) <= 1)

    def _plain(self, candidate: Candidate, goals: Goals | None = None) -> Compressed:
        """The candidate as a model. Nothing makes up for what it loses: costs stay the same."""
        plan = planned(self.found, candidate, "", compensate=False)
        return execute(self.found.version(candidate), goals or Goals(), plan)

    def _executed(self, goals: Goals, candidate: Candidate, clean: CleanUp | None) -> Compressed:
        work, short = self.found.version(candidate), self.found.shortened(candidate)
        plan = planned(self.found, candidate, self.recipe.name)
        done = execute(work, goals, plan)
        wrong = {} if work.job.skip_checks else work.job.target.misplaced(done.lowered)
        if wrong:
            plan = without(plan, wrong)
            done = execute(work, goals, plan)
        decision = None if short is None else short.decision
        tokens = () if decision is None else decision.tokens
        led_here = {"tokens": tokens, "opset": work.raised, "clean": clean}
        decisions = done.decisions.model_copy(update=led_here)
        return dataclasses.replace(done, decisions=decisions, shortened=decision)

    def aimed(self, limits: Limits) -> Limits:
        """What a search is asked for: a little less of what is measured, as that is not exact."""
        noisy = self._limited(limits, noisy=True)
        return limits.with_bounds({cost: limits[cost] * _AIM for cost in noisy})

    def _shown(self, real: Mapping[str, float], limits: Limits) -> str:
        budgets = [(cost, self.budgets[cost]) for cost in real]
        return ", ".join(
            f"{real[cost] / b.scale:.3g} of {limits[cost] / b.scale:.3g} {b.short} measured"
            for cost, b in budgets
        )
