"""The last resort of the default: what of the safest formats holds, down to the graph as it is."""

from __future__ import annotations

from collections.abc import Sequence

from lwqc import planning
from lwqc.errors import SessionError
from lwqc.plan import Plan
from lwqc.workspace import Workspace

_TRIALS = 40  # of sets of sites; what is undecided then stays float


def holding(work: Workspace, limit: float, recipe: str) -> Plan | None:
    """8-bit weights that become float again at load, where they are shown to hold; or None.

    limit: the largest drop. Sites that cost more than that, alone or together with those before
    them, stay float, and so does all where nothing holds. None: not even the unquantized graph
    does, as the target writes it.
    """
    plan = planning.folded(work, recipe)
    trials = _Trials(work, limit, plan)
    kept = trials.grown([], list(plan.quantize)) if plan.quantize else []
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
