"""Quantizable sites: weight operands that can take a number format, and why others cannot.

A site is one stored tensor seen as a matrix [N outputs, K inputs], with every node that uses it
that way. Tied weights (an embedding that is also the output projection) are one site with two uses.
It is a value of a graph: two bodies may own different tensors of one name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.folded_codes import reads_codebook
from lwqc.graph.routers import routers
from lwqc.model.names import distinct_names
from lwqc.model.tensor_bytes import StoredMatrix
from lwqc.model.weights import (
    ReadArray,
    Weight,
    evaluate,
    is_float,
    movement,
    static_shape,
    trace_weight,
    weight_shape,
)

BOTH_WAYS = "is read in both orientations, and scales go along one"
OVERRIDABLE = "is also an input, which callers may override; --constant-inputs makes it a constant"
_LARGE_BYTES = 32 << 20  # of a weight that is better read in parts
_READ_BY_ROWS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_ROUTER = "chooses experts, and fewer bits would choose others"
_STACK = "matrices that are picked by number: weights only where `grouped-experts` can part them"
MIN_WEIGHTS = 1024  # smaller tensors are not worth a row in a table


@dataclass(frozen=True)
class Use:
    """One node that reads a site's weight.

    transposed: the operand is the site's matrix as [K, N] rather than [N, K]. operator: what
    computes with the weight, where that is not the node itself but lies behind constant steps.
    """

    node: ir.Node
    index: int
    transposed: bool
    operator: str = ""

    @property
    def op(self) -> str:
        """The operator that computes with the weight."""
        return self.operator or self.node.op_type

    @property
    def activation(self) -> ir.Value | None:
        """The other operand: activations of a linear operator, indices of a Gather."""
        return None if self.operator else self.node.inputs[1 - self.index]


@dataclass(frozen=True)
class Site:
    """One weight that can take a number format.

    name: the stored tensor's name, or where others have it too, a longer one; see
    `distinct_names`. op: operator of the first use (`MatMul`, `Gemm`, `Conv`, `ConvTranspose`,
    `Gather`, `LSTM`, `GRU` or `RNN`). shape: the weight as the operator sees it. n, k: the matrix
    [N outputs, K inputs per output]. groups: of a convolution, else 1. in_body: whether a node in
    the body of an If, Loop or Scan reads it. both_ways: whether nodes multiply by the matrix and
    others by its transpose; scales are along the inputs of the first use, so that kernels that
    read codes cannot serve the others.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    n: int
    k: int
    groups: int
    weight: Weight
    uses: tuple[Use, ...]
    in_body: bool = False
    both_ways: bool = False

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.n * self.k

    @property
    def float_bytes(self) -> int:
        """Bytes of the tensor as it is stored now."""
        return int(self.weight.tensor.nbytes)

    @property
    def is_double(self) -> bool:
        """Whether its operators compute in float64, for which there are no low-bit kernels."""
        operands = [use.node.inputs[use.index] for use in self.uses]
        types = {v.dtype for v in operands if v is not None and v.dtype is not None}
        return ir.DataType.DOUBLE in (types or {self.weight.tensor.dtype})

    @property
    def has_kernels(self) -> bool:
        """Whether codes could serve its operators; otherwise they are unpacked."""
        return not (self.is_double or self.both_ways)

    @property
    def ops(self) -> frozenset[str]:
        """Operators that use the weight."""
        return frozenset(use.op for use in self.uses)

    def matrix(self, read: ReadArray) -> NDArray[np.floating]:
        """The weight [N, K] as a float array; a view of what `read` returns where possible."""
        use = self.uses[0]
        array = evaluate(self.weight, read)
        if array.ndim == 2:
            return array.T if use.transposed else array  # type: ignore[return-value]
        return array.reshape(self.n, self.k)  # type: ignore[return-value]

    def stored_rows(self) -> StoredMatrix | None:
        """The weight [N, K] as it lies in a data file; None where it does not lie there like that.

        For weights of which a copy in memory would cost much.
        """
        tensor = self.weight.tensor
        plain = not self.weight.steps and len(self.shape) == 2 and tensor.dtype in _READ_BY_ROWS
        if not plain or not isinstance(tensor, ir.ExternalTensor) or tensor.nbytes < _LARGE_BYTES:
            return None
        return StoredMatrix(tensor, self.uses[0].transposed)


@dataclass(frozen=True)
class Skipped:
    """A stored float tensor that takes no format, with the reason."""

    name: str
    op: str
    size: int
    reason: str


@dataclass(frozen=True)
class SiteAnalysis:
    """All sites of a model in graph order, and what was left out."""

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Found:
    use: Use
    n: int
    k: int
    groups: int


_Operand = Callable[[ir.Node, int, tuple[int, ...]], "_Found | str"]


