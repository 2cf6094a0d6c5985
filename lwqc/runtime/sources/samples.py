"""What a source of samples gives, and how samples become the inputs of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.shapes import symbol_of
from lwqc.model.extensions import expected
from lwqc.plans.preprocess import Preprocess
from lwqc.runtime.sources.labels import Labels

Arrays = dict[str, NDArray[Any]]
Inputs = Mapping[str, ir.Value]
_KEPT = 256 << 20  # bytes of batches that are not made again


class Samples(Protocol):
    """Samples that can be read in any order, as often as asked.

    settings: with everything that was found out. files: all that is read. left_out: files of the
    folder that are no samples. alike: samples can be put into one batch.
    """

    settings: Preprocess
    files: Sequence[Path]
    left_out: int
    alike: bool

    def __len__(self) -> int:
        """How many there are."""

    def batch(self, start: int, stop: int) -> Arrays:
        """Inputs for the samples from `start` to `stop`, without those that are filled."""

    def labels(self) -> Labels | None:
        """What samples are, one label each, where that is known."""


class SampleBatches:
    """Batches of a source. The first ones are kept, up to a bound; later ones are made again."""

    def __init__(
        self, samples: Samples, inputs: Inputs, size: int, sizes: Mapping[str, int]
    ) -> None:
        """sizes: of dimensions that samples do not tell, for inputs that are filled."""
        self._sizes = sizes
        self.settings, self.left_out = samples.settings, samples.left_out
        self.labels = samples.labels
        limit = samples.settings.limit
        self._samples, self._inputs, self._size = samples, inputs, size
        self.count = len(samples) if limit is None else min(limit, len(samples))
        self._kept: dict[int, Arrays] = {}
        self._room = _KEPT

    def __len__(self) -> int:
        return -(-self.count // self._size)

    def __iter__(self) -> Iterator[Arrays]:
        for start in range(0, self.count, self._size):
            yield self._kept.get(start) or self._made(start)

    def _made(self, start: int) -> Arrays:
        stop = min(start + self._size, self.count)
        arrays = self._samples.batch(start, stop)
        arrays |= filled(self._inputs, self._samples.settings, arrays, stop - start, self._sizes)
        self._room -= sum(value.nbytes for value in arrays.values())
        if self._room >= 0:
            self._kept[start] = arrays
        return arrays


def fed(inputs: Inputs, settings: Preprocess) -> dict[str, ir.Value]:
    """The inputs that samples give. Raises InputError for a filled one that is none."""
    filled = dict(settings.fill)
    for name in filled:
        if name not in inputs:
            raise InputError(
                f"fill.{name}: the model has no such input; {expected(name, sorted(inputs))}"
            )
    return {name: value for name, value in inputs.items() if name not in filled}


def only_input(inputs: Inputs, settings: Preprocess, what: str) -> tuple[str, ir.Value]:
    """The one input that samples give. what: they are, in the plural. Raises InputError."""
    found = fed(inputs, settings)
    if len(found) != 1:
        shown = ", ".join(found) or "none"
        raise InputError(
            f"{what} give one input, and the model asks for {shown}: write fill.INPUT=NUMBER for "
            "those that are the same for all, or give module:callable"
        )
    return next(iter(found.items()))


def filled(
    inputs: Inputs, settings: Preprocess, arrays: Arrays, rows: int, given: Mapping[str, int]
) -> Arrays:
    """The inputs that are full of one number. given: sizes that the arrays do not tell.

    Raises InputError where a size is not known.
    """
    sizes = {**given} | {
        symbol_of(inputs[name], axis, dim): array.shape[axis]
        for name, array in arrays.items()
        for axis, dim in enumerate(inputs[name].shape or ())
        if not isinstance(dim, int) and axis < array.ndim
    }
    found = {}
    for name, number in settings.fill:
        value = inputs[name]
        shape = []
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            symbol = symbol_of(value, axis, dim)
            size = sizes.get(symbol, rows if axis == 0 else None)
            if size is None:
                raise InputError(f"fill.{name}: write --shape {symbol}=SIZE, which no sample tells")
            shape.append(size)
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        found[name] = np.full(shape, number).astype(dtype)
    return found


def stacked(rows: Sequence[NDArray[Any]], value: ir.Value, where: str) -> NDArray[Any]:
    """Samples along a new axis 0. Raises InputError where they differ in shape."""
    shapes = {row.shape for row in rows}
    if len(shapes) > 1:
        shown = " and ".join(str(list(s)) for s in sorted(shapes)[:2])
        raise InputError(
            f"{where}: samples of shape {shown} cannot be one batch of {value.name}: write batch=1"
        )
    return np.stack(rows)


def shape_text(value: ir.Value) -> str:
    """The shape of an input for messages."""
    if value.shape is None:
        return "unknown"
    return f"[{', '.join(str(d if isinstance(d, int) else d.value or '?') for d in value.shape)}]"


def check_keys(settings: Preprocess, known: Sequence[str], what: str) -> None:
    """Raises InputError for a key that says nothing about such samples."""
    everywhere = ("fill", "batch", "limit", "labels", "classes")
    for key in settings.given:
        if key not in known and key not in everywhere:
            raise InputError(
                f"--preprocess {key}: says nothing about {what}; for them there are "
                f"{', '.join((*known, *everywhere))}"
            )


def check_names(feeds: Iterable[str], inputs: Mapping[str, ir.Value], label: str) -> None:
    """Raises InputError where data is not of these inputs."""
    unknown = sorted(str(n) for n in set(feeds) - set(inputs))
    known = expected(unknown[0], sorted(inputs)) if unknown else ""
    if missing := sorted(set(inputs) - set(feeds)):
        got = f"got {sorted(map(str, feeds))}{f', {known}' if known else ''}"
        raise InputError(f"{label}: no data for input {', '.join(missing)}; {got}")
    if unknown:
        raise InputError(f"{label}: the model has no input {', '.join(unknown)}; {known}")
