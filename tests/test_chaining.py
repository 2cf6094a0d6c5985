"""Steps after one another in Python: everything is measured against the first original."""

import json

import numpy as np
import onnx_ir as ir
import pytest

import lwqc
from lwqc.compile.compressed import Compressed
from lwqc.compile.losses import moved, outputs_error
from lwqc.runtime.session import Session
from tests.build import model, normal
from tests.short import short


def feeds(count=3, seed=0):
    return [{"x": normal(4, 96, seed=seed + i)} for i in range(count)]


def net():
    return model(
        [
            ("MatMul", ["x", "w1"], "h", {}),
            ("Relu", ["h"], "r", {}),
            ("MatMul", ["r", "w2"], "y", {}),
        ],
        {"w1": normal(96, 256, scale=0.1), "w2": normal(256, 64, seed=1, scale=0.1)},
        {"x": ["batch", 96]},
        ["y"],
    )


def blocks():
    """Two residual branches, the second of which feeds a second output."""
    return model(
        [
            ("MatMul", ["x", "w1"], "b1", {}),
            ("Add", ["x", "b1"], "s1", {}),
            ("MatMul", ["s1", "w2"], "b2", {}),
            ("Add", ["s1", "b2"], "y", {}),
        ],
        {"w1": normal(96, 96, scale=0.01), "w2": normal(96, 96, seed=1, scale=0.03)},
        {"x": ["batch", 96]},
        ["y"],
    )


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        short(patch)
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "net.onnx"
    lwqc.save(net(), path)
    return path


def size_of(run):
    """A metric: how large the outputs are."""
    return float(np.abs(run(feeds()[0])["y"]).mean())


@pytest.fixture(scope="module")
def first(original):
    """The original with fewer channels."""
    return lwqc.prune(
        original, ratio=0.3, recipe="spa-l2", target="cpu-avx2", data=feeds(5), metric=size_of,
        shapes={"batch": 2},
    )  # fmt: skip


def test_a_result_is_the_source_of_the_next_step(original, first, tmp_path):
    report = first.compress(recipe="lwq-zd", max_size=0.2).save(tmp_path / "out.onnx")
    assert report.source == "net.onnx"
    assert report.earlier == ("spa-l2",)
    assert report.source_bytes == original.stat().st_size
    own = lwqc.verify(original, tmp_path / "out.onnx", data=feeds(5))
    assert report.divergence["y"].drop == pytest.approx(own["y"].drop, rel=1e-6)
    assert report.metric_before == pytest.approx(size_of(Session(original)))
    (outcome,) = report.outcomes
    assert outcome.asked == pytest.approx(0.2 * original.stat().st_size)
    assert outcome.met
    shapes = [row.shape for row in report.sites]
    assert shapes
    assert all(np.prod(shape) < 96 * 256 for shape in shapes)  # sites are of what was pruned


def test_methods_are_the_functions(original, first):
    by_method = first.quantize(bits=8, activations="dynamic")
    by_function = lwqc.quantize(first, bits=8, activations="dynamic")
    assert by_method.plan == by_function.plan
    assert isinstance(by_function, Compressed)
    three = first.quantize(bits=4).lower(target="cpu")
    assert three.work.earlier == ("spa-l2", "w4-none")


def test_data_metric_shapes_and_target_travel_along_unless_given_anew(original, first):
    second = lwqc.quantize(first)
    assert second.work.job.target.name == second.plan.target == "cpu-avx2"
    assert len(second.work.job.data.fit) == 5
    assert second.work.job.metric is first.work.job.metric
    assert [s.label for s in second.work.job.data.serve] == ["batch=2"]
    third = lwqc.quantize(first, target="cpu-vnni", data=feeds(2), shapes={"batch": 3})
    assert third.work.job.target.name == "cpu-vnni"
    assert len(third.work.job.data.fit) == 2
    assert third.work.job.metric is first.work.job.metric
    assert [s.label for s in third.work.job.data.serve] == ["batch=3"]