def find_sites(model: ir.Model) -> SiteAnalysis:
    """List the quantizable sites of a model, subgraphs included.

    Every float tensor of at least `MIN_WEIGHTS` elements is either part of a site or in `skipped`.
    """
    found: dict[ir.Value, list[tuple[Weight, _Found]]] = {}
    refused: dict[ir.Value, Skipped] = {}
    choosing = routers(model.graph)
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            weight = trace_weight(value)
            if weight is None or _produces_constant(node):
                continue
            answer = _ROUTER if node in choosing else _classify(node, index, weight)
            if isinstance(answer, str):
                refused.setdefault(weight.source, _skip(weight, node, answer))
            else:
                found.setdefault(weight.source, []).append((weight, answer))
    names = distinct_names(model, [*found, *refused])
    sites: list[Site] = []
    for source, uses in found.items():
        if source in refused:
            continue
        merged = _merge(uses)
        if isinstance(merged, str):
            refused[source] = _skip(uses[0][0], uses[0][1].use.node, merged)
        else:
            in_body = any(use.node.graph is not model.graph for use in merged.uses)
            sites.append(replace(merged, name=names[source], in_body=in_body))
    skipped = [replace(s, name=names[v]) for v, s in refused.items() if s.size >= MIN_WEIGHTS]
    return SiteAnalysis(tuple(sites), tuple(skipped + _overridable(model) + _in_functions(model)))


def sites_by_name(model: ir.Model) -> dict[str, Site]:
    """The quantizable sites of a model."""
    return {site.name: site for site in find_sites(model).sites}


def _produces_constant(node: ir.Node) -> bool:
    """A step between a stored tensor and its user is not a user itself."""
    return trace_weight(node.outputs[0]) is not None if node.outputs else False


def _classify(node: ir.Node, index: int, weight: Weight) -> _Found | str:
    operand = _OPERANDS.get((node.domain, node.op_type))
    if operand is None:
        return f"no low-bit form of {node.op_type} is known"
    if not any(is_float(t) for t in (weight.tensor,)) and not _dequantized(weight):
        return f"stored as {weight.tensor.dtype.name}, not a float type"
    if weight.tensor.dtype is ir.DataType.DOUBLE:
        return "is float64, which no low-bit kernel computes in"
    shape = weight_shape(weight)
    if shape is None:
        return "its shape is not known"
    if 0 in shape:
        return "has no values"
    if weight.source.is_graph_output():
        return "is also a graph output"
    return operand(node, index, shape)


def _dequantized(weight: Weight) -> bool:
    return any(step.op_type == "DequantizeLinear" for step in weight.steps)


def _skip(weight: Weight, node: ir.Node, reason: str) -> Skipped:
    return Skipped(weight.name, node.op_type, int(weight.tensor.size), reason)


def _merge(uses: list[tuple[Weight, _Found]]) -> Site | str:
    """One site from all uses of a tensor, or why they do not agree."""
    weight, first = uses[0]
    way = _way(weight, first.use)
    found: list[Use] = []
    for other, seen in uses:
        same = _way(other, seen.use) == way
        if (seen.n, seen.k, seen.groups) == (first.n, first.k, first.groups) and same:
            found.append(seen.use)
        elif (seen.k, seen.n) == (first.n, first.k) and {way, _way(other, seen.use)} == _WAYS:
            found.append(replace(seen.use, transposed=not seen.use.transposed))
        else:
            return "its uses see it in different orientations"
    shape = weight_shape(weight)
    if shape is None:
        return "its shape is not known"
    return Site(
        weight.name,
        first.use.op,
        shape,
        first.n,
        first.k,
        first.groups,
        weight,
        tuple(found),
        both_ways=any(_way(w, f.use) != way for w, f in uses),
    )


_WAYS = {(0,), (1,)}  # of a stored matrix: as it is, and transposed


def _way(weight: Weight, use: Use) -> tuple[object, ...]:
    """How the matrix [N, K] of a use comes out of the stored tensor; alike only for the same one.

    Of a stored matrix one of `_WAYS`; else every step.
    """
    steps = [movement(step) for step in weight.steps]
    moves = [step for step in steps if step is not None]
    flips = [move in (("Transpose", None), ("Transpose", (1, 0))) for move in moves]
    if len(static_shape(weight.tensor)) == 2 and all(flips):
        return ((len(flips) + use.transposed) % 2,)
    return (*moves, use.transposed)


def _overridable(model: ir.Model) -> list[Skipped]:
    """Weights that are also graph inputs: callers may give others."""
    return [
        Skipped(value.name or "", node.op_type, int(tensor.size), OVERRIDABLE)
        for value in model.graph.inputs
        if (tensor := value.const_value) is not None
        if is_float(tensor) and tensor.size >= MIN_WEIGHTS
        for node in [use.node for use in value.uses()][:1]
    ]


