"""Ranges of activations, measured in one pass over the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.collector import Feeds, RunnerFactory
from lwqc.runtime.stats.derived import Source, sources
from lwqc.runtime.stats.entropy import entropy_limits
from lwqc.runtime.stats.histogram import HalfCounts, Histogram
from lwqc.runtime.stats.min_max import Extent, MinMax
from lwqc.runtime.stats.squared_error import squared_error_limits

# Half precision resolves 1/1024 of a value down to 2^-14 and nothing below 2^-24; a tensor whose
# largest magnitude is under this is counted again after scaling.
_SMALLEST_WELL_RESOLVED = 2.0**-12


@dataclass(frozen=True)
class Range:
    """What a grid has to cover."""

    low: float
    high: float


LimitsOf = Callable[[HalfCounts], tuple[float, float]]


def percentile_limits(histogram: HalfCounts, percent: float = 99.999) -> tuple[float, float]:
    """(low, high) that `percent` of the values lie in, as many left out below as above."""
    cut = (1 - percent / 100) / 2
    return histogram.quantile(cut), histogram.quantile(1 - cut)


METHODS: Mapping[str, LimitsOf] = {
    "percentile": percentile_limits,
    "mse": squared_error_limits,
    "mse-symmetric": lambda histogram: squared_error_limits(histogram, symmetric=True),
    "entropy": entropy_limits,
}


def ranges(
    model: ir.Model,
    names: Iterable[str],
    data: Iterable[Feeds],
    make_runner: RunnerFactory,
    method: str | LimitsOf = "mse",
) -> dict[str, Range]:
    """Range of each named tensor over `data`, which is iterated once, rarely twice more.

    method: `minmax` (exact); `percentile` (99.999 %), `mse` (least squared error of a uint8
    grid), `mse-symmetric` (of an int8 grid without zero point) or `entropy`, all to half
    precision (1 in 2048); or a function of the histogram. A tensor with values too large or too
    small for half precision, or all zero, costs two more passes.

    All methods but `minmax` hold one sample's tensors at half precision: prefer small batches.

    Raises InputError for an unknown method or tensor, for empty data, and naming the tensor when
    an activation is NaN or infinite.
    """
    wanted = list(dict.fromkeys(names))
    origin = sources(model, wanted)
    observed = list(dict.fromkeys(origin[name].tensor for name in wanted))
    if method == "minmax":
        extents = _extents(model, observed, data, make_runner)
        return {name: _extent_range(extents[origin[name].tensor], origin[name]) for name in wanted}
    limits = _limits(method)
    histograms = _histograms(model, observed, data, make_runner)
    return {name: _histogram_range(histograms, origin[name], limits) for name in wanted}


def _limits(method: str | LimitsOf) -> LimitsOf:
    if callable(method):
        return method
    if method not in METHODS:
        known = ", ".join(["minmax", *METHODS])
        raise InputError(f"{method}: no such range method; known are {known}")
    return METHODS[method]


def _extent_range(extent: Extent, source: Source) -> Range:
    if extent.low > extent.high:  # nothing but empty samples
        return Range(0.0, 0.0)
    floor = 0.0 if source.relu else -math.inf
    return Range(max(extent.low, floor), max(extent.high, floor))


def _histogram_range(
    histograms: Mapping[str, HalfCounts], source: Source, limits: LimitsOf
) -> Range:
    histogram = histograms[source.tensor]
    return Range(*limits(histogram.relu() if source.relu else histogram))


def _extents(
    model: ir.Model, names: list[str], data: Iterable[Feeds], make_runner: RunnerFactory
) -> dict[str, Extent]:
    statistics = collect(model, map(MinMax, names), data, make_runner)
    extents = {name: statistics[MinMax(name)] for name in names}
    for name, extent in extents.items():
        if not extent.finite:
            raise InputError(f"{name}: holds NaN or infinity on the data; no range covers it")
    return extents


def _histograms(
    model: ir.Model, names: list[str], data: Iterable[Feeds], make_runner: RunnerFactory
) -> dict[str, HalfCounts]:
    statistics = collect(model, map(Histogram, names), data, make_runner)
    found = {name: statistics[Histogram(name)] for name in names}
    for name, histogram in found.items():
        if histogram.nans:
            raise InputError(f"{name}: holds NaN on the data; no range covers it")
    badly_scaled = [name for name, histogram in found.items() if not _resolved(histogram)]
    extents = _extents(model, badly_scaled, data, make_runner)
    scaled = [
        Histogram(name, exponent)
        for name in badly_scaled
        if (exponent := _exponent(extents[name])) is not None
    ]
    statistics = collect(model, scaled, data, make_runner)
    return found | {h.tensor: statistics[h] for h in scaled}


def _resolved(histogram: HalfCounts) -> bool:
    largest = max(-histogram.low, histogram.high)
    return not histogram.overflows and largest >= _SMALLEST_WELL_RESOLVED


def _exponent(extent: Extent) -> int | None:
    """Exponent of the largest magnitude; None when all values are zero, or there are none."""
    largest = max(-extent.low, extent.high)
    return math.frexp(largest)[1] if math.isfinite(largest) and largest > 0 else None
