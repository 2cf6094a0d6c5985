"""Mutations of the whole: opsets, graphs inside of nodes, functions."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from tests.fuzz.kinds import (
    NothingFits,
    Rng,
    bodies,
    extreme,
    graphs,
    mutation,
    nodes,
    pick,
    value_names,
)


@mutation("opsets")
def other_version(rng: Rng, proto: onnx.ModelProto) -> None:
    imports = [*proto.opset_import, *(i for f in proto.functions for i in f.opset_import)]
    version = int(rng.integers(1, 28)) if rng.random() < 0.8 else extreme(rng)
    pick(rng, imports).version = version


@mutation("opsets")
def other_domain(rng: Rng, proto: onnx.ModelProto) -> None:
    pick(rng, list(proto.opset_import)).domain = pick(rng, ("own", "ai.onnx", "com.microsoft"))


@mutation("opsets")
def import_twice(rng: Rng, proto: onnx.ModelProto) -> None:
    proto.opset_import.add(domain=pick(rng, ("", "ai.onnx")), version=int(rng.integers(7, 26)))


@mutation("opsets")
def other_ir_version(rng: Rng, proto: onnx.ModelProto) -> None:
    proto.ir_version = int(rng.integers(1, 15))


@mutation("subgraphs")
def wrap_in_if(rng: Rng, proto: onnx.ModelProto) -> None:
    """A node moves into both bodies of an If, which may be wrong in one of several ways."""
    listed = proto.graph.node
    at = int(rng.integers(len(listed))) if len(listed) else 0
    node = pick(rng, list(listed)[at:])
    if not node.output:
        raise NothingFits
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    kind = pick(rng, (TensorProto.FLOAT, TensorProto.INT64))
    body = helper.make_graph(
        [inner], "b", [], [helper.make_tensor_value_info(node.output[0], kind, None)]
    )
    flag = pick(rng, ("flag", *value_names(proto)))
    made = helper.make_node("If", [flag], [node.output[0]], then_branch=body, else_branch=body)
    if rng.random() < 0.7:
        inner.output[0] = "inner"
        body.output[0].name = "inner"
        made = helper.make_node("If", [flag], [node.output[0]], then_branch=body, else_branch=body)
    listed[at].CopyFrom(made)
    if flag == "flag":
        proto.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))


@mutation("subgraphs")
def nest_deeply(rng: Rng, proto: onnx.ModelProto) -> None:
    depth = pick(rng, (3, 20, 60))
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["o"])],
        "deep",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    for _ in range(depth):
        node = helper.make_node("If", ["flag"], ["o"], then_branch=body, else_branch=body)
        if depth > 3:
            node = helper.make_node("If", ["flag"], ["o"], then_branch=body)
        body = helper.make_graph([node], "deep", [], list(body.output))
    proto.graph.node.extend(body.node)
    proto.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))


@mutation("subgraphs")
def change_body(rng: Rng, proto: onnx.ModelProto) -> None:
    """A body gets or loses an input, an output or a node."""
    inner = graphs(proto)[1:]
    body = pick(rng, inner)
    lists = [body.input, body.output, body.node]
    listed = pick(rng, [each for each in lists if len(each)])
    if rng.random() < 0.5:
        del listed[int(rng.integers(len(listed)))]
    else:
        listed.add().CopyFrom(pick(rng, list(listed)))


@mutation("subgraphs")
def exchange_bodies(rng: Rng, proto: onnx.ModelProto) -> None:
    """A body becomes that of another node, or a copy of the whole graph."""
    attribute = pick(rng, [a for n in nodes(proto) for a in n.attribute if a.HasField("g")])
    other = onnx.GraphProto.FromString(pick(rng, graphs(proto)).SerializeToString())
    attribute.g.CopyFrom(other)


@mutation("subgraphs")
def change_function(rng: Rng, proto: onnx.ModelProto) -> None:
    function = pick(rng, list(proto.functions))
    names = pick(rng, (function.input, function.output, function.attribute))
    if len(names) and rng.random() < 0.6:
        del names[int(rng.integers(len(names)))]
    else:
        names.append(pick(rng, value_names(proto)))


@mutation("subgraphs")
def rename_function(rng: Rng, proto: onnx.ModelProto) -> None:
    function = pick(rng, list(proto.functions))
    function.name = pick(rng, ("Layer", "Act", "Relu", "", "None"))
    if rng.random() < 0.3:
        function.domain = pick(rng, ("", "own", "ai.onnx"))


@mutation("subgraphs")
def call_in_a_circle(rng: Rng, proto: onnx.ModelProto) -> None:
    """A function calls a function, perhaps itself."""
    function = pick(rng, list(proto.functions))
    node = pick(rng, [n for b in bodies(proto) if b is not proto.graph for n in b.node])
    node.op_type, node.domain = function.name, function.domain


@mutation("subgraphs")
def new_function(rng: Rng, proto: onnx.ModelProto) -> None:
    """A function of the name of an operator, which calls that operator."""
    node = pick(rng, list(proto.graph.node))
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    function = helper.make_function(
        pick(rng, (node.domain, "own")),
        node.op_type,
        list(node.input),
        list(node.output),
        [inner],
        list(proto.opset_import),
    )
    node.domain = function.domain
    proto.functions.append(function)
    if "own" not in {i.domain for i in proto.opset_import}:
        proto.opset_import.add(domain="own", version=1)


@mutation("subgraphs")
def sparse(rng: Rng, proto: onnx.ModelProto) -> None:
    tensor = proto.graph.sparse_initializer.add()
    tensor.values.name = pick(rng, value_names(proto))
    tensor.dims.append(extreme(rng))
