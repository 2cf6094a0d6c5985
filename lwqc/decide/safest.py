"""The last resort of the default: what of the safest formats holds, down to the graph as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lwqc.compile.workspace import Candidate, Workspace
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


def holding(work: Workspace, limit: float, recipe: str, method: Method = "rtn") -> Plan | None:
    """Weights in few bits that become float again at load, where they are shown to hold; or None.

    First 8 bits with a scale per channel, then with scales per block; then with codes chosen by
    `method`, where there is real data. Where that is not enough, some take 16 bits or stay float:
    what the allowed drop leaves, in the fewest bytes; and where errors do not add up, those that
    cost more than is allowed alone or with those before them.

    limit: the largest drop. None: not even the unquantized graph holds, as the target writes it.
    """
    plan = planning.folded(work, recipe)
    trials = _Trials(work, limit, plan)
    if plan.quantize:
        finer = planning.finer(work, plan)
        for one in [plan] if finer == plan else [plan, finer]:
            if trials.holds(one):
                return one
        if method != "rtn" and work.data.kind == "real" and not work.is_large:
            plan = finer = planning.with_method(work, finer, method)
            allowed, limit = limit, with_room(plan, limit)
            room = f", {_UNSEEN:g} of the {allowed:g} allowed: {_ROOM}" if limit < allowed else ""
            trials = _Trials(work, limit, plan, room)
            if trials.holds(plan):
                return plan
        least = trials.fewest_bytes(finer)
        if least is not None and least.drop > _ADDS_UP * limit:
            return least.plan
        kept = trials.grown([], list(plan.quantize))
        others = [work.tried(trials.only(kept))] if kept else []
        if least is not None:
            others.append(least)
        if others:
            return min(others, key=lambda c: c.size_bytes).plan
    unchanged = planning.unchanged(work, recipe)
    if not trials.holds(unchanged):
        return None
    return unchanged.model_copy(update={"kept_float": trials.only([]).kept_float})


class _Trials:
    """Sets of sites, tried on all data."""

    def __init__(self, work: Workspace, limit: float, plan: Plan, room: str = "") -> None:
        """room: why the limit is not the one that was asked for, in words that follow it."""
        self._work, self._limit, self._plan, self._room = work, limit, plan, room
        self._left = _TRIALS
        self._why: dict[str, str] = {}

    def only(self, sites: Sequence[str]) -> Plan:
        """The plan for these sites; the others stay float, with the reason."""
        others = {n: self._why.get(n, _UNDECIDED) for n in self._plan.quantize if n not in sites}
        return planning.without(self._plan, others)

    def fewest_bytes(self, finer: Plan) -> Candidate | None:
        """What the drop allows of the plan, a finer one and 16 bits, in fewest bytes; or None."""
        work, plan, limit = self._work, self._plan, self._limit
        curves, sites = {}, work.sites
        for name, entry in plan.quantize.items():
            half = work.storable(name, SiteEntry(weight=HALF))
            levels = [None, entry, finer.quantize[name]]
            if isinstance(half, SiteEntry):
                form = work.target.form(sites[name], half, work.opset)
                smaller = half.size_bytes(sites[name].n, sites[name].k) < sites[name].float_bytes
                if smaller and not work.target.refuses(form):
                    levels.append(half)
            curves[name] = tuple(dict.fromkeys(levels))
        try:
            probe = SiteEntry(weight=WeightFormat(8))
            choices = mixed.error_curves(work, curves, probe=probe, runs=_RUNS)
            found = mixed.within_drop(work, choices, work.judged, limit, plan.recipe)
        except SessionError as error:
            work.unusable[str(error)] = None
            return None
        chosen = found.plan.quantize
        if not chosen or found.drop > limit:
            return None
        wide = [n for n in plan.quantize if n not in chosen or chosen[n].weight == HALF]
        reasons = {**plan.kept_float, **dict.fromkeys(wide, _WIDE.format(limit) + self._room)}
        return replace(found, plan=found.plan.model_copy(update={"kept_float": reasons}))

    def grown(self, kept: list[str], more: list[str]) -> list[str]:
        """The kept sites and those of `more` that can be added one half after the other."""
        if not self._left:
            return kept
        self._left -= 1
        if self.holds(self.only([*kept, *more])):
            return [*kept, *more]
        if len(more) == 1:
            self._why[more[0]] = self._reason
            return kept
        middle = len(more) // 2
        return self.grown(self.grown(kept, more[:middle]), more[middle:])

    def holds(self, plan: Plan) -> bool:
        """Whether a plan loads, runs and loses no more than is allowed."""
        try:
            known = self._work.known_drop(plan, on_all=True)
            if known is None:
                candidate, session = self._work.evaluate(plan)
                held = self._work.holds(candidate, session, self._limit)
            else:
                held = known <= self._limit
        except SessionError as error:
            self._reason = str(error)
            self._work.unusable[self._reason] = None
            return False
        self._reason = f"8 bits lose more than {self._limit:g} here{self._room}"
        return held


_UNDECIDED = "8 bits were not tried here: too many sites lose too much"
