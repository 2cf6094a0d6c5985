"""Quantizable sites: weight operands that can take a number format, and why others cannot.

A site is one stored tensor seen as a matrix [N outputs, K inputs], with every node that uses it
that way. Tied weights (an embedding that is also the output projection) are one site with two uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.weights import ReadArray, Weight, evaluate, is_float, trace_weight, weight_shape

OVERRIDABLE = "is also an input, which callers may override; --constant-inputs makes it a constant"
MIN_WEIGHTS = 1024  # smaller tensors are not worth a row in a table


@dataclass(frozen=True)
class Use:
    """One node that reads a site's weight.

    transposed: the operand is the matrix [K, N] rather than [N, K].
    """

    node: ir.Node
    index: int
    transposed: bool

    @property
    def activation(self) -> ir.Value | None:
        """The other operand: activations of a linear operator, indices of a Gather."""
        return self.node.inputs[1 - self.index]


@dataclass(frozen=True)
class Site:
    """One weight that can take a number format.

    name: the stored tensor's name. op: operator of the first use (`MatMul`, `Gemm`, `Conv`,
    `ConvTranspose` or `Gather`). shape: the weight as the operator sees it. n, k: the matrix
    [N outputs, K inputs per output]. groups: of a convolution, else 1.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    n: int
    k: int
    groups: int
    weight: Weight
    uses: tuple[Use, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.n * self.k

    @property
    def float_bytes(self) -> int:
        """Bytes of the tensor as it is stored now."""
        return int(self.weight.tensor.nbytes)

    @property
    def ops(self) -> frozenset[str]:
        """Operators that use the weight."""
        return frozenset(use.node.op_type for use in self.uses)

    def matrix(self, read: ReadArray) -> NDArray[np.floating]:
        """The weight [N, K] as a float array; a view of what `read` returns where possible."""
        use = self.uses[0]
        array = evaluate(self.weight, read)
        if array.ndim == 2:
            return array.T if use.transposed else array  # type: ignore[return-value]
        return array.reshape(self.n, self.k)  # type: ignore[return-value]


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
    found: dict[str, list[tuple[Weight, _Found]]] = {}
    refused: dict[str, Skipped] = {}
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            weight = trace_weight(value)
            if weight is None or _produces_constant(node):
                continue
            answer = _classify(node, index, weight)
            if isinstance(answer, str):
                refused.setdefault(weight.name, _skip(weight, node, answer))
            else:
                found.setdefault(weight.name, []).append((weight, answer))
    sites: list[Site] = []
    for name, uses in found.items():
        if name in refused:
            continue
        merged = _merge(uses)
        if isinstance(merged, str):
            refused[name] = _skip(uses[0][0], uses[0][1].use.node, merged)
        else:
            sites.append(merged)
    skipped = [s for s in refused.values() if s.size >= MIN_WEIGHTS]
    return SiteAnalysis(tuple(sites), tuple(skipped + _overridable(model) + _in_functions(model)))


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
    if any((f.n, f.k, f.groups) != (first.n, first.k, first.groups) for _, f in uses):
        return "its uses see it in different orientations"
    shape = weight_shape(weight)
    if shape is None:
        return "its shape is not known"
    found = tuple(f.use for _, f in uses)
    op = first.use.node.op_type
    return Site(weight.name, op, shape, first.n, first.k, first.groups, weight, found)


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


def _gemm(node: ir.Node, index: int, shape: tuple[int, ...]) -> _Found | str:
    if index != 1:
        return "is the left operand of a Gemm" if index == 0 else "is a bias"
    number = {"alpha": 1.0, "beta": 1.0} | {
        n: node.attributes[n].as_float() for n in ("alpha", "beta") if n in node.attributes
    }
    if number["alpha"] != 1 or number["beta"] != 1 or _int(node, "transA"):
        return "its Gemm has alpha, beta or transA set"
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
    if len(shape) != 2 or _int(node, "axis") not in (0, -2):
        return f"is gathered along axis {_int(node, 'axis')} of {list(shape)}"
    return _Found(Use(node, 0, transposed=False), n=shape[0], k=shape[1], groups=1)


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


# One row per operator whose weight can take a format: how its operand is seen as [N, K].
_OPERANDS: dict[tuple[str, str], _Operand] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv,
    ("", "Gather"): _gather,
}
