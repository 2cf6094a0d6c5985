"""Decides how narrow residual streams get, with the price of it (SliceGPT, 2401.15024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from lwqc.compile.decisions import Price, SliceDecision
from lwqc.compile.run_times import run_ms
from lwqc.compile.steps.slice_streams import prepared, sliced
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.cost import node_costs, total
from lwqc.graph.groups import find_groups
from lwqc.graph.rotatable import find_streams
from lwqc.graph.shapes import shapes_at
from lwqc.graph.stream import Stream
from lwqc.model import io
from lwqc.passes.change_basis import named_streams
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.passes.slice_stream import Slice, SliceStream, unsliceable
from lwqc.plans.plan import Plan, SlicedStream, Source
from lwqc.runtime.measure import NOISE
from lwqc.runtime.stats.collector import Feeds


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


def choose_slices(work: Version, options: SliceOptions) -> SliceDecision:
    """Decide which streams get how narrow. The plan is empty where slicing would not pay.

    It pays when fewer bytes are stored or a run takes less time. Without data the directions come
    from random inputs. Raises InputError when the model has no such stream, and for a width below
    1.
    """
    kind: Literal["data", "random"] = "data" if work.job.data.fit.given else "random"
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
    before = _price(work.model, work.job.data.judge[0])
    after = _price(_outline(work.model, slices), work.job.data.judge[0])
    if after.size_bytes < before.size_bytes or after.macs < before.macs:
        before, after = _timed(work, sliced(work, slices), before, after)
    note = _refusal(before, after)
    plan = Plan(
        source=Source(),
        target=work.job.target.name,
        recipe=options.recipe,
        slice=() if note else tuple(slices),
    )
    return SliceDecision(plan, before, after, note, left)


def _streams(work: Version, groups: Sequence[str]) -> tuple[list[Stream], dict[str, str]]:
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


def _outline(model: ir.Model, slices: Sequence[SlicedStream]) -> ir.Model:
    """The sliced model with the first channels for a basis: right in all sizes, without data."""
    copy, parts = prepared(model, slices)
    widths = {entry.group: entry.width for entry in slices}
    first = {part.size: np.eye(part.size) for part in parts}
    SliceStream({p.group: Slice(first[p.size], widths[p.stream]) for p in parts})(copy)
    return copy


def _price(model: ir.Model, feeds: Feeds) -> Price:
    sizes = {name: array.shape for name, array in feeds.items()}
    macs = total(node_costs(model.graph, shapes_at(model, sizes))).known_macs
    return Price(io.serialized_bytes(model), macs)


def _timed(work: Version, narrow: ir.Model, *prices: Price) -> tuple[Price, Price]:
    """The prices with the latencies, the two models timed in turns; without where they are not."""
    times: Sequence[float | None] = run_ms(work, work.model, narrow) or (None, None)
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
