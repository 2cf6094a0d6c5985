"""Stored numbers behind an operand: codes, scales and zero points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import (
    evaluate,
    spread,
    static_shape,
    stored_tensor,
    through,
    trace_weight,
    weight_shape,
)
from lwqc.passes.block_quantize import MICROSOFT
from lwqc.quant.formats import ScaleType

Array = NDArray[np.generic]
_LIMITS = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}
# Bits of a code, and what is added to make it unsigned.
OFFSETS = {
    ir.DataType.INT8: (8, 128),
    ir.DataType.UINT8: (8, 0),
    ir.DataType.INT4: (4, 8),
    ir.DataType.UINT4: (4, 0),
}


@dataclass(frozen=True)
class Constant:
    """Numbers that do not depend on the inputs, behind Casts and the like.

    tensor: as stored. shape: of the operand. read: the operand; works when the graph has changed.
    """

    tensor: ir.TensorProtocol
    shape: tuple[int, ...] | None
    read: Callable[[], Array]

    @property
    def size(self) -> int:
        """How many numbers."""
        return int(self.tensor.size)


def constant(value: ir.Value | None) -> Constant | None:
    """The stored numbers behind an operand, if there are any."""
    weight = trace_weight(value)
    if weight is None:
        return None
    tensor, steps, shape = weight.tensor, weight.steps, weight_shape(weight)
    if all(len(step.inputs) == 1 for step in steps):
        return Constant(tensor, shape, lambda: through(steps, read_array(tensor), read_array))
    array = evaluate(weight, read_array)  # other operands may leave the graph
    return Constant(tensor, shape, lambda: array)


@dataclass(frozen=True)
class Codes:
    """Stored codes, or those that QuantizeLinear makes of a stored tensor."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    read: Callable[[], Array]


def codes_behind(value: ir.Value | None) -> Codes | None:
    """The stored codes that an operand holds, if it does."""
    tensor = stored_tensor(value)
    if value is not None and tensor is not None:
        shape = static_shape(tensor)
        return Codes(value.name or "", tensor.dtype, shape, lambda: read_array(tensor))
    node = value.producer() if value is not None else None
    if node is None or node.domain not in ("", MICROSOFT) or value is None:
        return None
    floats = constant(node.inputs[0])
    if node.op_type != "QuantizeLinear" or floats is None:
        return None
    return _made_codes(value, node, floats)


def _made_codes(value: ir.Value, node: ir.Node, floats: Constant) -> Codes | None:
    """Codes of a stored float tensor that is quantized in each run, as NVIDIA's ModelOpt does."""
    scale, zero = constant(node.inputs[1]), constant(operand(node, 2))
    shape = floats.shape
    dtype = ir.DataType(number(node, "output_dtype", int(ir.DataType.UINT8)))
    dtype = zero.tensor.dtype if zero is not None else dtype
    if scale is None or dtype not in _LIMITS or shape is None:
        return None
    axis, block = number(node, "axis", 1), number(node, "block_size")
    low, high = _LIMITS[dtype]

    def read() -> Array:
        step = spread(scale.read().astype(np.float32), shape, axis, block)
        centre = zero.read().astype(np.float32) if zero is not None else np.zeros((), np.float32)
        codes = np.rint(floats.read().astype(np.float32) / step)  # type: ignore[operator]
        moved = codes + spread(centre, shape, axis, block)
        return np.asarray(np.clip(moved, low, high).astype(np.int16))

    return Codes(value.name or "", dtype, shape, read)


def unsigned(array: Array, offset: int) -> Array:
    """Codes moved by an offset, as uint8."""
    return (array.astype(np.int16) + offset).astype(np.uint8)


def scale_type_of(scale: ir.TensorProtocol) -> ScaleType:
    """What a format calls the type that scales are stored in."""
    return "float16" if scale.dtype == ir.DataType.FLOAT16 else "float32"


def number(node: ir.Node, name: str, default: int = 0) -> int:
    """An attribute that is an integer."""
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An operand, None for an optional one that is left out."""
    return node.inputs[index] if index < len(node.inputs) else None
