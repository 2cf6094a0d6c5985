"""A step after another: work on what an earlier step made, measured against the first original."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Unpack

import onnx_ir as ir

from lwqc.compile.compressed import Compressed
from lwqc.compile.job import Job
from lwqc.compile.reference import Reference
from lwqc.compile.version import Version
from lwqc.decide.caching import checked_cache
from lwqc.decide.compress import explicit, open_version
from lwqc.errors import InputError
from lwqc.model.coded_caches import caches_of
from lwqc.passes.one_view import one_view
from lwqc.plans.options import Data, Measured, Preparation, Progress, Shapes
from lwqc.plans.output_bounds import OutputWeights


def continued(
    original: Reference,
    model: ir.Model,
    name: str,
    *,
    incomparable: Collection[str] = (),
    earlier: Sequence[str] = (),
    job: Job | None = None,
) -> Version:
    """Work on `model`, which earlier steps made of the original.

    Data, metric, shapes and target are those of `original`, and so is all that budgets are parts
    of and results are compared with. Plans that come of it are for `model`.

    name: of the model, for messages and plans. incomparable: outputs that are no longer the
    original's. earlier: recipes of the earlier steps. job: that of the original by default.

    Raises InputError when the model cannot have been made of the original: it has an input or
    output that the original lacks, or an input of another type.
    """
    _check_inputs(original, model, name)
    before = {v.name for v in original.model.graph.outputs}
    left = {v.name for v in model.graph.outputs}
    _check_known(original, name, "output", left - before)
    gone = {str(output) for output in before - left}
    job, model = job or original.job, explicit(one_view(model))
    return Version(
        model,
        job,
        original,
        start=Reference(model, name, job),
        earlier=tuple(earlier),
        incomparable=frozenset(incomparable) | gone,
    )


def after(
    result: Compressed,
    *,
    target: str | None = None,
    data: Data = None,
    preprocess: Preparation = None,
    shapes: Shapes = None,
    seed: int = 0,
    kv_cache: str | None = None,
    allow_fallback: bool = False,
    cluster: str = "",
    progress: Progress | None = None,
    **measured: Unpack[Measured],
) -> Version:
    """Work on a result, for the next step. Whatever is not given is as in that result's step.

    Raises InputError for what `lwqc.decide.compress.open_version` refuses.
    """
    if preprocess is not None and data is None:
        raise InputError("preprocess: says how data becomes inputs: give data too")
    work = result.work
    metric, weights = measured.get("metric"), measured.get("weight_outputs")
    original, before = work.original, work.job
    target = None if target == before.target.name else target
    if any(given is not None for given in (target, data, metric, weights, shapes)):
        known = before.data.fit
        original = open_version(
            original.model,
            name=original.name,
            target=target or before.target.name,
            data=data if data is not None or not known.given else known,
            preprocess=preprocess,
            metric=metric if metric is not None or weights is not None else before.metric,
            weight_outputs=weights or ({} if metric is not None else before.weights.said),
            shapes=shapes if shapes is not None else before.data.shapes,
            seed=seed,
            keep_metadata=True,  # what was to go is gone
        ).original
    own = OutputWeights(original.job.weights.said)  # bounds were those of the step before
    left = result.removed.work if result.removed is not None else work
    recipe = result.decisions.recipe or "lower"
    return continued(
        original,
        result.model,
        f"{original.name} after {' and '.join((*work.earlier, recipe))}",
        incomparable=left.incomparable,
        earlier=(*work.earlier, recipe),
        job=replace(
            original.job,
            weights=own if weights is None else original.job.weights,
            kv_cache=checked_cache(kv_cache, original.job.target, original.job.data.fit),
            allow_fallback=allow_fallback,
            cluster=cluster,
            progress=progress or original.job.progress,
        ),
    )


def _check_inputs(original: Reference, model: ir.Model, name: str) -> None:
    before = {v.name: v.dtype for v in original.model.graph.inputs}
    _check_known(original, name, "input", {v.name for v in model.graph.inputs} - before.keys())
    coded = caches_of(model.metadata_props).inputs  # takes floats too
    for value in model.graph.inputs:
        if value.dtype != before[value.name] and value.name not in coded:
            raise InputError(
                f"{name}: input {value.name} has the type {value.dtype}, in {original.name} "
                f"{before[value.name]}; the same data must fit both"
            )


def _check_known(
    original: Reference, name: str, what: str, unknown: Collection[str | None]
) -> None:
    if unknown:
        raise InputError(
            f"{name}: was not made of {original.name}, which has no {what} "
            f"{', '.join(sorted(map(str, unknown)))}"
        )
