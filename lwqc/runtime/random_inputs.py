"""Random but valid inputs for a model, from what its graph does with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.shapes import symbol_of
from lwqc.model.limits import beyond, limits

DEFAULT_DIM = 16
# Operators that hand indices on unchanged.
_MOVES = frozenset(
    {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"}
)
# Operands that say whether anything is done at all.
_ALWAYS_TRUE = frozenset({("Loop", 1), ("Dropout", 2)})
_MASK_SHARE = 0.9
_INDEXED = {"Gather": 0, "GatherElements": 0, "GatherBlockQuantized": 0, "GatherND": 0}


def random_feeds(
    graph: ir.Graph, count: int, seed: int, shapes: Mapping[str, int], *, smooth: bool = False
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield `count` feeds: N(0, 1) floats, indices within their table, masks of mostly ones.

    Single booleans, and integers that an If takes for one, change from feed to feed, so that all
    their combinations occur: both branches of an If are seen.

    shapes: sizes of symbolic dimensions; others become 1 on the first axis and 16 elsewhere.
    smooth: images (floats of rank 4) get equal power in every octave of size, as photographs
        have, instead of white noise, which almost no trained network has seen anything like.
    """
    rng = np.random.default_rng(seed)
    inputs = [v for v in graph.inputs if not v.is_initializer()]
    sizes = {v: _shape(v, shapes) for v in inputs}
    _check_bytes(sizes)
    highs = {v: _index_limit(v) for v in inputs}
    flags = [v for v in inputs if _is_flag(v, sizes[v])]
    for number in range(count):
        yield {
            v.name or "": _flag(v, sizes[v], not number >> flags.index(v) & 1)
            if v in flags
            else _draw(v, sizes[v], highs[v], rng, smooth)
            for v in inputs
        }


def _shape(value: ir.Value, shapes: Mapping[str, int]) -> tuple[int, ...]:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise InputError(f"input {value.name}: is no tensor; inputs of its kind are not supported")
    if value.shape is None:
        raise InputError(f"input {value.name}: its rank is unknown; give data with --data")
    return tuple(
        d
        if isinstance(d, int)
        else shapes.get(symbol_of(value, axis, d), 1 if axis == 0 else DEFAULT_DIM)
        for axis, d in enumerate(value.shape)
    )


def _check_bytes(sizes: Mapping[ir.Value, tuple[int, ...]]) -> None:
    """Compare what drawing takes, 8 bytes for each number, with the limit."""
    needed = {v: 8 * math.prod(shape) for v, shape in sizes.items()}
    if sum(needed.values()) > limits().inputs:
        largest = max(needed, key=lambda v: needed[v])
        shape = list(sizes[largest])
        raise beyond(f"random data: input {largest.name} {shape}", "inputs", sum(needed.values()))


def _is_flag(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether an input is one boolean that both values make sense for."""
    if value.dtype is None or math.prod(shape) != 1:
        return False
    uses = _uses(value, _MOVES | {"Not"})
    if value.dtype is ir.DataType.BOOL:
        return not any((n.op_type, i) in _ALWAYS_TRUE for n, i in uses)
    return value.dtype.is_integer() and any((n.op_type, i) == ("If", 0) for n, i in uses)


def _flag(value: ir.Value, shape: tuple[int, ...], on: bool) -> NDArray[Any]:
    return np.full(shape, on, (value.dtype or ir.DataType.BOOL).numpy())


def _draw(
    value: ir.Value,
    shape: tuple[int, ...],
    high: int | None,
    rng: np.random.Generator,
    smooth: bool,
) -> NDArray[Any]:
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    if dtype.kind == "b":
        return _mask(shape, rng)
    if dtype.kind in "iu":
        if high:  # in a table without rows no index is right
            return rng.integers(0, high, shape).astype(dtype)
        return np.ones(shape, dtype)
    if smooth and len(shape) == 4:
        return _octaves(shape, rng).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _mask(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mostly true, and never false in a whole row: attention masks hide few positions."""
    mask: NDArray[np.bool_] = np.asarray(rng.random(shape) < _MASK_SHARE)
    if mask.ndim and mask.shape[-1] > 1:
        mask[..., 0] = True
    elif mask.size == 1:
        mask[...] = True
    return mask


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
    limits = [
        limit
        for node, index in _uses(value, _MOVES)
        if node.op_type in _INDEXED and index == 1
        if (limit := _table_size(node)) is not None
    ]
    return min(limits) if limits else None


def _uses(value: ir.Value, through: Collection[str]) -> list[tuple[ir.Node, int]]:
    """Nodes and positions at which a value arrives through some operators."""
    found: list[tuple[ir.Node, int]] = []
    todo, seen = [value], {value}
    while todo:
        for use in todo.pop().uses():
            node = use.node
            if node.op_type in through and use.idx == 0:
                if node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    todo.append(node.outputs[0])
            else:
                found.append((node, use.idx))
    return found


def _table_size(node: ir.Node) -> int | None:
    table = node.inputs[0]
    if table is None or table.shape is None:
        return None
    name = "gather_axis" if node.op_type == "GatherBlockQuantized" else "axis"
    axis = node.attributes[name].as_int() if name in node.attributes else 0
    size = table.shape[axis]
    return size if isinstance(size, int) else None
