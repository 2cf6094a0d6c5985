"""Column mass of attention as weights of a Gram matrix: what numpy says, on real architectures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from lwqc.graph.attention_maps import AttentionMaps, TokenWeights
from lwqc.graph.sites import find_sites
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.column_mass import ColumnMass
from lwqc.runtime.stats.gram import Gram
from lwqc.runtime.stats.patches import Window
from tests.runtime.stats.conftest import capture, parse, runner
from tests.zoo.materialize import materialize, sample_inputs

ZOO = Path(__file__).parents[2] / "zoo"


def token_mass(probabilities, tokens, smallest):
    """[batch * tokens]; the definition, one sequence at a time."""
    batch, count = tokens.shape[:2]
    rows = []
    for one in probabilities.reshape(batch, -1, *probabilities.shape[-2:]).astype(np.float64):
        mass = one.sum((0, 1))[-count:]
        share = (mass - mass.min()) / np.ptp(mass) * (1 - smallest) + smallest
        rows.append(share / share.mean())
    return np.concatenate(rows)


@pytest.mark.parametrize(
    "name",
    ["gpt2.dynamo", "llama.dynamo", "llama_past.dynamo", "vit_small_patch16_224.dynamo",
     "bert.legacy"],
)  # fmt: skip
def test_weighted_grams_of_real_architectures(name):
    path = ZOO / f"{name}.onnx"
    model = ir.serde.deserialize_model(materialize(path))
    ShapeInferencePass()(model)
    data = [sample_inputs(path, seed=s, batch=s) for s in (1, 2)]
    maps = AttentionMaps(model)
    sites = [(s, maps.token_weights(s)) for s in find_sites(model).sites]
    weighted = [(s, w) for s, w in sites if isinstance(w, TokenWeights)]
    chosen = weighted[:2] + weighted[len(weighted) // 2 :][:2] + weighted[-1:]
    inputs = {s.name: s.uses[-1].activation.name for s, _ in chosen}
    names = {n for s, w in chosen for n in (w.map, w.tokens, inputs[s.name])}
    runs = capture(model, sorted(names), data)
    for site, weights in chosen:
        mass = ColumnMass(weights.map, weights.tokens, smallest=0.02)
        gram = Gram(inputs[site.name], weights=mass)
        found = collect(model, [gram], data, runner)[gram]
        expected = 0
        for run in runs:
            r = token_mass(run[weights.map], run[weights.tokens], 0.02)
            x = run[inputs[site.name]].astype(np.float64)
            x = x.reshape(-1, x.shape[-1])
            assert r.sum() == pytest.approx(len(x))
            expected = expected + (x * r[:, None]).T @ x
        # float32 sums over some hundred rows
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found.matrix, expected, rtol=1e-4, atol=1e-5 * scale)


MAP = """
<ir_version: 9, opset_import: ["" : %d]>
net (float[rows, queries, keys] p, float[batch, tokens, 2] x) => (float[rows, queries, keys] y) {
  y = Identity(p)
}
"""


@pytest.mark.parametrize("opset", [12, 13, 18])
def test_heads_folded_into_the_batch_and_a_cache(opset):
    model = parse(MAP % opset)
    rng = np.random.default_rng(0)
    probabilities = rng.random((2 * 3, 4, 7), dtype=np.float32)  # 3 heads, 3 cached tokens
    x = rng.standard_normal((2, 4, 2), dtype=np.float32)
    gram = Gram("x", weights=ColumnMass("p", "x"))
    found = collect(model, [gram], [{"p": probabilities, "x": x}], runner)[gram]
    r, rows = token_mass(probabilities, x, 0.005), x.reshape(-1, 2)
    np.testing.assert_allclose(found.matrix, (rows * r[:, None]).T @ rows, rtol=1e-5)


def test_equal_columns_weigh_one():
    model = parse(MAP % 18)
    x = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    feeds = {"p": np.full((2, 4, 4), 0.25, np.float32), "x": x}
    weighted, plain = Gram("x", weights=ColumnMass("p", "x")), Gram("x")
    found = collect(model, [weighted, plain], [feeds], runner)
    np.testing.assert_allclose(found[weighted].matrix, found[plain].matrix, rtol=1e-6)
    assert found[weighted].rows == found[plain].rows == 4


def test_patches_take_no_weights():
    with pytest.raises(ValueError, match="patches"):
        Gram("x", Window(1, 3, (3, 3)), ColumnMass("p", "x"))
