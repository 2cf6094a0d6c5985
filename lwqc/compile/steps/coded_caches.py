"""The step that stores keys and values of earlier tokens in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.job import Job
from lwqc.compile.steps.step import Looks, Made, Step
from lwqc.errors import InputError
from lwqc.graph.caches import Cache, find_caches
from lwqc.passes.code_caches import CodeCaches, channel_scales
from lwqc.plans.plan import Plan

_FLOAT_BYTES, _CODE_BYTES = 4, 1
_LEAST, _MOST = 1e-20, 1e20  # largest magnitudes whose scales and their inverses are floats


def _run(made: Made) -> Made:
    lowered, job = made.lowered, made.work.job
    assert lowered is not None
    if not job.target.codes_caches:
        raise InputError(f"--kv-cache int8: target {job.target.name} is not known to run it")
    caches, left = find_caches(lowered.model.graph)
    why = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in left[:1])
    if not caches:
        none = (
            "no input of float32 keys or values [batch, heads, tokens, size] goes into an "
            "attention or a Concat of the main graph, and out with more tokens"
        )
        raise InputError(f"--kv-cache int8: {why or none}")
    largest = _largest(job, lowered.model, caches)
    model = lowered.model.clone()
    rewrite = CodeCaches({name: channel_scales(most) for name, most in largest.items()})
    rewrite(model)
    done = [c for c in caches if c.past.name not in rewrite.left]
    if not done:
        raise InputError(f"--kv-cache int8: {next(iter(rewrite.left.values()))}")
    numbers = sum(cache.heads * cache.size for cache in done)
    told = (
        f"{len(done)} caches in int8: {_CODE_BYTES * numbers} bytes for each token, "
        f"{_FLOAT_BYTES * numbers} before"
    )
    reasons = {**{r.name: r.reason for r in left}, **rewrite.left}
    notes = [f"{name}: the cache stays float: {reason}" for name, reason in reasons.items()]
    return replace(made, plan=made.plan.noted(told, *notes), lowered=replace(lowered, model=model))


def _largest(job: Job, model: ir.Model, caches: list[Cache]) -> dict[str, NDArray[np.float32]]:
    """Largest magnitudes of each channel over the data, [1, heads, 1, size], by input.

    Raises InputError where the data has no token, or a cache is not finite.
    """
    session = job.load(model)
    names = {c.present.name or "": c.past.name or "" for c in caches}
    most = {c.past.name or "": np.zeros((1, c.heads, 1, c.size), np.float32) for c in caches}
    for feeds in job.data.fit:
        outputs = session(feeds)
        for output, past in names.items():
            seen = np.abs(outputs[output]).max((0, 2), keepdims=True, initial=0)
            most[past] = np.maximum(most[past], seen)
    for name, one in most.items():
        if not _LEAST <= float(one.max()) <= _MOST and one.any():
            raise InputError(f"{name}: keys or values up to {one.max():g} on the data: no codes")
    if not any(one.any() for one in most.values()):
        raise InputError("--kv-cache int8: the data has no token")
    return most


def _text(plan: Plan) -> Iterator[str]:
    yield f"keys and values of earlier tokens in {plan.caches}"


def _looks(plan: Plan) -> Iterator[Looks]:
    yield "data"


STEP = Step("caches", _run, _text, lambda plan: f"cache {plan.caches}", looks=_looks, late=True)
