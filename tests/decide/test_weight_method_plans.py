"""Weight methods from recipes and the command line, sequential calibration, mixed bits."""

from pathlib import Path

import numpy as np
import pytest

import lwqc
from lwqc.compile.losses import divergences
from lwqc.decide import mixed
from lwqc.decide.compress import compress_version, open_version
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import find, named, uniform_recipe
from lwqc.quant.output_error import output_error
from lwqc.runtime.session import Session
from tests.build import model, normal

ROOT = Path(__file__).parents[2]
VIT = ROOT / "models" / "glyph_vit.onnx"
RESNET = ROOT / "models" / "glyph_resnet.onnx"
DATA = "tests.few_samples:glyph_calibration"
METRIC = "tests.few_samples:glyph_accuracy"


@pytest.fixture(scope="module")
def vit():
    return open_version(VIT, data=DATA, metric=METRIC)


def errors(work, plan):
    """Output error of each observed site."""
    found = {}
    for name, entry in plan.quantize.items():
        if not work.grams.reason(name):
            weight = np.asarray(work.weights.weight(name), np.float32)
            decoded = work.weights.get(name, entry).decode()
            found[name] = output_error(weight, decoded, work.grams(name))
    return found


def output_divergence(work, done):
    found = divergences(work, Session(done.model, label="compressed"))
    return max(d.relative_error for d in found.values())


@pytest.mark.parametrize("path", [VIT, RESNET])
def test_gptq_beats_rounding_on_nearly_every_layer(path):
    work = open_version(path, data=DATA)
    plain, better = (
        errors(work, compress_version(work, Goals(), find(r)).decisions) for r in ("w4", "gptq")
    )
    assert len(plain) > 10
    assert np.mean([better[n] < plain[n] for n in plain]) >= 0.95


@pytest.mark.parametrize("method", ["gptq", "gptq-order", "gptq-refit", "gpfq", "descent"])
def test_methods_that_look_at_data_lower_the_error_of_the_outputs(vit, method):
    plain, done = (
        compress_version(vit, Goals(), uniform_recipe(3, "none", "mse", True, m))
        for m in ("rtn", method)
    )
    assert io.serialized_bytes(done.model) == io.serialized_bytes(plain.model)
    assert output_divergence(vit, done) < 0.7 * output_divergence(vit, plain)


def test_what_runs_is_what_the_method_chose(vit):
    """The codes in the file are those of the method, not of plain rounding."""
    done = compress_version(vit, Goals(), find("gptq"))
    name, entry = next((n, e) for n, e in done.decisions.quantize.items() if e.weight.bits == 4)
    stored = done.model.graph.initializers[f"{name}_q4"].const_value.numpy()
    plain = compress_version(vit, Goals(), find("w4")).model.graph.initializers[f"{name}_q4"]
    assert entry.method == "gptq-order"
    assert (stored != plain.const_value.numpy()).mean() > 0.05


def test_sequential_calibration_lowers_the_error_of_the_outputs(vit):
    alone, after_others = (
        compress_version(vit, Goals(), uniform_recipe(3, "none", "mse", True, "gptq", sequential))
        for sequential in (False, True)
    )
    assert after_others.decisions.sequential
    assert output_divergence(vit, after_others) < output_divergence(vit, alone)


def test_a_sequential_plan_replays_with_the_data_and_asks_for_it(tmp_path):
    recipe = uniform_recipe(4, "none", "mse", True, "gptq", True)
    work = open_version(RESNET, data=DATA)
    done = compress_version(work, Goals(), recipe)
    done.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    again = lwqc.apply(RESNET, plan, data=DATA)
    feeds = work.job.data.fit.first()
    expected, found = (Session(m.model, label="m")(feeds) for m in (done, again))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(InputError, match="--data"):
        lwqc.apply(RESNET, plan)


def test_sequential_calibration_handles_shared_embedded_and_biased_layers():
    built = model(
        [
            ("Gather", ["table", "ids"], "h", {}),
            ("MatMul", ["h", "w1"], "a", {}),
            ("Add", ["a", "b1"], "b", {}),
            ("Relu", ["b"], "c", {}),
            ("MatMul", ["c", "w2"], "d", {}),
            ("Transpose", ["table"], "head", {"perm": [1, 0]}),
            ("MatMul", ["d", "head"], "y", {}),
        ],
        {
            "table": normal(64, 32),
            "w1": normal(32, 64, seed=1, scale=0.2),
            "b1": normal(64, seed=2, scale=0.2),
            "w2": normal(64, 32, seed=3, scale=0.2),
        },
        {"ids": ["batch", "length"]},
        ["y"],
        types={"ids": 7},
    )
    rng = np.random.default_rng(0)
    data = [{"ids": rng.integers(0, 64, (4, n))} for n in (7, 16, 30)]
    before = {n: v.const_value.numpy().copy() for n, v in built.graph.initializers.items()}
    work = open_version(built, data=data)
    done = compress_version(work, Goals(), uniform_recipe(4, "none", "mse", True, "gptq", True))
    assert set(done.decisions.quantize) == {"table", "w1", "w2"}
    assert output_divergence(work, done) < 0.05
    for name, values in before.items():
        np.testing.assert_array_equal(built.graph.initializers[name].const_value.numpy(), values)
    assert (done.model.graph.initializers["b1"].const_value.numpy() != before["b1"]).any()


