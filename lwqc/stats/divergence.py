"""How far a model's outputs are from the original's, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Divergence:
    """Difference of one output from its reference over all samples.

    cosine_mean, cosine_min: over samples (rows of axis 0, flattened); 1 is identical.
    sqnr_db: signal to noise ratio in dB; inf when identical. max_abs: largest difference.
    kl: mean KL divergence in nats of softmax over the last axis; meaningful for logits.
    agreement: share of equal elements (integers), or of equal argmax over the last axis (floats).
    """

    samples: int
    cosine_mean: float
    cosine_min: float
    sqnr_db: float
    max_abs: float
    kl: float
    agreement: float

    @property
    def drop(self) -> float:
        """1 - mean cosine: the loss that `--max-drop` bounds when there is no metric."""
        return 1.0 - self.cosine_mean

    @property
    def relative_error(self) -> float:
        """Squared error over squared signal; adds up over small independent errors."""
        return 0.0 if math.isinf(self.sqnr_db) else 10 ** (-self.sqnr_db / 10)


class DivergenceMeter:
    """Accumulates the divergence of one output, batch by batch."""

    def __init__(self) -> None:
        self._cosines: list[float] = []
        self._signal = self._noise = self._max = self._kl = 0.0
        self._rows = self._equal = self._compared = 0

    def add(self, reference: Array, value: Array) -> None:
        """Add one batch; shapes must agree. NaN in `value` counts as infinitely far away."""
        if reference.shape != value.shape:
            raise ValueError(f"shapes differ: {reference.shape} and {value.shape}")
        if reference.size == 0:
            return
        if reference.dtype.kind != "f":
            self._equal += int((reference == value).sum())
            self._compared += reference.size
            self._cosines += [1.0] * (len(reference) if reference.ndim else 1)
            return
        a = reference.astype(np.float64).reshape(len(reference) if reference.ndim else 1, -1)
        b = value.astype(np.float64).reshape(a.shape)
        self._cosines += _cosine(a, b).tolist()
        self._signal += float((a * a).sum())
        self._noise += float(((a - b) ** 2).sum())
        self._max = max(self._max, float(np.abs(a - b).max()))
        self._add_rows(reference.astype(np.float64), value.astype(np.float64))

    def _add_rows(self, a: Array, b: Array) -> None:
        from scipy.special import log_softmax

        width = a.shape[-1] if a.ndim > 1 else 1
        if width < 2:
            return
        a, b = a.reshape(-1, width), b.reshape(-1, width)
        p, q = log_softmax(a, axis=-1), log_softmax(b, axis=-1)
        self._kl += float((np.exp(p) * (p - q)).sum())
        self._rows += len(a)
        self._equal += int((a.argmax(-1) == b.argmax(-1)).sum())
        self._compared += len(a)

    def result(self) -> Divergence:
        """The divergence over everything added so far."""
        if not math.isfinite(self._noise):
            sqnr = -math.inf
        elif self._noise == 0:
            sqnr = math.inf
        else:
            sqnr = 10 * math.log10(max(self._signal, 1e-300) / self._noise)
        return Divergence(
            samples=len(self._cosines),
            cosine_mean=float(np.mean(self._cosines)) if self._cosines else 1.0,
            cosine_min=min(self._cosines, default=1.0),
            sqnr_db=sqnr,
            max_abs=self._max,
            kl=self._kl / self._rows if self._rows else 0.0,
            agreement=self._equal / self._compared if self._compared else 1.0,
        )


class OutputMeter:
    """A `DivergenceMeter` per output of a model."""

    def __init__(self) -> None:
        self._meters: dict[str, DivergenceMeter] = {}

    def add(self, reference: Mapping[str, Array], value: Mapping[str, Array]) -> None:
        """Add the outputs of one run of both models; outputs are matched by name."""
        for name, array in reference.items():
            if name in value:
                self._meters.setdefault(name, DivergenceMeter()).add(array, value[name])

    def result(self) -> dict[str, Divergence]:
        """Divergence by output name."""
        return {name: meter.result() for name, meter in self._meters.items()}


def _cosine(a: Array, b: Array) -> Array:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    cosine = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)
    cosine = np.where(np.isfinite(b).all(axis=1), np.clip(cosine, -1, 1), -1.0)
    return np.where(same, 1.0, cosine)
