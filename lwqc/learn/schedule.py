"""How long a fit goes on, and how far its steps go meanwhile."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

_WARM_UP = 0.05  # share of the fit in which steps grow


@dataclass
class Schedule:
    """Steps of a fit: they grow, then shrink by a cosine to nothing.

    time_limit_s: None for none. spent_s: of it, in an earlier run of the same fit.
    """

    steps: int
    time_limit_s: float | None = None
    spent_s: float = 0.0
    _start: float = field(default_factory=time.monotonic)

    def done(self, step: int) -> float:
        """Share of the fit that is behind, by steps or by time, whichever is more."""
        share = step / self.steps
        if self.time_limit_s is None:
            return share
        if self.time_limit_s <= 0:
            return 1.0
        return max(share, (self.spent_s + time.monotonic() - self._start) / self.time_limit_s)

    @staticmethod
    def factor(done: float) -> float:
        """Size of a step, as a share of the largest."""
        if done < _WARM_UP:
            return max(done, 1e-3) / _WARM_UP
        return 0.5 * (1 + math.cos(math.pi * min((done - _WARM_UP) / (1 - _WARM_UP), 1.0)))
