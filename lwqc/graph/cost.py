"""What each node costs: parameters, weight bytes and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.value_types import infer_types
from lwqc.model.weights import static_shape, stored_tensor, trace_weight, weight_shape

Sizes = tuple[int, ...]
_NOT_PARAMETERS = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING})


@dataclass(frozen=True)
class StoredCost:
    """A stored tensor that a node reads. parameters: its elements, 4-bit pairs counted as two."""

    name: str
    parameters: int
    size_bytes: int


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node.

    parameters, weight_bytes: of the stored tensors it reads, also through constant data movement;
        indices and sizes (int64, bool) are no parameters.
    macs: multiply-accumulates of one run; None where they cannot be told: a shape is unknown, the
        operator is neither in the table nor of the ONNX domain, or it is in the body of a subgraph.
    unknown: why macs is None, or "".
    weights: those tensors one by one; one that several nodes share is with each of them.
    """

    name: str
    op: str
    parameters: int
    weight_bytes: int
    macs: int | None
    weights: tuple[StoredCost, ...]
    unknown: str = ""


@dataclass(frozen=True)
class TotalCost:
    """Sums over nodes; a tensor that several nodes read counts once.

    macs: None when those of any node are not known. known_macs: of the nodes where they are.
    unknown: names of the others.
    """

    parameters: int
    weight_bytes: int
    macs: int | None
    known_macs: int
    unknown: tuple[str, ...]


def total(costs: Iterable[NodeCost]) -> TotalCost:
    """Sum the costs of a graph's nodes."""
    costs = list(costs)
    stored = {w.name: w for cost in costs for w in cost.weights}.values()
    unknown = tuple(cost.name for cost in costs if cost.macs is None)
    known_macs = sum(cost.macs or 0 for cost in costs)
    return TotalCost(
        parameters=sum(w.parameters for w in stored),
        weight_bytes=sum(w.size_bytes for w in stored),
        macs=None if unknown else known_macs,
        known_macs=known_macs,
        unknown=unknown,
    )


def node_costs(graph: ir.Graph, shapes: Mapping[str, Sequence[int]]) -> list[NodeCost]:
    """Cost of every node, those of subgraphs included, in order.

    shapes: value name -> sizes; values that declare a fixed shape and stored tensors need no entry.
    See `static_shapes`.
    """
    known = _Shapes(shapes)
    return [_cost(node, known, inside=node.graph is not graph) for node in graph.all_nodes()]


def static_shapes(model: ir.Model, dims: Mapping[str, int]) -> dict[str, Sizes]:
    """Shapes of the main graph's values by ONNX shape inference, without reading weights.

    dims: sizes of symbolic dimensions, by name. Values whose shape still has an unknown dimension
    are left out. The model is not changed.
    """
    copy = model.clone()
    for value in _values(copy.graph):
        if value.shape is not None:
            value.shape = ir.Shape(dims.get(str(d), d) for d in value.shape)
    infer_types(copy)
    return {
        value.name: tuple(int(d) for d in value.shape if isinstance(d, int))
        for value in _values(copy.graph)
        if value.name and value.shape is not None and value.shape.is_static()
    }


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _cost(node: ir.Node, shapes: _Shapes, *, inside: bool) -> NodeCost:
    weights = _weights(node)
    macs = _macs(node, shapes, inside=inside)
    return NodeCost(
        name=node.name or (node.outputs[0].name if node.outputs else None) or node.op_type,
        op=node.op_type,
        parameters=sum(w.parameters for w in weights),
        weight_bytes=sum(w.size_bytes for w in weights),
        macs=None if isinstance(macs, str) else macs,
        weights=weights,
        unknown=macs if isinstance(macs, str) else "",
    )


def _weights(node: ir.Node) -> tuple[StoredCost, ...]:
    """Stored tensors that a node reads; nodes that only move constants leave them to their user."""
    if _moves_constants(node):
        return ()
    row = OPERATORS.get((node.domain, node.op_type))
    packed = row.packed if row else None
    found: dict[str, StoredCost] = {}
    for index, value in enumerate(node.inputs):
        for source, tensor in _sources(value):
            per_element = 8 // _int(node, "bits", 8) if index == packed else 1
            count = 0 if tensor.dtype in _NOT_PARAMETERS else int(tensor.size) * per_element
            found[source.name or ""] = StoredCost(source.name or "", count, int(tensor.nbytes))
    return tuple(found.values())


