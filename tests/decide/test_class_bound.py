"""A bound on what any class may lose: kept where less can be lost, else told."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import lwqc
from lwqc.decide import class_bound
from lwqc.decide.compress import open_version
from lwqc.decide.decided import Decided
from lwqc.decide.strategy import decide
from lwqc.errors import InputError
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import TokenRecipe, find
from lwqc.runtime.session import Feeds, Outputs, Session
from tests.tiny_vit import PATCHES, WIDTH, TinyVit

X = np.random.default_rng(0).standard_normal((64, PATCHES, WIDTH), dtype=np.float32)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """`vit.onnx`, and `data.npz` with what it decides itself as labels."""
    onnx.save(TinyVit().build(), tmp_path / "vit.onnx")
    (logits,) = Session(lwqc.load(tmp_path / "vit.onnx"))({"x": X}).values()
    np.savez(tmp_path / "data.npz", x=X, y=logits.argmax(1))
    return tmp_path


def test_less_is_lost_until_no_class_loses_too_much(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = open_version(files / "vit.onnx", data=[{"x": X}])
    seen: list[float | None] = []

    def once(goals: Goals) -> Decided:
        seen.append(goals.max_drop)
        share = 0.6 if len(seen) == 1 else 0.3
        recipe = find("evit").model_copy(update={"tokens": TokenRecipe(share=share)})
        return decide(work, Goals(), recipe)

    worst = iter([0.5, 0.02])
    monkeypatch.setattr(
        class_bound, "flips_of", lambda work, session: SimpleNamespace(worst=next(worst))
    )
    goals = Goals(max_drop=0.04, max_class_drop=0.1)
    done = class_bound.within_classes(work, goals, once).make()
    assert seen == [0.04, 0.02]
    assert done.goals is goals
    assert "the worst class lost 50 %, 2 %" in done.decisions.notes[-1]


def test_the_report_and_the_outcome(files: Path) -> None:
    options = {"data": files / "data.npz", "preprocess": "label=y", "metric": "top1"}
    done = lwqc.drop_layers(files / "vit.onnx", tokens=0.6, max_class_drop=0.0, **options)
    report = done.save(files / "short.onnx")
    (outcome,) = report.outcomes
    assert outcome.name == "worst class"
    assert report.flips is not None
    assert outcome.reached == report.flips.worst
    assert outcome.met == (not report.flips.flipped)


def test_verify_lists_what_flips(run, files: Path) -> None:  # type: ignore[no-untyped-def]
    lwqc.drop_layers(files / "vit.onnx", tokens=0.7, data=[{"x": X}]).save(files / "short.onnx")
    told = ["--data", files / "data.npz", "--preprocess", "label=y", "--metric", "top1"]
    models = [files / "vit.onnx", files / "short.onnx"]
    code, text, _ = run("verify", *models, *told, "--flips", files / "flips.csv")
    assert code == 0
    rows = list(csv.DictReader((files / "flips.csv").read_text().splitlines()))
    assert f"{len(rows)} of 64 decisions flipped" in text
    assert all(row["before"] == row["right"] != row["after"] for row in rows)
    code, _, error = run("verify", *models, *told, "--max-class-drop", "0")
    assert (code, "worst class" in error) == ((3, True) if rows else (0, False))


def test_a_bound_without_decisions_is_one_line(run, files: Path) -> None:  # type: ignore[no-untyped-def]
    told = [files / "vit.onnx", "--data", files / "data.npz"]
    for command in (
        ["compress", *told, "-o", files / "o.onnx", "--max-class-drop", "5%"],
        ["drop", *told, "-o", files / "o.onnx", "--branches", "1", "--max-class-drop", "5%"],
        ["verify", files / "vit.onnx", *told, "--max-class-drop", "5%"],
    ):
        code, _, error = run(*command, "--preprocess", "label=y")
        assert code == 2
        assert "--max-class-drop is judged by decisions: give --metric top1" in error
    with pytest.raises(InputError, match="must be between 0 and 1"):
        Goals(max_class_drop=2)


def test_what_is_verified_runs_once_for_all_that_is_asked_of_it(
    run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    """Outputs, metric and flips look at the same answers."""
    short = files / "short.onnx"
    lwqc.drop_layers(files / "vit.onnx", tokens=0.7, data=[{"x": X}]).save(short)
    runs: list[str] = []
    call = Session.__call__

    def counted(self: Session, feeds: Feeds) -> Outputs:
        runs.append(self._label)
        return call(self, feeds)

    monkeypatch.setattr(Session, "__call__", counted)
    told = ["--data", files / "data.npz", "--preprocess", "label=y", "--metric", "top1"]
    code, _, _ = run("verify", files / "vit.onnx", short, *told, "--flips", files / "f.csv")
    assert code == 0
    assert runs.count(str(short)) == len(X) // 8  # batches, each once
