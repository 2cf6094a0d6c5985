"""Which residual streams can be rotated, and the reason where one cannot."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lwqc.graph.groups import Groups, find_groups
from lwqc.graph.rotatable import find_streams
from lwqc.graph.shapes import declared_shapes
from lwqc.graph.stream_rules import RULES
from lwqc.passes.rotate_stream import rotate_streams
from lwqc.testing.oracles import difference, prepared, session
from tests.build import model, normal
from tests.conftest import ZOO
from tests.random_graphs import feeds, models
from tests.zoo.materialize import materialize, sample_inputs

# Stem -> (streams, layer norms, layers behind a matrix); all other skeletons have no stream.
PINS = {
    "beit_base_patch16_224.dynamo": (1, 7, 0),
    "convformer_s18.dynamo": (1, 7, 0),
    "deit_tiny_distilled_patch16_224.dynamo": (1, 13, 0),
    "gpt2.dynamo": (1, 7, 1),
    "llama.dynamo": (1, 0, 0),
    "llama_past.dynamo": (1, 0, 0),
    "llama_past.legacy": (1, 0, 0),
    "qwen2.dynamo": (1, 0, 1),
    "vit_small_patch16_224.dynamo": (1, 13, 0),
    "vit_small_patch16_224.legacy": (1, 13, 0),
}
REASONS = {
    "bert.dynamo": "post-norm",
    "t5.dynamo": "graph output",
    "eva02_tiny_patch14_224.dynamo": "graph output",
    "convnext_tiny.dynamo": "group by group",
    "swin_t.dynamo": "Pad",
    "mixer_s32_224.dynamo": "MatMul node_MatMul_7",
}


def test_zoo_is_pinned(skeleton):
    groups = prepared(ir.from_proto(materialize(skeleton)))[1]
    found = find_streams(groups)
    assert {g.name for g in groups if g.statistics} <= {
        *(s.group.name for s in found.streams),
        *(f.name for f in found.fixed),
    }
    assert all(f.reason for f in found.fixed)
    pin = PINS.get(skeleton.stem, (0, 0, 0))
    assert pin == (
        len(found.streams),
        sum(len(s.layer_norms) for s in found.streams),
        sum(len(s.tied) for s in found.streams),
    )
    if skeleton.stem in REASONS:
        assert any(REASONS[skeleton.stem] in f.reason for f in found.fixed)


def test_operators_exist():
    for domain, op in RULES:
        known = op == "SimplifiedLayerNormalization"  # onnxruntime's own, in the ONNX domain
        assert known or onnx.defs.has(op, domain)


RMS = [
    ("Pow", ["x", "two"], "p", {}),
    ("ReduceMean", ["p", "last"], "v", {}),
    ("Sqrt", ["v"], "q", {}),
    ("Div", ["x", "q"], "d", {}),
    ("Mul", ["d", "gain"], "n", {}),
]
LAYER_NORM = [("LayerNormalization", ["x", "gain", "bias"], "n", {})]
STEM = [("Gather", ["table", "ids"], "x", {})]
HEAD = [("MatMul", ["n", "head"], "y", {})]
D = 8
IDS = {"ids": np.array([[1, 4, 2], [0, 3, 3]])}


def stored():
    rng = np.random.default_rng(0)
    return {
        "table": normal(5, D), "square": normal(D, D, seed=1), "head": normal(D, 4, seed=2),
        "other": normal(D, 4, seed=3), "gain": rng.uniform(0.5, 2, D).astype(np.float32),
        "gain2": rng.uniform(0.5, 2, D).astype(np.float32), "bias": normal(D, seed=4),
        "scale": rng.uniform(0.5, 2, D).astype(np.float32), "zero": np.float32(0.5),
        "two": np.float32(2), "last": np.array([-1]), "seq": np.array([1]),
        "ones": np.ones(D, np.float32), "four": np.ones(4, np.float32),
        "flat": np.full((1, D), 1, np.float32), "position": normal(3, D, seed=6),
    }  # fmt: skip


def build(*rows, outputs=("y",)):
    used = {name for _, inputs, _, _ in rows for name in inputs}
    weights = {k: v for k, v in stored().items() if k in used}
    types = {"ids": onnx.TensorProto.INT64}
    return model(list(rows), weights, {"ids": ["b", 3]}, list(outputs), types=types)


def streams_of(built):
    return find_streams(find_groups(built, declared_shapes(built)[0]))


def check(built):
    """Rotating every stream leaves the outputs; returns the streams."""
    groups = find_groups(built, declared_shapes(built)[0])
    found = find_streams(groups)
    assert found.streams, found.fixed
    expected = session(built)(IDS)
    rotate_streams(groups, {s.group.name: 3 for s in found.streams})
    assert difference(expected, session(built)(IDS)) <= 1e-5
    return found.streams


UNSQUARE = ("MatMul", ["n", "square"], "f", {})
BLOCK = [UNSQUARE, ("Add", ["x", "f"], "x2", {})]
NORM2 = [
    ("LayerNormalization", ["x2", "gain2", "bias"], "n2", {}),
    ("MatMul", ["n2", "head"], "y", {}),
]


@pytest.mark.parametrize(
    "rows",
    [
        [*STEM, *RMS, *HEAD],
        [*STEM, *LAYER_NORM, *HEAD],
        # reads and writes the stream with one weight, with and without a bias
        [*STEM, *LAYER_NORM, *BLOCK, *NORM2],
        [*STEM, *LAYER_NORM, UNSQUARE, ("Add", ["f", "scale"], "g", {}),
         ("Add", ["x", "g"], "x2", {}), *NORM2],
        # layer scale
        [*STEM, *LAYER_NORM, UNSQUARE, ("Add", ["f", "bias"], "g", {}),
         ("Mul", ["scale", "g"], "s", {}), ("Add", ["x", "s"], "x2", {}), *NORM2],
        # a scaled embedding, by a number and by a vector; a norm right behind a writer
        [("Gather", ["table", "ids"], "e", {}), ("Mul", ["e", "two"], "x", {}), *RMS, *HEAD],
        [("Gather", ["table", "ids"], "e", {}), ("Mul", ["e", "scale"], "x", {}), *RMS, *HEAD],
        [("Gather", ["table", "ids"], "e", {}), ("MatMul", ["e", "square"], "x", {}),
         *LAYER_NORM, *HEAD],
        # positions, a pooled stream, a gain of 1, a raw reader beside a norm without a mean
        [("Gather", ["table", "ids"], "e", {}), ("Add", ["position", "e"], "x", {}), *LAYER_NORM,
         *HEAD],
        [*STEM, *LAYER_NORM, ("ReduceMean", ["n", "seq"], "o", {}),
         ("MatMul", ["o", "head"], "y", {})],
        [*STEM, *RMS[:-1], ("Mul", ["d", "ones"], "n", {}), ("Add", ["n", "x"], "z", {}),
         ("MatMul", ["z", "head"], "y", {})],
        [*STEM, *RMS, ("MatMul", ["n", "head"], "a", {}),
         ("MatMul", ["x", "other"], "b", {}), ("Add", ["a", "b"], "y", {})],
        # similarity of two tokens
        [*STEM, *RMS[:-1], ("Transpose", ["d"], "t", {"perm": [0, 2, 1]}),
         ("MatMul", ["d", "t"], "y", {})],
        # a bias that the stream and a norm share
        [("Gather", ["table", "ids"], "e", {}), ("Add", ["e", "bias"], "x", {}), *LAYER_NORM,
         *HEAD],
    ],
)  # fmt: skip
def test_rotatable(rows):
    check(build(*rows))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([*STEM, *LAYER_NORM, *BLOCK, ("Add", ["x2", "n"], "z", {}),
          ("MatMul", ["z", "head"], "y", {})], "post-norm"),
        ([*STEM, *RMS, ("Relu", ["n"], "r", {}), ("MatMul", ["r", "head"], "y", {})], "Relu n_r"),
        ([*STEM, *RMS, ("Add", ["n", "zero"], "r", {}), ("MatMul", ["r", "head"], "y", {})],
         "same number"),
        ([*STEM, *LAYER_NORM, ("MatMul", ["n", "head"], "a", {}),
          ("MatMul", ["x", "other"], "b", {}), ("Add", ["a", "b"], "y", {})],
         "mean that LayerNormalization n_n drops"),
        ([*STEM, *RMS, ("MatMul", ["n", "head"], "a", {}), ("MatMul", ["x", "head"], "b", {}),
          ("Add", ["a", "b"], "y", {})], "different gains"),
        ([*STEM, *RMS, ("Mul", ["n", "x"], "r", {}), ("MatMul", ["r", "head"], "y", {})],
         "one by one"),
        ([*STEM, *RMS, ("ReduceMax", ["n", "last"], "y", {})], "ReduceMax n_y"),
        ([*STEM, *RMS, ("ReduceMean", ["n", "last"], "y", {})], "post-norm"),
        ([*STEM, *RMS[:-1], ("Mul", ["d", "flat"], "e", {}), ("Add", ["e", "flat"], "n", {}),
          *HEAD], "also a gain"),
        ([("Gather", ["table", "ids"], "e", {}), ("Mul", ["e", "scale"], "x", {}), *RMS,
          ("Transpose", ["table"], "t", {}), ("MatMul", ["n", "t"], "y", {})], "different gains"),
        ([*STEM, *LAYER_NORM, ("Mul", ["n", "two"], "r", {}), ("MatMul", ["r", "head"], "y", {})],
         "norm's bias"),
    ],
)  # fmt: skip
def test_near_misses(rows, reason):
    found = streams_of(build(*rows))
    assert not found.streams
    assert reason in "; ".join(f.reason for f in found.fixed), found.fixed


def test_stream_that_is_an_output_says_so():
    found = streams_of(build(*STEM, *LAYER_NORM, *HEAD, outputs=("y", "n")))
    assert not found.streams
    assert [f.reason for f in found.fixed] == ["graph output n"]


def forced(groups):
    """As if every group were normalised: what the rules let pass must be right for any of them."""
    marked = tuple(replace(g, marks=g.marks | {"statistics"}) for g in groups.groups)
    return Groups(groups.analysis, marked, groups.frozen)


_KINDS = [
    *("matmul", "matmul", "gemm", "conv_1x1", "conv_3x3", "token_mixing", "attention"),
    *("residual", "residual", "residual", "layer_norm", "layer_norm", "rms_norm", "rms_norm"),
    *("concat", "split", "slice_run", "gather_run", "gather_scalar", "reduce_mean", "tokens"),
    *("transpose", "squeeze", "unsqueeze", "channel_vector", "channel_vector"),
]


@given(models(_KINDS, max_nodes=40), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_graphs(proto, seed):
    built, groups, _ = prepared(ir.from_proto(proto))
    groups = forced(groups)
    streams = find_streams(groups).streams
    if streams:
        values = feeds(proto, seed)
        expected = session(built)(values)
        rotate_streams(groups, {s.group.name: seed for s in streams})
        assert difference(expected, session(built)(values)) <= 2e-5


def test_two_streams_at_once():
    """In MobileNet's bottlenecks, rotated together although no norm is there."""
    path = next(p for p in ZOO if p.stem == "mobilenet_v2.dynamo")
    built, groups, _ = prepared(ir.from_proto(materialize(path)))
    groups = forced(groups)
    streams = find_streams(groups).streams
    assert len(streams) == 7
    image = sample_inputs(path, batch=1)
    expected = session(built)(image)
    rotate_streams(groups, {s.group.name: i for i, s in enumerate(streams)})
    assert difference(expected, session(built)(image)) <= 1e-5
