"""Any job on a model that goes on with fewer tokens from layer to layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lwqc.compile.compressed import Compressed
from lwqc.compile.decisions import TokenDecision
from lwqc.compile.losses import judged_drop
from lwqc.compile.run_times import run_ms
from lwqc.compile.steps.reduced_tokens import reduced
from lwqc.compile.version import Version
from lwqc.decide.decided import Decided
from lwqc.decide.tokens import ShareOutOfReachError, choose_tokens
from lwqc.graph.token_cuts import find_token_cuts
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import TokenRecipe
from lwqc.runtime.measure import NOISE

Job = Callable[[Version], Decided]
LATENCY = "max_latency"
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # that are tried for a latency


def with_tokens(job: Callable[[Goals], Job], options: TokenRecipe, goals: Goals) -> Job:
    """The job, after the model goes on with fewer tokens.

    job: made for goals. With a share its goals are all of them. By latency the least share is taken
    with which the result of the job keeps the latency that is asked for.
    """
    if options.by_latency and LATENCY in goals.bounds:
        return lambda work: _within_latency(work, job, options, goals)
    return lambda work: _reduced(work, job(goals), options, options.share)


def may_shorten(work: Version, goals: Goals) -> bool:
    """Whether fewer tokens are worth a try: a latency alone is asked for, and some can go."""
    if set(goals.bounds) != {LATENCY} or not work.job.data.fit.given or not work.job.timed:
        return False
    return bool(find_token_cuts(work.model).cuts)


def better(work: Version, search: Job, shorter: Job, goals: Goals) -> Decided:
    """Of two jobs within a latency the one that loses less, or is closer to it if both miss it."""
    found = [job(work).make() for job in (search, shorter)]
    before, *after = run_ms(work, work.original.timed_session, *(done.model for done in found))
    limit = goals.bounds[LATENCY].resolve(before)
    over = [max(1.0, ms / limit / NOISE) for ms in after]
    drops = [judged_drop(work, work.job.load(done.model)) for done in found]
    first, second = zip(over, drops, strict=True)
    if second < first:
        note = (
            f"8 bits and fewer tokens lose {drops[1]:.3g} in {after[1]:.3g} ms; "
            f"without, a search lost {drops[0]:.3g} in {after[0]:.3g} ms"
        )
        return Decided.of(found[1]).noted(note)
    note = (
        f"8 bits and fewer tokens would lose {drops[1]:.3g} in {after[1]:.3g} ms, "
        f"what was taken loses {drops[0]:.3g} in {after[0]:.3g} ms"
    )
    return Decided.of(found[0]).noted(note)


def _reduced(work: Version, job: Job, options: TokenRecipe, share: float) -> Decided:
    decision = choose_tokens(work, options, share)
    if not work.job.data.fit.given:
        note = "no data was given: which layers bear fewer tokens is measured on random inputs"
        return _after(work, job, decision).noted(note)
    return _after(work, job, decision)


def _after(work: Version, job: Job, decision: TokenDecision) -> Decided:
    """What the job makes of the model with fewer tokens, as a plan for the model before."""
    found = job(reduced(work, decision.tokens))
    plan = found.plan.model_copy(update={"tokens": decision.tokens})

    def make() -> Compressed:
        done = found.make()
        whole = done.decisions.model_copy(update={"tokens": decision.tokens})
        return dataclasses.replace(done, decisions=whole, shortened=decision)

    return Decided(found.work, found.goals, plan, make)


def _within_latency(
    work: Version, job: Callable[[Goals], Job], options: TokenRecipe, goals: Goals
) -> Decided:
    """The first result that is fast enough, beginning with all tokens; else the fastest."""
    bound = goals.bounds[LATENCY]
    inner = job(goals.without(LATENCY))
    report = work.job.report("shares of tokens")
    best: tuple[float, Decided] | None = None
    for tried, share in enumerate((0.0, *_SHARES), 1):
        try:
            found = _reduced(work, inner, options, share) if share else inner(work)
        except ShareOutOfReachError as error:
            work.job.give_up(error)
            break
        done = found.make()
        before, after = run_ms(work, work.original.timed_session, done.model)
        relative = after / bound.resolve(before)
        report(tried, 1 + len(_SHARES))
        if best is None or relative < best[0]:
            best = relative, Decided.of(dataclasses.replace(done, goals=goals))
        if relative <= 1:
            break
    assert best is not None
    return best[1]
