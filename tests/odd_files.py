"""Small valid models written as odd or old exporters write them: name -> builder.

Each is taken by the runtime as it is; what makes it odd is in its docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

CASES: dict[str, Callable[[], onnx.ModelProto]] = {}
node = helper.make_node
OUTPUT = "y"


def case(build: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    CASES[build.__name__] = build
    return build


def weight(name: str, *shape: int, dtype: Any = np.float32) -> onnx.TensorProto:
    rng = np.random.default_rng(len(name) + sum(shape))
    fan = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
    return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(fan)).astype(dtype), name)


def positive(name: str, size: int) -> onnx.TensorProto:
    rng = np.random.default_rng(size)
    return numpy_helper.from_array(
        (np.abs(rng.standard_normal(size)) + 0.4).astype(np.float32), name
    )


def constant(name: str, values: Any, dtype: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def value(name: str, shape: Sequence[int | str | None] | None, kind: int = T.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def sized(name: str, dims: Sequence[int | str], kind: int = T.FLOAT) -> onnx.ValueInfoProto:
    """Dimensions exactly as given: helpers leave out negative numbers and empty names."""
    info = value(name, [1] * len(dims), kind)
    for dim, size in zip(info.type.tensor_type.shape.dim, dims, strict=True):
        dim.Clear()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
    return info


def proto(
    nodes, inputs, outputs, weights=(), *, opset=17, ir=8, imports=None, functions=(), **more
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights), **more)
    ids = [helper.make_opsetid(d, v) for d, v in imports or [("", opset)]]
    return helper.make_model(graph, opset_imports=ids, ir_version=ir, functions=list(functions))


def mlp(x: str = "x", y: str = OUTPUT) -> list[onnx.NodeProto]:
    return [
        node("MatMul", [x, "w"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "v"], [y]),
    ]


MLP = (weight("w", 64, 96), weight("v", 96, 32))


@case
def inputs_of_ir_3():
    """IR 3: weights and a shape are inputs too."""
    stored = [weight("w", 64, 96), weight("b", 96), constant("s", [-1, 48]), weight("v", 48, 32)]
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"]),
        node("Reshape", ["a", "s"], ["r"]),
        node("MatMul", ["r", "v"], ["y"]),
    ]
    inputs = [value("x", [2, 64])]
    inputs += [value(t.name, list(t.dims), t.data_type) for t in stored]
    return proto(nodes, inputs, [value("y", [4, 32])], stored, opset=8, ir=3)


@case
def convolution_of_ir_3():
    """IR 3, opset 7: convolution, BatchNormalization and a weight tied to two nodes."""
    stored = [weight("w", 32, 3, 3, 3), weight("u", 32, 32, 1, 1)]
    norm = [positive("g", 32), weight("b", 32), weight("m", 32), positive("s", 32)]
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "g", "b", "m", "s"], ["n"]),
        node("Conv", ["n", "u"], ["d"]),
        node("Relu", ["d"], ["e"]),
        node("Conv", ["e", "u"], ["y"]),
    ]
    stored += norm
    inputs = [value("x", [1, 3, 8, 8]), *(value(t.name, list(t.dims)) for t in stored)]
    return proto(nodes, inputs, [value("y", [1, 32, 8, 8])], stored, opset=7, ir=3)


@case
def negative_sizes():
    """Unknown sizes written as -1."""
    nodes = mlp()
    return proto(nodes, [sized("x", [-1, -1, 64])], [sized("y", [-1, -1, 32])], MLP)


@case
def question_marks():
    """Every unknown size is called `?`, as PaddlePaddle writes them."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "v"], ["y"]),
    ]
    stored = [weight("w", 48, 3, 3, 3), weight("v", 48, 24)]
    return proto(nodes, [sized("x", ["?", 3, "?", "?"])], [sized("y", ["?", 24])], stored)


