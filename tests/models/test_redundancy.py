"""Damage is done as described, and none of the models shrugs off all of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from models import redundancy
from models.redundancy import SUBJECTS, Subject

QUICK = {
    "models.glyphs:accuracy": "tests.few_samples:glyph_accuracy",
    "models.stdlib_lm:bits_per_byte": "tests.few_samples:bits_per_byte",
}


def quick(subject: Subject) -> Subject:
    """The same with fewer samples: what is looked for here is far above their noise."""
    return replace(subject, metric=QUICK.get(subject.metric, subject.metric))


def test_rounding_uses_one_scale_per_output_channel() -> None:
    w = np.array([[0.7, -0.1, 0.26], [7.0, 1.4, -3.0]], np.float32)
    np.testing.assert_allclose(
        redundancy.round_to_nearest(w, 0, 4), [[0.7, -0.1, 0.3], [7.0, 1.0, -3.0]], rtol=1e-6
    )
    assert len(np.unique(redundancy.round_to_nearest(w, 0, 3)[0])) <= 7


def test_a_quarter_of_the_channels_becomes_zero() -> None:
    w = np.ones((8, 3, 2, 2), np.float32)
    for axis, shape in ((0, (8, -1)), (-1, (-1, 2))):
        damaged = redundancy.zero_channels(w, axis, 0.25, np.random.default_rng(0))
        zeros = (damaged.reshape(shape) == 0).all(1 if axis == 0 else 0).sum()
        assert zeros == round(w.shape[axis] * 0.25)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_every_model_has_layers_that_can_be_bypassed(subject: Subject) -> None:
    ends = redundancy.branch_ends(onnx.load(subject.path))
    assert len(ends) >= 2 * subject.branches
    assert len(ends) % subject.branches == 0


@pytest.mark.parametrize("subject", [quick(s) for s in SUBJECTS], ids=lambda s: s.name)
def test_three_bits_and_missing_channels_cost_something(subject: Subject) -> None:
    model = onnx.load(subject.path)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    untouched = subject.measure(redundancy.replaced(model, {}))
    for damaged in (
        redundancy.few_bits(model, arrays, 3),
        redundancy.fewer_channels(model, arrays, 0),
    ):
        assert abs(subject.measure(redundancy.replaced(model, damaged)) - untouched) > 0.01


def test_removing_one_decoder_layer_hurts_visibly() -> None:
    subject = quick(SUBJECTS[-1])
    model = onnx.load(subject.path)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    variants = list(redundancy.without_layer(model, arrays, subject.branches))
    assert len(variants) == 12
    untouched = subject.measure(redundancy.replaced(model, {}))
    assert subject.measure(redundancy.replaced(model, variants[5])) > untouched + 0.01
