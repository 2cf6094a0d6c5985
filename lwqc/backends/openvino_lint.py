"""What OpenVINO's reader of ONNX would refuse in a graph.

Read off OpenVINO 2026.4.1 by giving it one node of every operator; the rules of DequantizeLinear by
giving it graphs that break them. `tests/backends/test_openvino.py` asks the installed one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from lwqc.graph.captures import captures
from lwqc.model.weights import stored_tensor

MAX_OPSET = 26  # the newest that was read
# Of the default operator set, those without a rule of conversion; of sequences none is executed.
LACKING = frozenset(
    {
        "BitCast", "CausalConvWithState", "ConcatFromSequence", "CumProd", "DeformConv", "Det",
        "ImageDecoder", "LinearAttention", "MaxUnpool", "MelWeightMatrix", "Optional",
        "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
        "SequenceMap", "SplitToSequence", "StringConcat",
        "StringNormalizer", "StringSplit", "SwiGLU", "TensorScatter", "TfIdfVectorizer",
    }
)  # fmt: skip
# Of other domains, those that have one.
KNOWN = {
    "ai.onnx.ml": frozenset({"Normalizer"}),
    "com.microsoft": frozenset(
        {
            "Attention", "BiasAdd", "BiasGelu", "DequantizeLinear", "DynamicQuantizeLSTM",
            "DynamicQuantizeMatMul", "EmbedLayerNormalization", "FastGelu", "FusedConv",
            "FusedGemm", "FusedMatMul", "GatherBlockQuantized", "GatherND", "Gelu",
            "GroupNorm", "GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits",
            "MultiHeadAttention", "Pad", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
            "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid",
            "QLinearSoftmax", "QLinearWhere", "QuantizeLinear", "QuickGelu", "Range",
            "RotaryEmbedding", "SimplifiedLayerNormalization", "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization", "Trilu",
        }
    ),
}  # fmt: skip
_TWO_BITS = (ir.DataType.INT2, ir.DataType.UINT2)


def lint(model: ir.Model) -> list[str]:
    """One line per violation, naming the node and what OpenVINO reads."""
    opset = int(model.opset_imports.get("", 1))
    found = []
    if opset > MAX_OPSET:
        found.append(f"opset {opset}: OpenVINO is known to read opsets up to {MAX_OPSET}")
    found += [
        f"{node.op_type} {node.name or node.outputs[0].name}: OpenVINO gives the body of a Scan "
        f"nothing that is computed outside: {outside[0].name}"
        for graph in model.graphs()
        for node, read in captures(graph)
        if node.op_type == "Scan" and (outside := [v for v in read if v.const_value is None])
    ]
    own = {(function.domain, function.name) for function in model.functions.values()}
    for node in model.graph.all_nodes():
        where = f"{node.op_type} {node.name or node.outputs[0].name}"
        if (node.domain, node.op_type) in own:
            found.append(f"{where}: OpenVINO reads no functions of a model's own")
            continue
        found += [f"{where}: {line}" for rule in _RULES for line in rule(node)]
    return found


def lacks(domain: str, op_type: str) -> bool:
    """Whether OpenVINO has no rule of conversion for an operator."""
    if domain in ("", "ai.onnx"):
        return op_type in LACKING
    return op_type not in KNOWN.get(domain, frozenset())


def _operator(node: ir.Node) -> Iterator[str]:
    if lacks(node.domain, node.op_type):
        yield f"OpenVINO reads no {node.domain + '.' if node.domain else ''}{node.op_type}"


def _codes(node: ir.Node) -> Iterator[str]:
    types = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None}
    if not types.isdisjoint(_TWO_BITS):
        yield "OpenVINO reads no codes of 2 bits"
    if node.op_type != "DequantizeLinear" or "block_size" not in node.attributes:
        return
    codes, block = stored_tensor(node.inputs[0]), node.attributes["block_size"].as_int()
    if codes is None or not block:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    size = tuple(codes.shape)[axis]
    if isinstance(size, int) and size % block:
        yield f"blocks of {block} do not divide {size}; OpenVINO reads whole blocks"


_RULES: tuple[Callable[[ir.Node], Iterator[str]], ...] = (_operator, _codes)
