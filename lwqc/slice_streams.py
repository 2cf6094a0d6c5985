"""Decides how narrow residual streams get, with the price of it (SliceGPT, 2401.15024)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc import io
from lwqc.backends.session import statistics_session
from lwqc.errors import InputError
from lwqc.graph.cost import node_costs, total
from lwqc.graph.groups import find_groups
from lwqc.graph.linear_operand import Operand
from lwqc.graph.rotatable import find_streams
from lwqc.graph.shapes import shapes_at
from lwqc.graph.stream import Stream
from lwqc.measure import NOISE, medians_ms
from lwqc.passes.change_basis import named_streams
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.passes.slice_stream import Part, Slice, SliceStream, prepare_slicing, unsliceable
from lwqc.plan import Plan, SlicedStream, Source
from lwqc.prunable import calibration
from lwqc.quant.basis import principal
from lwqc.stats.collect import Statistics, collect
from lwqc.stats.collector import Feeds, RunnerFactory
from lwqc.stats.gram import Gram
from lwqc.stats.patches import Window
from lwqc.workspace import Workspace

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class SliceOptions:
    """How much goes.

    ratio: share of the width of each stream. shared: one basis for a whole stream, which adds no
    nodes; otherwise one between any two residual additions, with a matrix in each shortcut.
    round_to: widths are multiples of it, rounded down. groups: of the streams to slice, as
    `lwqc inspect --groups` names them; all where there are none.
    """

    ratio: float
    shared: bool = False
    round_to: int = 8
    groups: tuple[str, ...] = ()
    recipe: str = ""

    def __post_init__(self) -> None:
        """Raises InputError for values out of range."""
        if not isinstance(self.ratio, (int, float)) or not 0 < self.ratio < 1:
            raise InputError(f"ratio {self.ratio}: expected a share above 0 and below 1")
        if not isinstance(self.round_to, int) or self.round_to < 1:
            raise InputError(f"round_to {self.round_to}: expected a whole number of at least 1")


@dataclass(frozen=True)
class Price:
    """What a model takes. macs: of the first feeds. latency_ms: of a run; None where not timed."""

    size_bytes: int
    macs: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class SliceDecision:
    """A plan that slices streams, and the prices of the model before and after.

    note: why the plan is empty, "" where it is not. left: streams that stay, and why.
    """

    plan: Plan
    before: Price
    after: Price
    note: str = ""
    left: Mapping[str, str] = field(default_factory=dict)


def choose_slices(work: Workspace, options: SliceOptions) -> SliceDecision:
    """Decide which streams get how narrow. The plan is empty where slicing would not pay.

    It pays when fewer bytes are stored or a run takes less time. Without data the directions come
    from random inputs. Raises InputError when the model has no such stream, and for a width below
    1.
    """
    kind: Literal["data", "random"] = "data" if work.data.given else "random"
    streams, left = _streams(work, options.groups)
    slices = [
        SlicedStream(
            group=s.group.name,
            width=_width(s, options),
            shared=options.shared,
            calibration=kind,
        )
        for s in streams
    ]
    before = _price(work.model, work.search_batches[0])
    after = _price(_outline(work.model, slices), work.search_batches[0])
    if after.size_bytes < before.size_bytes or after.macs < before.macs:
        sliced = slice_planned(work.model, calibration(work, kind), slices, statistics_session)
        before, after = _timed(work, sliced, before, after)
    note = _refusal(before, after)
    plan = Plan(
        source=Source(),
        target=work.target.name,
        recipe=options.recipe,
        slice=() if note else tuple(slices),
    )
    return SliceDecision(plan, before, after, note, left)


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
    copy, parts = _prepared(model, slices)
    widths = {entry.group: entry.width for entry in slices}
    wanted = [_gram(layer) for part in parts for layer in part.layers]
    found = collect(copy, wanted, data, make_runner)
    _check_rows(parts, found)
    SliceStream({p.group: Slice(_basis(p, found), widths[p.stream]) for p in parts})(copy)
    return copy


def _streams(work: Workspace, groups: Sequence[str]) -> tuple[list[Stream], dict[str, str]]:
    """Streams to slice, and what cannot be sliced, with the reason."""
    model, shapes = prepare_pruning(work.model)
    found = find_streams(find_groups(model, shapes))
    left = {f.name: f.reason for f in found.fixed}
    left |= {s.group.name: reason for s in found.streams if (reason := unsliceable(s))}
    if groups:
        return named_streams(found, groups), left
    streams = [s for s in found.streams if s.group.name not in left]
    if not streams:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        reasons = reasons or "nothing in it is normalised over channels"
        raise InputError(f"{work.name}: has no residual stream that could be sliced; {reasons}")
    return streams, left


def _width(stream: Stream, options: SliceOptions) -> int:
    kept = round(stream.group.size * (1 - options.ratio), 6)  # 0.9 of 80 is 72, not 71.99
    width = int(kept) // options.round_to * options.round_to
    if width < 1:
        raise InputError(
            f"{stream.group.name}: {options.ratio:g} of {stream.group.size} channels to go leaves "
            f"no multiple of {options.round_to}"
        )
    return width


def _prepared(model: ir.Model, slices: Sequence[SlicedStream]) -> tuple[ir.Model, list[Part]]:
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


def _outline(model: ir.Model, slices: Sequence[SlicedStream]) -> ir.Model:
    """The sliced model with the first channels for a basis: right in all sizes, without data."""
    copy, parts = _prepared(model, slices)
    widths = {entry.group: entry.width for entry in slices}
    first = {part.size: np.eye(part.size) for part in parts}
    SliceStream({p.group: Slice(first[p.size], widths[p.stream]) for p in parts})(copy)
    return copy


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


def _price(model: ir.Model, feeds: Feeds) -> Price:
    sizes = {name: array.shape for name, array in feeds.items()}
    macs = total(node_costs(model.graph, shapes_at(model, sizes))).known_macs
    return Price(io.serialized_bytes(model), macs)


def _timed(work: Workspace, sliced: ir.Model, *prices: Price) -> tuple[Price, Price]:
    """The prices with the latencies, the two models timed in turns."""
    times = medians_ms([work.model, sliced], work.served[0].feeds)
    before, after = (Price(p.size_bytes, p.macs, t) for p, t in zip(prices, times, strict=True))
    return before, after


def _refusal(before: Price, after: Price) -> str:
    """Why slicing does not pay; "" where it does."""
    if after.size_bytes < before.size_bytes:
        return ""
    size = f"{before.size_bytes:,} to {after.size_bytes:,} stored bytes"
    if before.latency_ms is None or after.latency_ms is None:
        return f"slicing would not pay: from {size}, from {before.macs:,} to {after.macs:,} MACs"
    if after.latency_ms * NOISE < before.latency_ms:
        return ""
    return (
        f"slicing would not pay: from {size}, "
        f"from {before.latency_ms:.3f} to {after.latency_ms:.3f} ms a run"
    )
