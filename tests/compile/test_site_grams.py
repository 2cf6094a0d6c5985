"""Gram matrices by site: the same in any order, each segment run once in graph order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.compile import site_grams
from lwqc.compile.site_grams import SiteGrams
from lwqc.decide.compress import compress_version, open_version
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import find
from lwqc.runtime.mapped_session import mapped_session
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.gram import Gram
from lwqc.runtime.stats.patches import Window
from tests.zoo.materialize import materialize, sample_inputs

ZOO = Path(__file__).parents[1] / "zoo"


class Data:
    """Feeds that count how often they are read."""

    def __init__(self, feeds):
        self.feeds, self.reads = feeds, 0

    def __iter__(self):
        self.reads += 1
        return iter(self.feeds)

    def __len__(self):
        return len(self.feeds)


@pytest.fixture(params=["llama.dynamo", "t5.dynamo"])
def model_and_data(request):
    path = ZOO / f"{request.param}.onnx"
    model = ir.serde.deserialize_model(materialize(path))
    return model, Data([sample_inputs(path, seed, batch) for seed, batch in enumerate((2, 1))])


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(site_grams, "_SEGMENT_BYTES", 200_000)


def expected(model, data, sites):
    grams = {s.name: Gram(s.uses[0].activation.name) for s in sites}
    found = collect(model, list(grams.values()), data, statistics_session)
    return {n: found[g].matrix / found[g].rows for n, g in grams.items()}


def products(model):
    return [s for s in find_sites(model).sites if s.ops <= {"MatMul", "Gemm"}]


def check(found, wanted):
    np.testing.assert_allclose(found[0], wanted, atol=5e-6 * np.abs(wanted).max())


def test_graph_order_reads_the_data_once(model_and_data, small_segments):
    model, data = model_and_data
    sites = products(model)
    wanted = expected(model, data, sites)
    data.reads = 0
    seen = []
    grams = SiteGrams(model, find_sites(model).sites, data, lambda *at: seen.append(at))
    for site in sites:
        check(grams(site.name), wanted[site.name])
    assert len(grams.segments) > 3
    assert data.reads == 2  # once for the sizes of the first feeds
    assert seen == [(i + 1, 2 * len(grams.segments)) for i in range(len(seen))]


def test_any_order_gives_the_same(model_and_data, small_segments):
    model, data = model_and_data
    sites = products(model)
    wanted = expected(model, data, sites)
    grams = SiteGrams(model, find_sites(model).sites, data)
    for i in np.random.default_rng(0).permutation(len(sites))[:8]:
        check(grams(sites[i].name), wanted[sites[i].name])


def test_threads_may_ask_at_the_same_time(model_and_data, small_segments):
    model, data = model_and_data
    sites = products(model)
    wanted = expected(model, data, sites)
    data.reads = 0
    grams = SiteGrams(model, find_sites(model).sites, data)
    with ThreadPoolExecutor(2) as pool:
        for site, found in zip(sites, pool.map(lambda s: grams(s.name), sites), strict=True):
            check(found, wanted[site.name])


def test_neighbours_at_a_boundary_do_not_start_again(model_and_data, small_segments):
    model, data = model_and_data
    grams = SiteGrams(model, find_sites(model).sites, data)
    sites = products(model)
    data.reads = 0
    for before, after in pairwise(sites):
        grams(after.name)
        grams(before.name)
    assert data.reads <= 3


def test_a_site_inside_a_body_has_none_unless_its_input_is_outside():
    w = onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
    v = onnx.numpy_helper.from_array(2 * np.eye(64, dtype=np.float32), "v")
    text = """
<ir_version: 9, opset_import: ["" : 18]>
g (bool flag, float[n, 64] x) => (float[n, 64] y) {
  y = If (flag) <
    then_branch = t () => (float[n, 64] p) { a = MatMul(x, w) p = MatMul(a, v) },
    else_branch = e () => (float[n, 64] q) { q = Identity(x) }
  >
}
"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend([w, v])
    model = ir.serde.deserialize_model(proto)
    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    grams = SiteGrams(model, find_sites(model).sites, [{"flag": np.array(True), "x": x}])
    np.testing.assert_allclose(grams("w")[0], x.T @ x / 9, atol=1e-5)
    assert grams("v") is None
    assert "inside the body" in grams.reason("v")


