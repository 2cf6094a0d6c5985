"""Shipped files do what `models/README.md` says, again and again, and stay small."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from models import digits, glyphs, stdlib_lm
from models.redundancy import SUBJECTS, Subject
from models.training import FOLDER, open_run

# Rounding differs between processors: a few of 2000 images may change sides.
ACCURACY_TOLERANCE, BITS_TOLERANCE = 0.005, 0.002
FILES = [*(s.path for s in SUBJECTS), stdlib_lm.MODEL_PAST]


def readme_value(name: str) -> float:
    """The metric in the first table of the README that has a row for the model."""
    text = (FOLDER / "README.md").read_text()
    found = re.search(rf"^\| `{name}` \|.*?(?:accuracy|bits per byte) ([0-9.]+)", text, re.M)
    assert found, f"no row for {name} in models/README.md"
    return float(found.group(1))


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_the_metric_is_the_one_in_the_readme(subject: Subject) -> None:
    value = subject.measure(open_run(subject.path))
    tolerance = BITS_TOLERANCE if subject.name == "stdlib_lm" else ACCURACY_TOLERANCE
    assert value == pytest.approx(readme_value(subject.name), abs=tolerance)


@pytest.mark.parametrize(
    "subject", [s for s in SUBJECTS if "glyph" in s.name], ids=lambda s: s.name
)
def test_glyphs_are_hard_but_learnt(subject: Subject) -> None:
    assert 0.85 < readme_value(subject.name) < 0.97


@pytest.mark.parametrize("subject", SUBJECTS[:2], ids=lambda s: s.name)
def test_a_metric_repeats_exactly(subject: Subject) -> None:
    run = open_run(subject.path)
    assert subject.measure(run) == subject.measure(run)


def test_the_float_model_agrees_with_itself() -> None:
    assert stdlib_lm.greedy_agreement(open_run(stdlib_lm.MODEL)) > 0.995


def test_metrics_say_which_way_is_better() -> None:
    assert stdlib_lm.bits_per_byte.higher_is_better is False
    assert stdlib_lm.bits_per_byte_past.higher_is_better is False
    assert getattr(digits.accuracy, "higher_is_better", True)
    assert getattr(glyphs.accuracy, "higher_is_better", True)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_files_are_lean_float32_with_a_dynamic_batch(path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_everything_is_under_30_megabytes() -> None:
    files = [
        f
        for folder in (FOLDER, digits.DEMO)
        for f in folder.iterdir()
        if f.is_file() and f.suffix in {".onnx", ".data", ".npz", ".json", ".py", ".md"}
        and f.stem != "minilm"
    ]  # fmt: skip
    assert sum(f.stat().st_size for f in files) < 30e6


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (digits.calibration, digits.MODEL),
        (glyphs.calibration, FOLDER / "glyph_resnet.onnx"),
        (stdlib_lm.calibration, stdlib_lm.MODEL),
        (stdlib_lm.calibration_past, stdlib_lm.MODEL_PAST),
    ],
)
def test_calibration_data_fits_the_model_and_repeats(make, path) -> None:
    first, second = list(make()), list(make())
    assert len(first) == len(second) > 1
    run = open_run(path)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[k], other[k]) for k in one)
    assert np.isfinite(run(first[-1])["logits"]).all()
