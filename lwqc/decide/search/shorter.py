"""The model with fewer tokens, for searches: a few shares of the work that goes, each measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from lwqc.compile.candidates import with_formats
from lwqc.compile.cleaned import cleaned
from lwqc.compile.decisions import TokenDecision
from lwqc.compile.lifted import raised
from lwqc.compile.losses import moved
from lwqc.compile.steps.reduced_tokens import reduced
from lwqc.compile.version import Version
from lwqc.decide.float_plan import with_float_type
from lwqc.decide.planning import unchanged
from lwqc.decide.search.log import SearchLog
from lwqc.decide.tokens import choose_tokens
from lwqc.errors import InputError
from lwqc.graph.token_cuts import find_token_cuts
from lwqc.plans.plan import CleanUp
from lwqc.plans.recipe import TokenRecipe
from lwqc.runtime.served import relative_times
from lwqc.runtime.session import Session

SHARES = (0.6, 0.45, 0.3, 0.15, 0.01)  # of the products that go; the last: what nothing reads
_FASTER = 0.98  # of the time with more tokens: less is noise
_SECONDS = 1.0  # of timing per model
_TIMES = list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]


@dataclass(frozen=True)
class Shorter:
    """The model with fewer tokens. version: it, as it is searched. error: relative squared error of
    its outputs. time: over that of the float model with all tokens.
    """

    decision: TokenDecision
    version: Version
    error: float
    time: float = math.nan


def shorter_models(
    work: Version, base: Version, clean: CleanUp | None, log: SearchLog
) -> list[Shorter]:
    """Fewer tokens first; only those that are measured to be faster than with more.

    work: as plans begin with it. base: what is searched, which the work becomes in another operator
    set and cleaned up. Empty without data, and where no tokens can go.
    """
    if not work.job.data.fit.given or not find_token_cuts(work.model).cuts:
        return []
    found: list[Shorter] = []
    for share in SHARES:
        try:
            decision = choose_tokens(work, TokenRecipe(), share)
            made = _led(reduced(work, decision.tokens), base, clean)
        except InputError:  # not that many can go, or what is left cannot be converted
            continue
        session = _float(made)
        error = moved(made, session)
        if math.isfinite(error) and all(decision.tokens != f.decision.tokens for f in found):
            found.append(Shorter(decision, made, error))
    times = log.fact("times with fewer tokens", lambda: _times(base, found), _TIMES)
    if len(times) != len(found):
        raise InputError("the search file has times of other tokens: run without --resume")
    kept: list[Shorter] = []
    fastest = 1.0
    for one, time in reversed(list(zip(found, times, strict=True))):
        if time < _FASTER * fastest:
            kept.append(replace(one, time=time))
            fastest = time
    return kept[::-1]


def _led(work: Version, base: Version, clean: CleanUp | None) -> Version:
    """The same steps as to the base, so that the plan replays. Raises InputError."""
    if base.raised is not None and work.raised is None:
        work = raised(work, base.raised)
    return with_float_type(work if clean is None else cleaned(work, clean))


def _float(work: Version) -> Session:
    return work.job.load(with_formats(work, unchanged(work)).model, label="fewer tokens")


def _times(base: Version, found: Sequence[Shorter]) -> list[float]:
    """Over the time of the base, at the first shape served."""
    if not found:
        return []
    sessions = [_float(base), *(_float(one.version) for one in found)]
    return [t for (t,) in relative_times(sessions, base.job.data.serve[:1], _SECONDS)[1:]]
