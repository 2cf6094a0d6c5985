"""Input data for a model: what `--data` accepts, checked against the model's inputs."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.random_inputs import random_feeds

Feeds = dict[str, NDArray[Any]]
DEFAULT_BATCH = 8


@dataclass(frozen=True)
class Dataset:
    """Feeds that can be iterated over any number of times, each checked against the model.

    kind: `random` data is made up; results on it say little about real use.
    """

    kind: Literal["real", "random"]
    description: str
    _make: Callable[[], Iterable[Mapping[str, NDArray[Any]]]]
    _inputs: Mapping[str, ir.Value] = field(repr=False)
    limit: int | None = None

    def __iter__(self) -> Iterator[Feeds]:
        """Yield feeds by input name. Raises InputError on the first one that does not fit."""
        count = 0
        for feeds in self._make():
            if self.limit is not None and count >= self.limit:
                return
            yield check_feeds(feeds, self._inputs, self.description)
            count += 1
        if count == 0:
            raise InputError(f"{self.description}: holds no samples")

    def first(self) -> Feeds:
        """The first feeds."""
        return next(iter(self))

    def limited(self, count: int) -> Dataset:
        """The first `count` feeds."""
        count = count if self.limit is None else min(count, self.limit)
        return Dataset(self.kind, self.description, self._make, self._inputs, count)


def open_data(
    spec: str | os.PathLike[str] | Iterable[Mapping[str, NDArray[Any]]] | None,
    model: ir.Model,
    *,
    limit: int | None = None,
    seed: int = 0,
    shapes: Mapping[str, int] | None = None,
) -> Dataset:
    """Open a data source for a model.

    spec: `.npz` (arrays by input name, batched on axis 0), a folder of `.npz` files (one feed
    each), `.npy` (models with one input), `module:callable` returning feeds, `random[:N]`, a
    Python iterable of feeds, or None for `random`.
    limit: at most so many feeds. shapes: sizes of dynamic dimensions for random data.

    Raises InputError in one line for anything that cannot be opened or does not fit the model.
    """
    inputs = required_inputs(model)
    if spec is None:
        spec = "random"
    if not isinstance(spec, (str, os.PathLike)):
        return _from_iterable(spec, inputs, limit)
    text = os.fspath(spec)
    if text == "random" or text.startswith("random:"):
        count = _count(text)
        return Dataset(
            "random", text, lambda: random_feeds(model, count, seed, shapes or {}), inputs, limit
        )
    path = Path(text)
    if path.is_dir():
        data = Dataset("real", text, lambda: _folder(path), inputs, limit)
    elif path.suffix in {".npz", ".npy"}:
        if not path.exists():
            raise InputError(f"{text}: no such data file")
        data = Dataset("real", text, lambda: _batches(path, inputs), inputs, limit)
    elif ":" in text:
        make = _callable(text)
        data = Dataset("real", text, lambda: _called(make, text), inputs, limit)
    else:
        raise InputError(
            f"{text}: expected data as .npz, .npy, a folder, module:callable or random[:N]"
        )
    data.first()  # the cheapest mistakes show before any work starts
    return data


def required_inputs(model: ir.Model) -> dict[str, ir.Value]:
    """Graph inputs that have no default value, by name."""
    return {v.name or "": v for v in model.graph.inputs if not v.is_initializer()}


def _from_iterable(
    source: Iterable[Mapping[str, NDArray[Any]]], inputs: Mapping[str, ir.Value], limit: int | None
) -> Dataset:
    """Feeds given from Python; a generator is read once and kept."""
    kept = source if isinstance(source, (list, tuple, Dataset)) else list(source)
    if isinstance(kept, Dataset):
        return Dataset(kept.kind, kept.description, lambda: kept, inputs, limit)
    return Dataset("real", "data", lambda: kept, inputs, limit)


def _count(text: str) -> int:
    number = text.partition(":")[2] or "8"
    if not number.isdigit() or int(number) == 0:
        raise InputError(f"{text}: expected random or random:N with N of at least 1")
    return int(number)


def _callable(text: str) -> Callable[[], Any]:
    module_name, _, name = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise InputError(f"{text}: module {module_name} cannot be imported: {error}") from error
    except AttributeError as error:
        raise InputError(f"{text}: module {module_name} has no attribute {name}") from error
    if not callable(found):
        raise InputError(f"{text}: {name} is not callable")
    return found  # type: ignore[no-any-return]


def _called(make: Callable[[], Any], text: str) -> Iterator[Mapping[str, NDArray[Any]]]:
    try:
        source = iter(make())
    except Exception as error:
        raise InputError(f"{text}: the call failed: {error!r}") from error
    while True:
        try:
            feeds = next(source)
        except StopIteration:
            return
        except Exception as error:
            raise InputError(f"{text}: failed while yielding data: {error!r}") from error
        if not isinstance(feeds, Mapping):
            raise InputError(f"{text}: yielded a {type(feeds).__name__}, expected a dict of arrays")
        yield feeds


def _folder(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    files = sorted(path.glob("*.npz"))
    if not files:
        raise InputError(f"{path}: holds no .npz files")
    for file in files:
        yield _arrays(file)


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    try:
        loaded = np.load(file, allow_pickle=False, mmap_mode="r" if file.suffix == ".npy" else None)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: cannot be read as numpy data: {error}") from error


def _batches(file: Path, inputs: Mapping[str, ir.Value]) -> Iterator[Mapping[str, NDArray[Any]]]:
    arrays = _arrays(file)
    if "" in arrays:
        if len(inputs) != 1:
            raise InputError(f"{file}: .npy data needs a model with one input, not {len(inputs)}")
        arrays = {next(iter(inputs)): arrays[""]}
    _check_names(arrays, inputs, str(file))
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"{file}: arrays differ in their number of samples: {lengths}")
    total = next(iter(lengths.values()))
    batch = _batch_size(inputs, total)
    if total % batch and _fixed_batch(inputs):
        raise InputError(f"{file}: {total} samples are not a multiple of the batch size {batch}")
    for start in range(0, total, batch):
        yield {name: np.asarray(a[start : start + batch]) for name, a in arrays.items()}


def _fixed_batch(inputs: Mapping[str, ir.Value]) -> int:
    sizes = {v.shape[0] for v in inputs.values() if v.shape is not None and len(v.shape)}
    fixed = [s for s in sizes if isinstance(s, int)]
    return fixed[0] if fixed else 0


def _batch_size(inputs: Mapping[str, ir.Value], total: int) -> int:
    return _fixed_batch(inputs) or min(DEFAULT_BATCH, max(total, 1))


def check_feeds(
    feeds: Mapping[str, NDArray[Any]], inputs: Mapping[str, ir.Value], label: str
) -> Feeds:
    """Feeds as contiguous arrays of the inputs' types.

    Integers are converted between widths when no value changes; floats are never converted.
    Raises InputError on wrong names, shapes or types, and on NaN or infinity.
    """
    _check_names(feeds, inputs, label)
    checked = {
        name: _checked(feeds[name], value, f"{label}: input {name}")
        for name, value in inputs.items()
    }
    symbols: dict[str, int] = {}
    for name, value in inputs.items():
        for dim, size in zip(value.shape or (), checked[name].shape, strict=False):
            symbol = getattr(dim, "value", None)
            if isinstance(symbol, str) and symbols.setdefault(symbol, size) != size:
                raise InputError(
                    f"{label}: input {name}: dimension {symbol} is {size}, elsewhere "
                    f"{symbols[symbol]}"
                )
    return checked


def _check_names(
    feeds: Mapping[str, NDArray[Any]], inputs: Mapping[str, ir.Value], label: str
) -> None:
    if missing := sorted(set(inputs) - set(feeds)):
        raise InputError(f"{label}: no data for input {', '.join(missing)}; got {sorted(feeds)}")
    if unknown := sorted(set(feeds) - set(inputs)):
        raise InputError(
            f"{label}: the model has no input {', '.join(unknown)}; expected {sorted(inputs)}"
        )


def _checked(array: Any, value: ir.Value, label: str) -> NDArray[Any]:
    values = np.asarray(array)
    if value.shape is not None:
        expected = [d if isinstance(d, int) else (d.value or "?") for d in value.shape]
        if len(expected) != values.ndim or any(
            isinstance(e, int) and e != s for e, s in zip(expected, values.shape, strict=True)
        ):
            raise InputError(f"{label}: shape {list(values.shape)} does not fit {expected}")
    if value.dtype is not None:
        values = _typed(values, value.dtype.numpy(), label)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{label}: holds NaN or infinity")
    return np.ascontiguousarray(values).reshape(values.shape)


def _typed(values: NDArray[Any], dtype: np.dtype[Any], label: str) -> NDArray[Any]:
    if values.dtype == dtype:
        return values
    if values.dtype.kind in "iu" and dtype.kind in "iu":
        converted = values.astype(dtype)
        if np.array_equal(converted, values):
            return converted
    raise InputError(f"{label}: type {values.dtype} does not fit {dtype}; convert the data first")