def _moves_constants(node: ir.Node) -> bool:
    output = node.outputs[0] if node.outputs else None
    return output is not None and not output.is_graph_output() and trace_weight(output) is not None


def _sources(value: ir.Value | None) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    """The stored tensors behind an operand, with the scales and zero points on the way."""
    if value is None:
        return []
    weight = trace_weight(value)
    values = [value] if weight is None else [weight.source]
    for step in weight.steps if weight is not None else ():
        values.extend(v for v in step.inputs[1:] if v is not None)
    return [(v, t) for v in values if (t := _stored(v)) is not None]


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    # An initializer that is also a graph input can be overridden, but it is stored all the same.
    return value.const_value if value.is_initializer() else stored_tensor(value)


class _Shapes:
    """Shapes of values: given ones, else those of stored tensors, else declared ones."""

    def __init__(self, given: Mapping[str, Sequence[int]]) -> None:
        self.given = given

    def __call__(self, value: ir.Value | None) -> Sizes:
        """Sizes of a value. Raises _UnknownError when they are not known."""
        if value is None or not value.name:
            raise _UnknownError("an operand is missing")
        if value.name in self.given:
            return tuple(int(d) for d in self.given[value.name])
        weight = trace_weight(value)
        shape = weight_shape(weight) if weight is not None else None
        if shape is None and (tensor := _stored(value)) is not None:
            shape = static_shape(tensor)
        if shape is None and value.shape is not None and value.shape.is_static():
            shape = tuple(int(d) for d in value.shape if isinstance(d, int))
        if shape is None:
            raise _UnknownError("a shape is not known")
        return shape


class _UnknownError(Exception):
    """The shapes or attributes at hand do not tell the cost; the message says which."""


def _macs(node: ir.Node, shapes: _Shapes, *, inside: bool) -> int | str:
    """Products of one run, or why they cannot be told."""
    row = OPERATORS.get((node.domain, node.op_type))
    if row is None:
        return 0 if node.domain in _FREE_DOMAINS else f"{node.op_type} of {node.domain} is unknown"
    if row.macs is _none:
        return 0
    if inside:
        return "in the body of an If, Loop or Scan, which may run or not, or many times"
    try:
        return row.macs(node, shapes)
    except _UnknownError as error:
        return str(error)
    except (IndexError, KeyError):
        return f"{node.op_type} lacks an operand, a size or an attribute"


def _none(node: ir.Node, shapes: _Shapes) -> int:
    return 0


def _undetermined(node: ir.Node, shapes: _Shapes) -> int:
    raise _UnknownError(f"{node.op_type} is not counted")


def _matmul(node: ir.Node, shapes: _Shapes) -> int:
    """Output elements times the contracted size; FusedMatMul may transpose A."""
    if _int(node, "transBatchA", 0):
        raise _UnknownError("transBatchA is not counted")
    left = shapes(node.inputs[0])
    inner = left[-2] if _int(node, "transA", 0) and len(left) > 1 else left[-1]
    return math.prod(shapes(node.outputs[0])) * inner


def _matmul_packed(node: ir.Node, shapes: _Shapes) -> int:
    """Activation elements times N: the packed weight has no [K, N] shape."""
    return math.prod(shapes(node.inputs[0])) * node.attributes["N"].as_int()


def _conv(weight: int) -> Callable[[ir.Node, _Shapes], int]:
    """w [out, in/groups, *kernel]: each output element takes in/groups * kernel products."""
    return lambda node, shapes: (
        math.prod(shapes(node.outputs[0])) * math.prod(shapes(node.inputs[weight])[1:])
    )


def _conv_transpose(node: ir.Node, shapes: _Shapes) -> int:
    """w [in, out/groups, *kernel]: each input element is used out/groups * kernel times."""
    return math.prod(shapes(node.inputs[0])) * math.prod(shapes(node.inputs[1])[1:])


