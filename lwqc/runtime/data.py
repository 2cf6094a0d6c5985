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
from lwqc.model.coded_caches import caches_of
from lwqc.model.extensions import expected
from lwqc.model.numerals import whole
from lwqc.model.user_code import load_callable
from lwqc.plans.options import Data, Preparation
from lwqc.plans.preprocess import Preprocess
from lwqc.runtime.random_inputs import DEFAULT_DIM, random_feeds
from lwqc.runtime.sources.batch_sizes import batch_size
from lwqc.runtime.sources.called import Called
from lwqc.runtime.sources.labels import Labels
from lwqc.runtime.sources.objects import Objects
from lwqc.runtime.sources.opened import (
    Batches,
    files_of,
    length_of,
    of_object,
    of_path,
)
from lwqc.runtime.sources.samples import check_keys, check_names, fed

Feeds = dict[str, NDArray[Any]]
_CODED = "lwqc_coded"  # in the meta of an input that holds codes of floats
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
    given: the caller chose it. limit: at most so many feeds. preprocess: how its samples became
    feeds. `len()` raises TypeError when the source does not know.
    """

    kind: Literal["real", "random"]
    description: str
    _make: Callable[[], Iterable[Mapping[str, NDArray[Any]]]]
    _inputs: Mapping[str, ir.Value] = field(repr=False)
    limit: int | None = None
    _count: int | None = field(default=None, repr=False)
    given: bool = True
    preprocess: str = ""
    _labels: Callable[[], Labels | None] = field(default=lambda: None, repr=False)

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

    def labels(self) -> Labels | None:
        """Labels of the samples of all feeds, beyond the limit too; None where they have none."""
        return self._labels()

    def first(self) -> Feeds:
        """The first feeds."""
        return next(iter(self))

    def halves(self) -> tuple[Dataset, Dataset]:
        """Every other feeds, and those between; all of them twice where there is but one."""
        if len(list(islice(self, 2))) < 2:
            return self, self
        first, second = (
            replace(
                self,
                _make=partial(self._every_other, start),
                limit=None,
                _count=None,
                _labels=lambda: None,
            )
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
    preprocess: Preparation = None,
) -> Dataset:
    """Open a data source for a model.

    spec: `.npz` (arrays by input name, batched on axis 0), a folder of `.npz` files (one feed
    each), `.npy` (models with one input), images, sounds, texts or a table, `module:callable`
    returning feeds, `random[:N]`, what `lwqc.runtime.sources.objects` takes, or None for `random`.
    preprocess: see `lwqc.plans.preprocess`.
    limit: at most so many feeds. shapes: sizes of dynamic dimensions for random data; of files,
    the one of axis 0 is the batch size. Dynamic batches have 8 samples otherwise.

    A file whose inputs do not share axis 0 in the model is one feed rather than a batch of samples.

    Raises InputError in one line for anything that cannot be opened or does not fit the model.
    """
    if seed < 0:
        raise InputError(f"seed {seed}: must not be negative")
    inputs = required_inputs(model)
    for name in caches_of(model.metadata_props).inputs.keys() & inputs.keys():
        inputs[name].meta[_CODED] = True
    limit = None if limit is None else _positive(limit)
    given = spec is not None
    spec = "random" if spec is None else spec
    settings = Preprocess.read(preprocess)
    sizes = shapes or {}
    if isinstance(spec, Dataset):
        data = _of_dataset(spec, inputs, limit)
    elif not isinstance(spec, (str, os.PathLike)):
        found = of_object(spec, inputs, settings, sizes, _beside(model), limit)
        data = _of_batches("data", found, inputs, limit)
    elif (text := os.fspath(spec)) == "random" or text.startswith("random:"):
        check_keys(settings, (), "random data")
        count, drawn = _random_count(text), default_sizes(inputs, sizes)
        graph = model.graph  # so that a model that waits for its proof does not hold itself
        return Dataset(
            "random", text, lambda: random_feeds(graph, count, seed, drawn), inputs, limit, count,
            given,
        )  # fmt: skip
    elif (on_disk := of_path(Path(text), inputs, settings, sizes, _beside(model))) is not None:
        data = _of_batches(text, on_disk, inputs, limit)
    elif ":" in text:
        source = Called(load_callable(text), text)
        size = batch_size(fed(inputs, settings), sizes, settings)
        called = Objects(
            source,
            inputs,
            settings,
            size,
            text,
            repeats=True,
            sizes=sizes,
            folders=[_beside(model)],
        )
        data = replace(_of_batches(text, called, inputs, limit), _count=None)
    else:
        raise InputError(
            f"{text}: expected data as .npz, .npy, images, .wav, .txt, .csv, .parquet, a folder of "
            "them, module:callable or random[:N]"
        )
    data.first()  # the cheapest mistakes show before any work starts
    return data


def _of_batches(
    text: str, found: Batches, inputs: Mapping[str, ir.Value], limit: int | None
) -> Dataset:
    settings, left_out = found.settings, found.left_out
    more = f" ({left_out} files there are none of them)" if left_out else ""
    prepared = settings.text
    return Dataset(
        "real",
        f"{text}{more}",
        lambda: found,
        inputs,
        limit,
        length_of(found),
        preprocess=prepared,
        _labels=found.labels,
    )


def _beside(model: ir.Model) -> Path:
    """The folder that a model is in."""
    return Path(model.meta.get("lwqc_path") or ".").parent


def data_sources(spec: Data, preprocess: Preparation = None) -> list[Path]:
    """Files that a data source is read from; none of code, random data and feeds in memory."""
    files = Preprocess.read(preprocess).files
    if isinstance(preprocess, (str, os.PathLike)) and os.fspath(preprocess).endswith(".toml"):
        files.append(Path(preprocess))
    if isinstance(spec, (str, os.PathLike)):
        files += [Path(spec), *files_of(Path(spec))]
    return files


def required_inputs(model: ir.Model) -> dict[str, ir.Value]:
    """Graph inputs that have no default value, by name."""
    return {v.name or "": v for v in model.graph.inputs if not v.is_initializer()}


def _of_dataset(source: Dataset, inputs: Mapping[str, ir.Value], limit: int | None) -> Dataset:
    """The data of another model that has these inputs and perhaps more."""
    count = None if source._count is None else len(source)
    make = partial(_shared, source, inputs)
    return replace(source, _make=make, _inputs=inputs, limit=limit, _count=count)


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
            known = expected(name, sorted(sizes)) if sizes else "all their sizes are fixed"
            raise InputError(f"shape {name}: the inputs have no such dimension; {known}")
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


def check_feeds(
    feeds: Mapping[str, NDArray[Any]], inputs: Mapping[str, ir.Value], label: str
) -> Feeds:
    """Feeds as contiguous arrays of the inputs' types.

    Integers are converted between widths when no value changes; floats are never converted.
    Raises InputError on wrong names, shapes or types, and on NaN or infinity.
    """
    if not isinstance(feeds, Mapping):
        raise InputError(f"{label}: gave a {type(feeds).__name__}; expected a dict of arrays")
    check_names(feeds, inputs, label)
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


def _checked(array: Any, value: ir.Value, label: str) -> NDArray[Any]:
    values = np.asarray(array)
    if value.shape is not None:
        expected = [d if isinstance(d, int) else (d.value or "?") for d in value.shape]
        if len(expected) != values.ndim or any(
            isinstance(e, int) and e != s for e, s in zip(expected, values.shape, strict=True)
        ):
            raise InputError(f"{label}: shape {list(values.shape)} does not fit {expected}")
    as_floats = value.meta.get(_CODED, False) and values.dtype.kind == "f"  # sessions code them
    if value.dtype is not None and not as_floats:
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
