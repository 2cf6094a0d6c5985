"""Which values are scores of classes or tokens before a softmax."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

_PRODUCTS = frozenset({"MatMul", "Gemm", "LogSoftmax"})
_PASSED = frozenset(
    {"Add", "Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


def are_logits(values: Iterable[ir.Value]) -> bool:
    """Whether each value is a product with a matrix, or that plus a bias: what a softmax is meant
    for. Features end in a normalisation, an activation or a pool.
    """
    return all(map(_is_product, values))


def _is_product(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.domain == "" and node.op_type in _PASSED:
        computed = [v for v in node.inputs if v is not None and v.producer() is not None]
        node = computed[0].producer() if computed else None
    return node is not None and node.domain == "" and node.op_type in _PRODUCTS
