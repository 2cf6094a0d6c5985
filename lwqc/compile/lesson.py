"""What a small model is fitted to: the outputs of its teacher, and what errors of them count by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.matched_channels import MatchedChannels, Narrower, matched_channels, narrower
from lwqc.compile.saved_check import Expected
from lwqc.compile.teacher_outputs import Recomputed, kept_or_recomputed
from lwqc.errors import InputError
from lwqc.model.extensions import expected
from lwqc.runtime.data import required_inputs
from lwqc.runtime.measure import worst_drop
from lwqc.runtime.rebatched import held_back
from lwqc.runtime.session import Session
from lwqc.runtime.stats.channel_error import ChannelMeter
from lwqc.runtime.stats.divergence import LossesMeter

if TYPE_CHECKING:
    from lwqc.learn.distill import Batch, Scale

Array = NDArray[Any]
_STILL = 1e-12  # of the mean variance: the square of what floats of 32 bits tell
_MATCHED_ON = 1 << 14  # numbers of each channel that are compared where widths differ


@dataclass
class Lesson:
    """Both models on the data. names: for messages. load: makes a session of a model and its name.

    floats: a model with the weights that codes of the small one stand for; None: the teacher is.
    inner: tensors of both that are fitted too; those of a narrower one to the channels of the
    teacher's that they resemble most. logits: outputs that are fitted by their probabilities.
    notes: what is not fitted, and why.
    """

    small: ir.Model
    teacher: ir.Model
    feeds: Sequence[Mapping[str, Array]]
    inner: tuple[str, ...]
    names: tuple[str, str]
    load: Callable[[ir.Model, str], Session] = lambda model, label: Session(model, label=label)
    floats: ir.Model | None = None
    logits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self._session = self.load(self.small, self.names[0])
        self._needed = set(required_inputs(self.small))
        first = self._own(self.feeds[0])
        self.expected = Expected(first, self._session(first), self._session.types)

    def _own(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs that the small model has."""
        missing = sorted(self._needed - set(feeds))
        if missing:
            raise InputError(f"{self.names[0]}: {self.names[1]} has no input {missing[0]}")
        return {n: v for n, v in feeds.items() if n in self._needed}

    def batches(self) -> list[Batch]:
        """All feeds with what the teacher gives for them."""
        from lwqc.learn.distill import Batch

        run = Session(with_outputs(self.teacher, self.inner, self.names[1]), label=self.names[1])
        own = self._session
        if self.inner:
            own = self.load(with_outputs(self.small, self.inner, self.names[0]), self.names[0])
        tensors = {n for n, kind in own.types.items() if kind.startswith("tensor")}
        for name in self.logits:
            if name not in own.types:
                raise InputError(f"--logits {name}: {expected(name, list(own.types))}")
        wanted, narrow = self._shared(run(self.feeds[0]), own(self._own(self.feeds[0])), tensors)
        matched = self._matched(narrow, run, own)

        def taught(feeds: Mapping[str, Array]) -> dict[str, Array]:
            outputs = run(feeds)
            if self.inner:
                self._check_sizes(own(self._own(feeds)), outputs, narrow)
            found = {n: v for n, v in outputs.items() if n in wanted}
            return {n: matched[n].of(v) if n in matched else v for n, v in found.items()}

        names = tuple(name for name in run.outputs if name in wanted)
        first = held_back(len(self.feeds))
        outputs = kept_or_recomputed(names, taught, self.feeds, first)
        again = sum(isinstance(one, Recomputed) for one in outputs)
        if again:
            self.notes.append(
                f"{self.names[1]} runs again for {again} of {len(outputs)} sets of inputs whenever "
                "they come up: there is no memory to keep its outputs for them"
            )
        own_feeds = map(self._own, self.feeds)
        return [Batch(feeds, one) for feeds, one in zip(own_feeds, outputs, strict=True)]

    def _check_sizes(
        self,
        small: Mapping[str, Array],
        teacher: Mapping[str, Array],
        narrow: Mapping[str, Narrower],
    ) -> None:
        """Raises InputError unless inner tensors differ as those of the first inputs do."""
        for name in self.inner:
            own, wide = small[name].shape, teacher[name].shape
            if narrower(own, wide) != narrow.get(name) or (name not in narrow and own != wide):
                raise InputError(
                    f"--inner {name}: how its size differs from {self.names[1]}'s varies with the "
                    "inputs"
                )

    def _matched(
        self, narrow: Mapping[str, Narrower], run: Session, own: Session
    ) -> dict[str, MatchedChannels]:
        """Channels of inner tensors that are narrower than the teacher's.

        Raises InputError where they do not resemble the teacher's.
        """
        found = {}
        for name, (axis, width, _) in narrow.items():
            pairs: list[tuple[Array, Array]] = []
            for feeds in self.feeds:
                small, wide = own(self._own(feeds)), run(feeds)
                self._check_sizes(small, wide, narrow)
                pairs.append((small[name], wide[name]))
                if sum(one.size for one, _ in pairs) >= _MATCHED_ON * width:
                    break
            one = matched_channels(pairs, axis)
            sizes = f"{len(one.index)} of the teacher's {one.width} channels (axis {axis})"
            if not one.holds:
                raise InputError(
                    f"--inner {name}: it has {sizes}, and does not resemble them beyond chance: "
                    f"the mean correlation of the closest is {one.mean:.2f} on {one.numbers} "
                    f"numbers of each, of which noise gives {one.chance:.2f}; more data tells more"
                )
            gone = int(one.left_out.sum())
            rest = f"; {gone} that resemble none are left out" if gone else ""
            self.notes.append(
                f"{name} is fitted to the {sizes} that it resembles most: mean correlation "
                f"{one.mean:.2f}{rest}"
            )
            found[name] = one
        return found

    def _shared(
        self, teacher: Mapping[str, Array], small: Mapping[str, Array], tensors: set[str]
    ) -> tuple[set[str], dict[str, Narrower]]:
        """Outputs that can be fitted, and how inner ones are narrower.

        tensors: no sequences. Raises InputError without any.
        """
        shared, narrow = set(), {}
        for name, value in small.items():
            other = teacher.get(name)
            if other is None:
                reason = f"{self.names[1]} has no such output"
            elif name not in tensors:
                reason = "it is no tensor"
            elif value.dtype.kind != "f":
                reason = "it holds no floats"
            elif value.shape == other.shape:
                shared.add(name)
                continue
            elif name in self.inner and (less := narrower(value.shape, other.shape)):
                shared.add(name)
                narrow[name] = less
                continue
            else:
                sizes = [list(v.shape) for v in (value, other)]
                reason = f"its shape is {sizes[0]}, the teacher's {sizes[1]}"
            if name in self.inner:
                raise InputError(f"--inner {name}: {reason}")
            if name in self.logits:
                raise InputError(f"--logits {name}: {reason}")
            self.notes.append(f"output {name} is not fitted: {reason}")
        if not shared - set(self.inner):
            raise InputError(f"{self.names[0]} and {self.names[1]} share no output of floats")
        return shared, narrow

    def scales(self, batches: Sequence[Batch]) -> dict[str, Scale]:
        """What errors of each output count by: the variance of its channels, if there is any."""
        meters: dict[str, ChannelMeter] = {}
        for batch in batches:
            for name, value in batch.wanted.items():
                meters.setdefault(name, ChannelMeter()).add(value, value)
        found = {name: scale_of(meter) for name, meter in meters.items()}
        for name in self.logits:
            if name in found:
                found[name] = as_logits(found[name], name, batches[0].wanted[name].ndim)
        return {name: scale for name, scale in found.items() if varies(scale)}

    def drop(self, model: ir.Model, held: Sequence[Batch]) -> float:
        """Loss of a model on the feeds that were held back, as onnxruntime computes it."""
        session = self._session if model is self.small else self.load(model, self.names[0])
        outputs = set(session.outputs)
        meter = LossesMeter()
        for batch in held:
            wanted = {n: v for n, v in batch.wanted.items() if n in outputs}
            meter.add(wanted, session(batch.feeds))
        return worst_drop(meter.result())


