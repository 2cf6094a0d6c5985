"""Random valid float32 models for property tests: `models()`, and `feeds` to run them.

A model starts from an image `[1, C, 6, 6]` or a sequence `[2, T, D]`, grows by steps (names of
nodes begin with their step's kind), and ends in readouts. Steps that do not fit are skipped, so a
failure shrinks by dropping steps from one list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lwqc.runtime.session import Session, SessionSettings
from lwqc.testing.random_graphs import blocks, layers, views
from lwqc.testing.random_graphs.growing import (
    STEPS,
    WIDTHS,
    Graph,
    Skip,
    Tensor,
    choose,
    flag,
)

STEP_FILES = (layers, views, blocks)  # in this order; importing them registers the steps

KINDS = tuple(STEPS)
MAX_STEPS = 16
READOUT_WIDTH = 3
READOUT_NODES = 4  # at most: two outputs, each MatMul and Add


@st.composite
def models(
    draw: st.DrawFn,
    kinds: Sequence[str] = KINDS,
    *,
    min_nodes: int = 5,
    max_nodes: int = 30,
) -> onnx.ModelProto:
    """A checked model of opset 18 with all shapes, whose every output varies with the input."""
    steps = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=MAX_STEPS))
    seed = draw(st.integers(0, 2**16))
    g = Graph(np.random.default_rng(seed), max_nodes - READOUT_NODES)
    start = Tensor("x", draw(starts()))
    g.pool.append(start)
    for kind in steps:
        g.run(kind, draw)
    g.kind, g.max_nodes = "readout", max_nodes
    model = assemble(g, start, outputs(g, draw))
    assume(len(model.graph.node) >= min_nodes)
    assert_shapes(model)
    assume(varies(model))
    return model


def feeds(model: onnx.ModelProto, seed: int) -> dict[str, NDArray[Any]]:
    """Standard normal values for every graph input."""
    rng = np.random.default_rng(seed)
    return {
        value.name: rng.standard_normal(dims(value), dtype=np.float32)
        for value in model.graph.input
    }


def run(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """The outputs on the CPU, without graph optimisation.

    onnxruntime 1.31.1 fuses a Pad with zeros into the MaxPool after it, whose own padding is -inf,
    and so changes the values.
    """
    session = Session(ir.from_proto(model), SessionSettings(optimize=False), label="random")
    return list(session(values).values())


def kinds_of(model: onnx.ModelProto) -> set[str]:
    """The kinds of the steps that are left in the model."""
    return {node.name.split(".")[0] for node in model.graph.node}


def starts() -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of the one input."""
    width = st.sampled_from(WIDTHS)
    images = st.tuples(st.just(1), width, st.just(6), st.just(6))
    return st.tuples(st.just(2), st.integers(3, 5), width) | images


def outputs(g: Graph, draw: st.DrawFn) -> list[Tensor]:
    """The newest tensor and perhaps an older one, each through a readout or as it is."""
    *older, newest = g.pool
    others = [t for t in older if t.name != "x"]
    ends = [newest]
    if others and flag(draw):
        ends.append(choose(draw, others))
    direct = [t.name != "x" and flag(draw) for t in ends]
    return [t if as_is else readout(g, t) for t, as_is in zip(ends, direct, strict=True)]


def readout(g: Graph, x: Tensor) -> Tensor:
    """A linear layer to `READOUT_WIDTH` channels; `x` itself where that would be too large."""
    try:
        if len(x.shape) == 4:
            return g.conv(x, READOUT_WIDTH)
        if len(x.shape) == 2:
            weight = g.normal([READOUT_WIDTH, x.shape[1]], x.shape[1] ** -0.5)
            bias = g.normal([READOUT_WIDTH], 0.5)
            return g.op("Gemm", x, weight, bias, shape=[x.shape[0], READOUT_WIDTH], transB=1)
        return g.linear(x, READOUT_WIDTH, bias=True)
    except Skip:
        return x


def assemble(g: Graph, start: Tensor, ends: Sequence[Tensor]) -> onnx.ModelProto:
    """The model of what the outputs need; every tensor's shape is recorded."""
    needed = {t.name for t in ends}
    nodes = []
    for node in reversed(g.nodes):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)

    def infos(tensors: Sequence[Tensor]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(t.name, t.dtype, t.shape) for t in tensors]

    made = [g.tensors[name] for node in reversed(nodes) for name in node.output]
    graph = helper.make_graph(
        nodes[::-1],
        "random",
        infos([start]),
        infos(ends),
        [numpy_helper.from_array(v, name) for name, v in g.weights.items() if name in needed],
        value_info=infos([t for t in made if t not in ends]),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def assert_shapes(model: onnx.ModelProto) -> None:
    """Compare the recorded shapes with onnx's own; raises where a step computed a wrong one."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(
        bare, check_type=True, strict_mode=True, data_prop=True
    )
    known = {v.name: v for v in [*inferred.graph.value_info, *inferred.graph.output]}
    for recorded in [*model.graph.value_info, *model.graph.output]:
        found, ours = known[recorded.name].type.tensor_type, recorded.type.tensor_type
        assert found.elem_type == ours.elem_type, recorded.name
        if all(d.HasField("dim_value") for d in found.shape.dim) and found.HasField("shape"):
            assert dims(known[recorded.name]) == dims(recorded), recorded.name


def varies(model: onnx.ModelProto) -> bool:
    """Whether every output depends on the input: not so the mean of a softmax, or a padding."""
    pairs = zip(run(model, feeds(model, 0)), run(model, feeds(model, 1)), strict=True)
    return all(np.max(np.abs(a - b)) > 1e-3 * np.max(np.abs(a)) for a, b in pairs)


def dims(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes of a value whose sizes are numbers."""
    return [d.dim_value for d in value.type.tensor_type.shape.dim]
