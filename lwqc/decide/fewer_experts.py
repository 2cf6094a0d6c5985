"""Decides which experts of a mixture become one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lwqc.compile.merged_experts import experts_of, most_alike
from lwqc.compile.steps.fewer_experts import hidden_units, with_fewer_experts
from lwqc.compile.version import Version
from lwqc.decide.beforehand import Job, after_step
from lwqc.errors import InputError
from lwqc.graph.mixtures import Mixture, find_mixtures
from lwqc.plans.plan import MergedExperts
from lwqc.plans.recipe import ExpertRecipe
from lwqc.plans.wording import names_text
from lwqc.runtime.stats.id_counts import IdCounts

_UNCHOSEN = 0.1  # of all choices, spread over all experts: other data chooses others


def with_merged_experts(job: Job, options: ExpertRecipe) -> Job:
    """The job, after experts were merged. Raises InputError where there are none, with reasons."""

    def choose(work: Version) -> tuple[Sequence[MergedExperts], Sequence[str]]:
        return choose_experts(work, options)

    return after_step("merge", choose, with_fewer_experts, job)


def choose_experts(
    work: Version, options: ExpertRecipe
) -> tuple[tuple[MergedExperts, ...], tuple[str, ...]]:
    """What becomes of the experts of each router, and notes for readers.

    Those whose weights are most alike are joined, hidden units matched; experts that the data
    chooses more often count more. Raises InputError where no mixture loses any.
    """
    mixtures, refused = find_mixtures(work.model.graph)
    by_reason: dict[str, list[str]] = {}
    for one in refused:
        by_reason.setdefault(one.reason, []).append(one.name)
    notes = [f"{why}: {names_text(names)}" for why, names in by_reason.items()]
    chosen: list[MergedExperts] = []
    for mixture, shares in zip(mixtures, _shares(work, mixtures), strict=True):
        count = mixture.experts
        keep = int(options.keep) if options.keep >= 1 else max(1, round(options.keep * count))
        if keep >= count:
            notes.append(f"{mixture.name} keeps its experts: it has {count}")
            continue
        work.job.report("merging experts")(len(chosen), len(mixtures))
        units = hidden_units(work, mixture)
        if units is None:
            notes.append(f"{mixture.name}: hidden units of its experts are not matched")
        into = most_alike(experts_of(mixture), shares, units, keep)
        chosen.append(MergedExperts(router=mixture.name, into=tuple(into), shares=tuple(shares)))
    if not chosen:
        why = "; ".join(notes) or "it has no mixture whose router picks rows of stored weights"
        raise InputError(f"{work.name}: no experts can be merged: {why}")
    if not work.job.data.fit.given:
        notes.append("no data was given: all experts of a mixture count alike")
    return tuple(chosen), tuple(notes)


def _shares(work: Version, mixtures: Sequence[Mixture]) -> list[list[float]]:
    """How often the data chooses each expert, 1 together."""
    if not work.job.data.fit.given:
        return [[1 / m.experts] * m.experts for m in mixtures]
    wanted = [IdCounts(m.name, m.experts) for m in mixtures]
    found = work.collect(work.model, wanted)
    shares = []
    for one in wanted:
        times = found[one].times
        share = (1 - _UNCHOSEN) * times / max(times.sum(), 1) + _UNCHOSEN / one.size
        shares.append([float(x) for x in np.round(share, 9)])
    return shares
