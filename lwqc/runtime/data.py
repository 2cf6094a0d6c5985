"""Input data for a model: what `--data` accepts, checked against the model's inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.shapes import symbol_of
from lwqc.model.array_files import Archive, check_regular, read_npy
from lwqc.model.numerals import whole
from lwqc.model.user_code import load_callable, running
from lwqc.plans.options import Data
from lwqc.runtime.random_inputs import DEFAULT_DIM, random_feeds

Feeds = dict[str, NDArray[Any]]
DEFAULT_BATCH = 8
_MOST_RANDOM = 10**9


class SizesDifferError(InputError):
    """Data gives a dimension two sizes. feeds: the data, which the model may run all the same."""

    def __init__(self, message: str, symbol: str, feeds: Feeds) -> None:
        super().__init__(message)
        self.symbol = symbol
        self.feeds = feeds


@dataclass(frozen=True)
class Dataset:
    """Feeds that can be iterated over any number of times, each checked against the model.

    kind: `random` data is made up; results on it say little about real use.
    given: the caller chose it. limit: at most so many feeds. `len()` raises TypeError when the
    source does not know.
    """

    kind: Literal["real", "random"]
    description: str
    _make: Callable[[], Iterable[Mapping[str, NDArray[Any]]]]
    _inputs: Mapping[str, ir.Value] = field(repr=False)
    limit: int | None = None
    _count: int | None = field(default=None, repr=False)
    given: bool = True

    def __len__(self) -> int:
        if self._count is None:
            raise TypeError(f"the number of feeds of {self.description} is not known")
        return self._count if self.limit is None else min(self._count, self.limit)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield feeds by input name. Raises InputError on the first one that does not fit."""
        count = 0
        for feeds in islice(self._make(), self.limit):
            yield check_feeds(feeds, self._inputs, self.description)
            count += 1
        if count == 0:
            raise InputError(f"{self.description}: holds no samples")

    def first(self) -> Feeds:
        """The first feeds."""
        return next(iter(self))

    def halves(self) -> tuple[Dataset, Dataset]:
        """Every other feeds, and those between; all of them twice where there is but one."""
        if len(list(islice(self, 2))) < 2:
            return self, self
        first, second = (
            replace(self, _make=partial(self._every_other, start), limit=None, _count=None)
            for start in (0, 1)
        )
        return first, second

    def _every_other(self, start: int) -> Iterator[Feeds]:
        return islice(iter(self), start, None, 2)

    def limited(self, count: int) -> Dataset:
        """The first `count` feeds."""
        count = count if self.limit is None else min(count, self.limit)
        return replace(self, limit=_positive(count))


