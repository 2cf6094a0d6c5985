"""How far a model's outputs are from the original's, in constant memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from lwqc.runtime.stats.channel_error import ChannelErrors, ChannelMeter
from lwqc.runtime.stats.decisions import Agreement, DecisionMeter

Array = NDArray[Any]
_NUMBERS = "fiub"  # kinds of arrays that hold them
_FLIPS = 20  # that are told
_AT_ONCE = 1 << 20  # logits whose distributions are compared at a time, in double precision
M = TypeVar("M", "LossMeter", "DivergenceMeter")


@dataclass(frozen=True)
class Loss:
    """What of a `Divergence` tells how good an output is; see there."""

    error: float
    decisions: Agreement

    @property
    def drop(self) -> float:
        """See `Divergence.drop`."""
        return max(self.error / 2, self.decisions.loss)


@dataclass(frozen=True)
class Divergence:
    """Difference of one output from its reference over all samples.

    error: root mean square over the channels of squared error over the channel's own variance; see
    `ChannelErrors`. channel_axis: of the channels, found from the data; None for one channel.
    worst_channel: the one that moved most, and its error. decisions: see `Agreement`.
    cosine_mean, cosine_min: over samples (rows of axis 0, flattened); 1 is identical. They say
    little where channels differ in scale; None where samples are single numbers, or no floats.
    sqnr_db: signal to noise ratio in dB; inf when identical. max_abs: largest difference.
    kl: mean KL divergence in nats of softmax over the channels; meaningful for logits.
    flips: where the largest channel became another one: (channel, the other one, how often), the
    most frequent first, and no more than 20. still: the reference is one number throughout.
    """

    samples: int
    error: float
    channel_axis: int | None
    worst_channel: tuple[int, float]
    decisions: Agreement
    cosine_mean: float | None
    cosine_min: float | None
    sqnr_db: float
    max_abs: float
    kl: float
    flips: tuple[tuple[int, int, int], ...] = ()
    still: bool = False

    @property
    def drop(self) -> float:
        """The loss that `--max-drop` bounds when there is no metric.

        Half of `error`, which is 1 - cosine where all channels are alike and centred; or, where
        that is more, the share of decisions lost.
        """
        return Loss(self.error, self.decisions).drop

    @property
    def relative_error(self) -> float:
        """Squared error over squared signal; adds up over small independent errors."""
        return 0.0 if math.isinf(self.sqnr_db) else 10 ** (-self.sqnr_db / 10)


class LossMeter:
    """Accumulates the loss of one output, batch by batch: the part that candidates are told by."""

    def __init__(self) -> None:
        self.channels = ChannelMeter()
        self.decisions = DecisionMeter()

    def add(self, reference: Array, value: Array) -> None:
        """Add one batch.

        NaN in `value` counts as infinitely far away. Arrays of different shape, as of outputs whose
        size depends on the data, only count by their sizes.
        """
        if reference.shape != value.shape:
            self.decisions.add_sizes(reference, value)
        elif reference.dtype.kind != "f":
            self.decisions.add_labels(reference, value)
        elif reference.size:
            self.channels.add(reference, value)
            self.decisions.add_scores(reference, value, self.channels.axis)

    def result(self) -> Loss:
        """The loss over everything added so far."""
        return Loss(self.channels.result().relative, self.decisions.result())


class DivergenceMeter:
    """Accumulates the divergence of one output, batch by batch."""

    def __init__(self) -> None:
        self._cosines: list[float] = []
        self._signal = self._noise = self._max = self._kl = 0.0
        self._samples = self._rows = 0
        self._numbers: set[Any] = set()  # two different ones at most
        self._flips: Counter[tuple[int, int]] = Counter()
        self._loss = LossMeter()

    def add(self, reference: Array, value: Array) -> None:
        """Add one batch, see `LossMeter.add`."""
        self._loss.add(reference, value)
        if reference.size and reference.dtype.kind in _NUMBERS and len(self._numbers) < 2:
            self._numbers |= {reference.min().item(), reference.max().item()}
        if reference.shape != value.shape:
            return
        if reference.dtype.kind != "f":
            self._samples += len(reference) if reference.ndim else 1
        elif reference.size:
            self._add_floats(reference, value)

    def _add_floats(self, reference: Array, value: Array) -> None:
        a = reference.astype(np.float64).reshape(len(reference) if reference.ndim else 1, -1)
        b = value.astype(np.float64).reshape(a.shape)
        self._samples += len(a)
        if a.shape[1] > 1:
            self._cosines += _cosine(a, b).tolist()
        same = (a == b) | (np.isnan(a) & np.isnan(b))  # as where a mask leaves nothing
        with np.errstate(invalid="ignore"):
            moved = np.where(same, 0.0, a - b)
        self._signal += float((a * a).sum(where=np.isfinite(a)))
        self._noise += float((moved**2).sum())
        self._max = max(self._max, float(np.abs(moved).max()))
        axis = self._loss.channels.axis
        if axis is not None and reference.shape[axis] > 1:
            del a, b, same, moved  # they are large, and so is what comes
            rows = [np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in (reference, value)]
            some = max(_AT_ONCE // rows[0].shape[-1], 1)
            for start in range(0, len(rows[0]), some):
                self._add_distributions(*(x[start : start + some] for x in rows))

    def _add_distributions(self, a: Array, b: Array) -> None:
        """Rows of logits [rows, classes]."""
        a, b = a.astype(np.float64), b.astype(np.float64)
        before, after = a.argmax(-1), b.argmax(-1)
        moved = before != after
        self._flips.update(zip(before[moved].tolist(), after[moved].tolist(), strict=True))
        a, b = (np.where(np.isneginf(x), -1e30, x) for x in (a, b))
        p, q = _log_softmax(a), _log_softmax(b)
        self._kl += float((np.exp(p) * (p - q)).sum())
        self._rows += len(a)

    def result(self) -> Divergence:
        """The divergence over everything added so far."""
        if not math.isfinite(self._noise):
            sqnr = -math.inf
        elif self._noise == 0:
            sqnr = math.inf
        else:
            sqnr = 10 * math.log10(max(self._signal, 1e-300) / self._noise)
        channels: ChannelErrors = self._loss.channels.result()
        worst = channels.worst
        return Divergence(
            samples=self._samples,
            error=channels.relative,
            channel_axis=channels.axis,
            worst_channel=(worst, float(channels.errors[worst]) if channels.errors.size else 0.0),
            decisions=self._loss.decisions.result(),
            cosine_mean=float(np.mean(self._cosines)) if self._cosines else None,
            cosine_min=min(self._cosines, default=None),
            sqnr_db=sqnr,
            max_abs=self._max,
            kl=self._kl / self._rows if self._rows else 0.0,
            flips=tuple((*pair, n) for pair, n in self._flips.most_common(_FLIPS)),
            still=len(self._numbers) == 1,
        )


class _PerOutput(Generic[M]):
    """A meter per output of a model."""

    def __init__(self, make: Callable[[], M]) -> None:
        self._make: Callable[[], M] = make
        self._meters: dict[str, M] = {}

    def add(self, reference: Mapping[str, Array], value: Mapping[str, Array]) -> None:
        """Add the outputs of one run of both models; outputs are matched by name."""
        for name, found in reference.items():
            if name in value:
                if name not in self._meters:
                    self._meters[name] = self._make()
                self._meters[name].add(found, value[name])

    def over(self, runs: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> Self:
        """The meter after these runs of both models on the same inputs, too."""
        for reference, value in runs:
            self.add(reference, value)
        return self


class OutputMeter(_PerOutput[DivergenceMeter]):
    """A `DivergenceMeter` per output of a model."""

    def __init__(self) -> None:
        super().__init__(DivergenceMeter)

    def result(self) -> dict[str, Divergence]:
        """Divergence by output name."""
        return {name: meter.result() for name, meter in self._meters.items()}


class LossesMeter(_PerOutput[LossMeter]):
    """A `LossMeter` per output of a model."""

    def __init__(self) -> None:
        super().__init__(LossMeter)

    def result(self) -> dict[str, Loss]:
        """Loss by output name."""
        return {name: meter.result() for name, meter in self._meters.items()}


def _log_softmax(rows: Array) -> Array:
    """Along the last axis. Not scipy's: importing it takes longer than all that is done here."""
    top = rows.max(-1, keepdims=True)
    centred = rows - np.where(np.isfinite(top), top, 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.asarray(centred - np.log(np.exp(centred).sum(-1, keepdims=True)))


def _cosine(a: Array, b: Array) -> Array:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    known = np.isfinite(norms) & (norms > 0)
    with np.errstate(invalid="ignore"):
        cosine = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=known)
    cosine = np.where(np.isfinite(b).all(axis=1), np.clip(cosine, -1, 1), -1.0)
    return np.where(same, 1.0, cosine)
