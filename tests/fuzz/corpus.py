"""The small models that are mutated: name -> builder. All run, and each has a site or two."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings
from onnx import TensorProto, helper

from tests import odd_files, random_graphs
from tests.small_models import Small

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {}
_ODD = (
    "captured_later",
    "computed_reshape",
    "constant_nodes",
    "map_of_numbers",
    "uneven_sequence",
    "unknown_operators",
)
MODELS |= {name: odd_files.CASES[name] for name in _ODD}
Builder = Callable[[], onnx.ModelProto]


def model(build: Builder) -> Builder:
    MODELS[build.__name__] = build
    return build


@model
def residual_convolutions() -> onnx.ModelProto:
    """Convolutions, one by groups, norms, a residual sum, pooling and a classifier."""
    small = Small()
    x = small.input(("n", 1), 3, 8, 8)
    stem = small.op("Conv", x, small.weight(32, 3, 3, 3), pads=[1, 1, 1, 1])
    norm = [small.gains(32), small.weight(32), small.weight(32), small.gains(32)]
    first = small.op("Relu", small.op("BatchNormalization", stem, *norm))
    inner = small.op("Conv", first, small.weight(32, 8, 3, 3), group=4, pads=[1, 1, 1, 1])
    inner = small.op("Relu", inner)
    inner = small.op("Conv", inner, small.weight(32, 32, 1, 1), small.weight(32))
    joined = small.op("Add", inner, first)
    pooled = small.op("Flatten", small.op("GlobalAveragePool", joined))
    return small.build(small.op("Gemm", pooled, small.weight(16, 32), small.weight(16), transB=1))


@model
def transformer() -> onnx.ModelProto:
    """Tokens, an embedding, one block of attention and one of hidden units."""
    small, width, heads = Small(), 32, 4
    ids = small.given("ids", np.zeros((1, 6), np.int64), [("n", 1), ("t", 6)])  # type: ignore[list-item]
    x = small.op("Gather", small.weight(64, width), ids)

    def norm(value: str) -> str:
        return small.op("LayerNormalization", value, small.gains(width), small.weight(width))

    def heads_of(value: str) -> str:
        cut = small.op("Reshape", value, small.ints(0, 0, heads, width // heads))
        return small.op("Transpose", cut, perm=[0, 2, 1, 3])

    h = norm(x)
    q, k, v = (heads_of(small.linear(h, width, width)) for _ in range(3))
    scores = small.op("MatMul", q, small.op("Transpose", k, perm=[0, 1, 3, 2]))
    shares = small.op("Softmax", small.op("Mul", scores, small.keep(np.float32(0.35))), axis=-1)
    mixed = small.op("Transpose", small.op("MatMul", shares, v), perm=[0, 2, 1, 3])
    flat = small.op("Reshape", mixed, small.ints(0, 0, width))
    x = small.op("Add", x, small.linear(flat, width, width))
    hidden = small.op("Gelu", small.linear(norm(x), width, 64))
    x = small.op("Add", x, small.linear(hidden, 64, width))
    return small.build(norm(x))


@model
def recurrent() -> onnx.ModelProto:
    """An LSTM and a GRU."""
    small = Small()
    x = small.input(5, ("n", 1), 16)
    w, r = small.weight(1, 64, 16), small.weight(1, 64, 16)
    y, _ = small.ops("LSTM", x, w, r, small.weight(1, 128), names=["", ""], hidden_size=16)
    flat = small.op("Squeeze", y, small.ints(1))
    w, r = small.weight(1, 96, 16), small.weight(1, 96, 32)
    z, last = small.ops("GRU", flat, w, r, names=["", ""], hidden_size=32)
    return small.build(z, small.linear(last, 32, 40))


@model
def quantized() -> onnx.ModelProto:
    """A convolution and a product between QuantizeLinear and DequantizeLinear."""
    small = Small()
    x = small.input(1, 4, 8, 8)

    def pair(value: str) -> str:
        scale, zero = small.keep(np.float32(0.05)), small.keep(np.uint8(128))
        codes = small.op("QuantizeLinear", value, scale, zero)
        return small.op("DequantizeLinear", codes, scale, zero)

    codes = small.rng.integers(-127, 128, (32, 4, 3, 3), dtype=np.int8)
    scales, zeros = small.gains(32), small.keep(np.zeros(32, np.int8))
    w = small.op("DequantizeLinear", small.keep(codes), scales, zeros, axis=0)
    y = pair(small.op("Relu", small.op("Conv", pair(x), w, strides=[2, 2])))
    y = small.op("Reshape", y, small.ints(1, -1))
    return small.build(small.linear(y, 288, 8))


@model
def loop() -> onnx.ModelProto:
    """A Loop that counts, with a product in its body."""
    one = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["p"]),
            helper.make_node("Tanh", ["p"], ["g"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            one("i", TensorProto.INT64, []),
            one("go", TensorProto.BOOL, []),
            one("h", TensorProto.FLOAT, ["n", 32]),
        ],
        [one("on", TensorProto.BOOL, []), one("g", TensorProto.FLOAT, ["n", 32])],
    )
    nodes = [
        helper.make_node("Loop", ["count", "yes", "x"], ["last"], body=body),
        helper.make_node("MatMul", ["last", "v"], ["y"]),
    ]
    stored = [
        odd_files.constant("count", 3),
        odd_files.constant("yes", True, bool),
        odd_files.weight("w", 32, 32),
        odd_files.weight("v", 32, 40),
    ]
    info = [odd_files.value("x", ["n", 32])], [odd_files.value("y", ["n", 40])]
    return odd_files.proto(nodes, *info, stored)


@model
def functions() -> onnx.ModelProto:
    """A layer that is a function, called twice, with an attribute and a function inside."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    act = helper.make_node("LeakyRelu", ["a"], ["b"])
    act.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    inner = helper.make_function("own", "Act", ["a"], ["b"], [act], imports, ["slope"])
    call = helper.make_node("Act", ["m"], ["q"], domain="own")
    call.attribute.add(name="slope", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    body = [helper.make_node("MatMul", ["p", "k"], ["m"]), call]
    layer = helper.make_function("own", "Layer", ["p", "k"], ["q"], body, imports, ["slope"])
    nodes = [
        helper.make_node("Layer", ["x", "w"], ["h"], domain="own", slope=0.1),
        helper.make_node("Layer", ["h", "v"], ["y"], domain="own", slope=0.2),
    ]
    info = [odd_files.value("x", ["n", 64])], [odd_files.value("y", ["n", 32])]
    return odd_files.proto(
        nodes, *info, odd_files.MLP, imports=[("", 17), ("own", 1)], functions=[layer, inner]
    )


@model
def grown() -> onnx.ModelProto:
    """A random graph of `tests.random_graphs`, the same each time."""
    found: list[onnx.ModelProto] = []

    @seed(3)
    @settings(
        max_examples=6,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(random_graphs.models(min_nodes=12))
    def keep(built: onnx.ModelProto) -> None:
        found.append(built)

    keep()
    return max(found, key=lambda m: len(m.graph.node))
