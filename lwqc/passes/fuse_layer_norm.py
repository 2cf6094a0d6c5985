"""Writes layer normalisation as one operator, whatever exporters made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.cones import Cone, largest
from lwqc.graph.operands import reduced_axes
from lwqc.model.edit import add_constant, insert_before, replace_node
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

Array = NDArray[np.float64]
OPSET = 17  # the first with LayerNormalization
_MEANS = frozenset({"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2"})
_ROOTS = frozenset({"Sqrt", "Pow", "ReduceL2"})
_OPERATORS = _MEANS | {
    *("Add", "Div", "Identity", "Max", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sqrt", "Sub")
}
_FEWEST = 5  # nodes: two means, a difference, a root and a quotient
_ROWS = 6
_LARGE, _SMALL = 1e4, 1e-7  # times as large as usual: what is added to the variance, or all else
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class _Norm:
    """(x - mean) / sqrt(variance + epsilon) * gain + bias over the last axis."""

    gain: Array
    bias: Array
    epsilon: float

    def __call__(self, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return np.asarray(centred / spread * self.gain + self.bias)


class FuseLayerNorm(Pass):
    """Write (x - mean) / sqrt(variance + epsilon) * gain + bias as LayerNormalization.

    Matches: float32 operators that compute that over the last axis, from one value and stored
        numbers. It is told by evaluating them on numbers, so every spelling is found: the variance
        as a mean of squares less a squared mean, gains in front of the difference.
    Rewrites to: LayerNormalization. Sums in another order.
    Refuses: opsets below 17, last axes of unknown size, results that are read in between.
    """

    keeps_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every norm of the main graph."""
        opset = model.opset_imports.get("", 1)
        found = [] if opset < OPSET else find_layer_norms(model)
        for cone, norm in found:
            _write(model.graph, cone, norm)
        return len(found)


def find_layer_norms(model: ir.Model) -> list[tuple[Cone, _Norm]]:
    """The norms of the main graph that are several operators, from the last to the first."""
    if not any(node.op_type in _MEANS for node in model.graph):
        return []
    opset = model.opset_imports.get("", 1)
    known: dict[tuple[object, ...], _Norm | None] = {}
    return list(largest(model.graph, _takes, lambda cone: _told(cone, opset, known)))


def plainly_spelled(cone: Cone) -> bool:
    """Whether the runtime recognises the spelling itself: a difference over a root, then a gain."""
    kinds = [node.op_type for node in cone.nodes]
    return kinds.count("Div") == 1 and "Reciprocal" not in kinds and kinds.count("ReduceMean") == 2


def _takes(node: ir.Node) -> bool:
    """Whether a node works along the last axis, the stored operands being vectors along it."""
    if node.domain != "" or node.op_type not in _OPERATORS:
        return False
    value = node.inputs[0]
    if node.op_type in _MEANS:
        kept = node.attributes.get("keepdims")
        last = -1 if value is None or value.shape is None else len(value.shape) - 1
        return reduced_axes(node) in ([-1], [last]) and (kept is None or kept.as_int() == 1)
    stored = [t for v in node.inputs if (t := stored_tensor(v)) is not None]
    return all(t.size == 1 or static_shape(t)[-1:] == (t.size,) for t in stored)


def _may_be(cone: Cone) -> bool:
    operators = {node.op_type for node in cone.nodes}
    return (
        len(cone.nodes) >= _FEWEST
        and bool(operators & _MEANS)
        and bool(operators & _ROOTS)
        and cone.source.dtype == ir.DataType.FLOAT
        and _width(cone) > 1
    )


def _width(cone: Cone) -> int:
    """Size of the last axis; 0 where that or the rank of the result is not known."""
    shape, out = cone.source.shape, cone.out.shape
    if shape is None or out is None or not 1 < len(shape) == len(out):
        return 0
    return shape[-1] if isinstance(shape[-1], int) else 0


def _told(cone: Cone, opset: int, known: dict[tuple[object, ...], _Norm | None]) -> _Norm | None:
    if not _may_be(cone):
        return None
    key = (*cone.key(), _width(cone))
    if key not in known:
        known[key] = _fitted(cone, opset)
    return known[key]


def _fitted(cone: Cone, opset: int) -> _Norm | None:
    """The norm that a cone computes, told by a few of its values; None for others."""
    width, rank = _width(cone), len(cone.source.shape or ())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_ROWS, width))
    spikes = np.zeros_like(x)  # nothing else of this width gets as far from its mean
    spikes[np.arange(_ROWS), rng.integers(0, width, _ROWS)] = _LARGE * (-1.0) ** np.arange(_ROWS)
    levels = np.arange(1.0, 1 + _ROWS)[:, None]
    probes = [
        np.broadcast_to(levels, x.shape),
        _LARGE * x,
        _SMALL * x,
        x * 10.0 ** rng.integers(-2, 3, (_ROWS, 1)) + levels,
        spikes,
    ]
    stacked = np.concatenate(probes)
    given = stacked.reshape((1,) * (rank - 2) + stacked.shape)
    made = cone.compute(given, opset)
    if made.shape != given.shape or not np.isfinite(made).all():
        return None
    values = np.split(made.reshape(stacked.shape), len(probes))
    constant, large, small = values[:3]
    bias = constant[0]
    plain = _Norm(np.ones(1), np.zeros(1), 0.0)(x)
    row, column = np.abs(plain).argmax(axis=0), np.arange(width)
    gain = (large - bias)[row, column] / plain[row, column]
    centred = _SMALL * (x - x.mean(axis=-1, keepdims=True))
    most = np.unravel_index(np.abs(gain * centred).argmax(), x.shape)
    if not (ratio := (small - bias)[most] / (gain * centred)[most]) > 0:
        return None
    epsilon = ratio**-2 - (centred[most[0]] ** 2).mean()
    if not 0 < epsilon < 1:
        return None
    norm = _Norm(gain, bias, float(epsilon))
    allowed = _TOLERANCE * (np.abs(gain).max() + np.abs(bias).max())
    pairs = ((norm(p), m) for p, m in zip(probes, values, strict=True))
    return norm if all(np.abs(ours - theirs).max() <= allowed for ours, theirs in pairs) else None


def _write(graph: ir.Graph, cone: Cone, norm: _Norm) -> None:
    end, name = cone.nodes[-1], cone.out.name
    gain = add_constant(graph, f"{name}/gain", norm.gain.astype(np.float32))
    bias = add_constant(graph, f"{name}/bias", norm.bias.astype(np.float32))
    attributes: dict[str, int | float] = {"axis": -1, "epsilon": norm.epsilon}
    inputs = [cone.source, gain, bias]
    (value,) = insert_before(end, "LayerNormalization", inputs, [f"{name}/norm"], attributes)
    replace_node(end, value)
