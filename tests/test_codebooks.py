"""Codebooks from the command line to the file and back."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

import lwqc
from lwqc import cli
from lwqc.backends.cpu import CpuTarget
from lwqc.compile.version import Version
from lwqc.decide import mixed, planning
from lwqc.decide.compress import compress_version, open_version
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import find
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session
from models.training import FOLDER
from tests.build import model, normal

GLYPHS = FOLDER / "glyph_vit.onnx"


def run(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lwqc", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, capsys.readouterr()


def small(n=96, k=64):
    rows = [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "b"], "y", {})]
    return model(rows, {"a": normal(k, n), "b": normal(n, k, seed=2)}, {"x": ["m", k]}, ["y"])


def feeds():
    return [{"x": normal(32, 64, seed=seed)} for seed in range(4)]


def test_a_plan_is_replayed_bit_for_bit_and_the_report_tells_entropy(tmp_path, monkeypatch, capsys):
    first, again, saved = (tmp_path / name for name in ("a.onnx", "b.onnx", "plan.json"))
    data = ["--data", tmp_path / "x.npz"]
    np.savez(tmp_path / "x.npz", x=normal(128, 64))
    io.save(small(), tmp_path / "m.onnx")
    code, printed = run(
        ["quantize", tmp_path / "m.onnx", "-o", first, *data, "--format", "vq5x2",
         "--method", "gptq", "--plan-out", saved, "--json"], monkeypatch, capsys,
    )  # fmt: skip
    assert code == 0, printed.err
    rows = json.loads(printed.out)["sites"]
    assert {(row["format"], row["kernel"]) for row in rows} == {("vq5x2", "Folded")}
    weights = {row["name"]: np.prod(row["shape"]) for row in rows}
    assert all(1.5 < 8 * row["entropy_bytes"] / weights[row["name"]] < 2.5 for row in rows)
    assert {e.method for e in Plan.load(saved).quantize.values()} == {"gptq"}
    code, printed = run(
        ["apply", tmp_path / "m.onnx", saved, "-o", again, *data], monkeypatch, capsys
    )
    assert code == 0, printed.err
    assert "with an entropy of" in " ".join(printed.out.split())
    assert first.read_bytes() == again.read_bytes()
    assert not find_sites(io.load(first)).sites


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--format", "vq5x2", "--method", "hqq"], "codebooks are fitted by"),
        (["--format", "vq5x2", "--method", "brecq"], "not learned"),
        (
            ["--format", "vq5x2", "--activations", "static"],
            "activations of vq5x2 weights stay float",
        ),
        (["--format", "vq5x3"], "vectors of one of"),
        (["--format", "vq5x2", "--bits", "mixed"], "leave out --bits mixed"),
        (["--format", "vq5x2", "--bits", "4"], "leave out --bits 4"),
        (["--format", "vq5x2", "--no-search"], "no scales that could be searched for"),
    ],
)
def test_what_does_not_go_together_is_one_line(options, told, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.onnx"
    data = ["--data", "models.glyphs:calibration"]
    code, printed = run(["quantize", GLYPHS, "-o", out, *data, *options], monkeypatch, capsys)
    assert (code, len(printed.err.strip().splitlines())) == (2, 1)
    assert told in printed.err
    assert not out.exists()


def test_the_recipe_without_data_says_plain_k_means():
    done = lwqc.compress(small(), recipe="gptvq")
    assert {e.method for e in done.plan.quantize.values()} == {"rtn"}
    assert any("plain k-means" in note for note in done.plan.notes)


def test_python_takes_a_format_by_name():
    done = lwqc.quantize(small(), format="w3b32hd")
    assert {str(e.weight) for e in done.plan.quantize.values()} == {"w3b32hd"}


def test_sequential_calibration_fits_codebooks_too():
    recipe = find("gptvq").model_copy(update={"sequential": True})
    plain, sequential = (
        compress_version(open_version(small(), data=feeds()), Goals(), r)
        for r in (find("gptvq"), recipe)
    )
    wanted = [Session(small())(f)["y"] for f in feeds()]

    def lost(done) -> float:
        found = [Session(done.model)(f)["y"] for f in feeds()]
        return sum(float(((a - b) ** 2).sum()) for a, b in zip(found, wanted, strict=True))

    assert lost(sequential) < lost(plain)


def test_shorter_vectors_where_groups_have_fewer_outputs():
    net = model(
        [("Conv", ["x", "w"], "y", {"group": 64})], {"w": normal(64, 1, 5, 5)},
        {"x": [1, 64, 8, 8]}, ["y"],
    )  # fmt: skip
    plan = planning.uniform(open_version(net), 8, "none", fmt=WeightFormat.parse("vq5x2"))
    assert {str(e.weight) for e in plan.quantize.values()} == {"vq3x1"}


def least_error(work: Version, bits: float) -> float:
    """Predicted error of the best plan of that many bits."""
    curves = mixed.choices(work, method="descent", tiny=True)
    plan = mixed.within_average_bits(work, curves, bits, "")
    return sum(
        option.error
        for curve in curves
        for entry, option in zip(curve.entries, curve.options, strict=True)
        if entry == plan.quantize.get(curve.site.name)
    )


class Grids(CpuTarget):
    """The CPU without codebooks."""

    def candidates(self, site, opset, *, tiny=False):
        found = super().candidates(site, opset, tiny=tiny)
        return [e for e in found if not e.weight.only_stored]


def test_a_budget_takes_codebooks_where_they_are_better_than_grids():
    work = open_version(small(), data=feeds())
    plan = compress_version(work, Goals(avg_bits=2.6), find("knapsack")).decisions
    assert any(e.weight.kind == "vq" for e in plan.quantize.values())
    grids = Version(work.model, replace(work.job, target=Grids()), work.original)
    assert least_error(work, 2.6) < 0.8 * least_error(grids, 2.6)


def test_a_budget_that_four_bits_meet_takes_none():
    work = open_version(small(), data=feeds())
    plan = compress_version(work, Goals(avg_bits=5.0), find("knapsack")).decisions
    assert plan.quantize
    assert all(e.weight.kind == "int" for e in plan.quantize.values())


def test_numbers_that_float16_has_not_stay_float():
    big = model([("MatMul", ["x", "a"], "y", {})], {"a": 1e6 * normal(64, 96)}, {"x": ["m", 64]},
                ["y"])  # fmt: skip
    plan = planning.uniform(open_version(big), 8, "none", fmt=WeightFormat.parse("vq5x2"))
    assert plan.kept_float == {"a": "float16 does not hold its numbers"}