def test_external_weights_are_mapped_where_they_lie(tmp_path, model_and_data, monkeypatch):
    model, data = model_and_data
    io.save(model, tmp_path / "m.onnx", external_data=True)
    loaded = io.load(tmp_path / "m.onnx")
    monkeypatch.setattr(io, "read_array", None)
    sites = products(model)
    collectors = [Gram(s.uses[0].activation.name) for s in sites]
    found = collect(loaded, collectors, data, mapped_session)
    wanted = collect(model, collectors, data, statistics_session)
    for gram in collectors:
        scale = np.abs(wanted[gram].matrix).max()
        np.testing.assert_allclose(found[gram].matrix, wanted[gram].matrix, atol=5e-6 * scale)


def test_large_models_run_from_their_file(tmp_path, model_and_data, small_segments, monkeypatch):
    monkeypatch.setattr(site_grams, "MAPPED_BYTES", 0)
    monkeypatch.setattr(site_grams, "_LARGE_SEGMENT_BYTES", 200_000)
    model, data = model_and_data
    wanted = expected(model, data, products(model))
    io.save(model, tmp_path / "m.onnx", external_data=True)
    loaded = io.load(tmp_path / "m.onnx")
    grams = SiteGrams(loaded, find_sites(loaded).sites, data)
    for site in products(loaded):
        check(grams(site.name), wanted[site.name])


def test_a_job_reports_statistics_and_encoding(model_and_data):
    model, data = model_and_data
    stages: dict[str, list[tuple[int, int]]] = {}

    def report(stage, done, total):
        stages.setdefault(stage, []).append((done, total))

    work = open_version(model, data=data.feeds, skip_checks=True, progress=report)
    recipe = find("w4").model_copy(update={"method": "gptq", "bits": 4})
    io.to_bytes(compress_version(work, Goals(), recipe).model)
    assert stages["statistics"][-1] == (2, 2)
    done = [at for at, _ in stages["encoding"]]
    assert done == sorted(done)
    assert done[-1] == stages["encoding"][-1][1] > 20


SHARED = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[n, 64] x, float[m, 64] z) => (float[n, 64] y, float[m, 64] q) {
  a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) b = MatMul(z, w) q = %s
}
"""


def shared(second):
    """A weight `w` that rows of two tensors meet, far apart in the graph."""
    proto = onnx.parser.parse_model(SHARED % second)
    for name in ("w", "v"):
        array = np.random.default_rng(ord(name)).standard_normal((64, 64)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((n, 64)).astype(np.float32) for n in (300, 200)]
    return ir.serde.deserialize_model(proto), *rows


@pytest.mark.parametrize("bytes_", [1, 1 << 30])
def test_a_weight_read_twice_has_the_rows_of_both(monkeypatch, bytes_):
    monkeypatch.setattr(site_grams, "_SEGMENT_BYTES", bytes_)
    model, x, z = shared("Relu(b)")
    grams = SiteGrams(model, find_sites(model).sites, [{"x": x, "z": z}])
    assert len(grams.segments) == (1 if bytes_ > 1 else 3)
    rows = np.concatenate([x, z])
    check(grams("w"), rows.T @ rows / 500)
    assert grams.reason("w") == ""


def test_a_weight_read_twice_in_different_ways_has_none():
    model, x, z = shared("Gemm <transB = 1> (b, w)")
    grams = SiteGrams(model, find_sites(model).sites, [{"x": x, "z": z}])
    assert grams("w") is None
    assert grams.reason("w") == "operators read its weight in different ways"


def test_convolutions_that_share_a_kernel_may_differ_in_strides_and_spelling():
    text = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[1, 4, 9, 9] x) => (float[1, 4, 7, 7] y, float[1, 4, n, m] q) {
  y = Conv<strides = [1, 1], dilations = [1, 1]>(x, w) r = Relu(y) q = Conv<strides = [2, 2]>(r, w)
}
"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = ir.serde.deserialize_model(proto)
    x = np.random.default_rng(1).standard_normal((1, 4, 9, 9)).astype(np.float32)
    grams = SiteGrams(model, find_sites(model).sites, [{"x": x}])
    assert grams.reason("w") == ""
    first, second = Gram("x", Window(1, 4, (3, 3))), Gram("r", Window(1, 4, (3, 3), (2, 2)))
    found = collect(model, [first, second], [{"x": x}], statistics_session)
    rows = found[first].rows + found[second].rows
    assert rows == 49 + 9
    check(grams("w"), (found[first].matrix[0] + found[second].matrix[0]) / rows)
