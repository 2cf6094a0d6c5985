"""The last resort of the default: what of the safest formats holds, down to the graph as it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from lwqc.compile.workspace import Workspace
from lwqc.decide import planning
from lwqc.errors import SessionError
from lwqc.plans.plan import Plan
from lwqc.quant.methods import Method

_UNSEEN = 0.5  # of the allowed drop, where the same data chose the codes
_SPARED = 0.3  # of the bytes of all weights, which small ones may keep
_TRIALS = 40  # of sets of sites; what is undecided then stays float


def holding(work: Workspace, limit: float, recipe: str, method: Method = "rtn") -> Plan | None:
    """8-bit weights that become float again at load, where they are shown to hold; or None.

    limit: the largest drop. method: of the codes where those rounded to nearest do not hold and
    there is real data. Then small weights stay float, which costs the file least, as many of them
    as needed; and where one weight costs more than is allowed alone or with those before it, that
    one. None: not even the unquantized graph holds, as the target writes it.
    """
    plan = planning.folded(work, recipe)
    trials = _Trials(work, limit, plan)
    if plan.quantize and trials.holds(plan):
        return plan
    if plan.quantize and method != "rtn" and work.data.kind == "real" and not work.is_large:
        plan = planning.with_method(work, plan, method)
        # Codes fit the data that they are judged on: other data has to have room.
        trials = _Trials(work, _UNSEEN * limit, plan)
        if trials.holds(plan):
            return plan
    kept = trials.large() or trials.grown([], list(plan.quantize)) if plan.quantize else []
    if kept:
        return trials.only(kept)
    unchanged = planning.unchanged(work, recipe)
    if not trials.holds(unchanged):
        return None
    return unchanged.model_copy(update={"kept_float": trials.only([]).kept_float})


class _Trials:
    """Sets of sites, tried on all data."""

    def __init__(self, work: Workspace, limit: float, plan: Plan) -> None:
        self._work, self._limit, self._plan = work, limit, plan
        self._left = _TRIALS
        self._why: dict[str, str] = {}

    def only(self, sites: Sequence[str]) -> Plan:
        """The plan for these sites; the others stay float, with the reason."""
        others = {n: self._why.get(n, _UNDECIDED) for n in self._plan.quantize if n not in sites}
        return planning.without(self._plan, others)

    def large(self) -> list[str]:
        """The sites without the smallest ones, as few of these as it takes; [] where too many."""
        sizes = {n: self._work.sites[n].float_bytes for n in self._plan.quantize}
        order = sorted(sizes, key=lambda n: sizes[n])
        spared = np.cumsum([sizes[n] for n in order])
        low, high = 1, int(np.searchsorted(spared, _SPARED * spared[-1], side="right"))
        if high < low or not self.holds(self._plan_of(order[high:])):
            return []
        reason = self._reason
        while low < high:
            middle = (low + high) // 2
            if self.holds(self._plan_of(order[middle:])):
                high = middle
            else:
                low = middle + 1
        self._why |= dict.fromkeys(order[:high], reason)
        return order[high:]

    def _plan_of(self, sites: Collection[str]) -> Plan:
        others = {n: _UNDECIDED for n in self._plan.quantize if n not in sites}
        return planning.without(self._plan, others)

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
            candidate, session = self._work.evaluate(plan)
            held = self._work.holds(candidate, session, self._limit)
        except SessionError as error:
            self._reason = str(error)
            self._work.unusable[self._reason] = None
            return False
        self._reason = f"8 bits lose more than {self._limit:g} here"
        return held


_UNDECIDED = "8 bits were not tried here: too many sites lose too much"
