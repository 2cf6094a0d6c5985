"""Python objects as inputs of a model: lists, generators, DataLoaders, `datasets`, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.extensions import expected
from lwqc.model.needed import needed
from lwqc.plans.preprocess import Preprocess
from lwqc.runtime.counted import counted
from lwqc.runtime.sources.images import KEYS as IMAGE_KEYS
from lwqc.runtime.sources.images import Prepare, open_image, resolved
from lwqc.runtime.sources.labels import Labels, read_classes
from lwqc.runtime.sources.samples import Arrays, Inputs, fed, filled, only_input, stacked
from lwqc.runtime.sources.texts import KEYS as TEXT_KEYS
from lwqc.runtime.sources.texts import Encode

_TEXT = ""  # names a text in place of an input
Item = tuple[Arrays, Any]  # inputs of a sample or a batch, and its label or labels if it has some


class Objects:
    """Items of an iterable as feeds; what gives others each time is read once and kept.

    An item is a dict by input name, a tuple of the inputs in the model's order with a label behind
    them, or what the one input takes: with batch axis, or without it and then put into batches.
    """

    left_out = 0

    def __init__(
        self,
        source: Iterable[Any],
        inputs: Inputs,
        settings: Preprocess,
        size: int,
        where: str = "data",
        *,
        repeats: bool = False,
        most: int | None = None,
        sizes: Mapping[str, int] | None = None,
        folders: Sequence[Path] = (),
    ) -> None:
        """size: of batches that are made here. where: names the source in messages. repeats: it is
        known to give the same each time. most: feeds that are kept.
        sizes: see `filled`. folders: where a tokenizer may be.

        Raises InputError for what does not fit.
        """
        self._inputs, self._size, self._where = inputs, size, where
        self._sizes, self._folders = sizes or {}, folders
        self._fed = fed(inputs, settings)
        self._source = source
        self.settings = settings
        self._encode: Encode | None = None
        self._prepare = self._preparation()
        first = next(self._items(), None)
        if first is None:
            raise InputError(f"{where}: holds no samples")
        self._single = _TEXT in first[0] or (
            bool(self._fed)
            and all(n in first[0] and _lacks_batch(first[0][n], v) for n, v in self._fed.items())
        )
        self._kept: list[tuple[Arrays, list[str]]] | None = None
        if isinstance(source, Iterator) or not (repeats or self._repeats(first[0])):
            names: list[list[str]] = []
            arrays = list(
                counted(islice(self._noting(names, first), most), "the data that is given")
            )
            self._kept = list(zip(arrays, names, strict=True))

    def _noting(self, names: list[list[str]], first: Item) -> Iterator[Arrays]:
        """Feeds, whose labels are put into a list."""
        for arrays, labels in self._feeds(first):
            names.append(labels)
            yield arrays

    def _again(self) -> Iterable[tuple[Arrays, list[str]]]:
        return self._feeds() if self._kept is None else self._kept

    def __iter__(self) -> Iterator[Arrays]:
        return (arrays for arrays, _ in self._again())

    def __len__(self) -> int:
        """Feeds. Raises TypeError where the source does not know."""
        if self._kept is not None:
            return len(self._kept)
        items = len(self._source)  # type: ignore[arg-type]
        items = items if self.settings.limit is None else min(items, self.settings.limit)
        return -(-items // self._size) if self._single else items

    def labels(self) -> Labels | None:
        """Labels of all samples, where items have some."""
        names = tuple(name for _, batch in self._again() for name in batch)
        return Labels(names, read_classes(self.settings.classes)) if names else None

    def _repeats(self, first: Arrays) -> bool:
        """Whether the source can be read again, and begins the same."""
        if isinstance(self._source, (list, tuple)):
            return True
        again = next(self._items())[0]
        return all(_same(first[name], again[name]) for name in first)

    def _feeds(self, first: Item | None = None) -> Iterator[tuple[Arrays, list[str]]]:
        """first: the item that was taken from an iterator already."""
        items = (
            self._items()
            if first is None or not isinstance(self._source, Iterator)
            else (one for part in ([first], self._items()) for one in part)
        )
        limited = islice(items, self.settings.limit)
        if not self._single:
            for arrays, label in limited:
                yield self._whole(arrays), _names(label)
            return
        while rows := list(islice(limited, self._size)):
            yield (
                self._whole(self._batch([row for row, _ in rows])),
                [n for _, label in rows for n in _names(label)],
            )

    def _batch(self, rows: Sequence[Arrays]) -> Arrays:
        """Samples along axis 0; texts are encoded together, as they are padded to the longest."""
        if self._encode is not None and _TEXT in rows[0]:
            return self._encode([str(row[_TEXT]) for row in rows])
        return {
            name: stacked([row[name] for row in rows], value, self._where)
            for name, value in self._fed.items()
        }

    def _text(self, values: Mapping[str, Any]) -> Arrays:
        """A text as it is, or arrays that were made of some already."""
        if all(hasattr(value, "shape") for value in values.values()):
            return {name: as_array(value, self._where) for name, value in values.items()}
        return {_TEXT: np.array(str(_only(values, self._where)), dtype=object)}

    def _whole(self, arrays: Arrays) -> Arrays:
        if not self.settings.fill:
            return arrays
        rows = max((len(value) for value in arrays.values() if value.ndim), default=1)
        return arrays | filled(self._inputs, self.settings, arrays, rows, self._sizes)

    def _items(self) -> Iterator[Item]:
        for item in self._source:
            values, label = self._parts(item)
            if self._prepare is None:
                yield {n: self._array(n, v) for n, v in values.items()}, label
            else:
                yield self._prepare(values), label

    def _array(self, name: str, value: Any) -> NDArray[Any]:
        """Numbers of Python, as `datasets` gives them, have no type: they take the input's."""
        array = as_array(value, self._where)
        dtype = self._fed[name].dtype if name in self._fed else None
        if dtype is None or hasattr(value, "dtype") or array.dtype.kind not in "if":
            return array
        wanted = np.dtype(dtype.numpy())
        if wanted.kind == "f":
            return array.astype(wanted)
        whole = wanted.kind in "iu" and array.dtype.kind == "i"
        taken = array.astype(wanted) if whole else array
        return taken if bool(np.all(taken == array)) else array

    def _parts(self, item: Any) -> tuple[dict[str, Any], Any]:
        """Values by input, or by column where they are to be prepared, and the label."""
        columns, key = self.settings.columns, self.settings.label
        if isinstance(item, Mapping):
            label = item.get(key) if key else None
            names = columns or [n for n in item if n != key]
            if missing := [n for n in (*columns, *([key] if key else [])) if n not in item]:
                known = expected(missing[0], [str(n) for n in item])
                raise InputError(f"{self._where}: has no {missing[0]}; {known}")
            more = set(names) - set(self._fed)
            if self._prepare is None and more and not set(self._fed) - set(names):
                raise InputError(
                    f"{self._where}: the model has no input {', '.join(sorted(map(str, more)))}; "
                    f"expected {sorted(self._fed)}: write label=NAME for labels, or "
                    "columns=A,B,... for the inputs, in `preprocess`"
                )
            return {str(n): item[n] for n in names}, label
        count = len(self._fed)
        if isinstance(item, (tuple, list)) and _holds_parts(item):
            if not count <= len(item) <= count + 1:
                raise InputError(
                    f"{self._where}: an item has {len(item)} parts; expected the {count} inputs "
                    f"{', '.join(self._fed)}, and perhaps a label"
                )
            values = dict(zip(self._fed, item, strict=False))
            return values, item[count] if len(item) > count else None
        plain = self._prepare is None and not isinstance(item, (list, tuple))
        if count != 1 or (plain and not hasattr(item, "shape")):
            raise InputError(
                f"{self._where}: gave a {type(item).__name__}; expected a dict of arrays, or "
                f"{', '.join(self._fed) or 'an empty one'} in a tuple"
            )
        return {next(iter(self._fed)): item}, None

    def _preparation(self) -> Callable[[Mapping[str, Any]], Arrays] | None:
        """What makes arrays of one sample, where the settings say how."""
        given = self.settings.given
        if any(key in given for key in IMAGE_KEYS):
            name, value = only_input(self._inputs, self.settings, "images")
            self.settings = resolved(value, self.settings)
            prepare = Prepare(value, self.settings)
            return lambda values: {
                name: prepare(_image(_only(values, self._where), self._where), self._where)
            }
        strings = any(v.dtype == ir.DataType.STRING for v in self._fed.values())
        if any(key in given for key in TEXT_KEYS) or strings:
            self._encode = Encode(self._inputs, self.settings, self._folders)
            self.settings = self._encode.settings
            self._size = self._size if self._encode.alike else self.settings.batch or 1
            return self._text
        return None


