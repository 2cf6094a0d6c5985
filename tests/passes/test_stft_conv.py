"""Short-time Fourier transforms as convolutions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import lwqc
from lwqc.model import io
from lwqc.passes.stft_conv import StftConv
from lwqc.runtime.session import Session
from lwqc.testing import applied, assert_harmless, assert_untouched
from tests.build import model, normal


def transform(size=40, inputs=("x", "step", "window"), *, sided=1, shape=("n", "l", 1), **weights):
    stored = {
        "step": np.array(16),
        "window": np.hanning(size).astype(np.float32),
        "length": np.array(size),
        **weights,
    }
    rows = [("STFT", list(inputs), "y", {"onesided": sided})]
    used = {name: array for name, array in stored.items() if name in inputs}
    return model(rows, used, {"x": list(shape)}, ["y"], opset=17)


@pytest.mark.parametrize(
    ("built", "count"),
    [
        (transform(), 21),
        (transform(41), 21),
        (transform(256), 129),
        (transform(40, sided=0), 40),
        (transform(40, ("x", "step", "window", "length")), 21),
        (transform(40, ("x", "step", "", "length")), 21),
    ],
)
def test_it_is_the_transform_of_each_frame(built, count):
    """As numpy computes it, not only as the runtime's own operator does."""
    signal = normal(2, 400, 1)
    done = applied(StftConv(), built)
    assert [n.op_type for n in done.model.graph if n.op_type in ("STFT", "Conv")] == ["Conv"]
    found = Session(done.model)({"x": signal})["y"]
    stored = {v.name: v.const_value for v in built.graph.initializers.values()}
    window = stored["window"].numpy() if "window" in stored else np.ones(40)
    starts = range(0, 400 - len(window) + 1, 16)
    frames = np.stack([signal[:, s : s + len(window), 0] for s in starts], 1) * window
    wanted = np.fft.fft(frames)[..., :count]
    assert found.shape == (2, len(starts), count, 2)
    assert np.abs(found[..., 0] + 1j * found[..., 1] - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert_harmless(StftConv(), built, "stft", feeds={"x": signal}, tolerance=1e-3)


def test_an_empty_batch():
    built = applied(StftConv(), transform()).model
    assert Session(built)({"x": normal(0, 400, 1)})["y"].shape == (0, 23, 21, 2)


def test_a_signal_of_two_axes():
    built = transform(shape=("n", 400))
    assert applied(StftConv(), built).changes == 1
    found = Session(applied(StftConv(), built).model)({"x": normal(3, 400)})["y"]
    same = Session(applied(StftConv(), transform()).model)({"x": normal(3, 400)[..., None]})["y"]
    assert np.array_equal(found, same)


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        (transform(1024), "frames of 1024 numbers have a fast transform"),
        (transform(6000), "filters for frames of 6000 numbers would take 137 MB"),
        (transform(shape=("n", "l", 2), sided=0), "its signal is not known to be real"),
    ],
)
def test_what_stays_says_why(built, reason):
    assert_untouched(StftConv(), built, reason)


def test_a_computed_step_stays():
    rows = [("Size", ["x"], "step", {}), ("STFT", ["x", "step", "window"], "y", {})]
    window = {"window": np.hanning(40).astype(np.float32)}
    built = model(rows, window, {"x": ["n", "l", 1]}, ["y"], opset=17)
    assert_untouched(StftConv(), built, "its step or window is not stored")


def test_the_file_stays_small_and_other_devices_get_it(tmp_path):
    """Its filters are computed when the model is loaded, whatever cleans it up again."""
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    io.save(transform(400, step=np.array(160)), path)
    feeds = [{"x": normal(1, 16000, 1, seed=i)} for i in range(2)]
    lwqc.lower(path, target="cuda", data=feeds).save(out)
    lwqc.lower(out, target="cuda", data=feeds).save(tmp_path / "again.onnx")
    for made in (out, tmp_path / "again.onnx"):
        assert made.stat().st_size < path.stat().st_size + 10_000
        assert "STFT" not in {n.op_type for n in onnx.load(made).graph.node}
        frames = np.stack([feeds[0]["x"][0, s : s + 400, 0] for s in range(0, 15601, 160)])
        wanted = np.fft.rfft(frames * np.hanning(400))
        found = Session(made)(feeds[0])["y"][0]
        error = np.abs(found[..., 0] + 1j * found[..., 1] - wanted).max()
        assert error < 2e-3 * np.abs(wanted).max()  # of 16 bits
