"""A step after another: work on what an earlier step made, measured against the first original."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import onnx_ir as ir

from lwqc.compile.compressed import Compressed
from lwqc.compile.workspace import Workspace
from lwqc.decide.compress import explicit, open_workspace
from lwqc.errors import InputError
from lwqc.passes.one_view import one_view
from lwqc.plans.options import Progress


def continued(
    original: Workspace,
    model: ir.Model,
    name: str,
    *,
    incomparable: Collection[str] = (),
    earlier: Sequence[str] = (),
    progress: Progress | None = None,
) -> Workspace:
    """Work on `model`, which earlier steps made of the original.

    Data, metric, shapes and target are those of `original`, and so is all that budgets are parts
    of and results are compared with. Plans that come of it are for `model`.

    name: of the model, for messages and plans. incomparable: outputs that are no longer the
    original's. earlier: recipes of the earlier steps.

    Raises InputError when the model cannot have been made of the original: it has an input or
    output that the original lacks, or an input of another type.
    """
    _check_inputs(original, model, name)
    before = {v.name for v in original.model.graph.outputs}
    left = {v.name for v in model.graph.outputs}
    _check_known(original, name, "output", left - before)
    make = partial(
        Workspace,
        explicit(one_view(model)),
        original.target,
        original.data,
        original.metric,
        name,
        shapes=original.shapes,
        earlier=tuple(earlier),
        progress=progress or original.progress,
    )
    gone = {str(output) for output in before - left}
    return make(origin=original, start=make(), incomparable=frozenset(incomparable) | gone)


def after(
    result: Compressed,
    *,
    target: str | None = None,
    data: Any = None,
    metric: Any = None,
    shapes: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Workspace:
    """Work on a result, for the next step. Whatever is not given is as in that result's step.

    Raises InputError for what `lwqc.decide.compress.open_workspace` refuses.
    """
    work = result.work
    original = work.original
    target = None if target == work.target.name else target
    if any(given is not None for given in (target, data, metric, shapes)):
        original = open_workspace(
            original.model,
            name=original.name,
            target=target or work.target.name,
            data=data if data is not None or not original.data.given else original.data,
            metric=metric if metric is not None else original.metric,
            shapes=shapes if shapes is not None else original.shapes,
            seed=seed,
            keep_metadata=True,  # what was to go is gone
            progress=progress,
        )
    left = result.removed.work if result.removed is not None else work
    recipe = result.decisions.recipe or "lower"
    return continued(
        original,
        result.model,
        f"{original.name} after {' and '.join((*work.earlier, recipe))}",
        incomparable=left.incomparable,
        earlier=(*work.earlier, recipe),
        progress=progress,
    )


def _check_inputs(original: Workspace, model: ir.Model, name: str) -> None:
    before = {v.name: v.dtype for v in original.model.graph.inputs}
    _check_known(original, name, "input", {v.name for v in model.graph.inputs} - before.keys())
    for value in model.graph.inputs:
        if value.dtype != before[value.name]:
            raise InputError(
                f"{name}: input {value.name} has the type {value.dtype}, in {original.name} "
                f"{before[value.name]}; the same data must fit both"
            )


def _check_known(
    original: Workspace, name: str, what: str, unknown: Collection[str | None]
) -> None:
    if unknown:
        raise InputError(
            f"{name}: was not made of {original.name}, which has no {what} "
            f"{', '.join(sorted(map(str, unknown)))}"
        )
