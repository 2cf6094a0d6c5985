"""Bytes of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from lwqc.compile.budget import Reached
from lwqc.compile.compressed import Compressed
from lwqc.compile.outcomes import size_outcome
from lwqc.compile.result import Report
from lwqc.compile.version import Version
from lwqc.decide import mixed
from lwqc.decide.search.bounded import Bounded
from lwqc.decide.search.limits import Limits
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.space import SIZE
from lwqc.model import io
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals, Outcome


class Size(Bounded):
    """Bytes of the file; every search predicts them."""

    option = "max_size"
    name = "size"
    unit = "bytes"
    cost = SIZE

    def outcomes(self, bound: Amount, reached: Reached) -> list[Outcome]:
        """With what the file is made of, where it is too large."""
        report = reached.report
        before = reached.work.original.size_bytes
        outcome = size_outcome(bound, before, report.output_bytes)
        why = "" if outcome.met else _made_of(reached.model, report)
        return [replace(outcome, why=why)]

    def reference(self, work: Version, log: SearchLog) -> float:
        """Bytes of the original."""
        return work.original.size_bytes

    def choices(self, work: Version, limits: Limits) -> Mapping[str, Any]:
        """Formats that only store fewer bits, and how many bytes there are for them."""
        return {"small": True, "size_bytes": limits[SIZE]}

    def forms(self, work: Version, goals: Goals, limits: Limits) -> Mapping[str, bool]:
        """Those that are needed to fit."""
        return mixed.fitting_forms(work, limits[SIZE])

    def real(self, name: str, done: Compressed, log: SearchLog) -> float:
        """Bytes as they would be written."""
        return io.serialized_bytes(done.model)


def _made_of(model: ir.Model, report: Report) -> str:
    """What a file consists of, in bytes."""
    low = [row for row in report.sites if row.format != "float"]
    formats = ", ".join(sorted({row.format for row in low})) or "no format"
    in_low = sum(row.bytes_after for row in low)
    in_float = sum(row.bytes_after for row in report.sites) - in_low
    stored = io.weight_bytes(model)
    return (
        f"{in_low} in weights in {formats}; {in_float} in weights in float; "
        f"{max(stored - in_low - in_float, 0)} in other tensors; "
        f"{max(report.output_bytes - stored, 0)} in nodes and names"
    )


BUDGET = Size()
