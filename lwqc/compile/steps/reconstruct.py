"""Compensation of pruning: the layers behind removed channels learn to do without them.

The second half of OBSPA (2403.18955): consumers in topological order, each on what the already
compensated layers before it give, imitate the output that they had in the original model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, Literal, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.consumers import Consumer, Slices, find_consumers
from lwqc.graph.linear_operand import Operand
from lwqc.model.edit import add_initializer, replace_stored
from lwqc.model.refusal import Refusal
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor
from lwqc.quant.refit import Moments, bias_correction, held_out_damp, refit
from lwqc.runtime.stats.collector import Collector, Feeds, RunnerFactory
from lwqc.runtime.stats.cross_gram import CrossGram, CrossSums
from lwqc.runtime.stats.halved import Halved, Halves
from lwqc.runtime.stats.paired_run import PairedRun
from lwqc.runtime.stats.patches import Window, conv_window
from lwqc.runtime.stats.side_by_side import other_name

Method = Literal["refit", "bias"]
Float = NDArray[np.float64]
T = TypeVar("T")

_BATCH_BYTES = 1 << 30  # of the matrices that one run collects
_LAYER_BYTES = 4 << 30  # of those of a single layer
_HALVED_BYTES = 256 << 20  # of those of a layer that are kept for each half of the runs


def reconstruct(
    original: ir.Model,
    pruned: ir.Model,
    slices: Slices,
    data: Iterable[Feeds],
    make_runner: RunnerFactory,
    *,
    method: Method = "refit",
    damp: float = 0.01,
    all_layers: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Refusal]:
    """Refit the pruned model's linear layers in place; returns those that stay as sliced, and why.

    slices: stored tensor of the original -> axis -> indices left, ascending; whole ones are absent.
    data: iterated over once; once per level of layers that do not depend on each other where there
    is no room for what lies between two, see `PairedRun`.
    method: `refit` solves for new weights and biases by least squares (`lwqc.quant.refit`, damp
    relative, and more of it where half of the runs fare better so on the other half); `bias` only
    restores each channel's mean. all_layers: also layers that lost no input
    channel but read changed values. progress: called with layers done and their number.

    Raises InputError when the models do not fit together, and when `data` is empty.
    """
    found = find_consumers(original, pruned, slices)
    skipped = list(found.skipped)
    wanted: list[Consumer] = []
    for consumer in found.consumers:
        reason = _refusal(consumer, method) if consumer.narrowed or all_layers else None
        if reason:
            skipped.append(Refusal(consumer.name, reason))
        elif consumer.narrowed or all_layers:
            wanted.append(consumer)
    batches = list(
        levels(wanted, lambda c: c.depth, lambda c: 0 if method == "bias" else _matrix_bytes(c))
    )
    collectors = [[_collector(consumer, method) for consumer in batch] for batch in batches]
    run = PairedRun(original, pruned, collectors, data, make_runner)
    done = 0
    for batch, observed in zip(batches, collectors, strict=True):
        statistics = run.advance()
        for consumer, collector in zip(batch, observed, strict=True):
            reason = _compensate(consumer, statistics[collector], method, damp)
            if reason:
                skipped.append(Refusal(consumer.name, reason))
            done += 1
            progress(done, len(wanted))
    return skipped


def _refusal(consumer: Consumer, method: Method) -> str | None:
    if method == "bias":
        return None if consumer.bias else "has no bias to correct"
    size = _sums_bytes(consumer)
    if size > _LAYER_BYTES:
        return f"its matrices would take {size >> 20} MB"
    return None


def _sums_bytes(consumer: Consumer) -> int:
    m, k = consumer.pruned.features, consumer.original.features
    return 8 * consumer.pruned.groups * m * (m + k)


def _is_halved(consumer: Consumer, method: Method) -> bool:
    return method == "refit" and _sums_bytes(consumer) <= _HALVED_BYTES


def _matrix_bytes(consumer: Consumer) -> int:
    return _sums_bytes(consumer) * (1 + _is_halved(consumer, "refit"))


def levels(
    items: Iterable[T], depth: Callable[[T], int], matrix_bytes: Callable[[T], int]
) -> Iterator[list[T]]:
    """Items that do not depend on each other, level by level, with a bounded sum of bytes."""
    for _, level in groupby(sorted(items, key=depth), key=depth):
        batch: list[T] = []
        size = 0
        for item in level:
            needed = matrix_bytes(item)
            if batch and size + needed > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(item)
            size += needed
        yield batch


def _collector(consumer: Consumer, method: Method) -> Collector[Any]:
    plain = _cross_gram(consumer, method)
    return Halved(plain) if _is_halved(consumer, method) else plain


def _cross_gram(consumer: Consumer, method: Method) -> CrossGram:
    before, after = consumer.original, consumer.pruned
    whole = consumer.groups == tuple(range(before.groups))
    return CrossGram(
        left=before.activation.name or "",
        right=other_name(after.activation),
        left_window=window(before),
        right_window=window(after),
        kept_groups=None if whole else consumer.groups,
        means_only=method == "bias",
    )


def window(operand: Operand) -> Window | None:
    """The patches that a convolution reads."""
    if operand.node.op_type != "Conv":
        return None
    return conv_window(operand.node, operand.shape)


def _compensate(
    consumer: Consumer, found: CrossSums | Halves[CrossSums], method: Method, damp: float
) -> str | None:
    """Store new weights and biases; or why not."""
    sums = found.whole if isinstance(found, Halves) else found
    halves = (found.first, found.second) if isinstance(found, Halves) else (sums, None)
    arrays = (sums.left, sums.right, sums.cross, sums.gram)
    if sums.rows == 0 or not all(np.isfinite(a).all() for a in arrays):
        return "its input is empty or not finite on the data"
    weight = consumer.pruned.matrix(read_array)
    target = consumer.original.matrix(read_array)[consumer.rows]
    shift = np.zeros(len(weight))
    per_group = len(weight) // len(consumer.groups)
    for group in range(len(consumer.groups)):
        rows = slice(group * per_group, (group + 1) * per_group)
        left, right = sums.left[group], sums.right[group]
        if method == "bias":
            shift[rows] = bias_correction(weight[rows], target[rows], left, right, sums.rows)
            continue
        has_bias, own = consumer.bias is not None, damp
        if halves[1] is not None:
            pair = (_moments(halves[0], group), _moments(halves[1], group))
            own = held_out_damp(weight[rows], target[rows], pair, has_bias, damp)
        weight[rows], shift[rows] = refit(
            weight[rows], target[rows], sums.gram[group], sums.cross[group], left, right,
            sums.rows, own, has_bias,
        )  # fmt: skip
    if method == "refit":
        replace_stored(consumer.pruned.weight.source, consumer.pruned.stored(weight))
    if consumer.bias is not None:
        add_to_bias(*consumer.bias, shift)
    return None


def _moments(sums: CrossSums, group: int) -> Moments:
    return Moments(
        sums.gram[group], sums.cross[group], sums.left[group], sums.right[group], sums.rows
    )


def add_to_bias(node: ir.Node, index: int, shift: Float) -> None:
    """Add to a stored vector; one that other nodes read too is copied first."""
    value = node.inputs[index]
    tensor = stored_tensor(value)
    assert value is not None
    assert tensor is not None
    old = read_array(tensor)
    moved = (old.astype(np.float64) + shift).astype(old.dtype)
    if len(list(value.uses())) == 1 and not value.is_graph_output():
        replace_stored(value, ir.tensor(moved, dtype=tensor.dtype, name=value.name))
        return
    assert isinstance(node.graph, ir.Graph)
    name = f"{value.name}/{node.name}"
    copy = ir.tensor(moved, dtype=tensor.dtype, name=name)
    node.replace_input_with(index, add_initializer(node.graph, copy))
