"""Which float operands and results of a node may have another float type, as its schema says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx
import onnx_ir as ir

from lwqc.graph.value_types import is_tensor

NAMES = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}
# Operators of com.microsoft whose float operands and results all have one type; onnx knows no
# schema of theirs.
_ONE_TYPE = frozenset(
    {
        "Attention", "BiasAdd", "BiasGelu", "BiasSplitGelu", "EmbedLayerNormalization", "FastGelu",
        "FusedConv", "FusedMatMul", "GatherBlockQuantized", "Gelu", "GroupNorm",
        "GroupQueryAttention", "MatMulBnb4", "MatMulNBits", "MultiHeadAttention", "NhwcConv",
        "QuickGelu", "RotaryEmbedding", "SkipGroupNorm", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip
# The runtime's own, in the default domain.
_ONE_TYPE_DEFAULT = frozenset({"SimplifiedLayerNormalization"})


@dataclass(frozen=True)
class FloatSlots:
    """Positions of a node's operands and results that change type together.

    Operands are float32 or have the new type already; results are float32.
    """

    inputs: frozenset[int]
    outputs: frozenset[int]


_FLOATS = (ir.DataType.FLOAT, *NAMES)
_NONE = FloatSlots(frozenset(), frozenset())


def float_slots(node: ir.Node, dtype: ir.DataType, opset: int) -> FloatSlots:
    """What may become `dtype`; nothing where the operator is unknown or has no such form.

    opset: version of the node's domain. Sequences and optionals keep the type of their elements.
    """
    if node.domain == "com.microsoft" or node.op_type in _ONE_TYPE_DEFAULT:
        known = _ONE_TYPE if node.domain == "com.microsoft" else _ONE_TYPE_DEFAULT
        if node.op_type not in known:
            return _NONE
        return FloatSlots(
            frozenset(i for i, v in enumerate(node.inputs) if _either(v, dtype)),
            frozenset(i for i, v in enumerate(node.outputs) if is_float32(v)),
        )
    schema = operator_schema(node.op_type, opset, node.domain)
    if schema is None or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
        return _NONE
    if not all(map(is_tensor, (*node.inputs, *node.outputs))):
        return _NONE
    allowed = _allowed(schema)
    name = NAMES[dtype]
    inputs = frozenset(
        i
        for i, value in enumerate(node.inputs)
        if _either(value, dtype) and name in allowed.get(_variable(schema.inputs, i), ())
    )
    bound = {_variable(schema.inputs, i) for i in inputs}
    outputs = frozenset(
        i
        for i, value in enumerate(node.outputs)
        if is_float32(value) and _variable(schema.outputs, i) in bound
    )
    return FloatSlots(inputs, outputs)


def result_types(node: ir.Node, opset: int) -> dict[int, ir.DataType]:
    """Types of results that the model does not state, as far as operands and schema tell them."""
    unknown = [i for i, v in enumerate(node.outputs) if v.type is None]
    if not unknown:
        return {}
    if node.domain == "com.microsoft" or node.op_type in _ONE_TYPE_DEFAULT:
        first = next((v.dtype for v in node.inputs if v is not None and v.dtype in _FLOATS), None)
        one_type = node.op_type in _ONE_TYPE | _ONE_TYPE_DEFAULT
        return dict.fromkeys(unknown, first) if one_type and first is not None else {}
    if node.op_type == "Cast":
        return {0: ir.DataType(node.attributes["to"].as_int())}
    schema = operator_schema(node.op_type, opset, node.domain)
    if schema is None:
        return {}
    bound: dict[str, ir.DataType] = {}
    for i, v in enumerate(node.inputs):
        variable = _variable(schema.inputs, i)
        # Operands that were converted already will be converted back where others are float32.
        if v is not None and v.dtype is not None and bound.get(variable) != ir.DataType.FLOAT:
            bound[variable] = v.dtype
    bound |= {"tensor(float)": ir.DataType.FLOAT, "tensor(int64)": ir.DataType.INT64}
    named = {i: bound.get(_variable(schema.outputs, i)) for i in unknown}
    return {i: dtype for i, dtype in named.items() if dtype is not None}


def is_float32(value: ir.Value | None) -> bool:
    """Whether a value is a float32 tensor."""
    if value is None or value.dtype != ir.DataType.FLOAT:
        return False
    return value.type is None or isinstance(value.type, ir.TensorType)


def _either(value: ir.Value | None, dtype: ir.DataType) -> bool:
    return value is not None and (is_float32(value) or value.dtype == dtype)


@cache
def operator_schema(op_type: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    """What onnx knows of an operator at a version of its domain; None for nothing."""
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _allowed(schema: onnx.defs.OpSchema) -> Mapping[str, frozenset[str]]:
    return {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}


def _variable(formal: object, index: int) -> str:
    """The type variable at a position; the last one of a variadic list repeats."""
    slots = list(formal)  # type: ignore[call-overload]
    return str(slots[min(index, len(slots) - 1)].type_str) if slots else ""
