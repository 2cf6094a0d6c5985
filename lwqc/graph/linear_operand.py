"""The stored weight of a Conv, Gemm or MatMul as a matrix [out, features], and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.weights import ReadArray, Weight, evaluate, is_float, trace_weight, weight_shape

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Operand:
    """A weight that a linear layer reads as its second input.

    shape: as the layer sees it. out_axis: axis of its output channels. groups: of a convolution.
    """

    node: ir.Node
    weight: Weight
    shape: tuple[int, ...]
    out_axis: int
    groups: int = 1

    @property
    def out(self) -> int:
        """Output channels."""
        return self.shape[self.out_axis]

    @property
    def features(self) -> int:
        """Inputs per output channel."""
        return int(np.prod(self.shape)) // max(self.out, 1)

    @property
    def activation(self) -> ir.Value:
        """The other operand."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def users(self) -> int:
        """How many operands read the stored tensor; graph outputs count too."""
        values = [self.weight.source, *(step.outputs[0] for step in self.weight.steps)]
        extra = sum(len(list(v.uses())) - 1 + v.is_graph_output() for v in values)
        return 1 + extra

    def stored_axis(self, axis: int) -> int:
        """Axis of the stored tensor that is the given axis of the operand."""
        for step in reversed(self.weight.steps):
            if step.op_type == "Transpose":
                axis = _permutation(step, len(self.shape))[axis]
        return axis

    def matrix(self, read: ReadArray) -> Matrix:
        """[out, features], features in the order of the convolution's patches."""
        array = np.moveaxis(evaluate(self.weight, read), self.out_axis, 0)
        return array.reshape(self.out, self.features).astype(np.float64)

    def stored(self, matrix: Matrix) -> ir.TensorProtocol:
        """The tensor to store so that the operand is `matrix`."""
        lengths = [n for axis, n in enumerate(self.shape) if axis != self.out_axis]
        array = np.moveaxis(matrix.reshape(self.out, *lengths), 0, self.out_axis)
        for step in reversed(self.weight.steps):
            if step.op_type == "Transpose":
                array = array.transpose(np.argsort(_permutation(step, array.ndim)))
        dtype = self.weight.tensor.dtype
        values = np.ascontiguousarray(array, dtype.numpy())
        return ir.tensor(values, dtype=dtype, name=self.weight.name)


def _permutation(step: ir.Node, rank: int) -> tuple[int, ...]:
    perm = step.attributes.get("perm")
    return tuple(perm.as_ints()) if perm is not None else tuple(range(rank))[::-1]


def linear_operand(node: ir.Node) -> Operand | str | None:
    """The weight of a linear layer, why it does not count as one, or None for other nodes."""
    layer = _LAYERS.get(node.op_type) if node.domain == "" else None
    if layer is None:
        return None
    weight = trace_weight(node.inputs[1])
    if weight is None:
        stored_left = trace_weight(node.inputs[0]) is not None
        return "its weight is the left operand" if stored_left else _not_stored(node)
    if trace_weight(node.inputs[0]) is not None:
        return None  # a constant
    steps = {step.op_type for step in weight.steps}
    if "DequantizeLinear" in steps:
        return "its weight is quantized"
    if not steps <= {"Transpose", "Identity", "Cast"}:
        return "its weight is reshaped on the way from where it is stored"
    shape = weight_shape(weight)
    if shape is None or not is_float(weight.tensor):
        return f"its weight is stored as {weight.tensor.dtype.name}"
    return layer(node, weight, shape)


def _not_stored(node: ir.Node) -> str | None:
    """Products of two activations have no weight; a convolution always should."""
    return "its weight is not stored in the model" if node.op_type == "Conv" else None


def _conv(node: ir.Node, weight: Weight, shape: tuple[int, ...]) -> Operand | str:
    return Operand(node, weight, shape, out_axis=0, groups=_int(node, "group") or 1)


def _matmul(node: ir.Node, weight: Weight, shape: tuple[int, ...]) -> Operand | str:
    if len(shape) != 2:
        return f"its weight is no matrix but {list(shape)}"
    return Operand(node, weight, shape, out_axis=1)


def _gemm(node: ir.Node, weight: Weight, shape: tuple[int, ...]) -> Operand | str:
    scales = [node.attributes[n].as_float() for n in ("alpha", "beta") if n in node.attributes]
    if _int(node, "transA") or any(s != 1 for s in scales):
        return "its Gemm has alpha, beta or transA set"
    return Operand(node, weight, shape, out_axis=0 if _int(node, "transB") else 1)


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


_LAYERS: dict[str, Callable[[ir.Node, Weight, tuple[int, ...]], Operand | str]] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
}