@case
def empty_names():
    """Unknown sizes with an empty name, and inner shapes that say the same."""
    inner = [sized("a", ["", "", 96])]
    return proto(
        mlp(), [sized("x", ["", "", 64])], [sized("y", ["", "", 32])], MLP, value_info=inner
    )


@case
def renamed_size():
    """The output calls a size otherwise than inference would."""
    return proto(mlp(), [value("x", ["n", 64])], [value("y", ["rows", 32])], MLP)


@case
def vague_outputs():
    """Outputs whose shape inference knows better."""
    outputs = [value("y", [None, "k"]), value("a", ["p", "q"])]
    return proto(mlp(), [value("x", [3, 64])], outputs, MLP)


@case
def empty_past():
    """A size that is 0."""
    nodes = [*mlp("j"), node("Concat", ["past", "x"], ["j"], axis=0)]
    nodes = [nodes[-1], *nodes[:-1]]
    inputs = [value("x", ["n", 64]), value("past", [0, 64])]
    return proto(nodes, inputs, [value("y", ["m", 32])], MLP)


@case
def constant_nodes():
    """All weights in Constant nodes, biases as lists of numbers, as Paddle2ONNX writes them."""
    nodes = [
        node("Constant", [], ["w"], value=weight("", 64, 96)),
        node("Constant", [], ["v"], value=weight("", 96, 32)),
        node("Constant", [], ["b"], value_floats=[i / 96 for i in range(96)]),
        *mlp()[:1],
        node("Add", ["a", "b"], ["r"]),
        *mlp()[2:],
    ]
    return proto(nodes, [value("x", ["n", 64])], [value("y", ["n", 32])])


@case
def uneven_sequence():
    """A sequence whose elements differ in shape, taken apart and joined again."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("SplitToSequence", ["a", "parts"], ["s"], axis=1),
        node("SequenceAt", ["s", "i"], ["p"]),
        node("MatMul", ["p", "u"], ["q"]),
        node("SequenceInsert", ["s", "q"], ["t"]),
        node("ConcatFromSequence", ["t"], ["y"], axis=1),
    ]
    stored = [MLP[0], constant("parts", [60, 36]), constant("i", 0), weight("u", 60, 40)]
    outputs = [value("y", [2, 136]), helper.make_tensor_sequence_value_info("t", T.FLOAT, None)]
    return proto(nodes, [value("x", [2, 64])], outputs, stored)


@case
def even_sequence():
    """A sequence output of equal elements."""
    nodes = [*mlp(), node("SequenceConstruct", ["y", "y"], ["s"])]
    outputs = [helper.make_tensor_sequence_value_info("s", T.FLOAT, ["n", 32])]
    return proto(nodes, [value("x", ["n", 64])], outputs, MLP)


@case
def optional_value():
    """An optional made, asked and opened, without a stated type."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Optional", ["a"], ["o"]),
        node("OptionalHasElement", ["o"], ["has"]),
        node("OptionalGetElement", ["o"], ["r"]),
        *mlp()[2:],
    ]
    outputs = [value("y", ["n", 32]), value("has", [], T.BOOL)]
    return proto(nodes, [value("x", ["n", 64])], outputs, MLP, opset=18)


def map_info(name: str, key: int) -> onnx.ValueInfoProto:
    number = helper.make_tensor_type_proto(T.FLOAT, [])
    return helper.make_value_info(
        name, helper.make_sequence_type_proto(helper.make_map_type_proto(key, number))
    )


def zip_map(**keys: Any) -> list[onnx.NodeProto]:
    return [
        *mlp("x", "l"),
        node("Softmax", ["l"], ["p"]),
        node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", **keys),
    ]


ML = [("", 17), ("ai.onnx.ml", 1)]


@case
def map_of_numbers():
    """A classifier of scikit-learn: a label, and a map from class to probability."""
    nodes = [*zip_map(classlabels_int64s=list(range(32))), node("ArgMax", ["l"], ["label"], axis=1)]
    outputs = [value("label", ["n", 1], T.INT64), map_info("probabilities", T.INT64)]
    return proto(nodes, [value("x", ["n", 64])], outputs, MLP, imports=ML)


