"""Memory that a process takes: what it holds of weights, of activations, and beside them.

Weights on a low-bit kernel are held as they are stored, others as float: a convolution with weights
in few bits unpacks them when it is loaded. Activations take what is needed at once, at the moment
of the run when that is most. Predictions are corrected by what whole candidates measure, see
`lwqc.decide.search.pace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwqc.compile.budget import Reached
from lwqc.compile.candidates import with_formats
from lwqc.compile.compressed import Compressed
from lwqc.compile.job import Job
from lwqc.compile.version import Version
from lwqc.decide.planning import unchanged
from lwqc.decide.search.bounded import Bounded
from lwqc.decide.search.limits import Limits
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.pace import Parts
from lwqc.decide.search.predicted import Predicted
from lwqc.decide.search.search_model import SearchModel
from lwqc.decide.search.space import Stored
from lwqc.graph.alive import moments
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals, Outcome
from lwqc.plans.plan import SiteEntry
from lwqc.runtime.memory import can_measure_memory, peak_memory

_WEIGHTS = 0.9  # of the float model's memory that its weights may account for
_CONSTANT = 0.05
_NOISE = 0.02  # processes with one model differ by as much, now and then by more
_FLOAT = 4  # bytes of an element


class Memory(Bounded):
    """Peak of a process that loads and runs the model, see `lwqc.runtime.memory`."""

    option = "max_memory"
    name = "memory"
    unit = "bytes"
    cost = "memory_bytes"
    needs_search = True
    noisy = True
    weighs_file = True
    scale, short = 1e6, "MB"

    def unmeasured(self, job: Job) -> str:
        """A process of its own is a default session of the CPU."""
        here = job.runs_here and can_measure_memory()
        return "" if here else " is measured on Linux for target cpu only"

    def weigh(self, work: Version, file: Path) -> tuple[int, int]:
        """Bytes, each in a process of its own."""
        feeds = work.job.data.serve[0].feeds
        return peak_memory(work.original.loadable, feeds), peak_memory(file, feeds)

    def outcomes(self, bound: Amount, reached: Reached) -> list[Outcome]:
        """Of the written file."""
        pair = reached.report.weighed.get(self.name)
        if pair is None:
            return []
        before, after = pair
        return [Outcome(self.name, bound.resolve(before), after, self.unit, _NOISE)]

    def reference(self, work: Version, log: SearchLog) -> float:
        """Bytes that a process with the original takes. Measured once for a log."""
        original, feeds = work.original, work.job.data.serve[0].feeds
        found = log.fact("memory of the original", lambda: peak_memory(original.loadable, feeds))
        return float(found)

    def choices(self, work: Version, limits: Limits) -> Mapping[str, Any]:
        """Fast formats, of those that a kernel reads as they are stored."""
        return {"fast": True, "held": True}

    def forms(self, work: Version, goals: Goals, limits: Limits) -> Mapping[str, bool] | None:
        """What is unpacked at load takes no less memory; average bits say more."""
        if goals.avg_bits is not None:
            return None
        return {"unpack": "latency_ms" in limits}

    def prepare(self, found: SearchModel, log: SearchLog) -> None:
        """By the float model, measured once for a log."""
        predicted = PredictedMemory(found)
        found.space.predict(self.cost, predicted)
        predicted.pace = self._pace(found, log)
        found.space.predict(self.cost, predicted)

    def real(self, name: str, done: Compressed, log: SearchLog) -> float:
        """Measured once for a log."""
        feeds = done.work.job.data.serve[0].feeds
        return float(log.fact(f"memory of {name}", lambda: peak_memory(done.model, feeds)))

    def _pace(self, found: SearchModel, log: SearchLog) -> Parts:
        """What weights, activations and the rest count in what the float model takes."""
        whole = self._float_memory(found.work, log)
        weights, alive, _ = found.space.parts(found.space.top, self.cost)
        constant = _CONSTANT * whole
        share = min(1.0, _WEIGHTS * whole / max(weights, 1.0))
        left = max(whole - share * weights - constant, constant)
        return np.array([share, left / max(alive, 1.0), constant])

    def _float_memory(self, work: Version, log: SearchLog) -> float:
        """Bytes that a process with the model takes as it is searched: cleaned up, perhaps."""
        if work.model is work.original.model:
            return self.reference(work, log)
        feeds = work.job.data.serve[0].feeds
        return float(
            log.fact(
                "memory of the float model",
                lambda: peak_memory(with_formats(work, unchanged(work)).model, feeds),
            )
        )


class PredictedMemory(Predicted):
    """Bytes of weights, the most that is written and still needed at a time, and 1."""

    columns = 2

    def __init__(self, found: SearchModel) -> None:
        space = found.space
        self.pace: Parts = np.ones(3)
        self._held = [[_held(found.work, s, e) for e in s.entries] for s in space.stored]
        self._elements = [made.elements for made in space.written]
        self._together = moments(found.prunable.model.graph, len(space.written))

    def of_stored(self, number: int, level: int, share: float) -> tuple[float, float]:
        """Bytes that are held of a weight."""
        held = self._held[number]
        return held[min(level, len(held) - 1)] * share, 0.0

    def of_written(self, number: int, share: float, narrow: bool) -> tuple[float, float]:
        """Bytes of what a node writes."""
        return 0.0, self._elements[number] * share * (1 if narrow else _FLOAT)

    def shorter(
        self, rows: NDArray[np.float64], left: NDArray[np.float64], level: int
    ) -> NDArray[np.float64]:
        """Less is written."""
        return np.concatenate([rows[:, :1], rows[:, 1:] * left], axis=1)

    def parts(self, rows: NDArray[np.float64], tensors: int) -> Parts:
        """[3]"""
        peak = (self._together @ rows[tensors:, 1]).max(initial=0.0)
        return np.array([rows[:, 0].sum(), peak, 1.0])


def _held(work: Version, stored: Stored, entry: SiteEntry | None) -> float:
    """Bytes of a tensor in memory."""
    plain = float(np.prod(stored.shape, dtype=np.int64)) * stored.itemsize
    site = work.sites.get(stored.name)
    if entry is None or site is None or work.job.target.form(site, entry, work.opset) == "Folded":
        return plain
    return float(entry.size_bytes(site.n, site.k))


BUDGET = Memory()
