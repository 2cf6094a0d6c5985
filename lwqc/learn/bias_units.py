"""Scales of biases of 32 bits: products of the scales of what they are added to.

Integer kernels add such a bias as it is, whatever its scale says, so that it follows the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lwqc.learn.weights import Uses
from lwqc.model.weights import static_shape, stored_tensor

_CLOSE = 1e-4  # of the product: scales are rounded to 32 bits
Factors = tuple[ir.Value, ir.Value]  # scales of the input and of the weight


def bias_units(model: ir.Model, uses: Uses) -> Mapping[ir.Value, Factors]:
    """Stored scales that decode one bias alone, and the two that each is the product of."""
    found: dict[ir.Value, Factors] = {}
    for node in model.graph:
        decoders = [_decoder(value) for value in node.inputs[:3]]
        if len(decoders) < 3 or any(d is None for d in decoders):
            continue
        scales = [d.inputs[1] for d in decoders if d is not None]
        x, w, unit = scales
        bias = node.inputs[2]
        if x is None or w is None or unit is None or bias is None or not _whole(decoders[2]):
            continue
        alone = len(uses.readers.get(unit, ())) == 1 and len(uses.readers.get(bias, ())) == 1
        if alone and _is_product(unit, x, w):
            found[unit] = x, w
    return found


def _decoder(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _whole(decoder: ir.Node | None) -> bool:
    """Whether it decodes stored codes of 32 bits."""
    tensor = None if decoder is None else stored_tensor(decoder.inputs[0])
    return tensor is not None and tensor.dtype is ir.DataType.INT32


def _is_product(unit: ir.Value, x: ir.Value, w: ir.Value) -> bool:
    tensors = [t for value in (unit, x, w) if (t := stored_tensor(value)) is not None]
    if len(tensors) < 3 or any(t.dtype is not ir.DataType.FLOAT for t in tensors):
        return False
    own, left, right = (t.numpy().astype(np.float64) for t in tensors)
    if left.size != 1 or right.size not in (1, own.size) or len(static_shape(tensors[0])) > 1:
        return False
    return np.allclose(own.reshape(-1), left.reshape(-1) * right.reshape(-1), rtol=_CLOSE, atol=0)
