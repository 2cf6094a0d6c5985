"""The GPU benchmark without a GPU: it says so, and the models that it makes are valid."""

import numpy as np
import onnx
import pytest

from benchmarks import gpu, gpu_models
from benchmarks.gpu_models import SMALL
from lwqc.backends import devices
from lwqc.runtime.session import Session


@pytest.mark.skipif(
    not devices.provider_problem("CUDAExecutionProvider"), reason="this machine has the device"
)
def test_a_missing_gpu_is_told(capsys):
    with pytest.raises(SystemExit) as caught:
        gpu.main([])
    assert caught.value.code == 2
    assert "CUDAExecutionProvider" in capsys.readouterr().err


@pytest.mark.parametrize("case", gpu.cases(SMALL), ids=lambda c: c.name)
def test_models_that_are_made_run_at_every_shape(case, tmp_path):
    path = tmp_path / "model.onnx"
    assert case.make(path) > 10_000
    onnx.checker.check_model(str(path), full_check=True)
    session = Session(path)
    for feeds, _ in case.shapes.values():
        assert all(np.isfinite(v).all() for v in session(feeds()).values())


def test_a_decoder_with_a_cache_continues_a_prompt(tmp_path):
    """Reading tokens one after the other gives what reading them at once gives."""
    path = tmp_path / "decoder.onnx"
    gpu_models.decoder(path, SMALL)
    session = Session(path)
    whole = gpu_models.decoder_feeds(SMALL, 1, 6, 0)
    at_once = session(whole)
    first = session({**gpu_models.decoder_feeds(SMALL, 1, 5, 0), "ids": whole["ids"][:, :5]})
    last = gpu_models.decoder_feeds(SMALL, 1, 1, 5) | {"ids": whole["ids"][:, 5:]}
    last |= {n.replace("present", "past"): v for n, v in first.items() if n != "logits"}
    np.testing.assert_allclose(
        session(last)["logits"][:, 0], at_once["logits"][:, 5], atol=1e-4, rtol=1e-4
    )


def test_the_table_shows_failures_and_numbers():
    rows = [
        {"model": "m", "shape": "s", "form": "f", "latency_ms": 1.5, "per_second": 10.0,
         "memory_mb": None, "divergence": 1e-6, "elsewhere": ["a"]},
        {"model": "m", "shape": "s", "form": "g", "error": "did not convert"},
    ]  # fmt: skip
    shown = gpu.table(rows)
    assert "| m | s | f | 1.50 | 10 |  | 1.0e-06 | 1 |" in shown
    assert "did not convert" in shown
