"""Models in parts that run one after the other, as large as a bound on memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.model import io
from lwqc.model.numerals import size_text
from lwqc.runtime.mapped_session import mapped_session
from lwqc.runtime.rebatched import free_batch, rebatched
from lwqc.runtime.session import Session, statistics_session
from lwqc.runtime.stats.collect import NO_SAMPLE
from lwqc.runtime.stats.collector import Feeds
from lwqc.runtime.stats.segments import Segment, split

_FIXED = 512 << 20  # of libraries, graphs and the process that runs each part for the first time
_SHARES = 4  # of what is left: weights, activations, and twice that for who works on a part
_LARGEST = 768 << 20  # of weights and statistics: beyond, parts need not be larger
_COPIES = 3  # of weights that are in no file: the model that is loaded, its session's, packed ones
_FEW = 16  # parts of which one is few
MAPPED_BYTES = 1_000_000_000  # of a model's weights: from here on memory counts more than time
Observed = Mapping[int, Mapping[str, int]]  # see `split`


@dataclass(frozen=True)
class Room:
    """memory: bytes that this process and its helper take at most, mapped files included.

    sharing: models that are open at the same time.
    """

    memory: int
    sharing: int = 1

    @property
    def free(self) -> int:
        """Bytes for a model, beside what is taken without one."""
        return max(self.memory - _FIXED, 0) // self.sharing

    @property
    def share(self) -> int:
        """Bytes of weights and statistics that a part aims at, and of its activations."""
        return min(self.free // _SHARES, _LARGEST)

    def holds(self, model: ir.Model) -> bool:
        """Whether a model can be loaded whole to try something, on one small sample."""
        return _COPIES * io.weight_bytes(model) <= self.share

    def check(self, needed: int, what: str) -> None:
        """Raises InputError where that many bytes do not fit."""
        if needed > self.free:
            least = size_text(1.01 * (needed * self.sharing + _FIXED))  # what is shown is rounded
            of_two = f", of {self.sharing} models at once," if self.sharing > 1 else ""
            raise InputError(
                f"--memory {size_text(self.memory)}: {what}{of_two} needs {size_text(needed)} "
                f"beside {size_text(_FIXED)} of the libraries: give at least {least}"
            )


@dataclass(frozen=True)
class Parts:
    """A model in segments, and the data in batches.

    session: makes one of a segment's model. batch: size of batches, None for as they are.
    """

    segments: Sequence[Segment]
    data: Iterable[Feeds]
    session: Callable[[ir.Model], Session]
    batch: int | None = None


def divided(
    model: ir.Model,
    data: Iterable[Feeds],
    room: Room | int,
    observed: Observed | None = None,
    *,
    mapped: bool | None = None,
    batch: int | None = None,
    of_outputs: int = 0,
) -> Parts:
    """Segments of a model, cut where few bytes of activations cross.

    room: or how many bytes of weights and statistics segments aim at, without a bound. observed:
    see `split`. mapped: whether weights stay in their files; None for those of large models, as
    kernels round otherwise then. batch: samples at once, at most. of_outputs: how many times the
    bytes of the model's outputs who looks at them takes. With a bound, batches are taken apart
    where a segment's activations would take more than their share, and each segment is run in
    another process first; InputError where one does not fit in any case.
    """
    if mapped is None:
        mapped = io.weight_bytes(model) > MAPPED_BYTES
    feeds = data if batch is None else rebatched(data, batch)
    bounded = isinstance(room, Room)
    first = max(feeds, key=_bytes, default=None) if bounded else next(iter(feeds), None)
    if first is None:
        raise InputError(NO_SAMPLE)
    if not isinstance(room, Room):
        segments = _split(model, first, room, observed)
        return Parts(segments, data, partial(_session, mapped=mapped, proven=True))
    copies = 1 if mapped and _in_files(model) else _COPIES
    segments = _split(model, first, room.share, observed, copies)

    def activations() -> int:
        needed = (s.activation_bytes + of_outputs * s.output_bytes for s in segments)
        return max(needed, default=0)

    size = len(next(iter(first.values()))) if free_batch(model) is not None else 1
    if activations() > room.share and size > 1:
        batch = max(int(size * room.share / activations()), 1)
        first = next(rebatched([first], batch))
        segments = _split(model, first, room.share, observed, copies)
    for segment in segments:
        alive = segment.activation_bytes + of_outputs * segment.output_bytes
        room.check(segment.held_bytes + alive, _named(model, segment))
    batches = data if batch is None else Rebatched(data, batch)
    return Parts(segments, batches, partial(_session, mapped=mapped, proven=False), batch)


def _session(model: ir.Model, *, mapped: bool, proven: bool) -> Session:
    """proven: the whole model was run in another process already; this part is otherwise."""
    make = mapped_session if mapped else statistics_session
    return make(model, risky=None if proven else True)


def _bytes(feeds: Feeds) -> int:
    return sum(int(getattr(value, "nbytes", 0)) for value in feeds.values())


def _in_files(model: ir.Model) -> bool:
    """Whether nearly all weights are stored in files of their own."""
    weights = [v.const_value for v in model.graph.initializers.values()]
    inside = sum(int(t.nbytes) for t in weights if t and not isinstance(t, ir.ExternalTensor))
    return _FEW * inside <= io.weight_bytes(model)


def _split(
    model: ir.Model, feeds: Feeds, share: int, observed: Observed | None, copies: int = 1
) -> list[Segment]:
    sizes = {name: array.shape for name, array in feeds.items()}
    return split(model, share, sizes, observed, copies)


def _named(model: ir.Model, segment: Segment) -> str:
    """A segment by what it computes last, for messages."""
    nodes = list(model.graph)[segment.start : segment.stop]
    last = nodes[-1].outputs[0].name if nodes else ""
    return (
        f"the part of {len(nodes)} nodes up to {last} "
        f"({size_text(segment.held_bytes)} of weights and statistics)"
    )


@dataclass(frozen=True)
class Rebatched(Iterable[Feeds]):
    """The same samples in batches of another size, as often as they are asked for."""

    data: Iterable[Feeds]
    size: int

    def __iter__(self) -> Iterator[Feeds]:
        """The batches."""
        return rebatched(self.data, self.size)
