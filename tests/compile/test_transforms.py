"""Equivalence transforms as parts of a recipe, a plan and a file."""

from pathlib import Path

import numpy as np
import pytest

import lwqc
from lwqc.compile.losses import judged_drop
from lwqc.compile.steps.transforms import transform, version
from lwqc.decide.compress import open_version
from lwqc.decide.transforms import choose_transforms
from lwqc.plans.plan import Plan, Transforms
from lwqc.plans.recipe import find
from lwqc.runtime.session import Session

ROOT = Path(__file__).parents[2]
VIT = ROOT / "models" / "glyph_vit.onnx"
DATA = "tests.few_samples:glyph_calibration"


@pytest.fixture(scope="module")
def work():
    return open_version(VIT, data=DATA)


def outputs(model, feeds):
    return next(iter(Session(model, label="model")(feeds).values()))


@pytest.mark.parametrize("migrate", ["smoothquant", "awq", "percentile", "equalise"])
def test_scales_leave_the_outputs_and_change_the_weights(work, migrate):
    recipe = find("w4").model_copy(update={"migrate": migrate})
    chosen = choose_transforms(work, recipe)
    assert len(chosen.transforms.scales) > 5
    assert any(np.ptp(s) > 0 for s in chosen.transforms.scales.values())
    changed = transform(work.model, chosen.transforms)
    feeds = work.job.data.fit.first()
    expected = outputs(work.model, feeds)
    error = np.abs(outputs(changed, feeds) - expected).max() / np.abs(expected).max()
    assert error < 1e-4


def test_a_rotation_leaves_the_outputs(work):
    chosen = choose_transforms(work, find("w4").model_copy(update={"rotate": True}))
    assert chosen.transforms.rotations
    feeds = work.job.data.fit.first()
    expected = outputs(work.model, feeds)
    found = outputs(transform(work.model, chosen.transforms), feeds)
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4


def test_what_cannot_be_transformed_has_a_reason(work):
    chosen = choose_transforms(work, find("awq"))
    assert chosen.left
    assert all(reason for reason in chosen.left.values())


def test_the_transformed_work_still_compares_with_the_original(work):
    chosen = choose_transforms(work, find("awq"))
    other = version(work, chosen.transforms)
    assert judged_drop(other, Session(work.model, label="original")) < 1e-9
    assert other.original.size_bytes == work.original.size_bytes


def test_awq_lowers_the_error_of_the_outputs(tmp_path):
    """Against the same rounding without migration."""
    plain = lwqc.compress(VIT, data=DATA, recipe="w4").save(tmp_path / "a.onnx")
    moved = lwqc.compress(VIT, data=DATA, recipe="awq").save(tmp_path / "b.onnx")
    assert moved.output_bytes < plain.output_bytes * 1.01
    before, after = (next(iter(r.divergence.values())).relative_error for r in (plain, moved))
    assert after < 1.05 * before
    assert moved.untransformed


def test_a_plan_with_transforms_replays(tmp_path):
    done = lwqc.compress(VIT, data=DATA, recipe="awq")
    done.plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    assert read.transforms.scales
    again = lwqc.apply(VIT, read)
    feeds = open_version(VIT, data=DATA).job.data.fit.first()
    np.testing.assert_array_equal(outputs(again.model, feeds), outputs(done.model, feeds))


def test_an_unknown_span_in_a_plan_is_refused(work):
    with pytest.raises(lwqc.InputError, match="nowhere"):
        transform(work.model, Transforms(scales={"nowhere": (1.0, 2.0)}))


def test_dgq_and_smoothquant_run_in_integers(tmp_path):
    for recipe in ("smoothquant", "dgq"):
        report = lwqc.compress(
            VIT, data=DATA, recipe=recipe, metric="tests.few_samples:glyph_accuracy"
        ).save(tmp_path / f"{recipe}.onnx")
        integers = {r.kernel for r in report.sites if r.activation != "none"}
        kernels = {"UnpackedInteger"} if recipe == "dgq" else {"MatMulInteger", "QLinearConv"}
        assert integers == kernels
        assert report.metric_after > report.metric_before - 0.03
