"""The last resort of the default: what of the safest formats holds, down to the graph as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from lwqc.compile.candidates import Candidate, evaluate, holds, judged, known_drop
from lwqc.compile.stored_sites import storable
from lwqc.compile.version import Version
from lwqc.decide import mixed, planning
from lwqc.errors import SessionError
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.quant.half import FORMAT as HALF
from lwqc.quant.methods import DATA_METHODS, Method

_UNSEEN = 0.25  # of the allowed drop, where the same data chose the codes
_ROOM = "data they were not fitted to has to have room"
_TRIALS = 40  # of sets of sites; what is undecided then stays float
_RUNS = 64  # of the model, to tell what each weight costs
_ADDS_UP = 0.1  # of the allowed drop: where less is used, it is something else that limits
_WIDE = "8 bits here would lose more than {:g} together with the others"


def with_room(plan: Plan, limit: float) -> float:
    """The drop allowed on the data at hand: less where all that is lost was fitted to it.

    Of codes that were chosen on the data that judges them, other data shows more. Where activations
    take few bits, those lose most, and not by what was fitted.
    """
    entries = plan.quantize.values()
    fitted = any(e.method in DATA_METHODS for e in entries)
    return _UNSEEN * limit if fitted and all(e.activation == "none" for e in entries) else limit


def holding(work: Version, limit: float, recipe: str, method: Method = "rtn") -> Plan | None:
    """Weights in few bits that become float again at load, where they are shown to hold; or None.

    See `stored`. limit: the largest drop. None: not even the unquantized graph holds, as the target
    writes it.
    """
    unchanged = planning.unchanged(work, recipe)
    plan, trials = _most(work, unchanged, planning.folded(work, recipe), limit, method)
    if plan is not None:
        return plan
    if not trials.holds(unchanged):
        return None
    return unchanged.model_copy(update={"kept_float": trials.only([]).kept_float})


def stored(work: Version, plan: Plan, limit: float, method: Method) -> Plan:
    """A plan that holds, with few bits in the file for the weights that it computes with in float.

    They become float again at load, so that nothing runs slower. First 8 bits with a scale per
    channel, then with scales per block; then with codes chosen by `method`, where there is real
    data. Where that is not enough, some take 16 bits or stay float: what the allowed drop leaves,
    in the fewest bytes; and where errors do not add up, those that cost more than is allowed alone
    or with those before them.

    limit: the largest drop of the whole plan.
    """
    whole = planning.folded(work, plan.recipe)
    more = {n: e for n, e in whole.quantize.items() if n not in plan.quantize}
    found, _ = _most(work, plan, whole.model_copy(update={"quantize": more}), limit, method)
    if found is None:
        return plan
    kernels = planning.repaired(work, found)
    return kernels if kernels == found or _Trials(work, limit, plan, found).holds(kernels) else plan


def _most(
    work: Version, around: Plan, plan: Plan, limit: float, method: Method
) -> tuple[Plan | None, _Trials]:
    """`around` with what of a plan for its other weights holds; None where that is nothing."""
    trials = _Trials(work, limit, around, plan)
    if not plan.quantize:
        return None, trials
    finer = planning.finer(work, plan)
    for one in [plan] if finer == plan else [plan, finer]:
        if trials.holds(trials.beside(one)):
            return trials.beside(one), trials
    if method != "rtn" and work.job.data.fit.kind == "real" and not work.is_large:
        plan = finer = planning.with_method(work, finer, method)
        allowed, limit = limit, with_room(trials.beside(plan), limit)
        room = f", {_UNSEEN:g} of the {allowed:g} allowed: {_ROOM}" if limit < allowed else ""
        trials = _Trials(work, limit, around, plan, room)
        if trials.holds(trials.beside(plan)):
            return trials.beside(plan), trials
    least = trials.fewest_bytes(finer)
    if least is not None:
        return trials.more_in_eight(least, finer), trials
    kept = trials.grown([], list(plan.quantize), trials.only)
    return trials.only(kept) if kept else None, trials


class _Trials:
    """Sets of a plan's sites beside the entries of another plan, tried on all data."""

    def __init__(
        self, work: Version, limit: float, around: Plan, plan: Plan, room: str = ""
    ) -> None:
        """room: why the limit is not the one that was asked for, in words that follow it."""
        self._work, self._limit, self._around, self._plan = work, limit, around, plan
        self._room, self._left = room, _TRIALS
        self._why: dict[str, str] = {}

    def beside(self, plan: Plan) -> Plan:
        """Both plans' entries. Why a weight is not computed with in 8 bits is said of it still."""
        why = dict(self._around.kept_float)
        why |= {n: f"weight only: {why[n]}" for n in plan.quantize if n in why}
        for name, reason in plan.kept_float.items():
            if reason not in why.get(name, ""):
                why[name] = f"{why[name]}; {reason}" if name in why else reason
        entries = {**self._around.quantize, **plan.quantize}
        return self._around.model_copy(update={"quantize": entries, "kept_float": why})

    def only(self, sites: Sequence[str]) -> Plan:
        """The plan for these sites; the others stay float, with the reason."""
        others = {n: self._why.get(n, _UNDECIDED) for n in self._plan.quantize if n not in sites}
        return self.beside(planning.without(self._plan, others))

    def fewest_bytes(self, finer: Plan) -> Candidate | None:
        """What the drop allows of the plan, a finer one and 16 bits, in fewest bytes; or None."""
        work, plan, limit = self._work, self._plan, self._limit
        curves, sites = {}, work.sites
        for name, entry in plan.quantize.items():
            half = storable(work, name, SiteEntry(weight=HALF))
            levels = [None, entry, finer.quantize[name]]
            if isinstance(half, SiteEntry):
                form = work.job.target.form(sites[name], half, work.opset)
                smaller = half.size_bytes(sites[name].n, sites[name].k) < sites[name].float_bytes
                if smaller and not work.job.target.refuses(form):
                    levels.append(half)
            curves[name] = tuple(dict.fromkeys(levels))
        try:
            probe = SiteEntry(weight=WeightFormat(8))
            choices = mixed.error_curves(work, curves, probe=probe, runs=_RUNS)
            found = mixed.within_drop(
                work, choices, lambda some: judged(work, self.beside(some)), limit, plan.recipe
            )
        except SessionError as error:
            work.job.give_up(error)
            return None
        chosen = {n: e for n, e in found.plan.quantize.items() if n in plan.quantize}
        if not chosen or found.drop > limit:
            return None
        wide = [n for n in plan.quantize if n not in chosen or chosen[n].weight == HALF]
        reasons = {**plan.kept_float, **dict.fromkeys(wide, _WIDE.format(limit) + self._room)}
        made = plan.model_copy(update={"quantize": chosen, "kept_float": reasons})
        return replace(found, plan=self.beside(made))

    def more_in_eight(self, least: Candidate, finer: Plan) -> Plan:
        """The plan with 8 bits where it has more, as far as that holds.

        For errors that do not add up: where they do, `least` uses what is allowed.
        """
        entries = finer.quantize
        wide = [n for n, e in entries.items() if _bits(least.plan, n) > e.weight.bits]
        if not wide or least.drop > _ADDS_UP * self._limit:
            return least.plan

        def made(sites: Sequence[str]) -> Plan:
            known = {n: self._why[n] for n in wide if n in self._why}
            why = {n: r for n, r in {**least.plan.kept_float, **known}.items() if n not in sites}
            eight = {n: entries[n] for n in sites}
            quantize = {**least.plan.quantize, **eight}
            return least.plan.model_copy(update={"quantize": quantize, "kept_float": why})

        return made(self.grown([], wide, made))

    def grown(
        self, kept: list[str], more: list[str], made: Callable[[Sequence[str]], Plan]
    ) -> list[str]:
        """The kept sites and those of `more` that can be added one half after the other.

        made: the plan with these sites.
        """
        if not self._left:
            return kept
        self._left -= 1
        if self.holds(made([*kept, *more])):
            return [*kept, *more]
        if len(more) == 1:
            self._why[more[0]] = self._reason
            return kept
        middle = len(more) // 2
        return self.grown(self.grown(kept, more[:middle], made), more[middle:], made)

    def holds(self, plan: Plan) -> bool:
        """Whether a plan loads, runs and loses no more than is allowed."""
        try:
            known = known_drop(self._work, plan, on_all=True)
            if known is None:
                candidate, session = evaluate(self._work, plan)
                held = holds(self._work, candidate, session, self._limit)
            else:
                held = known <= self._limit
        except SessionError as error:
            self._reason = str(error)
            self._work.job.give_up(error)
            return False
        self._reason = f"8 bits lose more than {self._limit:g} here{self._room}"
        return held


def _bits(plan: Plan, site: str) -> float:
    """Of each weight of a site, infinitely many where it stays float."""
    entry = plan.quantize.get(site)
    return math.inf if entry is None else entry.weight.bits


_UNDECIDED = "8 bits were not tried here: too many sites lose too much"