def as_array(value: Any, where: str = "data") -> NDArray[Any]:
    """An array of what has one: a tensor of torch, an array of jax, nested lists."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # lists of several lengths, types of torch's own
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{where}: a {type(value).__name__} is no array: {reason}") from error


def _holds_parts(item: Sequence[Any]) -> bool:
    """Whether a sequence is of arrays, images or texts rather than of numbers."""
    return any(hasattr(part, "shape") or hasattr(part, "convert") for part in item) or (
        isinstance(item, tuple) and bool(item)
    )


def _lacks_batch(array: NDArray[Any], value: ir.Value) -> bool:
    return value.shape is not None and array.ndim == len(value.shape) - 1


def _same(first: NDArray[Any], again: NDArray[Any]) -> bool:
    return first.shape == again.shape and bool(np.all(first == again))


def _names(label: Any) -> list[str]:
    if label is None:
        return []
    return [str(one) for one in as_array(label).reshape(-1).tolist()]


def _only(values: Mapping[str, Any], where: str) -> Any:
    if len(values) != 1:
        raise InputError(
            f"{where}: an item has {', '.join(values) or 'nothing'}: write columns=NAME for what "
            "is prepared, and label=NAME for labels"
        )
    return next(iter(values.values()))


def _image(value: Any, where: str) -> Any:
    """An image of Pillow's: itself, a file, or pixels [height, width(, channels)]."""
    if hasattr(value, "convert"):
        return value
    if isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
        return open_image(value)
    pixels = as_array(value)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise InputError(
            f"{where}: {pixels.dtype} {list(pixels.shape)} is no image: expected uint8 "
            "[height, width, 3], an image of Pillow's or a file"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return needed("PIL.Image", "images").fromarray(pixels)
