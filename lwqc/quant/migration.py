"""Scales for spans: how far to move large activation channels into the weights behind them.

An activation x is divided by s and the weight that reads it multiplied by it; the product stays,
the errors of rounding either do not. All functions give s [C], float64, positive; 1 for channels
that are dead on either side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.formats import WeightFormat
from lwqc.quant.gram_matrix import check_gram
from lwqc.quant.output_error import output_error
from lwqc.quant.range_search import encode

Vector = NDArray[np.float64]
LEAST, MOST = 1e-4, 1e4  # what a float16 weight can be multiplied by
_DEAD = np.finfo(np.float32).tiny


def smoothquant(
    activation_max: NDArray[np.floating], weight_max: NDArray[np.floating], alpha: float = 0.5
) -> Vector:
    """s = max|x|^α / max|w|^(1-α) per channel (SmoothQuant, 2211.10438, eq. 4).

    activation_max, weight_max: [C], largest absolute values. alpha: 0 leaves all difficulty to
    activations, 1 all to weights. Raises InputError on other shapes, NaN, infinity or a negative.
    """
    x, w = _checked(activation_max, weight_max)
    alive = (x > _DEAD) & (w > _DEAD)
    with np.errstate(all="ignore"):
        return _clamped(x**alpha / w ** (1 - alpha), alive)


def equalise(out_max: NDArray[np.floating], in_max: NDArray[np.floating]) -> Vector:
    """s = sqrt(max|w_out| / max|w_in|): both weights get the same range in each channel.

    out_max, in_max: [C], of the weights that give and that read the channels (cross-layer
    equalisation, Nagel et al. 2019, 1906.04721, eq. 11). Raises InputError as `smoothquant` does.
    """
    out, into = _checked(out_max, in_max)
    alive = (out > _DEAD) & (into > _DEAD)
    with np.errstate(all="ignore"):
        return _clamped(np.sqrt(out / into), alive)


def percentile(activation_max: NDArray[np.floating], share: float = 0.005) -> Vector:
    """Scale the largest channels down to the one at the top share, leave all others.

    activation_max: [C]. s = max(1, max|x| / baseline) (percentile smoothing, Dual Grained
    Quantization, 2310.04836). Raises InputError as `smoothquant` does.
    """
    (x,) = _checked(activation_max)
    baseline = float(np.quantile(x, 1 - share)) if x.size else 0.0
    if baseline <= _DEAD:
        return np.ones_like(x)
    return np.clip(x / baseline, 1.0, MOST)


def awq(
    weights: Sequence[NDArray[np.floating]],
    gram: NDArray[np.float64],
    fmt: WeightFormat,
    grid: int = 20,
    *,
    features: NDArray[np.intp] | None = None,
    search: bool = True,
) -> Vector:
    """s = (root mean square of x)^a, the a of least error after rounding W·s to nearest.

    weights: [N, K] each, all that read the activation; gram: H = mean of x xᵀ [K, K]. features:
    channel of each of the K inputs, or -1 for one that keeps its scale; without it s is [K]. Its
    geometric mean is 1. The error is the sum of tr(E H Eᵀ), E = round(W·s)/s - W. a = 0, no change,
    is among the grid + 1 candidates in [0, 1] (AWQ, 2306.00978, eq. 4-5; the mean square of x,
    which the Gram matrix has, stands in for its mean absolute value). search: as `encode`.
    Raises InputError as `encode` and `check_gram` do.
    """
    weight = np.concatenate([np.asarray(w, np.float32) for w in weights])
    check_gram(gram, weight.shape[1])
    channel = np.arange(weight.shape[1]) if features is None else features
    count = int(channel.max(initial=-1)) + 1
    size = channel_max(np.sqrt(np.maximum(np.diagonal(gram), 0)), channel, count)
    alive = (size > _DEAD) & (channel_max(weight, channel, count) > _DEAD)
    size = np.where(alive, size, 1.0)
    best, least = np.ones(count), np.inf
    for a in np.linspace(0, 1, grid + 1):
        scales = normalised(size**a, alive)
        by_input = np.append(scales, 1.0)[channel]  # the last one for -1
        rounded = encode(weight * by_input.astype(np.float32), fmt, search=search).decode()
        error = output_error(weight, rounded / by_input, gram)
        if error < least:
            best, least = scales, error
    return best


def normalised(scales: Vector, alive: NDArray[np.bool_] | None = None) -> Vector:
    """Scales with geometric mean 1 over the live channels, within bounds; 1 for dead ones."""
    alive = np.ones(scales.shape, bool) if alive is None else alive
    if not alive.any():
        return np.ones_like(scales)
    return _clamped(scales / np.exp(np.log(scales[alive]).mean()), alive)


def channel_max(values: NDArray[np.floating], channels: NDArray[np.intp], count: int) -> Vector:
    """Largest absolute value by channel [count]; 0 for channels that do not occur.

    channels: a channel for each number or -1, broadcastable to the values (`Port.channels`).
    """
    result = np.zeros(count)
    which = np.broadcast_to(channels, values.shape)
    inside = which >= 0
    np.maximum.at(result, which[inside], np.abs(values[inside]))
    return result


def _clamped(scales: Vector, alive: NDArray[np.bool_]) -> Vector:
    return np.where(alive, np.clip(scales, LEAST, MOST), 1.0)


def _checked(*vectors: NDArray[np.floating]) -> list[Vector]:
    arrays = [np.asarray(v, np.float64) for v in vectors]
    for array in arrays:
        if array.ndim != 1 or array.shape != arrays[0].shape:
            shapes = [a.shape for a in arrays]
            raise InputError(f"scales: expected one number per channel, found shapes {shapes}")
        if not (np.isfinite(array).all() and (array >= 0).all()):
            raise InputError("scales: the largest values hold NaN, infinity or a negative number")
    return arrays