def _in_functions(model: ir.Model) -> list[Skipped]:
    """Constants inside model-local functions: the rewrites do not look there."""
    return [
        Skipped(node.outputs[0].name or "", function.name, int(tensor.size), "inside a function")
        for function in model.functions.values()
        for node in function
        if node.op_type == "Constant" and (attr := node.attributes.get("value")) is not None
        for tensor in [attr.as_tensor()]
        if is_float(tensor) and tensor.size >= MIN_WEIGHTS
    ]


def _matmul(node: ir.Node, index: int, shape: tuple[int, ...]) -> _Found | str:
    if index != 1:
        return "is the left operand of a MatMul"
    if len(shape) != 2:
        return f"is a batch of matrices {list(shape)}"
    return _Found(Use(node, 1, transposed=True), n=shape[1], k=shape[0], groups=1)


_SET = "its Gemm has alpha, beta or transA set"


def _gemm(node: ir.Node, index: int, shape: tuple[int, ...]) -> _Found | str:
    if index != 1:
        return "is the left operand of a Gemm" if index == 0 else "is a bias"
    if _int(node, "transA"):
        return f"{_SET}: transA"
    biased = len(node.inputs) > 2 and node.inputs[2] is not None
    for factor in ("alpha", "beta") if biased else ("alpha",):
        attribute = node.attributes.get(factor)
        if attribute is not None and attribute.as_float() != 1:
            return f"{_SET}: {factor} is {attribute.as_float():g}"
    transposed = not _int(node, "transB")
    n, k = (shape[1], shape[0]) if transposed else shape
    return _Found(Use(node, 1, transposed), n=n, k=k, groups=1)


def _conv(node: ir.Node, index: int, shape: tuple[int, ...]) -> _Found | str:
    if index != 1:
        return "is the left operand of a convolution" if index == 0 else "is a bias"
    k = int(np.prod(shape[1:]))
    return _Found(Use(node, 1, transposed=False), shape[0], k, _int(node, "group") or 1)


def _gather(node: ir.Node, index: int, shape: tuple[int, ...]) -> _Found | str:
    if index != 0:
        return "holds indices"
    if len(shape) == 3 and _int(node, "axis") in (0, -3):
        return _STACK
    if len(shape) != 2 or _int(node, "axis") not in (0, -2):
        return f"is gathered along axis {_int(node, 'axis')} of {list(shape)}"
    if reads_codebook(node):
        return "is a codebook, of a weight that becomes floats at load"
    return _Found(Use(node, 0, transposed=False), n=shape[0], k=shape[1], groups=1)


def _gather_nd(node: ir.Node, index: int, shape: tuple[int, ...]) -> str:
    stack = index == 0 and len(shape) == 3
    return _STACK if stack else f"no low-bit form of {node.op_type} is known"


def _recurrent(node: ir.Node, index: int, shape: tuple[int, ...]) -> _Found | str:
    if index not in _RECURRENT_WEIGHTS or len(shape) != 3:
        return f"is no weight of its {node.op_type}"
    use = Use(node, index, transposed=False, operator=node.op_type)
    return _Found(use, n=shape[0] * shape[1], k=shape[2], groups=1)


def _moved(node: ir.Node, index: int, shape: tuple[int, ...]) -> _Found | str:
    """A matrix of rows that are put together to the weight of an LSTM, GRU or RNN."""
    readers = _operators_behind(node)
    if len(shape) < 2 or not readers or not readers <= _RECURRENT:
        return f"no low-bit form of {node.op_type} is known"
    use = Use(node, index, transposed=False, operator="+".join(sorted(readers)))
    return _Found(use, n=shape[0], k=int(np.prod(shape[1:])), groups=1)


def _operators_behind(node: ir.Node) -> set[str]:
    """What reads the output of a node that moves data, directly or through more of them."""
    found: set[str] = set()
    seen, todo = {node}, [node]
    while todo:
        for output in todo.pop().outputs:
            if output.is_graph_output():
                found.add("graph output")
            for use in output.uses():
                reader = use.node
                weight = reader.op_type in _RECURRENT and use.idx in _RECURRENT_WEIGHTS
                if ((reader.domain, reader.op_type) in _MOVES and use.idx == 0) or (
                    reader.op_type == "Concat"
                ):
                    if reader not in seen:
                        seen.add(reader)
                        todo.append(reader)
                else:
                    found.add(reader.op_type if weight else f"operand of {reader.op_type}")
    return found


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_RECURRENT_WEIGHTS = (1, 2)
_MOVES = frozenset({("", op) for op in ("Slice", "Concat", "Unsqueeze", "Squeeze")})
# One row per operator whose weight can take a format: how its operand is seen as [N, K].
_OPERANDS: dict[tuple[str, str], _Operand] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv,
    ("", "Gather"): _gather,
    ("", "GatherND"): _gather_nd,
    **{("", op): _recurrent for op in _RECURRENT},
    **dict.fromkeys(_MOVES, _moved),
}
