"""2:4 sparsity from the recipe to the file."""

import json

import numpy as np
import pytest

from lwqc.decide.compress import compress_version, open_version
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan, SiteEntry, Source, SparseEntry
from lwqc.quant.sparse import is_two_of_four
from lwqc.runtime.session import Session
from tests.build import model, normal


def net():
    rows = [
        ("Conv", ["x", "c"], "a", {"pads": [1] * 4}),
        ("Relu", ["a"], "b", {}),
        ("GlobalAveragePool", ["b"], "p", {}),
        ("Flatten", ["p"], "f", {}),
        ("Gemm", ["f", "w"], "y", {"transB": 1}),
    ]
    weights = {"c": normal(64, 16, 3, 3, scale=0.1), "w": normal(32, 64, seed=1)}
    return model(rows, weights, {"x": ["n", 16, 6, 6]}, ["y"])


def data():
    mix = normal(16, 16, seed=4)
    return [{"x": np.einsum("nihw,ij->njhw", normal(8, 16, 6, 6, seed=i), mix)} for i in range(3)]


def sparse(recipe):
    work = open_version(net(), data=data(), target="tensorrt")
    return work, compress_version(work, Goals(), recipe)


def error(work, done):
    reference, session = Session(net()), work.job.load(done.model)
    feeds = data()[0]
    return np.square(reference(feeds)["y"] - session(feeds)["y"]).mean()


def test_every_method_gives_the_pattern_along_input_channels():
    errors = {}
    for recipe in ("sparse24-magnitude", "sparse24-exchange", "sparse24"):
        work, done = sparse(recipe)
        stored = {s.name: s.weight.tensor.numpy() for s in find_sites(done.model).sites}
        assert set(done.plan.sparse) == {"c", "w"}
        assert is_two_of_four(stored["w"].astype(np.float32))
        along_channels = stored["c"].astype(np.float32).transpose(0, 2, 3, 1).reshape(64, -1)
        assert is_two_of_four(along_channels)
        errors[recipe] = error(work, done)
    assert errors["sparse24"] < errors["sparse24-exchange"] < errors["sparse24-magnitude"]


def test_it_is_called_eligible_and_the_options_allow_it(tmp_path):
    _, done = sparse("sparse24-magnitude")
    report = done.save(tmp_path / "out.onnx")
    assert {row.format for row in report.sites} == {"float, 2:4 eligible"}
    options = json.loads((tmp_path / "out.onnx.options.json").read_text())["options"]
    assert options["trt_sparsity_enable"] == "1"


def test_what_does_not_go_is_told():
    with pytest.raises(InputError, match=r"target cpu-[a-z0-9]+ has no sparse kernels"):
        compress_version(open_version(net(), data=data()), Goals(), "sparse24")
    without = compress_version(open_version(net(), target="tensorrt"), Goals(), "sparse24")
    assert {e.method for e in without.decisions.sparse.values()} == {"magnitude"}
    note = "no data was given: zeros by magnitude instead of sparsegpt"
    assert without.decisions.notes == (note,)
    with pytest.raises(ValueError, match="sparse weights stay float"):
        Plan(source=Source(), quantize={"w": SiteEntry(weight="w8c")}, sparse={"w": SparseEntry()})
    odd = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(54, 64)}, {"x": ["n", 54]}, ["y"])
    work = open_version(odd, target="tensorrt")
    plan = compress_version(work, Goals(), "sparse24-magnitude").plan
    assert "not a multiple of 4" in plan.kept_float["w"]
