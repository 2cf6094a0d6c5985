"""The step that makes residual streams narrower (SliceGPT, 2401.15024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.prunable import calibration
from lwqc.compile.steps.step import Made, Step
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.groups import find_groups
from lwqc.graph.linear_operand import Operand
from lwqc.graph.rotatable import find_streams
from lwqc.graph.shapes import declared_shapes
from lwqc.passes.change_basis import change_basis, named_streams
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.passes.slice_stream import Part, Slice, SliceStream, prepare_slicing
from lwqc.plans.plan import Plan, SlicedStream
from lwqc.plans.wording import amount_text, names_text
from lwqc.quant.basis import Projection, principal
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

    Part after part of a stream, in graph order: statistics are those of the model in which all
    parts before are narrow already; the data is read again for each. Every tensor that layers read
    counts alike, whatever its number of rows.

    Raises InputError for a plan that does not fit the model, and when `data` is empty or gives
    values that are not finite.
    """
    copy, parts = prepared(model, slices)
    widths = {entry.group: entry.width for entry in slices}
    seen = copy.clone()  # as wide as it was, but without what is cut off
    groups = find_groups(seen, declared_shapes(seen)[0])
    streams = named_streams(find_streams(groups), [part.group for part in parts])
    rows: dict[str, tuple[int, int]] = {}
    chosen: dict[str, Slice] = {}
    for part, stream in zip(parts, streams, strict=True):
        found = collect(seen, [_gram(layer) for layer in part.layers], data, make_runner)
        most = max(found[_gram(layer)].rows for layer in part.layers)
        rows[part.stream] = max(rows.get(part.stream, (0,))[0], most), part.size
        basis, width = _basis(part, found), widths[part.stream]
        chosen[part.group] = Slice(basis, width)
        change_basis(groups.analysis, {stream: Projection(basis[:, :width])})
    _check_rows(rows)
    SliceStream(chosen)(copy)
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


def _check_rows(streams: Mapping[str, tuple[int, int]]) -> None:
    """Fewer rows than channels, by stream, leave directions that no data speaks for."""
    for stream, (rows, size) in streams.items():
        if rows < size:
            raise InputError(
                f"{stream}: {rows} rows of data do not tell the directions of a stream with "
                f"{size} channels: give more --data"
            )


def sliced(version: Version, slices: Sequence[SlicedStream]) -> ir.Model:
    """The version's model with narrower streams, made when it is first asked for; see above."""

    def make() -> ir.Model:
        data = calibration(version, slices[0].calibration)
        return slice_planned(version.model, data, slices, statistics_session)

    return version.facts.get(("sliced", tuple(slices)), make)


def _run(made: Made) -> Made:
    version = made.version
    return made.on(version.derived(sliced(version, made.plan.slice).clone()))


def _text(plan: Plan) -> Iterator[str]:
    yield f"streams are narrowed: {names_text(f'{s.group} to {s.width}' for s in plan.slice)}"


STEP = Step(
    "slice",
    _run,
    _text,
    short=lambda plan: amount_text(len(plan.slice), "streams narrowed"),
    looks=lambda plan: (entry.calibration for entry in plan.slice),
)