@case
def map_of_strings():
    """Only a map, with words as keys."""
    nodes = zip_map(classlabels_strings=[f"c{i:02}" for i in range(32)])
    outputs = [map_info("probabilities", T.STRING)]
    return proto(nodes, [value("x", ["n", 64])], outputs, MLP, imports=ML)


@case
def doubles():
    """Computes in float64 up to a Cast."""
    stored = [weight("w", 64, 96, dtype=np.float64), weight("v", 96, 32)]
    nodes = [mlp()[0], node("Cast", ["a"], ["r"], to=T.FLOAT), mlp()[2]]
    return proto(nodes, [value("x", ["n", 64], T.DOUBLE)], [value("y", ["n", 32])], stored)


@case
def brain_floats():
    """bfloat16 weights widened by a Cast."""
    array = np.random.default_rng(1).standard_normal((64, 96)) / 8
    raw = array.astype(ml_dtypes.bfloat16).tobytes()
    stored = [helper.make_tensor("wb", T.BFLOAT16, [64, 96], raw, raw=True), MLP[1]]
    nodes = [node("Cast", ["wb"], ["w"], to=T.FLOAT), *mlp()]
    return proto(nodes, [value("x", ["n", 64])], [value("y", ["n", 32])], stored)


@case
def brain_output():
    """A bfloat16 input and output."""
    nodes = [node("Cast", ["z"], ["x"], to=T.FLOAT), *mlp("x", "o")]
    nodes += [node("Cast", ["o"], ["y"], to=T.BFLOAT16)]
    info = [value("z", ["n", 64], T.BFLOAT16)], [value("y", ["n", 32], T.BFLOAT16)]
    return proto(nodes, *info, MLP)


@case
def trained_norm():
    """BatchNormalization in training mode behind a Gemm; its statistics are not read."""
    norm = [positive("g", 96), weight("b", 96), weight("m", 96), positive("s", 96)]
    nodes = [
        node("Gemm", ["x", "w"], ["c"]),
        node("BatchNormalization", ["c", "g", "b", "m", "s"], ["r", "rm", "rs"], training_mode=1),
        mlp()[2],
    ]
    return proto(nodes, [value("x", ["n", 64])], [value("y", ["n", 32])], [*MLP, *norm])


@case
def trained_dropout():
    """Dropout in training mode that drops nothing, with its mask as an output."""
    stored = [*MLP, constant("ratio", 0.0, np.float32), constant("on", True, bool)]
    nodes = [mlp()[0], node("Dropout", ["a", "ratio", "on"], ["r", "mask"]), mlp()[2]]
    outputs = [value("y", ["n", 32]), value("mask", ["n", 96], T.BOOL)]
    return proto(nodes, [value("x", ["n", 64])], outputs, stored)


@case
def unsorted():
    """Nodes in reverse order."""
    return proto(mlp()[::-1], [value("x", ["n", 64])], [value("y", ["n", 32])], MLP)


@case
def captured_later():
    """A body that captures a value made after its If."""
    then = helper.make_graph(mlp("k", "t"), "then", [], [value("t", ["n", 32])], list(MLP))
    other = helper.make_graph(
        [node("MatMul", ["k", "u"], ["e"])], "else", [], [value("e", ["n", 32])]
    )
    nodes = [
        node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
        node("Tanh", ["x"], ["k"]),
    ]
    inputs = [value("x", ["n", 64]), value("flag", [], T.BOOL)]
    return proto(nodes, inputs, [value("y", ["n", 32])], [weight("u", 64, 32)])


@case
def two_imports():
    """The default operators imported under both of their names."""
    nodes = mlp()
    nodes[1].domain = "ai.onnx"
    info = [value("x", ["n", 64])], [value("y", ["n", 32])]
    return proto(nodes, *info, MLP, imports=[("", 17), ("ai.onnx", 17)])


