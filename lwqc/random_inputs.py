"""Random but valid inputs for a model, from what its graph does with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError

DEFAULT_DIM = 16
# Operators that hand indices on unchanged.
_MOVES = frozenset(
    {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"}
)
_INDEXED = {"Gather": 0, "GatherElements": 0, "GatherBlockQuantized": 0, "GatherND": 0}


def random_feeds(
    model: ir.Model, count: int, seed: int, shapes: Mapping[str, int], *, smooth: bool = False
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield `count` feeds: N(0, 1) floats, indices within their table, masks of ones.

    shapes: sizes of symbolic dimensions; others become 1 on the first axis and 16 elsewhere.
    smooth: images (floats of rank 4) get equal power in every octave of size, as photographs
        have, instead of white noise, which almost no trained network has seen anything like.
    """
    rng = np.random.default_rng(seed)
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    sizes = {v: _shape(v, shapes) for v in inputs}
    highs = {v: _index_limit(v) for v in inputs}
    for _ in range(count):
        yield {v.name or "": _draw(v, sizes[v], highs[v], rng, smooth) for v in inputs}


def _shape(value: ir.Value, shapes: Mapping[str, int]) -> tuple[int, ...]:
    if value.shape is None:
        raise InputError(f"input {value.name}: its rank is unknown; give data with --data")
    return tuple(
        d if isinstance(d, int) else shapes.get(d.value or "", 1 if axis == 0 else DEFAULT_DIM)
        for axis, d in enumerate(value.shape)
    )


def _draw(
    value: ir.Value,
    shape: tuple[int, ...],
    high: int | None,
    rng: np.random.Generator,
    smooth: bool,
) -> NDArray[Any]:
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    if dtype.kind == "b":
        return np.ones(shape, bool)
    if dtype.kind in "iu":
        if high is not None:
            return rng.integers(0, high, shape).astype(dtype)
        return np.ones(shape, dtype)
    if smooth and len(shape) == 4:
        return _octaves(shape, rng).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _octaves(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise [n, c, h, w] with the same variance at every scale, 1 in total per image on average."""
    *outer, height, width = shape
    image = np.zeros(shape)
    cell, count = 1, 0
    while cell <= max(height, width):
        coarse = rng.standard_normal((*outer, -(-height // cell), -(-width // cell)))
        image += coarse.repeat(cell, -2).repeat(cell, -1)[..., :height, :width]
        cell, count = 2 * cell, count + 1
    scaled: NDArray[np.float64] = image / np.sqrt(count)
    return scaled


def _index_limit(value: ir.Value) -> int | None:
    """Smallest table that the value's elements index; None if they index nothing."""
    limits: list[int] = []
    todo, seen = [value], {value}
    while todo:
        current = todo.pop()
        for use in current.uses():
            node = use.node
            if node.op_type in _INDEXED and use.idx == 1:
                limit = _table_size(node)
                if limit is not None:
                    limits.append(limit)
            elif node.op_type in _MOVES and use.idx == 0 and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                todo.append(node.outputs[0])
    return min(limits) if limits else None


def _table_size(node: ir.Node) -> int | None:
    table = node.inputs[0]
    if table is None or table.shape is None:
        return None
    name = "gather_axis" if node.op_type == "GatherBlockQuantized" else "axis"
    axis = node.attributes[name].as_int() if name in node.attributes else 0
    size = table.shape[axis]
    return size if isinstance(size, int) else None
