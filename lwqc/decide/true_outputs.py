"""Shapes of outputs that a file declares and its operators do not confirm, against a run."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lwqc.compile.reference import Reference
from lwqc.compile.version import Version
from lwqc.errors import SessionError


def with_true_outputs(work: Version) -> Version:
    """The version, or one without the declared shapes of outputs that come in others.

    Runtimes warn of them and go on, but what folds constants believes them: exporters that traced
    another branch, or edited files, declare a rank that a Reshape to computed sizes does not give.
    A model of more than a gigabyte is believed, and one that is not run, or only in parts.
    """
    declared = work.model.meta.get("lwqc_declared", ())
    if not declared or work.is_large or not work.job.checked_whole:
        return work
    try:
        found = work.original.recorded(work.job.data.fit.first())
    except SessionError:  # which is told where the model is worked with
        return work
    names = [name for name in declared if name in found]
    sizes = {name: np.shape(found[name]) for name in names}
    model = work.model.clone()
    model.meta.update(work.model.meta)
    notes = []
    for value in model.graph.outputs:
        if value.name in sizes and _differs(value.shape, sizes[value.name]):
            notes.append(
                f"output {value.name}: is declared as {value.shape} and comes as "
                f"{list(sizes[value.name])}: its declared shape is left out"
            )
            value.shape = None
    if not notes:
        return work
    model.meta["lwqc_notes"] = (*model.meta.get("lwqc_notes", ()), *notes)
    known = work.original
    return Version(model, work.job, Reference(model, known.name, known.job))


def _differs(declared: ir.Shape | None, found: tuple[int, ...]) -> bool:
    if declared is None:
        return False
    pairs = zip(declared, found, strict=False)
    return len(declared) != len(found) or any(isinstance(d, int) and d != f for d, f in pairs)
