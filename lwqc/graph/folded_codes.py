"""Codes that ordinary arithmetic unpacks when a model is loaded, as `lwqc` itself writes them."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.model.weights import stored_tensor, trace_weight

_UNPACKS = frozenset({"BitShift", "Reshape", "Concat", "Slice", "Cast", "Sub"})
Packed = tuple[ir.TensorProtocol, int, ir.TensorProtocol, ir.TensorProtocol | None]


def packed_codes(node: ir.Node) -> Packed | None:
    """Packed codes, codes per byte, scale and zero point behind a product; None for others."""
    if len(node.inputs) != 2:
        return None
    scale = trace_weight(node.inputs[1])
    if scale is None or len(scale.tensor.shape) != 3 or scale.tensor.shape[2] != 1:
        return None
    fields, zero = 1, None
    value = node.inputs[0]
    while value is not None and stored_tensor(value) is None:
        producer = value.producer()
        if producer is None or producer.op_type not in _UNPACKS:
            return None
        if producer.op_type == "Concat":
            fields = len(producer.inputs)
        if producer.op_type == "Sub":
            operand = stored_tensor(producer.inputs[1])
            zero = operand if operand is not None and len(operand.shape) == 3 else zero
        value = producer.inputs[0]
    codes = stored_tensor(value)
    if codes is None or codes.dtype != ir.DataType.UINT8 or len(codes.shape) != 2:
        return None
    return codes, fields, scale.tensor, zero


def reshaped_end(node: ir.Node) -> tuple[ir.Value | None, tuple[int, ...] | None]:
    """The last reshaped value behind a product, and its shape."""
    end: ir.Value | None = None
    shape: tuple[int, ...] | None = None
    value = node.outputs[0]
    while True:
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or readers[0].op_type not in ("Reshape", "Slice"):
            return end, shape
        value = readers[0].outputs[0]
        if readers[0].op_type == "Reshape":
            target = stored_tensor(readers[0].inputs[1])
            if target is None:
                return None, None
            end, shape = value, tuple(int(d) for d in target.numpy())
