"""Appends nodes to a graph, hiding what differs between opsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from lwqc.errors import InputError

# Opset from which the axes of a reduction are an input instead of an attribute.
_AXES_INPUT_FROM = {"ReduceSum": 13}
_AXES_INPUT_FROM_DEFAULT = 18
_FLATTEN_FROM_THE_END = 11  # opset
_GEMM_WITHOUT_BIAS = 11


class Emitter:
    """Appends nodes to `graph`; every new value is called `lwqc.stats/<number>`."""

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        """Opset: the version of the ONNX domain that the model imports."""
        self.graph = graph
        self.opset = opset
        self._count = 0

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Append a node with one output and return that."""
        output = ir.Value(name=self._name())
        self.graph.append(ir.node(op_type, inputs, attributes, outputs=[output]))
        return output

    def constant(self, array: ArrayLike) -> ir.Value:
        """A small initializer."""
        values = np.asarray(array)
        tensor = ir.tensor(values, name=self._name())
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(values.shape),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def float32(self, value: ir.Value) -> ir.Value:
        """`value` as float32: sums of half precision would overflow, and lack kernels."""
        if value.dtype == ir.DataType.FLOAT:
            return value
        return self("Cast", value, to=int(ir.DataType.FLOAT))

    def rows(self, value: ir.Value) -> ir.Value:
        """`value` as float32 [rows, features], the features being its last axis.

        Raises InputError where the rank is not known and the opset cannot count from the end.
        """
        axis = -1
        if self.opset < _FLATTEN_FROM_THE_END:
            if value.shape is None:
                raise InputError(
                    f"{value.name}: its rank is not known; opset {self.opset} needs it for "
                    "statistics"
                )
            axis = max(len(value.shape) - 1, 0)
        return self("Flatten", self.float32(value), axis=axis)

    def product(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """aᵀ b of matrices with equal rows."""
        if self.opset < _GEMM_WITHOUT_BIAS:
            return self("MatMul", self("Transpose", a, perm=[1, 0]), b)
        return self("Gemm", a, b, transA=1)

    def reduce(
        self, op_type: str, value: ir.Value, axes: Sequence[int] | None = None, keep: bool = False
    ) -> ir.Value:
        """Append a reduction over `axes` (not empty), all of them when None."""
        if axes is None:
            return self(op_type, value, keepdims=int(keep))
        if self.opset < _AXES_INPUT_FROM.get(op_type, _AXES_INPUT_FROM_DEFAULT):
            return self(op_type, value, axes=list(axes), keepdims=int(keep))
        indices = self.constant(np.asarray(axes, np.int64))
        return self(op_type, value, indices, keepdims=int(keep))

    def _name(self) -> str:
        self._count += 1
        return f"lwqc.stats/{self._count}"