def _recurrent(node: ir.Node, shapes: _Shapes) -> int:
    """x [steps, batch, in], W [dirs, gates*hidden, in], R [dirs, gates*hidden, hidden]."""
    sizes = shapes(node.inputs[0])
    if len(sizes) != 3:
        raise _UnknownError
    first, second, _ = sizes
    weights = (math.prod(shapes(node.inputs[i])) for i in (1, 2))
    return first * second * sum(weights)


def _einsum(node: ir.Node, shapes: _Shapes) -> int:
    """The product of all index sizes, for two operands; the order of more is the runtime's."""
    terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
    if len(terms) != len(node.inputs) or len(terms) > 2:
        raise _UnknownError("Einsum of more than two operands is not counted")
    if len(terms) == 1:
        return 0
    size: dict[str, int] = {}
    batch: list[Sizes] = []
    for term, value in zip(terms, node.inputs, strict=True):
        shape = shapes(value)
        before, dots, after = term.partition("...")
        rest = len(shape) - len(before) - len(after)
        batch.append(shape[len(before) : len(before) + rest] if dots else ())
        fixed = (*shape[: len(before)], *shape[len(before) + rest :])
        if rest < 0 or len(fixed) != len(before + after):
            raise _UnknownError
        for letter, length in zip(before + after, fixed, strict=True):
            size[letter] = max(size.get(letter, 1), length)
    rank = max(map(len, batch))
    padded = [(1,) * (rank - len(sizes)) + sizes for sizes in batch]
    wide = [max(sizes) for sizes in zip(*padded, strict=True)]
    return math.prod([*size.values(), *wide])


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


@dataclass(frozen=True)
class Operator:
    """How an operator computes. packed: input whose bytes each hold 8 / `bits` weights."""

    macs: Callable[[ir.Node, _Shapes], int]
    packed: int | None = None


_FREE_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})  # their other operators have no MACs
_MS = "com.microsoft"
_MS_WITHOUT_MACS = (
    *("BiasGelu", "DequantizeLinear", "DynamicQuantizeLinear", "EmbedLayerNormalization"),
    *("FastGelu", "Gelu", "QLinearAdd", "QLinearAveragePool", "QLinearConcat"),
    *("QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid"),
    *("QLinearSoftmax", "QLinearWhere", "QuantizeLinear", "QuickGelu", "RotaryEmbedding"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization"),
)

OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "MatMul"): Operator(_matmul),
    ("", "Gemm"): Operator(_matmul),
    ("", "Conv"): Operator(_conv(1)),
    ("", "ConvTranspose"): Operator(_conv_transpose),
    ("", "Gather"): Operator(_none),
    ("", "Einsum"): Operator(_einsum),
    ("", "LSTM"): Operator(_recurrent),
    ("", "GRU"): Operator(_recurrent),
    ("", "RNN"): Operator(_recurrent),
    ("", "MatMulInteger"): Operator(_matmul),
    ("", "ConvInteger"): Operator(_conv(1)),
    ("", "QLinearMatMul"): Operator(_matmul),
    ("", "QLinearConv"): Operator(_conv(3)),
    ("", "DeformConv"): Operator(_undetermined),
    ("", "Attention"): Operator(_undetermined),
    (_MS, "FusedMatMul"): Operator(_matmul),
    (_MS, "FusedGemm"): Operator(_matmul),
    (_MS, "FusedConv"): Operator(_conv(1)),
    (_MS, "QGemm"): Operator(_matmul),
    (_MS, "MatMulIntegerToFloat"): Operator(_matmul),
    (_MS, "DynamicQuantizeMatMul"): Operator(_matmul),
    (_MS, "DynamicQuantizeLSTM"): Operator(_recurrent),
    (_MS, "MatMulNBits"): Operator(_matmul_packed, packed=1),
    (_MS, "GatherBlockQuantized"): Operator(_none, packed=0),
    **{(_MS, op): Operator(_none) for op in _MS_WITHOUT_MACS},
}