def open_data(
    spec: Data,
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
    limit: at most so many feeds. shapes: sizes of dynamic dimensions for random data; of files,
    the one of axis 0 is the batch size. Dynamic batches have 8 samples otherwise.

    A file whose inputs do not share axis 0 in the model is one feed rather than a batch of samples.

    Raises InputError in one line for anything that cannot be opened or does not fit the model.
    """
    if seed < 0:
        raise InputError(f"seed {seed}: must not be negative")
    inputs = required_inputs(model)
    limit = None if limit is None else _positive(limit)
    given = spec is not None
    spec = "random" if spec is None else spec
    if not isinstance(spec, (str, os.PathLike)):
        data = _from_iterable(spec, inputs, limit)
        data.first()
        return data
    text = os.fspath(spec)
    if text == "random" or text.startswith("random:"):
        count, sizes = _random_count(text), default_sizes(inputs, shapes or {})
        return Dataset(
            "random", text, lambda: random_feeds(model, count, seed, sizes), inputs, limit, count,
            given,
        )  # fmt: skip
    path = Path(text)
    if _is_folder(path):
        found = len(_npz_files(path))
        data = Dataset("real", text, lambda: _folder(path, inputs), inputs, limit, found)
    elif path.suffix in {".npz", ".npy"}:
        check_regular(path)
        batch = _batch_size(inputs, shapes or {})
        data = Dataset("real", text, lambda: _batches(path, inputs, batch), inputs, limit)
        data = replace(data, _count=sum(1 for _ in _batches(path, inputs, batch)))
    elif ":" in text:
        make = load_callable(text)
        data = Dataset("real", text, lambda: _called(make, text), inputs, limit)
    else:
        raise InputError(
            f"{text}: expected data as .npz, .npy, a folder, module:callable or random[:N]"
        )
    data.first()  # the cheapest mistakes show before any work starts
    return data


def data_sources(spec: Data) -> list[Path]:
    """Files that a data source is read from; none of code, random data and feeds in memory."""
    if not isinstance(spec, (str, os.PathLike)):
        return []
    path = Path(spec)
    return [path, *sorted(path.glob("*.npz"))] if _is_folder(path) else [path]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long
        raise InputError(f"{str(path)[:80]}: cannot be read: {error.strerror}") from error


def required_inputs(model: ir.Model) -> dict[str, ir.Value]:
    """Graph inputs that have no default value, by name."""
    return {v.name or "": v for v in model.graph.inputs if not v.is_initializer()}


def _from_iterable(
    source: Iterable[Mapping[str, NDArray[Any]]], inputs: Mapping[str, ir.Value], limit: int | None
) -> Dataset:
    """Feeds given from Python; a generator is read once and kept."""
    if isinstance(source, Dataset):
        count = None if source._count is None else len(source)
        return replace(
            source,
            _make=partial(_shared, source, inputs),
            _inputs=inputs,
            limit=limit,
            _count=count,
        )
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise InputError(f"data: is a {type(source).__name__}; expected a list of dicts of arrays")
    kept = source if isinstance(source, (list, tuple)) else list(islice(source, limit))
    return Dataset("real", "data", lambda: kept, inputs, limit, len(kept))


def _shared(source: Dataset, inputs: Mapping[str, ir.Value]) -> Iterator[Feeds]:
    """The feeds of another model that has these inputs and perhaps more."""
    for feeds in source:
        yield {name: value for name, value in feeds.items() if name in inputs}


def _positive(limit: int) -> int:
    if limit < 1:
        raise InputError(f"data: a limit of {limit} feeds leaves none; expected at least 1")
    return limit


def default_sizes(inputs: Mapping[str, ir.Value], shapes: Mapping[str, int]) -> dict[str, int]:
    """One size per dynamic dimension name, whichever axes of whichever inputs it is on.

    Dimensions without a name are `input:axis`.
    Given ones win; else 1 if its first use is on axis 0, 16 otherwise. Only dimensions that are
    never on axis 0 may be 0, as an empty past is.
    """
    sizes: dict[str, int] = {}
    leading: set[str] = set()
    for value in inputs.values():
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int):
                symbol = symbol_of(value, axis, dim)
                sizes.setdefault(symbol, 1 if axis == 0 else DEFAULT_DIM)
                leading |= {symbol} if axis == 0 else set()
    for name, size in shapes.items():
        if name not in sizes:
            raise InputError(
                f"shape {name}: the inputs have no such dimension; expected one of {sorted(sizes)}"
            )
        least = 1 if name in leading else 0
        if size < least:
            raise InputError(f"shape {name}: is {size}; expected at least {least}")
    return sizes | dict(shapes)


def _random_count(text: str) -> int:
    number = text.partition(":")[2] or "8"
    try:
        count = whole(number)
    except ValueError:
        count = 0
    if not 0 < count < _MOST_RANDOM:
        raise InputError(f"{text[:80]}: expected random or random:N with N of at least 1")
    return count


def _called(make: Callable[[], Any], text: str) -> Iterator[Mapping[str, NDArray[Any]]]:
    with running(f"{text}: the call failed"):
        source = iter(make())
    end: Any = object()
    while True:
        with running(f"{text}: failed while yielding data"):
            feeds: Any = next(source, end)
        if feeds is end:
            return
        yield feeds


def _folder(path: Path, inputs: Mapping[str, ir.Value]) -> Iterator[Mapping[str, NDArray[Any]]]:
    for file in _npz_files(path):
        yield _arrays(file, inputs)


def _npz_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.npz"))
    if not files:
        raise InputError(f"{path}: holds no .npz files")
    return files


def _arrays(file: Path, inputs: Mapping[str, ir.Value]) -> Mapping[str, NDArray[Any]]:
    """The arrays of a file, once their names are those of the inputs."""
    if file.suffix == ".npy":
        if len(inputs) != 1:
            raise InputError(f"{file}: .npy data needs a model with one input, not {len(inputs)}")
        return {next(iter(inputs)): read_npy(file)}
    archive = Archive(file)
    _check_names(archive.names, inputs, str(file))
    return archive.arrays()


def _batches(
    file: Path, inputs: Mapping[str, ir.Value], batch: int
) -> Iterator[Mapping[str, NDArray[Any]]]:
    arrays = _arrays(file, inputs)
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(lengths.values())) != 1 or not all(a.ndim for a in arrays.values()):
        if len({str(first_dim(v)) for v in inputs.values()}) > 1 or not inputs:
            yield arrays
            return
        raise InputError(f"{file}: arrays differ in their number of samples: {lengths}")
    total = next(iter(lengths.values()))
    if total % batch and _fixed_batch(inputs):
        raise InputError(f"{file}: {total} samples are not a multiple of the batch size {batch}")
    for start in range(0, total, batch):
        yield {name: np.asarray(a[start : start + batch]) for name, a in arrays.items()}


def first_dim(value: ir.Value) -> int | str | None:
    """Axis 0 of an input: its size, its name, or None if there is no such axis."""
    if value.shape is None or not len(value.shape):
        return None
    dim = value.shape[0]
    return dim if isinstance(dim, int) else symbol_of(value, 0, dim)


def _fixed_batch(inputs: Mapping[str, ir.Value]) -> int:
    return next((d for d in map(first_dim, inputs.values()) if isinstance(d, int)), 0)


def _batch_size(inputs: Mapping[str, ir.Value], shapes: Mapping[str, int]) -> int:
    named = [
        shapes[d] for d in map(first_dim, inputs.values()) if isinstance(d, str) and d in shapes
    ]
    return _fixed_batch(inputs) or next(iter(named), DEFAULT_BATCH)


def check_feeds(
    feeds: Mapping[str, NDArray[Any]], inputs: Mapping[str, ir.Value], label: str
) -> Feeds:
    """Feeds as contiguous arrays of the inputs' types.

    Integers are converted between widths when no value changes; floats are never converted.
    Raises InputError on wrong names, shapes or types, and on NaN or infinity.
    """
    if not isinstance(feeds, Mapping):
        raise InputError(f"{label}: gave a {type(feeds).__name__}; expected a dict of arrays")
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
                raise SizesDifferError(
                    f"{label}: input {name}: dimension {symbol} is {size}, elsewhere "
                    f"{symbols[symbol]}",
                    symbol,
                    checked,
                )
    return checked


def _check_names(feeds: Iterable[str], inputs: Mapping[str, ir.Value], label: str) -> None:
    if missing := sorted(set(inputs) - set(feeds)):
        raise InputError(
            f"{label}: no data for input {', '.join(missing)}; got {sorted(map(str, feeds))}"
        )
    if unknown := sorted(str(n) for n in set(feeds) - set(inputs)):
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
    floating = values.dtype.kind == "f" or (value.dtype and value.dtype.is_floating_point())
    if floating and not np.isfinite(values).all():
        raise InputError(f"{label}: holds NaN or infinity")
    return np.ascontiguousarray(values).reshape(values.shape)


def _typed(values: NDArray[Any], dtype: np.dtype[Any], label: str) -> NDArray[Any]:
    if values.dtype == dtype:
        return values
    if values.dtype.kind in "iu" and dtype.kind in "iu":
        converted = values.astype(dtype)
        if np.array_equal(converted, values):
            return converted
    if values.dtype.kind == dtype.kind == "V" and values.dtype.itemsize == dtype.itemsize:
        return values.view(dtype)  # numpy's files do not keep the names of bfloat16 and float8
    if values.dtype.kind == "U" and dtype.kind == "O":
        return values.astype(object)
    raise InputError(
        f"{label}: type {values.dtype} does not fit {dtype}; convert the data with "
        f".astype({dtype.name!r})"
    )
