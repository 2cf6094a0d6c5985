"""Sounds in `.wav` files as inputs of a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from math import ceil, gcd
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.array_files import check_regular
from lwqc.model.limits import beyond, limits
from lwqc.plans.preprocess import Preprocess
from lwqc.runtime.sources.folders import Found
from lwqc.runtime.sources.images import file_labels
from lwqc.runtime.sources.labels import Labels
from lwqc.runtime.sources.samples import (
    Arrays,
    Inputs,
    check_keys,
    only_input,
    shape_text,
    stacked,
)

KEYS = ("rate", "seconds", "samples")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_LOUDEST = 1 << 15
_STEPS = 1 << 17  # of a ratio of two rates


class Sounds:
    """Files in pieces of one length, each read when it is asked for, as one channel.

    See `lwqc.runtime.sources.samples.Samples`. The last piece of a file ends in silence.
    """

    def __init__(self, found: Found, inputs: Inputs, settings: Preprocess) -> None:
        """Raises InputError for what does not fit the model, or is not said."""
        check_keys(settings, KEYS, "sounds")
        self.root, self.files, self.left_out = found.root, found.files, found.left_out
        self._input, self._value = only_input(inputs, settings, "sounds")
        self.settings = resolved(self._value, settings)
        self.alike = self.settings.samples is not None
        self._pieces = [(f, n) for f in self.files for n in range(self._pieces_of(f))]

    def __len__(self) -> int:
        return len(self._pieces)

    def _pieces_of(self, file: Path) -> int:
        rate, wave = _read(file)
        if self.settings.samples is None:
            return 1
        assert self.settings.rate is not None
        return max(1, ceil(len(wave) * self.settings.rate / rate / self.settings.samples))

    def batch(self, start: int, stop: int) -> Arrays:
        """Pieces as the input's type: floats from -1 to 1, or whole numbers of 16 bits."""
        rows = list(self._rows(start, stop))
        return {self._input: stacked(rows, self._value, str(self.root))}

    def _rows(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        whole: tuple[Path, NDArray[Any]] | None = None
        for file, number in self._pieces[start:stop]:
            if whole is None or whole[0] != file:
                whole = file, self._wave(file)
            piece, length = whole[1], self.settings.samples
            if length is not None:
                piece = piece[number * length : (number + 1) * length]
                piece = np.pad(piece, (0, length - len(piece)))
            yield piece[None] if len(self._value.shape or ()) == 3 else piece

    def _wave(self, file: Path) -> NDArray[Any]:
        from scipy.signal import resample_poly

        rate, wave = _read(file)
        wanted = self.settings.rate
        assert wanted is not None
        plain = _floats(wave)
        if rate != wanted:
            common = gcd(rate, wanted)
            up, down = wanted // common, rate // common
            if max(up, down) > _STEPS or len(plain) * up > _STEPS * down * _STEPS:
                raise InputError(f"{file}: {rate} samples a second cannot become {wanted}")
            plain = resample_poly(plain, up, down)
        if self._value.dtype == ir.DataType.INT16:
            return np.clip(np.rint(plain * _LOUDEST), -_LOUDEST, _LOUDEST - 1).astype(np.int16)
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinite then is refused
            return plain.astype(self._value.dtype.numpy() if self._value.dtype else np.float32)

    def labels(self) -> Labels | None:
        """Of the file that a piece is from."""
        found = file_labels(self.root, self.files, self.settings)
        if found is None:
            return None
        of_file = dict(zip(self.files, found.names, strict=True))
        return replace(found, names=tuple(of_file[file] for file, _ in self._pieces))


def resolved(value: ir.Value, settings: Preprocess) -> Preprocess:
    """The settings with what the model's input says. Raises InputError for what nothing says."""
    where = f"input {value.name} {shape_text(value)}"
    dims = [d if isinstance(d, int) else None for d in value.shape or ()]
    if len(dims) not in (2, 3) or (len(dims) == 3 and dims[1] not in (None, 1)):
        raise InputError(f"{where}: takes no sounds, which are [batch, samples] or with a channel")
    if value.dtype not in (None, ir.DataType.INT16, *_FLOATS):
        raise InputError(f"{where}: is of type {value.dtype}; sounds are floats or int16")
    if settings.rate is None:
        raise InputError(f"{where}: write rate=HERTZ, the samples a second that the model takes")
    samples = settings.samples
    if settings.seconds is not None:
        samples = max(1, round(settings.seconds * settings.rate))
    if None not in (samples, dims[-1]) and samples != dims[-1]:
        raise InputError(f"{where}: {samples} samples do not fit; it takes samples={dims[-1]}")
    return replace(settings, seconds=None, samples=dims[-1] if samples is None else samples)


def _read(file: Path) -> tuple[int, NDArray[Any]]:
    """Samples a second, and the samples [time] or [time, channels], mapped where that can be."""
    from scipy.io import wavfile

    check_regular(file, "a sound")
    if file.stat().st_size > limits().data:
        raise beyond(f"{file}: reading it", "data", file.stat().st_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of chunks that are no samples
            try:
                rate, wave = wavfile.read(file, mmap=True)
            except ValueError:  # 24 bits are no type of numpy's
                rate, wave = wavfile.read(file)
    except Exception as error:  # of damaged files scipy says whatever comes first
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: cannot be read as a sound: {reason}") from error
    if not rate or not wave.size:
        raise InputError(f"{file}: holds no sound")
    return int(rate), wave


def _floats(wave: NDArray[Any]) -> NDArray[np.float64]:
    """One channel, from -1 to 1."""
    if wave.dtype.kind == "u":
        plain = (wave.astype(np.float64) - 128) / 128
    elif wave.dtype.kind == "i":
        plain = wave.astype(np.float64) / -float(np.iinfo(wave.dtype).min)
    else:
        with np.errstate(invalid="ignore"):  # what is no number is refused
            plain = wave.astype(np.float64)
    return plain if plain.ndim == 1 else plain.mean(axis=1)
