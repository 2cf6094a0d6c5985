"""Codes that ordinary arithmetic unpacks when a model is loaded, as `lwqc` itself writes them."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.model.weights import stored_tensor, trace_weight

_UNPACKS = frozenset({"BitShift", "Reshape", "Concat", "Slice", "Cast", "Sub"})
_FINDS = _UNPACKS | {"Add", "Gather"}  # the place of a vector in a codebook
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


def plain_codes(node: ir.Node) -> tuple[ir.TensorProtocol, ir.TensorProtocol] | None:
    """Stored int8 codes and their scales behind a product; None for others.

    Codes lie as the weight does; scales have its rank, with size 1 along all axes but some.
    """
    cast = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node.op_type != "Mul" or cast is None or cast.op_type != "Cast":
        return None
    codes, scale = stored_tensor(cast.inputs[0]), stored_tensor(node.inputs[1])
    if codes is None or codes.dtype != ir.DataType.INT8:
        return None
    if scale is None or scale.dtype != ir.DataType.FLOAT or len(scale.shape) != len(codes.shape):
        return None
    fits = all(b in (1, a) for a, b in zip(codes.shape, scale.shape, strict=True))
    return (codes, scale) if fits else None


def reads_codebook(node: ir.Node) -> bool:
    """Whether a Gather reads vectors of a codebook, at places that are stored as bytes."""
    seen: set[ir.Value] = set()
    waiting = [node.inputs[1]]
    stored = []
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        tensor, producer = stored_tensor(value), value.producer()
        if tensor is not None:
            stored.append(tensor.dtype)
        elif producer is None or producer.op_type not in _FINDS:
            return False
        else:
            waiting += producer.inputs
    return ir.DataType.UINT8 in stored


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
