"""What TensorRT's parser would refuse in a graph, and Q/DQ pairs that would cost rather than help.

Parser rules: zero points are 0; no uint8; scales are stored, positive and finite; several scales
only on weights, as many as the axis is long; blocks only of 4-bit integers, along one axis, with an
even last size; only operators of the default domain, none of the quantized ones.
Placement rules: a pair feeds an operator that fuses with it; both operands of such an operator are
dequantized, its bias is not; one operand of a residual addition stays in floats; layers that are
too narrow stay in floats; types are known on every tensor.
What differs between releases is in `tensorrt_versions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.backends.tensorrt_versions import TEN, TensorrtRules
from lwqc.graph.quantized_inputs import LEAST_CHANNELS
from lwqc.graph.value_types import is_tensor
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import static_shape, stored_tensor

FORBIDDEN = frozenset(
    {
        "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
        "BitShift",
    }
)  # fmt: skip
_FUSES = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "LayerNormalization"})
_COPIES = frozenset(
    {
        "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Relu", "Reshape", "Slice",
        "Split", "Squeeze", "Transpose", "Unsqueeze", "Cast",
    }
)  # fmt: skip
_WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}
_BLOCKS = (64, 128)
_QUANTIZED = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4)
_FLOAT4 = ir.DataType.FLOAT4E2M1
# Size of blocks, and types of their scales: of NVFP4 codes themselves, of MXFP8 powers of 2.
_FLOAT_BLOCKS = {
    _FLOAT4: (16, (ir.DataType.FLOAT8E4M3FN,)),
    ir.DataType.FLOAT8E4M3FN: (32, (ir.DataType.FLOAT8E8M0,)),
}
_LARGEST_CODES = 1 << 24  # scales beyond this many are not looked at


def lint(model: ir.Model, rules: TensorrtRules = TEN) -> list[str]:
    """One line per violation, naming the node and what TensorRT wants."""
    opset = int(model.opset_imports.get("", 1))
    found = []
    oldest, newest = rules.opsets
    if not oldest <= opset <= newest:
        found.append(f"opset {opset}: {rules.release} reads {oldest} to {newest}")
    for node in model.graph.all_nodes():
        where = f"{node.op_type} {node.name or node.outputs[0].name}"
        found += [f"{where}: {line}" for rule in _RULES for line in rule(node)]
        found += [f"{where}: {line}" for line in _scales(node, rules)]
    return found


def _operator(node: ir.Node) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"operators of {node.domain} run outside the engine"
    elif node.op_type in FORBIDDEN:
        yield "TensorRT's parser has no such operator"


def _typed(node: ir.Node) -> Iterator[str]:
    opaque = next((v for v in (*node.inputs, *node.outputs) if not is_tensor(v)), None)
    if opaque is not None:
        yield f"{opaque.name} is a sequence or an optional; TensorRT has tensors only"
        return
    for value in node.outputs:
        if value.name and (value.type is None or value.shape is None):
            yield f"{value.name} has no {'type' if value.type is None else 'shape'}"


def _scales(node: ir.Node, rules: TensorrtRules) -> Iterator[str]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    scale = stored_tensor(node.inputs[1])
    if scale is None and rules.small_floats:
        scale = _chained(node)
    if scale is None:
        yield "its scale is not stored in the model"
        return
    if scale.size <= _LARGEST_CODES:
        values = read_array(scale).astype(np.float64)
        if not (np.isfinite(values) & (values > 0)).all():
            yield "its scales are not all positive and finite"
    zero = stored_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero is not None:
        if zero.dtype == ir.DataType.UINT8:
            yield "uint8 codes; TensorRT takes int8"
        elif _any_nonzero(read_array(zero)):
            yield "its zero point is not 0"
    elif node.op_type == "QuantizeLinear" and "output_dtype" not in node.attributes:
        yield "without a zero point its codes are uint8; TensorRT takes int8"
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    dtype = codes.dtype if codes is not None else None
    small = (_FLOAT4,) if rules.small_floats else ()
    if dtype not in (None, ir.DataType.UINT8, *_QUANTIZED, *small):
        assert dtype is not None
        kinds = "int8, int4, float8 or float4" if small else "int8, int4 or float8"
        yield f"{dtype.name.lower()} codes; {rules.release} takes {kinds}"
    yield from _granularity(node, static_shape(scale), scale.dtype, rules)


def _chained(node: ir.Node) -> ir.TensorProtocol | None:
    """Scales that are codes with a scale of their own, as those of NVFP4 weights are."""
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return stored_tensor(producer.inputs[0])


def _any_nonzero(zero: NDArray[np.generic]) -> bool:
    return bool(np.any(zero.astype(np.float32) != 0))


def _granularity(
    node: ir.Node, scale: tuple[int, ...], kind: ir.DataType, rules: TensorrtRules
) -> Iterator[str]:
    block = _int(node, "block_size", 0)
    data = stored_tensor(node.inputs[0])
    if block:
        if rules.small_floats and data is not None and data.dtype in _FLOAT_BLOCKS:
            yield from _float_blocks(node, data, block, kind)
        else:
            yield from _blocks(node, data, block)
        return
    count = int(np.prod(scale)) if scale else 1
    if count == 1:
        return
    if data is None:
        yield f"{count} scales on an activation; TensorRT takes one"
        return
    shape, axis = static_shape(data), _int(node, "axis", 1)
    if shape[axis] != count:
        yield f"{count} scales for an axis of {shape[axis]}"
    for use in node.outputs[0].uses():
        wanted = _WEIGHT_AXIS.get(use.node.op_type, axis)
        if use.node.op_type == "Gemm":
            wanted = 0 if _int(use.node, "transB", 0) else 1
        if use.idx == 1 and axis % len(shape) != wanted:
            yield f"scales along axis {axis} of a {use.node.op_type} weight, expected {wanted}"


def _blocks(node: ir.Node, data: ir.TensorProtocol | None, block: int) -> Iterator[str]:
    if data is None or data.dtype != ir.DataType.INT4:
        yield "only stored int4 weights have blocks"
        return
    if _int(node, "axis", 1) != 0 or block not in _BLOCKS:
        yield f"blocks of {block} along axis {_int(node, 'axis', 1)}; expected 64 or 128 along 0"
    if static_shape(data)[-1] % 2:
        yield f"int4 rows of {static_shape(data)[-1]}; the last size must be even"


def _float_blocks(
    node: ir.Node, data: ir.TensorProtocol, block: int, scale: ir.DataType
) -> Iterator[str]:
    """NVFP4 and MXFP8: blocks of one size along one of the last two axes, scales of one type."""
    wanted, scales = _FLOAT_BLOCKS[data.dtype]
    shape = static_shape(data)
    axis = _int(node, "axis", 1) % len(shape)
    if block != wanted or axis < len(shape) - 2 or shape[axis] % wanted:
        yield f"blocks of {block} along axis {axis} of {list(shape)}; expected {wanted} that divide"
    if scale not in scales:
        yield f"{scale.name.lower()} scales for blocks of {data.dtype.name.lower()}"


def _pairs(node: ir.Node) -> Iterator[str]:
    """A pair must feed an operator that fuses with it."""
    if node.op_type == "QuantizeLinear":
        readers = [use.node.op_type for use in node.outputs[0].uses()]
        if any(op != "DequantizeLinear" for op in readers) or node.outputs[0].is_graph_output():
            yield "its codes are read by more than DequantizeLinear"
    elif node.op_type == "DequantizeLinear" and _quantizes(node) and not _feeds(node, _FUSES):
        yield "feeds no operator that computes on integers"


def _quantizes(node: ir.Node) -> bool:
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "QuantizeLinear"


def _feeds(node: ir.Node, wanted: frozenset[str]) -> bool:
    """Whether one of these operators follows, over operators that only copy."""
    stack, seen = [node], {node}
    while stack:
        for value in stack.pop().outputs:
            for use in value.uses():
                if use.node.op_type in wanted:
                    return True
                if use.node.op_type in _COPIES and use.node not in seen:
                    seen.add(use.node)
                    stack.append(use.node)
    return False


def _operands(node: ir.Node) -> Iterator[str]:
    if node.op_type == "Add":
        if all(_dequantized(v) for v in node.inputs):
            yield "both operands are dequantized; the one that a convolution ends in stays float"
        return
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return
    first, second = _dequantized(node.inputs[0]), _dequantized(node.inputs[1])
    if first and not second:
        yield "its input is quantized and its weight is not"
    if len(node.inputs) > 2 and _dequantized(node.inputs[2]):
        yield "its bias is quantized; TensorRT keeps it in floats"
    weight = node.inputs[1]
    if first and second and weight is not None and weight.shape is not None:
        narrow = _narrow(node, weight.shape)
        if narrow:
            yield f"{narrow} channels; integers pay from {LEAST_CHANNELS} on"


def _narrow(node: ir.Node, shape: ir.Shape) -> int:
    sizes = [d for d in shape[-2:] if isinstance(d, int)]
    if node.op_type in ("Conv", "ConvTranspose"):
        sizes = [d for d in shape[:2] if isinstance(d, int)]
        sizes[1:] = [s * _int(node, "group", 1) for s in sizes[1:]]
    return min((s for s in sizes if s < LEAST_CHANNELS), default=0)


def _dequantized(value: ir.Value | None) -> bool:
    """Whether an operand comes from a DequantizeLinear, over operators that only copy."""
    while value is not None:
        producer = value.producer()
        if producer is None:
            return False
        if producer.op_type == "DequantizeLinear":
            return True
        if producer.op_type not in _COPIES or not producer.inputs:
            return False
        value = producer.inputs[0]
    return False


def _bias_int32(node: ir.Node) -> Iterator[str]:
    if node.op_type == "DequantizeLinear":
        value = node.inputs[0]
        if value is not None and value.dtype == ir.DataType.INT32:
            yield "int32 codes of a bias; TensorRT keeps it in floats"


def _float_types(node: ir.Node) -> Iterator[str]:
    for value in node.inputs:
        if value is not None and value.dtype == ir.DataType.DOUBLE:
            yield f"{value.name} is float64; TensorRT computes in float32"


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


_RULES: tuple[Callable[[ir.Node], Iterator[str]], ...] = (
    _operator,
    _typed,
    _pairs,
    _operands,
    _bias_int32,
    _float_types,
)
