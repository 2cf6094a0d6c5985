"""How far outputs are from a reference that is prepared once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lwqc.runtime.stats.channel_error import ChannelMeter

Array = NDArray[Any]
Measure = Literal["js", "kl", "angular", "norm", "channels"]
_LEFT_OUT = -1e4  # for -inf, with which no difference can be taken
MEASURES: tuple[Measure, ...] = get_args(Measure)


class OutputDivergence:
    """Divergence of one output of one batch from its reference.

    js: Jensen-Shannon, (KL(P|M) + KL(Q|M)) / 2 with M = (P + Q) / 2, of the softmax; at most ln 2.
        FinerCut's code (arXiv 2405.18218) has the arguments of KL the other way round.
    kl: KL(reference | value) of the softmax. Both are for logits: class scores, next tokens.
    angular: angle over pi. norm: squared error over the reference's squared norm. channels: error
    by channel, see `ChannelErrors`, which no large channel hides.

    The classes or features are axis 1 of arrays of rank 4, else the last one (`channels` finds
    them in the data); all but `norm` and `channels` are means over the rest.
    """

    def __init__(self, reference: Array, measure: Measure) -> None:
        from scipy.special import log_softmax

        self._measure, self._reference = measure, reference
        self._rows = _rows(reference)
        if measure in ("js", "kl"):
            self._rows = log_softmax(self._rows, axis=-1)

    def __call__(self, value: Array) -> float:
        """The divergence; inf where the value is NaN or inf, while -inf is a class left out."""
        rows = _rows(value)
        if rows.shape != self._rows.shape:
            raise ValueError(f"shapes differ: {self._rows.shape} and {rows.shape}")
        if not rows.size:
            return 0.0
        if not np.isfinite(rows).all():
            return math.inf
        if self._measure == "channels":
            return _by_channel(self._reference, value)
        return _FUNCTIONS[self._measure](self._rows, rows)


def _rows(array: Array) -> Array:
    """[rows, classes] as float64."""
    moved = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
    width = moved.shape[-1] if moved.ndim > 1 else max(moved.size, 1)
    rows = moved.astype(np.float64).reshape(-1, width)
    rows[np.isneginf(rows)] = _LEFT_OUT
    return rows


def _kl(reference: Array, value: Array) -> float:
    from scipy.special import log_softmax

    q = log_softmax(value, axis=-1)
    return float((np.exp(reference) * (reference - q)).sum()) / len(value)


def _js(reference: Array, value: Array) -> float:
    from scipy.special import log_softmax

    q = log_softmax(value, axis=-1)
    middle = np.logaddexp(reference, q) - np.log(2)
    total = np.exp(reference) * (reference - middle) + np.exp(q) * (q - middle)
    return float(total.sum()) / (2 * len(value))


def _angular(reference: Array, value: Array) -> float:
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(value, axis=1)
    cosine = np.divide((reference * value).sum(1), norms, out=np.zeros(len(value)), where=norms > 0)
    return float(np.arccos(np.clip(cosine, -1, 1)).mean() / np.pi)


def _norm(reference: Array, value: Array) -> float:
    return float(((reference - value) ** 2).sum() / max((reference**2).sum(), 1e-300))


def _by_channel(reference: Array, value: Array) -> float:
    meter = ChannelMeter()
    meter.add(reference, value)
    return meter.result().relative


_FUNCTIONS: dict[Measure, Callable[[Array, Array], float]] = {
    "js": _js,
    "kl": _kl,
    "angular": _angular,
    "norm": _norm,
}
