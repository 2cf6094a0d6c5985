"""Codes that look at data, made part by part of a model and kept as they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lwqc.compile.kept_parts import KeptParts
from lwqc.compile.version import Version
from lwqc.plans.plan import Plan


@contextmanager
def encoded_in_parts(version: Version, stamped: Callable[[], Plan], output: Path) -> Iterator[bool]:
    """Encode what a plan has for the data to decide, in the order in which the model runs.

    version: that the formats are applied to. stamped: the plan with all that it depends on. What
    is done is in OUTPUT.parts until the block ends without an error; a job that was killed goes on
    with it. Yields whether it did. Nothing is done where memory has no bound.
    """
    room = version.job.room
    plan = stamped() if room is not None else None
    if room is None or plan is None or all(e.method == "rtn" for e in plan.quantize.values()):
        yield False
        return
    told = f"{plan.text}\n{room.memory}"
    weights, grams = version.weights, version.grams
    parts = grams.in_parts(plan.quantize)
    kept = KeptParts(output, hashlib.sha256(told.encode()).hexdigest())
    weights.keep_in(kept)
    grams.keep_in(kept.run)
    try:
        for part in parts:
            for name in part:
                weights.ensure(name, plan.quantize[name])
            grams.commit()
        yield kept.resumed
        kept.remove()
    finally:
        weights.keep_in(None)
        grams.keep_in(None)