@case
def two_versions():
    """One domain imported twice; the runtime takes the last version, with another Softmax."""
    nodes = [*mlp("x", "l"), node("Softmax", ["l"], ["y"])]
    info = [value("x", [2, 3, 64])], [value("y", [2, 3, 32])]
    return proto(nodes, *info, MLP, imports=[("", 13), ("", 12)])


@case
def old_reshapes():
    """Opset 12: Reshapes that follow each other become one, which must have no `allowzero`."""
    stored = [*MLP, constant("s", [4, 3, 64]), constant("t", [12, 64])]
    nodes = [
        node("Reshape", ["x", "s"], ["p"]),
        node("Reshape", ["p", "t"], ["q"]),
        *mlp("q"),
    ]
    return proto(nodes, [value("x", [3, 4, 64])], [value("y", [12, 32])], stored, opset=12)


@case
def computed_reshape():
    """Opset 12: a Reshape to a computed shape, of whose sizes one is not known."""
    nodes = [
        node("Shape", ["x"], ["n"]),
        node("Slice", ["n", "0", "1"], ["first"]),
        node("Concat", ["first", "rest"], ["s"], axis=0),
        node("Reshape", ["x", "s"], ["q"]),
        *mlp("q"),
    ]
    stored = [*MLP, constant("0", [0]), constant("1", [1]), constant("rest", [64])]
    info = [value("x", ["n", 8, 8])], [value("y", ["n", 32])]
    return proto(nodes, *info, stored, opset=12, value_info=[value("q", ["n", 64])])


@case
def passed_through():
    """Outputs that are an input, turned around or widened from integers, or stored."""
    nodes = [
        *mlp(),
        node("Transpose", ["x"], ["turned"], perm=[1, 0]),
        node("Identity", ["x"], ["same"]),
        node("Cast", ["ids"], ["numbers"], to=T.FLOAT),
        node("ConstantOfShape", ["s"], ["tenths"], value=constant("", [0.1], np.float32)),
    ]
    inputs = [value("x", ["n", 64]), value("ids", ["n"], T.INT64)]
    outputs = [
        value("y", ["n", 32]), value("turned", [64, "n"]), value("same", ["n", 64]),
        value("numbers", ["n"]), value("tenths", [2, 3]), value("v", [96, 32]),
    ]  # fmt: skip
    return proto(nodes, inputs, outputs, [*MLP, constant("s", [2, 3])])


EXACT = {"passed_through": ("turned", "same", "numbers", "tenths", "v")}


@case
def unknown_operators():
    """The runtime's own operators, whose results have no stated type."""
    ms = {"domain": "com.microsoft"}
    nodes = [
        node("FusedGemm", ["x", "w", "b"], ["a"], activation="Relu", **ms),
        node("QuickGelu", ["a"], ["q"], **ms),
        node("BiasGelu", ["q", "b"], ["r"], **ms),
        mlp()[2],
    ]
    imports = [("", 17), ("com.microsoft", 1)]
    info = [value("x", ["n", 64])], [value("y", ["n", 32])]
    return proto(nodes, *info, [*MLP, weight("b", 96)], imports=imports)


@case
def annotated():
    """quantization_annotation, with parameters that nothing else refers to."""
    stored = [*MLP, constant("a/scale", 0.1, np.float32), constant("a/zero", 3, np.int8)]
    info = [value("x", ["n", 64])], [value("y", ["n", 32])]
    result = proto(mlp(), *info, stored)
    note = result.graph.quantization_annotation.add(tensor_name="a")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="a/scale")
    note.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="a/zero")
    return result


@case
def overridable():
    """IR 8 with one weight that callers may override."""
    inputs = [value("x", ["n", 64]), value("w", [64, 96])]
    return proto(mlp(), inputs, [value("y", ["n", 32])], MLP)
