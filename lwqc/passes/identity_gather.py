"""Gathers that read all of a tensor in its own order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from lwqc.graph.dataflow import SHAPE_ONLY
from lwqc.graph.integers import Ints
from lwqc.graph.sampled import Sampled
from lwqc.model.edit import add_constant, insert_before, replace_node
from lwqc.model.weights import stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_KEEP_ORDER = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
# Indices made of these count at all sizes as they do at two; others may stop at some number.
_COUNTING = (
    _KEEP_ORDER
    | SHAPE_ONLY
    | {"Range", "Add", "Mul", "Sub", "Expand", "Concat", "Gather", "Cast", "Identity", "Slice"}
)


class IdentityGather(Pass):
    """Replace gathers that only add axes of size one.

    Matches: Gather or GatherND whose indices, computed from the shapes, count through all of its
        data, maybe flattened before, as exporters write `mask[batch, keys]` of attention masks.
    Rewrites to: Unsqueeze. Exact.
    Refuses: results with other axes than the data's and those of size one; indices that depend on
        data, or are made by operators that could cap them; sizes that are not known.
    """

    needs_sizes = True
    keeps_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        done = 0
        for node in list(model.graph):
            found = _matched(node, ctx)
            if found is not None:
                _rewrite(model.graph, node, *found)
                done += 1
        return done


def _rewrite(graph: ir.Graph, node: ir.Node, source: ir.Value, axes: list[int]) -> None:
    value = source
    if axes:
        name = f"{node.outputs[0].name}/unsqueezed"
        constant = add_constant(graph, f"{name}/axes", np.asarray(axes, np.int64))
        (value,) = insert_before(node, "Unsqueeze", [source, constant], [name])
        replace_node(node, value)
    elif not node.outputs[0].is_graph_output():
        node.outputs[0].replace_all_uses_with(value)


def _matched(node: ir.Node, ctx: Context) -> tuple[ir.Value, list[int]] | None:
    """What a gather reads in its own order, and the axes of size one that it adds."""
    if node.domain != "" or node.op_type not in ("Gather", "GatherND"):
        return None
    shapes = ctx.shapes
    data, out = node.inputs[0], shapes.get(node.outputs[0].name or "")
    indices = ctx.integers.both(node.inputs[1])
    sizes = shapes.get(data.name or "") if data is not None else None
    if indices is None or out is None or sizes is None or data is None:
        return None
    if not _is_counting(node.inputs[1]):
        return None
    pairs = zip(indices, (sizes.first, sizes.second), strict=True)
    if not all(_counts(node, numbers, own) for numbers, own in pairs):
        return None
    for source in _sources(data):
        axes = _added(shapes.get(source.name or ""), out)
        if axes is not None:
            return source, axes
    return None


def _is_counting(value: ir.Value | None) -> bool:
    """Whether nothing but counting and shapes makes a value."""
    pending, seen = [value], set[ir.Value | None]()
    while pending:
        current = pending.pop()
        node = current.producer() if current is not None else None
        if node is None or current in seen or stored_tensor(current) is not None:
            continue
        seen.add(current)
        if node.domain != "" or node.op_type not in _COUNTING:
            return False
        if node.op_type not in SHAPE_ONLY:
            pending.extend(node.inputs)
    return True


def _counts(node: ir.Node, indices: Ints, sizes: tuple[int, ...]) -> bool:
    """Whether the gather's result has the elements of its data, in their order."""
    labels = np.arange(np.prod(sizes, dtype=np.int64)).reshape(sizes)
    attribute = node.attributes.get("axis" if node.op_type == "Gather" else "batch_dims")
    number = attribute.as_int() if attribute is not None else 0
    try:
        if node.op_type == "Gather":
            found = np.take(labels, indices, number)
        elif number:
            return False
        else:
            found = labels[tuple(np.moveaxis(indices, -1, 0))]
    except (IndexError, ValueError):
        return False
    return np.array_equal(found.ravel(), labels.ravel())


def _sources(value: ir.Value) -> Iterator[ir.Value]:
    """A value and what it is a reshape of, nearest first."""
    while True:
        yield value
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in _KEEP_ORDER:
            return
        source = node.inputs[0]
        if source is None:
            return
        value = source


def _added(source: Sampled | None, out: Sampled) -> list[int] | None:
    """Axes of size one that make `out` of `source`."""
    if source is None:
        return None
    axes, own = [], 0
    for axis in range(out.rank):
        here = (out.first[axis], out.second[axis])
        rest = source.rank - own
        if rest and here == (source.first[own], source.second[own]):
            own += 1
        elif here == (1, 1):
            axes.append(axis)
        else:
            return None
    return axes if own == source.rank else None
