"""Sites alone: what is timed is what runs in a graph of many."""

import onnx_ir as ir
import pytest

from lwqc.compile import timing
from lwqc.compile.version import Version
from lwqc.decide.compress import open_version
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.profile import operator_times
from tests.build import model, normal

STATIC = SiteEntry(weight=WeightFormat(8), activation="static")


@pytest.fixture(scope="module")
def conv() -> Version:
    rows = [("Conv", ["x", "w"], "c", {"pads": [1, 1, 1, 1]}), ("Relu", ["c"], "y", {})]
    graph = model(rows, {"w": normal(32, 32, 3, 3, scale=0.1)}, {"x": [1, 32, 24, 24]}, ["y"])
    return open_version(graph, data=[{"x": normal(1, 32, 24, 24)}])


def timed_graphs(conv, monkeypatch) -> list[ir.Model]:
    """The graphs that are timed for the one site, float and in 8 bits, and what else counts."""
    seen = []

    def kernel_seconds(models, feeds, *, without, **_):
        seen.extend((graph, feeds, without) for graph in models)
        return [[1.0], [1.0]]

    monkeypatch.setattr(timing, "kernel_seconds", kernel_seconds)
    (site,) = conv.analysis.sites
    timing.form_seconds(conv, site, STATIC, (1, 32, 24, 24))
    return seen


def test_of_a_convolution_its_own_kernel_is_timed_and_nothing_else(conv, monkeypatch):
    """The runtime runs nodes that nobody reads, and brings channels in an order of its own."""
    for graph, feeds, without in timed_graphs(conv, monkeypatch):
        ran = operator_times(graph, {v.name: feeds[v.name] for v in graph.graph.inputs})
        assert {op for op in ran if op not in without} <= {"Conv", "QLinearConv"}
        assert sum(time.nodes for op, time in ran.items() if op not in without) == 1


def test_times_of_a_site_are_those_of_its_kernels(conv):
    (site,) = conv.analysis.sites
    before, after = timing.form_seconds(conv, site, STATIC, (1, 32, 24, 24))
    assert 0 < before < 0.1
    assert 0 < after < 0.1
    assert timing.float_seconds(site, (1, 32, 24, 24)) < 10 * before


def test_usual_times_are_those_of_the_faster_half():
    assert timing._usual([4e-6, 3e-6, 9e-3, 5e-6]) == pytest.approx(3.5e-6)
    assert timing._usual([2e-6]) == 2e-6
    assert timing._usual([0.0, 0.0]) > 0