def with_outputs(model: ir.Model, names: Sequence[str], label: str) -> ir.Model:
    """The model, or a copy that also gives inner tensors. Raises InputError."""
    if not names:
        return model
    made = model.clone()
    known = {v.name: v for node in made.graph for v in node.outputs}
    for name in names:
        if name not in known:
            raise InputError(f"--inner {name}: {label} has no such tensor")
        if known[name] not in made.graph.outputs:
            made.graph.outputs.append(known[name])
    return made


def varies(scale: Scale) -> bool:
    """Whether errors can be measured by it, in floats of 32 bits."""
    return bool(scale.variance.mean() > np.finfo(np.float32).tiny)


def as_logits(scale: Scale, name: str, rank: int) -> Scale:
    """The same for an output of logits: classes are on the last axis, of pictures on axis 1.

    Raises InputError where it has no such axis.
    """
    if rank < 2:
        raise InputError(f"--logits {name}: it has no axis of classes")
    return replace(scale, axis=1 if rank > 3 else rank - 1, logits=True)


def scale_of(meter: ChannelMeter) -> Scale:
    """What errors count by: the variance of each channel.

    Channels that vary by no more than rounding are measured by the others.
    """
    from lwqc.learn.distill import Scale

    axis, variance = meter.variances()
    mean = variance.mean()
    return Scale(axis, np.where(variance < _STILL * mean, mean, variance))