def test_methods_without_data_do_not_collect_any():
    work = open_version(VIT)
    for method in ("hqq", "k-quant"):
        done = compress_version(work, Goals(), uniform_recipe(4, "none", "mse", True, method))
        assert {e.method for e in done.decisions.quantize.values()} == {method}
        assert not work.facts.has("grams") or not work.grams._held


def test_a_method_that_looks_at_data_asks_for_it(tmp_path, run):
    out = tmp_path / "out.onnx"
    code, _, err = run("quantize", VIT, "-o", out, "--bits", "4", "--method", "gptq")
    assert code == 2
    assert "--data" in err
    assert run("quantize", VIT, "-o", out, "--bits", "5")[0] == 2
    assert run("quantize", VIT, "-o", out, "--bits", "4", "--method", "magic")[0] == 2
    assert not out.exists()


def test_quantize_from_the_command_line(tmp_path, run):
    out = tmp_path / "out.onnx"
    code, _, err = run("quantize", VIT, "-o", out, "--bits", "3", "--method", "gptq",
                          "--sequential", "--data", DATA, "--no-verify")  # fmt: skip
    assert code == 0, err
    assert out.stat().st_size < 0.2 * VIT.stat().st_size


ELSEWHERE = {"w4", "gptq", "gpfq", "awq", "smoothquant", "dgq", "lorc", "w8", "w8a8-static"}
OTHERS = [
    name
    for name, recipe in named().items()
    if recipe.allocator in ("uniform", "rank") and name not in ELSEWHERE and recipe.kind != "fp8"
]


@pytest.mark.parametrize("name", OTHERS)
def test_every_quantizing_recipe_makes_a_model_that_runs(vit, name):
    recipe = find(name)
    if recipe.learn is not None:  # how well it learns is told elsewhere
        few = recipe.learn.model_copy(update={"steps": 4})
        recipe = recipe.model_copy(update={"learn": few})
    goals = Goals(avg_bits=6) if recipe.allocator == "rank" else Goals()
    done = compress_version(vit, goals, recipe)
    assert done.decisions.quantize
    assert vit.job.metric(Session(done.model, label=name)) > 0.8


def test_recipes_are_known_by_name():
    assert len(OTHERS) > 6


def test_mixed_bits_beat_uniform_ones_and_the_fixed_rule_at_equal_bytes(vit):
    knapsack = find("knapsack").model_copy(update={"method": "rtn"})
    alike = uniform_recipe(4, "dynamic", "mse")  # activations as mixed plans have them
    for rival in (alike, find("k-quant-mixed")):
        done = compress_version(vit, Goals(), rival)
        bound = Goals(max_size=Amount(float(io.serialized_bytes(done.model)), False))
        ours = compress_version(vit, bound, knapsack)
        assert io.serialized_bytes(ours.model) <= io.serialized_bytes(done.model)
        assert output_divergence(vit, ours) < output_divergence(vit, done), rival.name


def test_fewer_bits_join_when_four_do_not_fit(vit):
    done = compress_version(vit, Goals(avg_bits=3.5), find("knapsack"))
    found = {e.weight.bits / e.weight.dim for e in done.decisions.quantize.values()}
    assert min(found) <= 2.5
    assert max(found) >= 3.5
    # Scales take more where products are of 8-bit activations, which timings choose.
    above = compress_version(vit, Goals(avg_bits=4.9), find("knapsack"))
    assert 2 not in {e.weight.bits for e in above.decisions.quantize.values()}


def test_the_bisected_recipe_keeps_within_its_drop(vit):
    done = compress_version(vit, Goals(max_drop=0.004), find("aughess"))
    drop = vit.job.metric.drop(vit.original.metric, vit.job.metric(Session(done.model, label="m")))
    assert drop <= 0.004
    assert io.serialized_bytes(done.model) < 0.3 * vit.original.size_bytes
    with pytest.raises(InputError, match="max-drop"):
        compress_version(vit, Goals(avg_bits=4), find("aughess"))


def test_error_curves_fall_with_bits(vit):
    for choice in mixed.choices(vit, "weights", "gptq", tiny=True):
        pairs = zip(choice.entries, choice.options, strict=True)
        known = [(e.weight, o.error) for e, o in pairs if e is not None and e.weight.symmetric]
        for kind in ("int", "vq"):
            curve = {fmt.bits / fmt.dim: error for fmt, error in known if fmt.kind == kind}
            assert len(curve) > 2
            assert [curve[bits] for bits in sorted(curve)] == sorted(curve.values(), reverse=True)
