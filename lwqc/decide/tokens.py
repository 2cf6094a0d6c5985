"""Decides how many tokens a model goes on with behind which layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lwqc.compile.decisions import TokenDecision
from lwqc.compile.gated_model import comparable_outputs, keep_results
from lwqc.compile.steps.reduced_tokens import reduced_planned
from lwqc.compile.version import Version
from lwqc.decide.allocators.token_counts import allocate
from lwqc.decide.scores.branches.ablation import Ablation
from lwqc.errors import InputError
from lwqc.graph.cost import node_costs
from lwqc.graph.dataflow import Dataflow
from lwqc.graph.logits import are_logits
from lwqc.graph.shapes import shapes_at
from lwqc.graph.token_cuts import TokenCut, TokenCuts, find_token_cuts
from lwqc.plans.plan import Importance, ReducedTokens
from lwqc.plans.recipe import TokenRecipe
from lwqc.runtime.session import Session
from lwqc.runtime.stats.collector import Runner
from lwqc.runtime.stats.output_divergence import Measure

_PARTS = 8  # levels are eighths of the tokens that may go
_FEWEST = 2  # eighths that stay at least
_WORTH = 0.9  # of the divergence, below which merging tokens is worth the nodes that it takes
_ROUNDING = 1e-6  # a divergence from which no decision changes


class ShareOutOfReachError(InputError):
    """A share of the products that no number of tokens saves."""


def choose_tokens(work: Version, options: TokenRecipe, share: float) -> TokenDecision:
    """Decide where how many tokens go. Nothing is rewritten yet.

    What leaving three quarters, half and a quarter of the tokens behind one layer alone does to the
    outputs is measured; dynamic programming finds the numbers of least added divergence for the
    share. Tokens that nothing reads any more behind the last attention go in any case.

    share: of the products behind the first attention that goes. Raises InputError where no tokens
    can go, with the reason, and ShareOutOfReachError where not that many can.
    """
    choice = work.facts.get(
        ("tokens", options.importance, options.measure), lambda: _Choice(work, options)
    )
    return choice.decision(share, options.merge)


def _check(work: Version, found: TokenCuts, options: TokenRecipe) -> None:
    if not found.cuts:
        first = next(iter(found.refused), None)
        reason = "has no self-attention" if first is None else f"{first.name}: {first.reason}"
        raise InputError(f"{work.name}: no tokens can go: {reason}")
    if options.importance == "class" and not found.cuts[0].always:
        raise InputError(
            f"{work.name}: has no class token whose attention could tell how much others matter"
        )


class _Choice:
    """What is known of one model's tokens while their numbers are chosen."""

    def __init__(self, work: Version, options: TokenRecipe) -> None:
        found = find_token_cuts(work.model)
        _check(work, found, options)
        first = found.cuts[0]
        self.work = work
        graph = work.model.graph
        later = {first.stream.producer(), *Dataflow(graph).reached(first.stream, graph)}
        self.left = {r.name: r.reason for r in found.refused}
        for cut in found.cuts:
            if _parts(cut) != _parts(first):
                self.left[cut.name] = f"has {cut.tokens} tokens, {first.name} has {first.tokens}"
            elif cut.stream.producer() not in later:
                self.left[cut.name] = f"its tokens are not those of {first.name}"
        self.cuts = tuple(c for c in found.cuts if c.name not in self.left)
        self.importance: Importance = "class" if self.cuts[0].always else "rank"
        if options.importance != "auto":
            self.importance = options.importance
        logits = are_logits(comparable_outputs(work.model.graph))
        self.measure: Measure = "kl" if logits else "channels"
        if options.measure != "auto":
            self.measure = options.measure
        self.keeps = _levels(self.cuts[0])
        self.shares = np.array(self.keeps) / self.keeps[0]
        self.weights = _products(work, self.cuts)
        self._trials: dict[str, tuple[ReducedTokens, ...]] = {}
        self.ablation = Ablation(self._without, work.job.data.judge, self.measure)

    def decision(self, share: float, merge: bool | None) -> TokenDecision:
        """The best numbers for a share. merge: whether those that go become one."""
        levels = allocate(
            self.errors, self.shares, self.weights, (1 - share) * float(self.weights.sum())
        )
        if levels is None:
            most = 1 - float((self.weights * self._least()).sum() / self.weights.sum())
            raise ShareOutOfReachError(
                f"{self.work.name}: {share:.0%} of the products behind the first attention are "
                f"to go; leaving out tokens takes {most:.0%} at most"
            )
        kept = float((self.weights * self.shares[levels]).sum() / self.weights.sum())
        chosen = self._merged(self._entries(levels), merge)
        divergences = [self._measured(chosen[: i + 1]) for i in range(len(chosen))]
        return TokenDecision(chosen, tuple(divergences), 1 - kept, self.left, self.measure)

    @cached_property
    def errors(self) -> NDArray[np.float64]:
        """[layers, levels]: divergence of going on with a level behind one layer alone."""
        errors = np.full((len(self.cuts), len(self.keeps)), np.inf)
        report = self.work.job.report("tokens")
        for layer, cut in enumerate(self.cuts):
            known = {0: 0.0}
            for level, keep in enumerate(self.keeps):
                if keep > cut.always and level in self._measured_levels:
                    known[level] = self._alone(layer, level)
            levels = range(max(known) + 1)
            errors[layer, : len(levels)] = np.interp(levels, list(known), list(known.values()))
            report(layer + 1, len(self.cuts))
        last = len(self.keeps) - 1
        if self.keeps[last] == self.cuts[-1].always:
            exact = self._alone(len(self.cuts) - 1, last)
            if exact <= _ROUNDING:  # nothing reads the others
                errors[-1, :last] = np.inf
                errors[-1, last] = 0.0
        return errors

    @property
    def _measured_levels(self) -> list[int]:
        """Every other one, and the last that leaves more than those that must stay."""
        count = sum(keep > self.cuts[0].always for keep in self.keeps)
        return sorted({*range(2, count, 2), count - 1})

    def _least(self) -> NDArray[np.float64]:
        """The smallest share of tokens behind each layer."""
        allowed = np.where(np.isfinite(self.errors), self.shares, np.inf)
        return np.minimum.accumulate(allowed.min(axis=1))

    def _alone(self, layer: int, level: int) -> float:
        return self._measured((self._entry(layer, level),))

    def _entry(self, layer: int, level: int) -> ReducedTokens:
        cut = self.cuts[layer]
        return ReducedTokens(
            branch=cut.name, keep=self.keeps[level], of=cut.tokens, importance=self.importance
        )

    def _entries(self, levels: Sequence[int]) -> tuple[ReducedTokens, ...]:
        """Where the number changes."""
        changes = zip([0, *levels], levels, strict=False)
        return tuple(self._entry(i, now) for i, (old, now) in enumerate(changes) if now != old)

    def _merged(
        self, entries: tuple[ReducedTokens, ...], merge: bool | None
    ) -> tuple[ReducedTokens, ...]:
        """With those that go as one token; where `merge` is None only if that loses less."""
        always = self.cuts[0].always
        merged = tuple(e.model_copy(update={"merge": e.keep > always}) for e in entries)
        if merge is None:
            merge = self._measured(merged) < _WORTH * self._measured(entries)
        return merged if merge else entries

    def _measured(self, entries: tuple[ReducedTokens, ...]) -> float:
        """Divergence of the outputs."""
        key = str([(entry.branch, entry.keep, entry.merge) for entry in entries])
        self._trials[key] = entries
        return self.ablation([key])

    def _without(self, keys: Collection[str]) -> Runner:
        entries = self._trials[next(iter(keys))] if keys else ()
        model = reduced_planned(self.work.model, entries)
        keep_results(model)
        return Session(model, label="fewer tokens")


def _parts(cut: TokenCut) -> tuple[int, int]:
    return cut.tokens, cut.always


def _levels(cut: TokenCut) -> list[int]:
    """How many tokens each level leaves: the first one all, the last one those that must stay."""
    free = cut.tokens - cut.always
    parts = range(_PARTS, _FEWEST - 1, -1)
    levels = [max(cut.always + round(free * part / _PARTS), 1) for part in parts]
    return list(dict.fromkeys([*levels, *([cut.always] if cut.always else [])]))


def _products(work: Version, cuts: Sequence[TokenCut]) -> NDArray[np.float64]:
    """Multiply-accumulates from each cut to the next, [cuts]."""
    graph = work.model.graph
    shapes = shapes_at(work.model, {n: a.shape for n, a in work.job.data.judge[0].items()})
    costs = zip(graph.all_nodes(), node_costs(graph, shapes), strict=True)
    starts = {cut.stream.producer(): number for number, cut in enumerate(cuts)}
    found, current = np.zeros(len(cuts)), -1
    for node, cost in costs:
        if current >= 0:
            found[current] += cost.macs or 0
        current = starts.get(node, current)
    return found
