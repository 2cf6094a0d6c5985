"""Mutations of nodes: attributes and edges."""

from __future__ import annotations

import math
from typing import Any

import onnx
from onnx import helper

from tests.fuzz.kinds import (
    ODD_NAMES,
    NothingFits,
    Rng,
    bodies,
    extreme,
    mutation,
    nodes,
    pick,
    value_names,
)

OPERATORS = (
    "Add", "Mul", "Div", "MatMul", "Gemm", "Conv", "ConvTranspose", "Relu", "Softmax", "Reshape",
    "Transpose", "Concat", "Split", "Slice", "Gather", "GatherND", "ScatterND", "Squeeze",
    "Unsqueeze", "Expand", "Tile", "Pad", "Resize", "ReduceMean", "ReduceSum", "LayerNormalization",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LSTM", "GRU", "If",
    "Loop", "Scan", "Shape", "Size", "Range", "ConstantOfShape", "Constant", "Cast", "Identity",
    "Dropout", "QuantizeLinear", "DequantizeLinear", "Einsum", "TopK", "ArgMax", "MaxPool",
    "DepthToSpace", "Where", "Clip", "CumSum", "Trilu", "OneHot", "NonZero", "SequenceAt",
    "Optional", "Attention", "Nonsense", "QuickGelu", "FusedMatMul", "MatMulNBits", "QLinearConv",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    [], [0], [1, 1], [-1, -1, -1], [2, 2, 2, 2], [0] * 9, [2**31 - 1], [-(2**63), 2**62], 1.5,
    math.nan, math.inf, -0.0, "", "NOTSET", "ij,jk->ik", "...", "a" * 3000, "\x00\xff",
    [0.5], ["a"],
)  # fmt: skip


@mutation("attributes")
def forget_attribute(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, [n for n in nodes(proto) if n.attribute])
    del node.attribute[int(rng.integers(len(node.attribute)))]


@mutation("attributes")
def rename_attribute(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, [n for n in nodes(proto) if n.attribute])
    pick(rng, node.attribute).name = pick(rng, ("axis", "group", "perm", *ODD_NAMES))


@mutation("attributes")
def extreme_attribute(rng: Rng, proto: onnx.ModelProto) -> None:
    """An integer, or one of a list, becomes an extreme one."""
    numbers = [a for n in nodes(proto) for a in n.attribute if a.type in (2, 7)]
    attribute = pick(rng, numbers)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = extreme(rng)
    elif attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = extreme(rng)


@mutation("attributes")
def resize_attribute(rng: Rng, proto: onnx.ModelProto) -> None:
    lists = [a for n in nodes(proto) for a in n.attribute if a.ints]
    attribute = pick(rng, lists)
    if rng.random() < 0.5:
        attribute.ints.append(extreme(rng))
    else:
        del attribute.ints[-1]


@mutation("attributes")
def set_attribute(rng: Rng, proto: onnx.ModelProto) -> None:
    """An attribute of the operator, or of another one, gets a value of any type."""
    node = pick(rng, nodes(proto))
    known = [a.name for a in node.attribute] + ["axis", "axes", "group", "pads", "to", "alpha"]
    if onnx.defs.has(node.op_type, ""):
        known += list(onnx.defs.get_schema(node.op_type).attributes)
    name = pick(rng, known)
    value = extreme(rng) if rng.random() < 0.4 else pick(rng, VALUES)
    kept = [a for a in node.attribute if a.name != name]
    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    kind = onnx.AttributeProto.INTS if value == [] else None
    node.attribute.extend([*copies, helper.make_attribute(name, value, attr_type=kind)])


@mutation("attributes")
def retype_attribute(rng: Rng, proto: onnx.ModelProto) -> None:
    """Only the stated type changes, not the field that is set."""
    attribute = pick(rng, [a for n in nodes(proto) for a in n.attribute])
    attribute.type = int(rng.integers(0, 15))  # type: ignore[assignment]


@mutation("attributes")
def double_attribute(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, [n for n in nodes(proto) if n.attribute])
    node.attribute.add().CopyFrom(pick(rng, list(node.attribute)))


@mutation("attributes")
def refer_attribute(rng: Rng, proto: onnx.ModelProto) -> None:
    attribute = pick(rng, [a for n in nodes(proto) for a in n.attribute])
    attribute.ref_attr_name = pick(rng, ("slope", attribute.name, "none"))


@mutation("edges")
def rewire_input(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, [n for n in nodes(proto) if n.input])
    node.input[int(rng.integers(len(node.input)))] = pick(rng, value_names(proto))


@mutation("edges")
def swap_inputs(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, [n for n in nodes(proto) if len(n.input) > 1])
    node.input[0], node.input[1] = node.input[1], node.input[0]


@mutation("edges")
def name_no_value(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, [n for n in nodes(proto) if n.input])
    node.input[int(rng.integers(len(node.input)))] = pick(rng, ("", "nowhere"))


@mutation("edges")
def more_or_fewer_inputs(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, [n for n in nodes(proto) if n.input])
    if rng.random() < 0.5:
        node.input.append(pick(rng, value_names(proto)))
    else:
        del node.input[-1]


@mutation("edges")
def more_or_fewer_outputs(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, [n for n in nodes(proto) if n.output])
    if rng.random() < 0.5:
        node.output.append(pick(rng, ("more", *value_names(proto))))
    elif rng.random() < 0.5:
        del node.output[-1]
    else:
        node.output[0] = ""


@mutation("edges")
def rename_output(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, [n for n in nodes(proto) if n.output])
    node.output[int(rng.integers(len(node.output)))] = pick(rng, value_names(proto))


@mutation("edges")
def move_node(rng: Rng, proto: onnx.ModelProto) -> None:
    listed = pick(rng, [b for b in bodies(proto) if b.node]).node
    node = onnx.NodeProto.FromString(pick(rng, listed).SerializeToString())
    if rng.random() < 0.5:
        del listed[int(rng.integers(len(listed)))]
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in listed]
    rest.insert(int(rng.integers(len(rest) + 1)), node)
    del listed[:]
    listed.extend(rest)


@mutation("edges")
def delete_node(rng: Rng, proto: onnx.ModelProto) -> None:
    listed = pick(rng, [b for b in bodies(proto) if b.node]).node
    del listed[int(rng.integers(len(listed)))]


@mutation("edges")
def another_operator(rng: Rng, proto: onnx.ModelProto) -> None:
    node = pick(rng, nodes(proto))
    node.op_type = pick(rng, OPERATORS)
    if rng.random() < 0.2:
        node.domain = pick(rng, ("", "ai.onnx", "com.microsoft", "own", "nonsense", "ai.onnx.ml"))


@mutation("edges")
def insert_node(rng: Rng, proto: onnx.ModelProto) -> None:
    """An operator in front of an input of another one."""
    body = pick(rng, [b for b in bodies(proto) if b.node])
    at = int(rng.integers(len(body.node)))
    target = body.node[at]
    if not target.input:
        raise NothingFits
    slot = int(rng.integers(len(target.input)))
    node = helper.make_node(pick(rng, OPERATORS), [target.input[slot]], ["inserted"])
    for _ in range(int(rng.integers(3))):
        node.input.append(pick(rng, value_names(proto)))
    target.input[slot] = "inserted"
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in body.node]
    rest.insert(at, node)
    del body.node[:]
    body.node.extend(rest)
