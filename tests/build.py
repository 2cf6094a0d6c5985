"""Small models for tests, built from (operator, inputs, output, attributes) rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx_ir.passes.common import ShapeInferencePass

Row = tuple[str, Sequence[str], str, Mapping[str, Any]]


def model(
    rows: Sequence[Row],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    *,
    opset: int = 20,
    types: Mapping[str, int] | None = None,
) -> ir.Model:
    """An `onnx_ir` model with inferred shapes; inputs are float32 unless `types` says otherwise."""
    known = dict(types or {})
    graph = helper.make_graph(
        [
            helper.make_node(op, list(used), [output], name=f"n_{output}", **attributes)
            for op, used, output, attributes in rows
        ],
        "test",
        [
            helper.make_tensor_value_info(n, known.get(n, onnx.TensorProto.FLOAT), list(s))
            for n, s in inputs.items()
        ],
        [
            helper.make_tensor_value_info(n, known.get(n, onnx.TensorProto.FLOAT), None)
            for n in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    built = ir.serde.deserialize_model(proto)
    ShapeInferencePass()(built)
    return built


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Seeded Gaussian float32 values."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return values * np.float32(scale)


def residual_blocks(width: int, hidden: int, count: int) -> ir.Model:
    """x0 through blocks of x + relu(x u) d; weights u0, d0, u1, ..., the output x{count}."""
    rows: list[Row] = []
    weights = {}
    for i in range(count):
        weights[f"u{i}"] = normal(width, hidden, seed=2 * i, scale=0.1)
        weights[f"d{i}"] = normal(hidden, width, seed=2 * i + 1, scale=0.1)
        rows += [
            ("MatMul", [f"x{i}", f"u{i}"], f"h{i}", {}),
            ("Relu", [f"h{i}"], f"r{i}", {}),
            ("MatMul", [f"r{i}", f"d{i}"], f"b{i}", {}),
            ("Add", [f"x{i}", f"b{i}"], f"x{i + 1}", {}),
        ]
    return model(rows, weights, {"x0": ["n", width]}, [f"x{count}"])
