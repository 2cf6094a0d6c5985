"""Which attention map weighs which layer's tokens, on exported architectures."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from lwqc.graph.attention_maps import AttentionMaps, TokenWeights, token_weights
from lwqc.graph.sites import find_sites
from tests.build import model, normal
from tests.zoo.materialize import materialize

ZOO = Path(__file__).parent.parent / "zoo"


def load(name):
    loaded = ir.serde.deserialize_model(materialize(ZOO / f"{name}.onnx"))
    ShapeInferencePass()(loaded)
    return loaded


def answers(loaded):
    maps = AttentionMaps(loaded)
    return maps, [(s, maps.token_weights(s)) for s in find_sites(loaded).sites]


@pytest.mark.parametrize(
    ("name", "maps", "weighted"),
    [
        ("gpt2.dynamo", 3, 13),
        ("llama.dynamo", 3, 22),
        ("llama_past.dynamo", 3, 22),
        ("llama_past.legacy", 3, 22),
        ("bert.legacy", 3, 20),
        ("vit_small_patch16_224.dynamo", 6, 24),
        ("vit_small_patch16_224.legacy", 6, 24),
        ("t5.dynamo", 6, 33),
        ("resnet50.dynamo", 0, 0),
    ],
)
def test_counts(name, maps, weighted):
    found, sites = answers(load(name))
    assert len(found.maps) == maps
    assert sum(isinstance(w, TokenWeights) for _, w in sites) == weighted
    assert all(w for _, w in sites)


def test_each_block_of_a_decoder_has_its_own_map():
    found, sites = answers(load("llama.dynamo"))
    names = [w.map for s, w in sites if s.op == "MatMul"]
    first, second, third = (m.value.name for m in found.maps)
    # q, k, v, o, gate, up, down per block; the head is weighed by the last one
    assert names == [first] * 7 + [second] * 7 + [third] * 8


def test_cross_attention_weighs_what_it_reads():
    found, sites = answers(load("t5.dynamo"))
    cross = next(m for m in found.maps if not m.is_self_attention)
    by_node = {s.uses[0].node: w for s, w in sites}
    assert {by_node[n].map for n in cross.keys | cross.values} == {cross.value.name}
    for node in cross.queries:  # tokens of the decoder: weighed by its self-attention
        assert by_node[node].map != cross.value.name
        assert by_node[node].map in {m.value.name for m in found.maps if m.is_self_attention}


def test_reasons():
    _, sites = answers(load("vit_small_patch16_224.dynamo"))
    reasons = {s.op: w for s, w in sites if isinstance(w, str)}
    assert reasons["Gemm"] == "its input [batch,384] is no [batch, tokens, features]"
    assert reasons["Conv"] == "its input is not that of a matrix product"
    _, sites = answers(load("swin_t.dynamo"))
    assert "is no [batch, tokens, features]" in next(w for _, w in sites[3:] if isinstance(w, str))


def test_a_softmax_that_is_no_attention():
    built = model(
        [
            ("MatMul", ["x", "w"], "h", {}),
            ("Softmax", ["h"], "p", {"axis": -1}),
            ("MatMul", ["p", "v"], "y", {}),
        ],
        {"w": normal(32, 32), "v": normal(32, 32, seed=1)},
        {"x": ["n", "s", 32]},
        ["y"],
    )
    (site, _) = find_sites(built).sites
    assert "no attention map" in token_weights(built, site)


def test_a_layer_before_all_attention_has_no_weights():
    built = model(
        [
            ("MatMul", ["x", "e"], "z", {}),
            ("Relu", ["z"], "a", {}),
            ("MatMul", ["a", "q"], "queries", {}),
            ("MatMul", ["a", "k"], "keys", {}),
            ("Transpose", ["keys"], "t", {"perm": [0, 2, 1]}),
            ("MatMul", ["queries", "t"], "scores", {}),
            ("Softmax", ["scores"], "p", {"axis": -1}),
            ("MatMul", ["a", "v"], "values", {}),
            ("MatMul", ["p", "values"], "y", {}),
        ],
        {n: normal(32, 32, seed=i) for i, n in enumerate("eqkv")},
        {"x": ["n", "s", 32]},
        ["y"],
    )
    found = {s.name: token_weights(built, s) for s in find_sites(built).sites}
    assert found["q"] == found["k"] == found["v"] == TokenWeights("p", "a")
    assert found["e"] == "no self-attention comes before it"
