"""Which decisions flip, and what that does to single classes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.model import io
from lwqc.runtime.flips import compare_decisions, list_kind

MODELS = Path(__file__).parents[2] / "models"
DATA = "tests.few_samples:glyph_calibration"
RIGHT = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
BEFORE = np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 0])
AFTER = np.array([0, 0, 1, 0, 1, 0, 0, 0, 2, 2])


def test_flips_and_changes_of_classes() -> None:
    found = compare_decisions(BEFORE, AFTER[None], RIGHT)
    assert [f.sample for f in found.flipped] == [2, 3, 5, 6, 7, 9]
    assert (found.flipped[0].right, found.flipped[0].before, found.flipped[0].after) == (
        "0", "0", "1",
    )  # fmt: skip
    assert [(c.name, c.samples, c.before, c.after) for c in found.classes] == [
        ("1", 4, 1.0, 0.25),
        ("0", 4, 0.75, 0.75),
        ("2", 2, 0.5, 1.0),
    ]
    assert found.worst == 0.75
    for one in found.classes:
        assert one.low <= one.after - one.before <= one.high
    assert found.classes[0].high < 0 <= found.classes[1].high


def test_without_labels_what_was_decided_before_is_right() -> None:
    found = compare_decisions(BEFORE, AFTER[None], None, "the original")
    assert {c.before for c in found.classes} == {1.0}
    assert found.flipped[0].right is None


def test_nothing_flips() -> None:
    found = compare_decisions(BEFORE, BEFORE[None], RIGHT)
    assert not found.flipped
    assert found.worst == 0
    assert {(c.low, c.high) for c in found.classes} == {(0, 0)}


def test_a_population_is_what_most_of_its_models_decide() -> None:
    """Single models flip what the others do not; classes change by the mean."""
    alone, other = BEFORE.copy(), AFTER.copy()
    alone[2], other[5] = 1, 1
    found = compare_decisions(BEFORE, np.stack([alone, AFTER, other]), RIGHT)
    assert found.models == 3
    assert [(f.sample, f.after, round(f.share, 2)) for f in found.flipped] == [
        (2, "1", 1.0), (3, "0", 0.67), (6, "0", 0.67), (7, "0", 0.67), (9, "2", 0.67),
    ]  # fmt: skip
    one = {c.name: c for c in found.classes}["1"]
    assert (one.before, one.least, one.most) == (1.0, 0.25, 1.0)
    assert one.after == pytest.approx((1.0 + 0.25 + 0.5) / 3)
    assert one.low < one.after - one.before < one.high <= 0
    rows = list(csv.DictReader(found.text("csv").splitlines()))
    assert [row["share"] for row in rows] == ["1", "0.667", "0.667", "0.667", "0.667"]


def test_what_most_decide_does_not_depend_on_the_order_of_the_models() -> None:
    before = np.array(["a", "a", "a"])
    after = np.array(
        [["b", "b", "a"], ["a", "c", "a"], ["a", "b", "b"], ["b", "c", "c"], ["c", "a", "b"]]
    )
    for order in ([0, 1, 2, 3, 4], [4, 2, 3, 0, 1]):
        found = compare_decisions(before, after[order], None)
        assert [(f.sample, f.after, f.share) for f in found.flipped] == [
            (0, "b", 0.6), (1, "b", 0.8), (2, "b", 0.6),
        ]  # fmt: skip
    half = compare_decisions(np.array(["a"]), np.array([["b"], ["a"]]), None)
    assert not half.flipped


def test_the_command_takes_a_population(run, tmp_path) -> None:
    vit, small = MODELS / "glyph_vit.onnx", [tmp_path / f"{i}.onnx" for i in range(2)]
    for bits, path in zip((2, 3), small, strict=True):
        run("quantize", vit, "-o", path, "--bits", bits, "--no-verify")
    job = ["verify", vit, small[0], "--population", small[1], "--data", DATA, "--json"]
    code, out, _ = run(*job, "--metric", "top1", "--flips", tmp_path / "f.csv")
    assert code == 0
    told = json.loads(out)["flips"]
    alone = json.loads(run(*job[:3], *job[5:], "--metric", "top1")[1])["flips"]
    assert (told["models"], alone["models"]) == (2, 1)
    assert told["whole"]["least"] == alone["whole"]["after"] < told["whole"]["after"]
    assert "share" in (tmp_path / "f.csv").read_text().splitlines()[0]
    code, _, err = run(*job)
    assert code == 2
    assert "--population is of decisions: give --metric top1" in err
    renamed = io.load(vit)
    renamed.graph.outputs[0].name = "other"
    io.save(renamed, tmp_path / "renamed.onnx")
    job[4] = tmp_path / "renamed.onnx"
    code, _, err = run(*job, "--metric", "top1")
    assert code == 2
    assert "renamed.onnx: output logits is [" in err
    assert "there it is none" in err


def test_lists() -> None:
    found = compare_decisions(BEFORE, AFTER[None], RIGHT)
    rows = list(csv.DictReader(found.text("csv").splitlines()))
    assert rows[0] == {"sample": "2", "right": "0", "before": "0", "after": "1"}
    assert json.loads(found.text("json"))["classes"][0]["name"] == "1"
    assert (list_kind("a/b.CSV"), list_kind("b.json")) == ("csv", "json")
    with pytest.raises(InputError, match=r"a list of flipped samples is a \.csv or a \.json"):
        list_kind("b.txt")
