"""Ranges by every method, against brute force and against onnxruntime's calibrator."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector

from lwqc.errors import InputError
from lwqc.quant.activation import activation_grid
from lwqc.runtime.stats.entropy import _divergences, best_half_width, entropy_limits
from lwqc.runtime.stats.ranges import METHODS, Range, ranges

from .conftest import VALUES, parse, runner

HALF = 2**-11  # relative resolution of a half


def relu_model() -> ir.Model:
    return parse(
        '<ir_version: 9, opset_import: ["": 18]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
    )


def range_of(x: np.ndarray, method, name: str = "x") -> Range:
    return ranges(relu_model(), ["x", name], [{"x": x.astype(np.float32)}], runner, method)[name]


def test_minmax(conv_net, images, activations):
    found = ranges(conv_net, VALUES, images, runner, "minmax")
    assert list(found) == list(VALUES)
    for name, values in activations.items():
        assert (found[name].low, found[name].high) == pytest.approx(
            (values.min(), values.max()), rel=1e-5, abs=1e-6
        )


def test_a_derived_tensor_has_the_range_it_has_alone(conv_net, images):
    for method in ("minmax", *METHODS):
        together = ranges(conv_net, VALUES, images, runner, method)
        for name in ("r1", "r2", "f"):
            alone = ranges(conv_net, [name], images, runner, method)[name]
            # One float32 rounding apart: alone, the runtime may fuse the Relu.
            assert together[name].low == pytest.approx(alone.low, rel=2 * HALF, abs=1e-6)
            assert together[name].high == pytest.approx(alone.high, rel=2 * HALF)


@pytest.mark.parametrize("percent", [99.0, 99.9, 99.999])
def test_percentile(percent):
    x = np.random.default_rng(0).standard_normal(1_000_000)
    found = range_of(x, partial(METHODS["percentile"], percent=percent))
    cut = (1 - percent / 100) / 2
    # The sample quantile moves by half a value at most when it lies between two of them.
    around = [np.quantile(x, [max(q - 2e-6, 0), min(q + 2e-6, 1)]) for q in (cut, 1 - cut)]
    for value, (below, above) in zip((found.low, found.high), around, strict=True):
        slack = HALF * abs(value)
        assert below - slack <= value <= above + slack


def quantized_error(x, low, high, symmetric=False):
    if symmetric:
        scale = high / 127
        return ((np.clip(np.rint(x / scale), -127, 127) * scale - x) ** 2).sum()
    grid = activation_grid(low, high)
    codes = np.clip(np.rint(x / grid.scale) + grid.zero, 0, 255)
    return (((codes - grid.zero) * grid.scale - x) ** 2).sum()


DISTRIBUTIONS = {
    "normal": lambda r: r.standard_normal(20_000),
    "shifted": lambda r: r.standard_normal(20_000) + 2,
    "heavy tail": lambda r: r.standard_t(2.2, 20_000),
    "relu": lambda r: np.maximum(r.standard_normal(20_000), 0),
    "one outlier": lambda r: np.r_[r.standard_normal(20_000), 300],
    "uniform": lambda r: r.random(20_000),
    "negative": lambda r: -(r.random(20_000) ** 4),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_near_the_best_of_a_brute_force_search(name, symmetric):
    x = DISTRIBUTIONS[name](np.random.default_rng(3)).astype(np.float32).astype(np.float64)
    found = range_of(x, "mse-symmetric" if symmetric else "mse")
    low, high = min(x.min(), 0), max(x.max(), 0)
    shrink = 0.9 ** np.arange(50)
    if symmetric:
        bound = max(-low, high)
        pairs = [(-bound * s, bound * s) for s in shrink]
    else:
        lows, highs = ({float(side * s) for s in shrink} for side in (low, high))
        pairs = [(a, b) for a in lows for b in highs if a < b]
    best = min(quantized_error(x, a, b, symmetric) for a, b in pairs)
    assert quantized_error(x, found.low, found.high, symmetric) <= 1.03 * best


@pytest.mark.parametrize("bins", [128, 129, 256, 384])
def test_entropy_picks_the_width_that_onnxruntime_picks(bins):
    for draw in DISTRIBUTIONS.values():
        x = draw(np.random.default_rng(5)).astype(np.float32)
        bound = np.abs(x).max()
        counts, edges = np.histogram(x, bins, (-bound, bound))
        collector = HistogramCollector("entropy", False, bins, 128, None, None)
        theirs = collector.get_entropy_threshold(
            (counts, edges.astype(np.float32), x.min(), x.max(), bound), 128
        )
        counts = counts.astype(np.int64)
        half, middle = best_half_width(counts, 128), bins // 2
        limits = edges[middle - half], edges[min(middle + half + 1, bins)]
        ours = max(limits[0], x.min()), min(limits[1], x.max())
        if ours != pytest.approx(theirs, rel=1e-6):
            # Under an outlier many widths tie up to float32 rounding: theirs must be one of them.
            lower, upper = (int(np.argmin(np.abs(edges - limit))) for limit in theirs)
            their_half = max(middle - lower, upper - 1 - middle)  # one side may be clamped
            divergence = _divergences(counts, np.array([half, their_half]), 128)
            assert divergence[1] == pytest.approx(divergence[0], rel=0.01)


def test_entropy_is_close_to_onnxruntime_on_a_network(conv_net, images, activations):
    found = ranges(conv_net, VALUES, images, runner, partial(entropy_limits, bins=512))
    for name, values in activations.items():
        collector = HistogramCollector("entropy", False, 512, 128, None, None)
        collector.collect({name: values})
        low, high = collector.compute_entropy()[name][:2]
        # Counts near the bin edges differ by the half's rounding: one bin, and the rounding.
        width = 2 * float(np.abs(values).max()) / 512
        assert found[name].low == pytest.approx(float(low), abs=1.01 * width)
        assert found[name].high == pytest.approx(float(high), abs=1.01 * width)


@pytest.mark.parametrize("method", ["minmax", *METHODS])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e5, 1e30])
def test_any_magnitude(method, scale):
    x = np.random.default_rng(0).standard_normal(20_000)
    plain, scaled = range_of(x, method), range_of(x * scale, method)
    assert scaled.low / scale == pytest.approx(plain.low, rel=0.02)
    assert scaled.high / scale == pytest.approx(plain.high, rel=0.02)


@pytest.mark.parametrize("method", ["minmax", *METHODS])
def test_constant_zero_and_empty_tensors(method):
    for x in (np.zeros(100), np.zeros(0)):
        assert range_of(x, method) == Range(0.0, 0.0)
    two = range_of(np.full(100, 2.0), method)
    assert two.high == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("method", ["minmax", *METHODS])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(method, bad):
    x = np.ones(1000)
    x[123] = bad
    with pytest.raises(InputError, match=r"^x: holds NaN"):
        range_of(x, method)


def test_an_unknown_method_is_refused(conv_net, images):
    with pytest.raises(InputError, match="median: no such range method; known are minmax"):
        ranges(conv_net, ["x"], images, runner, "median")
