"""The inputs that a model is timed on, one for each shape it will serve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.shapes import named_sizes
from lwqc.plans.options import Sizes
from lwqc.runtime.data import Dataset, open_data
from lwqc.runtime.measure import NOISE
from lwqc.runtime.session import Session
from lwqc.runtime.settling import Times, decided, first_apart, ratios, ratios_known
from lwqc.runtime.timer import time_turns

# Ratios known this closely decide as well as if they were timed for longer: repeated timings of
# one model differ by more, see `NOISE`.
_KNOWN = 1.02


@dataclass(frozen=True)
class Served:
    """One set of inputs. label: its sizes, for readers."""

    label: str
    feeds: Mapping[str, NDArray[Any]]


def as_sequence(shapes: Sizes | Sequence[Sizes] | None) -> Sequence[Sizes]:
    """Sizes of dynamic dimensions as given by a caller: one set, several or none."""
    if shapes is None:
        return ()
    return [shapes] if isinstance(shapes, Mapping) else list(shapes)


def served_inputs(
    model: ir.Model, shapes: Sequence[Sizes], data: Dataset, seed: int = 0
) -> tuple[Served, ...]:
    """Inputs of each shape, by default those of the first feeds.

    The data's own where they have the sizes asked for, else random ones; sizes that were not asked
    for are those of the data. Raises InputError for an
    unknown dimension.
    """
    first = data.first()
    if not shapes:
        return (Served(_shown(first), first),)
    found = []
    for sizes in shapes:
        whole = {**named_sizes(model, {n: v.shape for n, v in first.items()}), **sizes}
        drawn = open_data("random:1", model, seed=seed, shapes=whole).first()
        same = all(v.shape == first[n].shape for n, v in drawn.items() if n in first)
        label = ",".join(f"{name}={size}" for name, size in sizes.items())
        found.append(Served(label, first if same else drawn))
    return tuple(found)


def _shown(feeds: Mapping[str, NDArray[Any]]) -> str:
    if not feeds:
        return "no inputs"
    name, value = next(iter(feeds.items()))
    return f"{name} {'x'.join(map(str, value.shape)) or 'scalar'}"


def relative_times(
    sessions: Sequence[Session],
    served: Sequence[Served],
    seconds: float,
    keep: int | None = None,
    allowance: float = 1.0,
) -> list[list[float]]:
    """Time of each session over that of the first, at each shape: [sessions][shapes].

    Of the fastest run of each turn to that of the first session's turn in the same round, as other
    work on the machine only ever adds time and its clock changes slowly; the median of all rounds.

    keep: only the fastest so many beside the first matter, and only while they are no slower than
    `allowance` times the first. The rest is timed until that much is clear, see `settling.decided`;
    at several shapes only what the first takes beside all others is clear from one of them, see
    `settling.first_apart`.
    """
    settled = ratios_known(_KNOWN)
    if keep:
        alone = len(served) == 1
        by_one = decided(NOISE, _KNOWN, keep, allowance)
        settled = by_one if alone else first_apart(NOISE, _KNOWN)
    columns = [
        _relative(time_turns(sessions, one.feeds, seconds=seconds, settled=settled))
        for one in served
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _relative(times: Times) -> list[float]:
    """Over the first one's time, where that has fewer rounds by way of one that has them all."""
    longest = max(range(len(times)), key=lambda i: len(times[i]))
    unit = statistics.median(ratios(times[longest], times[0]))
    return [unit * statistics.median(ratios(own, times[longest])) if i else 1.0
            for i, own in enumerate(times)]  # fmt: skip


def overall(relative: Sequence[float]) -> float:
    """One number for the times at several shapes: their geometric mean."""
    return math.exp(sum(map(math.log, relative)) / len(relative))


def no_slower(relative: Sequence[float]) -> bool:
    """Whether it is faster on the whole, and at no shape slower by more than noise."""
    return overall(relative) <= 1 and max(relative) <= (1 if len(relative) == 1 else NOISE)
