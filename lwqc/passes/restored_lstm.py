"""DynamicQuantizeLSTM as a float LSTM."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.edit import add_initializer, lazy_tensor
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.integer_lstm import SCALES

_OPERANDS = 8  # of an LSTM
_CODES = (ir.DataType.INT8, ir.DataType.UINT8)


def float_lstm(main: ir.Graph, node: ir.Node) -> str:
    """Make the node an LSTM with float weights in `main`, in place; or why it cannot be."""
    made: dict[int, ir.Value] = {}
    for index, scale_at in SCALES.items():
        parts = [stored_tensor(node.inputs[i]) for i in (index, scale_at, scale_at + 1)]
        codes, scale, zero = parts
        if codes is None or scale is None or zero is None or codes.dtype not in _CODES:
            return "its weights are not stored"
        shape = static_shape(codes)
        if len(shape) != 3 or scale.size not in (shape[0], shape[0] * shape[2]):
            return "its scales do not fit its weights"
        name = f"{codes.name}/float"
        tensor = lazy_tensor(
            ir.DataType.FLOAT,
            (shape[0], shape[2], shape[1]),
            name,
            partial(_decoded, codes, scale, zero),
        )
        made[index] = add_initializer(main, tensor)
    for index, value in made.items():
        node.replace_input_with(index, value)
    node.resize_inputs(_OPERANDS)
    node.domain, node.op_type = "", "LSTM"
    return ""


def _decoded(
    codes: ir.TensorProtocol, scale: ir.TensorProtocol, zero: ir.TensorProtocol
) -> NDArray[np.float32]:
    """Weights [directions, 4 * hidden, K] of codes [directions, K, 4 * hidden]."""
    array = read_array(codes)
    each = (len(array), 1, -1)  # a scale per direction, or per direction and gate
    whole = array.astype(np.float32) - read_array(zero).reshape(each).astype(np.float32)
    floats: NDArray[np.float32] = (whole * read_array(scale).reshape(each)).transpose(0, 2, 1)
    return np.ascontiguousarray(floats)
