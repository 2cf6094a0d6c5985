"""The step that makes residual streams narrower (SliceGPT, 2401.15024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.prunable import calibration
from lwqc.compile.steps.step import Made, Step
from lwqc.errors import InputError
from lwqc.graph.linear_operand import Operand
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.passes.slice_stream import Part, Slice, SliceStream, prepare_slicing
from lwqc.plans.plan import Plan, SlicedStream
from lwqc.plans.wording import amount_text, names_text
from lwqc.quant.basis import principal
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats.collect import Statistics, collect
from lwqc.runtime.stats.collector import Feeds, RunnerFactory
from lwqc.runtime.stats.gram import Gram
from lwqc.runtime.stats.patches import Window

Matrix = NDArray[np.float64]


def slice_planned(
    model: ir.Model,
    data: Iterable[Feeds],
    slices: Sequence[SlicedStream],
    make_runner: RunnerFactory,
) -> ir.Model:
    """A copy with narrower streams, each along the principal components of what layers read of it.

    All statistics come from one run of the original over the data; the paper runs the part that
    is already sliced. Every tensor that layers read counts alike, whatever its number of rows.

    Raises InputError for a plan that does not fit the model, and when `data` is empty or gives
    values that are not finite.
    """
    copy, parts = prepared(model, slices)
    widths = {entry.group: entry.width for entry in slices}
    wanted = [_gram(layer) for part in parts for layer in part.layers]
    found = collect(copy, wanted, data, make_runner)
    _check_rows(parts, found)
    SliceStream({p.group: Slice(_basis(p, found), widths[p.stream]) for p in parts})(copy)
    return copy


def prepared(model: ir.Model, slices: Sequence[SlicedStream]) -> tuple[ir.Model, list[Part]]:
    """A copy that is ready to be sliced, and its parts."""
    copy, _ = prepare_pruning(model)
    parts = prepare_slicing(copy, {entry.group: entry.shared for entry in slices})
    sizes = {part.stream: part.size for part in parts}
    for entry in slices:
        if entry.width > sizes[entry.group]:
            raise InputError(
                f"{entry.group}: has {sizes[entry.group]} channels, cannot keep {entry.width}"
            )
    return copy, parts


def _gram(layer: Operand) -> Gram:
    """Of the channels that a layer reads: last, or axis 1 of what a convolution reads."""
    name = layer.activation.name or ""
    if layer.node.op_type != "Conv":
        return Gram(name)
    return Gram(name, Window(1, layer.shape[1], (1,) * (len(layer.shape) - 2)))


def _basis(part: Part, found: Statistics) -> Matrix:
    """Principal components [D, D] of what the layers of a part read."""
    gram = np.zeros((part.size, part.size))
    for collector in dict.fromkeys(_gram(layer) for layer in part.layers):
        total_ = found[collector]
        gram += total_.matrix.reshape(gram.shape) / max(total_.rows, 1)
    if not np.isfinite(gram).all():
        raise InputError(f"{part.stream}: cannot be sliced: it is not finite on the data")
    return principal(gram)


def _check_rows(parts: Sequence[Part], found: Statistics) -> None:
    """Fewer rows than channels leave directions that no data speaks for."""
    for stream in dict.fromkeys(part.stream for part in parts):
        mine = [part for part in parts if part.stream == stream]
        rows = max(found[_gram(layer)].rows for part in mine for layer in part.layers)
        if rows < mine[0].size:
            raise InputError(
                f"{stream}: {rows} rows of data do not tell the directions of a stream with "
                f"{mine[0].size} channels: give more --data"
            )


def _run(made: Made) -> Made:
    planned, version = made.plan.slice, made.version
    data = calibration(made.work, planned[0].calibration)
    return made.on(version.derived(slice_planned(version.model, data, planned, statistics_session)))


def _text(plan: Plan) -> Iterator[str]:
    yield f"streams are narrowed: {names_text(f'{s.group} to {s.width}' for s in plan.slice)}"


STEP = Step(
    "slice",
    _run,
    _text,
    short=lambda plan: amount_text(len(plan.slice), "streams narrowed"),
    looks=lambda plan: (entry.calibration for entry in plan.slice),
)
