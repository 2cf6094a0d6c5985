"""Upper bounds of a candidate's costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lwqc.decide.search.space import Cost


@dataclass(frozen=True)
class Limits:
    """Upper bounds by cost, such as `size_bytes`; costs without one are free."""

    bounds: Mapping[str, float]

    def __getitem__(self, cost: str) -> float:
        return self.bounds[cost]

    def __contains__(self, cost: str) -> bool:
        return cost in self.bounds

    def excess(self, cost: Cost) -> float:
        """Cost over limit of the budget that binds most; 1 is just within."""
        return max((cost[name] / limit for name, limit in self.bounds.items()), default=0.0)

    def binding(self, cost: Cost) -> str:
        """The budget that binds most."""
        return max(self.bounds, key=lambda name: cost[name] / self.bounds[name])

    def with_bounds(self, bounds: Mapping[str, float]) -> Limits:
        """The same with others of these bounds."""
        return Limits({**self.bounds, **bounds})
