"""Any job on a model that goes on with fewer tokens from layer to layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lwqc.compile.compressed import Compressed
from lwqc.compile.decisions import TokenDecision
from lwqc.compile.run_times import run_ms
from lwqc.compile.steps.reduced_tokens import reduced
from lwqc.compile.version import Version
from lwqc.decide.decided import Decided
from lwqc.decide.tokens import choose_tokens
from lwqc.errors import InputError
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import TokenRecipe

Job = Callable[[Version], Decided]
LATENCY = "max_latency"
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # that are tried for a latency


def with_tokens(job: Callable[[Goals], Job], options: TokenRecipe, goals: Goals) -> Job:
    """The job, after the model goes on with fewer tokens.

    job: made for goals. With a share its goals are all of them. Without one the least share is
    taken with which the result of the job keeps the latency that is asked for.
    """
    share = options.share
    if share is None:
        if LATENCY not in goals.bounds:
            raise InputError("how many tokens go is not said: give --tokens or --max-latency")
        return lambda work: _within_latency(work, job, options, goals)
    return lambda work: _reduced(work, job(goals), options, share)


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
        found = _reduced(work, inner, options, share) if share else inner(work)
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
