"""The same samples in batches of another size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.runtime.data import Feeds, required_inputs
from lwqc.runtime.sources.batch_sizes import first_dim

Given = Mapping[str, NDArray[Any]]
LEAST_FEEDS = 20  # of which some are held back
HELD_BACK = 5  # one of so many
_MOST_HELD = 32  # that tell as much as they need to; looking at more takes steps from a fit


def held_back(count: int) -> range:
    """Which of so many sets of inputs a fit holds back."""
    step = max(HELD_BACK, -(-count // _MOST_HELD))
    return range(step - 1, count, step)


def in_pieces(feeds: Sequence[Feeds], model: ir.Model) -> list[Feeds]:
    """Feeds in smaller batches, where there are few and their samples can be taken apart.

    There are at least `LEAST_FEEDS` then, if there are as many samples: so many that some can be
    held back.
    """
    if len(feeds) >= LEAST_FEEDS or free_batch(model) is None:
        return list(feeds)
    samples = sum(len(next(iter(f.values()))) for f in feeds)
    return list(rebatched(feeds, max(samples // LEAST_FEEDS, 1)))


def free_batch(model: ir.Model) -> str | None:
    """The name of axis 0 of all inputs: one dimension without a fixed size, that of the samples."""
    name, *others = {first_dim(value) for value in required_inputs(model).values()} or {None}
    return name if isinstance(name, str) and not others else None


def rebatched(feeds: Iterable[Given], size: int) -> Iterator[Feeds]:
    """The samples of all feeds, in order, in batches of `size`.

    Of fewer at the end, and before samples whose other sizes are not those of the last one.
    """
    waiting: list[Given] = []
    count = 0
    for given in feeds:
        if waiting and _sizes(given) != _sizes(waiting[0]):
            yield _joined(waiting)
            waiting, count = [], 0
        start, total = 0, len(next(iter(given.values())))
        while start < total:
            taken = min(size - count, total - start)
            waiting.append({n: a[start : start + taken] for n, a in given.items()})
            start, count = start + taken, count + taken
            if count == size:
                yield _joined(waiting)
                waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _sizes(feeds: Given) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in feeds.items()}


def _joined(parts: list[Given]) -> Feeds:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