def test_random_data_is_not_taken_for_the_callers():
    shallow = lwqc.drop_layers(blocks(), branches=1)
    assert not shallow.quantize().work.job.data.fit.given
    with pytest.raises(lwqc.InputError, match="looks at the data"):
        shallow.quantize(sequential=True)


def test_a_plan_of_a_later_step_is_for_what_that_step_was_given(original, first, tmp_path):
    second = first.quantize(bits=4)
    with pytest.raises(lwqc.InputError, match="the plan is for"):
        lwqc.apply(original, second.plan)
    again = first.apply(second.plan)
    first.save(tmp_path / "first.onnx", verify=False)
    from_file = lwqc.apply(tmp_path / "first.onnx", second.plan, data=feeds(5))
    for name, done in (("a", second), ("b", again), ("c", from_file)):
        done.save(tmp_path / f"{name}.onnx", verify=False)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_a_later_step_does_not_overwrite_the_first_original(original, first):
    before = original.read_bytes()
    second = first.quantize()
    with pytest.raises(lwqc.InputError, match="is read as an input"):
        second.save(original)
    assert original.read_bytes() == before


def test_exact_clean_up_compares_with_what_it_was_given(original, first):
    # Against the first original the outputs have moved already, and nothing would count as exact.
    work = first.quantize().work
    session = work.job.load(work.model)
    assert moved(work, session) < 1e-12
    assert outputs_error(work, session) > 1e-3


def test_removed_layers_are_followed_by_other_steps(tmp_path):
    lwqc.save(blocks(), tmp_path / "m.onnx")
    done = lwqc.drop_layers(tmp_path / "m.onnx", branches=1, data=feeds()).quantize(bits=8)
    report = done.save(tmp_path / "o.onnx")
    assert report.earlier == ("ablation-refit",)
    assert len(report.sites) == 1
    assert 0 < report.drop < 0.05


def test_looking_functions_take_results_too(original, first, tmp_path):
    assert {s.name for s in first.inspect().sites.sites} == {"w1", "w2"}
    found = lwqc.verify(original, first)
    assert found["y"].drop > 0
    assert lwqc.verify(first, first)["y"].drop == pytest.approx(0, abs=1e-9)
    assert lwqc.plan(first, recipe="w8a8-dynamic").source.digest != first.plan.source.digest
    assert len(lwqc.bench(original, first, seconds=0.02)) == 2


def test_a_model_that_is_no_version_of_the_original_is_refused(original):
    from lwqc.decide.compress import open_version
    from lwqc.decide.continued import continued

    work = open_version(original)
    other = model([("Relu", ["z"], "y", {})], {}, {"z": ["batch", 96]}, ["y"])
    with pytest.raises(
        lwqc.InputError, match=r"other: was not made of net\.onnx, which has no input z"
    ):
        continued(work, other, "other")
    half = model([("Relu", ["x"], "y", {})], {}, {"x": ["batch", 96]}, ["y"])
    half.graph.inputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    with pytest.raises(lwqc.InputError, match="half: input x has the type FLOAT16"):
        continued(work, half, "half")


def test_a_command_compares_with_what_its_model_was_made_of(original, first, run, tmp_path):
    first.save(tmp_path / "pruned.onnx", verify=False)
    np.savez(tmp_path / "d.npz", x=normal(8, 96))
    arguments = ("quantize", tmp_path / "pruned.onnx", "-o", tmp_path / "o.onnx")
    arguments += ("--data", tmp_path / "d.npz", "--max-size", "0.9", "--json")
    _, text, _ = run(*arguments, "--original", original)
    report = json.loads(text)
    assert (report["source"], report["earlier"]) == ("net.onnx", ["pruned.onnx"])
    assert report["outcomes"][0]["asked"] == 0.9 * original.stat().st_size
    assert report["drop"] > 0.01  # of pruning; 8 bits cost far less
    code, _, error = run("quantize", original, "-o", original, "--original", original)
    assert code == 2
    assert "is read as an input" in error
