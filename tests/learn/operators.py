"""Models of single operators as text, for comparing torch functions with onnxruntime."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from lwqc.testing import model_of
from tests.processor import LARGEST

_MOST = min(100, LARGEST)  # beyond it sums of products saturate on some processors
HEADER = '<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1, "local": 1]>\n'


def built(body: str, *, opset: int = 20, types: str = "") -> ir.Model:
    """A model of lines such as `y = Relu(x)`, behind inputs: `float[2,3] x -> float y: y = ...`."""
    inputs, rest = body.split("->", 1)
    outputs, nodes = rest.split(":", 1)
    text = f"g ({inputs.strip()}) => ({outputs.strip()}) {{ {nodes.strip()} }}"
    return model_of(HEADER.format(opset=opset) + text)


def drawn(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers for the inputs: normal, or whole ones from 0 to 3, positive for names with `p`."""
    rng, feeds = np.random.default_rng(seed), {}
    for value in model.graph.inputs:
        sizes = [d if isinstance(d, int) else 3 for d in value.shape or ()]
        kind = value.dtype.numpy()
        if np.dtype(kind).kind == "f":
            numbers = rng.standard_normal(sizes)
            numbers = np.abs(numbers) + 0.1 if re.match("p", value.name) else numbers
        elif kind == np.bool_:
            numbers = rng.integers(0, 2, sizes)
        else:
            numbers = (
                rng.integers(0, 4, sizes)
                if re.match("i", value.name)
                else (
                    rng.integers(-_MOST, _MOST, sizes)
                    if np.dtype(kind).kind == "i"
                    else rng.integers(0, 255, sizes)
                )
            )
        feeds[value.name] = np.asarray(numbers).astype(kind)
    return feeds
