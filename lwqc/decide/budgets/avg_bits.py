"""Stored bits per weight, of those that are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwqc.compile.budget import Reached
from lwqc.compile.compressed import Compressed
from lwqc.compile.version import Version
from lwqc.decide import mixed
from lwqc.decide.search.bounded import Bounded
from lwqc.decide.search.limits import Limits
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.space import SIZE
from lwqc.model import io
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals, Outcome


class Bits(Bounded):
    """Bits of codes, scales and zero points per weight; a search bounds bytes instead.

    It leaves the structure alone, as weights that are gone do not count.
    """

    option = "avg_bits"
    name = "average bits"
    unit = "bits"
    cost = SIZE
    kinds = ("format",)
    as_share = "max_size"

    def outcomes(self, bound: Amount, reached: Reached) -> list[Outcome]:
        """By the sites of the report."""
        return [Outcome(self.name, bound.value, reached.report.average_bits, self.unit)]

    def reference(self, work: Version, log: SearchLog) -> float:
        """Bytes of the original."""
        return work.original.size_bytes

    def limit(self, work: Version, bound: Amount, log: SearchLog) -> float:
        """Bytes of a file whose weights have that many bits."""
        weights = sum(s.size for s in work.analysis.sites)
        rest = io.serialized_bytes(work.model) - sum(s.float_bytes for s in work.analysis.sites)
        return rest + bound.value / 8 * weights

    def choices(self, work: Version, limits: Limits) -> Mapping[str, Any]:
        """As for bytes."""
        return {"small": True, "size_bytes": limits[SIZE]}

    def forms(self, work: Version, goals: Goals, limits: Limits) -> Mapping[str, bool]:
        """Without nodes that unpack, which bits per weight do not count; a size does."""
        tiny = goals.avg_bits is not None and mixed.least_average_bits(work) > goals.avg_bits
        return {"tiny": tiny, "unpack": False}

    def real(self, name: str, done: Compressed, log: SearchLog) -> float:
        """Bytes as they would be written."""
        return io.serialized_bytes(done.model)


BUDGET = Bits()
