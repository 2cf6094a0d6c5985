"""A plain session factory, a small convolutional network and its captured activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import ShapeInferencePass

CONV_NET = """
<ir_version: 9, opset_import: ["" : 18]>
net (float[batch, 3, h, w] x) => (float[batch, 10] y) {
  c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
  r1 = Relu(c1)
  c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2)
  s = Add(c2, r1)
  r2 = Relu(s)
  p = GlobalAveragePool(r2)
  f = Flatten(p)
  y = Gemm(f, w3)
}
"""
VALUES = ("x", "c1", "r1", "c2", "s", "r2", "p", "f", "y")


def runner(model: ir.Model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    session = ort.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    names = [o.name for o in session.get_outputs()]
    used = {i.name for i in session.get_inputs()}

    def run(feeds):
        known = {k: v for k, v in feeds.items() if k in used}
        return dict(zip(names, session.run(names, known), strict=True))

    return run


def parse(text: str, **weights: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(text)
    for name, array in weights.items():
        tensor = ir.tensor(array, name=name)
        free = next(
            (v for n in model.graph for v in n.inputs if v is not None and v.name == name), None
        )
        value = free or ir.Value(name=name)
        value.const_value, value.shape = tensor, ir.Shape(array.shape)
        value.type = ir.TensorType(tensor.dtype)
        model.graph.register_initializer(value)
    return model


def capture(model: ir.Model, names, data) -> list[dict[str, np.ndarray]]:
    """Every activation itself, sample by sample: what the collectors must agree with."""
    copy = model.clone()
    values = {v.name: v for v in copy.graph.inputs}
    values |= {v.name: v for n in copy.graph for v in n.outputs}
    copy.graph.outputs[:] = [values[n] for n in names]
    for value in copy.graph.outputs:
        value.shape = None
    run = runner(copy)
    return [{k: v.copy() for k, v in run(feeds).items()} for feeds in data]


@pytest.fixture(scope="session")
def conv_net() -> ir.Model:
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.standard_normal(shape) * 0.4).astype(np.float32)  # noqa: E731
    model = parse(CONV_NET, w1=draw(8, 3, 3, 3), b1=draw(8), w2=draw(8, 8, 3, 3), w3=draw(8, 10))
    ShapeInferencePass()(model)
    return model


@pytest.fixture(scope="session")
def images() -> list[dict[str, np.ndarray]]:
    """Six samples, ragged in batch and size."""
    rng = np.random.default_rng(1)
    sizes = [(1, 32), (2, 24), (1, 48), (3, 16), (1, 32), (2, 40)]
    return [{"x": (rng.standard_normal((n, 3, s, s)) ** 3).astype(np.float32)} for n, s in sizes]


@pytest.fixture(scope="session")
def activations(conv_net, images) -> dict[str, np.ndarray]:
    """All values of each tensor over all samples, flat."""
    runs = capture(conv_net, VALUES, images)
    return {name: np.concatenate([r[name].ravel() for r in runs]) for name in VALUES}
