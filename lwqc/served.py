"""The inputs that a model is timed on, one for each shape it will serve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.backends.session import Session, time_turns
from lwqc.data import Dataset, open_data
from lwqc.measure import NOISE

Sizes = Mapping[str, int]


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

    The data's own where they have the sizes asked for, else random ones. Raises InputError for an
    unknown dimension.
    """
    first = data.first()
    if not shapes:
        return (Served(_shown(first), first),)
    found = []
    for sizes in shapes:
        drawn = open_data("random:1", model, seed=seed, shapes=sizes).first()
        same = all(v.shape == first[n].shape for n, v in drawn.items() if n in first)
        label = ",".join(f"{name}={size}" for name, size in sizes.items())
        found.append(Served(label, first if same else drawn))
    return tuple(found)


def _shown(feeds: Mapping[str, NDArray[Any]]) -> str:
    name, value = next(iter(feeds.items()))
    return f"{name} {'x'.join(map(str, value.shape)) or 'scalar'}"


def relative_times(
    sessions: Sequence[Session], served: Sequence[Served], seconds: float
) -> list[list[float]]:
    """Time of each session over that of the first, at each shape: [sessions][shapes].

    Of the fastest run of each turn to that of the first session's turn in the same round, as other
    work on the machine only ever adds time and its clock changes slowly; the median of all rounds.
    """
    columns = []
    for one in served:
        turns = time_turns(sessions, one.feeds, seconds=seconds)
        best = [[min(turn) for turn in own] for own in turns]
        shares = [[a / b for a, b in zip(own, best[0], strict=True)] for own in best]
        columns.append([statistics.median(s) for s in shares])
    return [list(row) for row in zip(*columns, strict=True)]


def overall(relative: Sequence[float]) -> float:
    """One number for the times at several shapes: their geometric mean."""
    return math.exp(sum(map(math.log, relative)) / len(relative))


def no_slower(relative: Sequence[float]) -> bool:
    """Whether it is faster on the whole, and at no shape slower by more than noise."""
    return overall(relative) <= 1 and max(relative) <= (1 if len(relative) == 1 else NOISE)
