"""How samples become inputs of a model: what `--preprocess` says, in a text or a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lwqc.errors import InputError
from lwqc.model.documents import parse_toml, read_text
from lwqc.model.extensions import expected
from lwqc.model.numerals import real, whole

Numbers = tuple[float, ...]
FITS = ("stretch", "letterbox", "letterbox-topleft", "crop")
RESIZES = ("bilinear", "bicubic", "nearest", "area")
COLORS = ("rgb", "bgr", "gray")
LAYOUTS = ("nchw", "nhwc")
PADDINGS = ("longest", "length")
FILES = ("tokenizer", "labels", "classes", "boxes")  # keys that name a file
_FILL = "fill."  # starts the key of an input that is the same for all samples
_LARGEST = 1 << 20  # of a side, a length


@dataclass(frozen=True)
class Preprocess:
    """What is done to samples; see `docs/data.md` for what each key means.

    size: width and height. pad: of letterboxes, in pixels 0 to 255. range: what 0 and 255 become,
    before mean and std. seconds, samples: of one piece of sound. length: most tokens of a text.
    label: column of labels.
    labels, classes, boxes: files. fill: input -> the number that it is full of.
    """

    size: tuple[int, int] | None = None
    fit: str = ""
    pad: float | None = None
    resize: str = ""
    color: str = ""
    layout: str = ""
    range: tuple[float, float] | None = None
    mean: Numbers = ()
    std: Numbers = ()
    rate: int | None = None
    seconds: float | None = None
    samples: int | None = None
    tokenizer: str = ""
    length: int | None = None
    padding: str = ""
    columns: tuple[str, ...] = ()
    label: str = ""
    labels: str = ""
    classes: str = ""
    boxes: str = ""
    fill: tuple[tuple[str, float], ...] = ()
    batch: int | None = None
    limit: int | None = None

    @classmethod
    def read(
        cls, given: str | os.PathLike[str] | Mapping[str, Any] | Preprocess | None
    ) -> Preprocess:
        """A text such as `size=320,mean=0.5,std=0.5,letterbox`, the name of a `.toml` file with the
        same keys, or a mapping. Raises InputError.
        """
        if isinstance(given, Preprocess):
            return given
        if given is None:
            return cls()
        if isinstance(given, Mapping):
            return _made(_pieces_of(given, "preprocess"), "preprocess")
        text = os.fspath(given)
        if text.endswith(".toml"):
            return _from_file(Path(text))
        return cls.parse(text)

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """The same of a text alone; no file is read. Raises InputError."""
        return _made(_split(text), "--preprocess")

    @property
    def text(self) -> str:
        """What `read` makes the same of; "" where nothing is said."""
        return ",".join(self._words())

    @property
    def given(self) -> dict[str, Any]:
        """The keys that say something."""
        return {
            f.name: v for f in fields(self) if (v := getattr(self, f.name)) not in ((), "", None)
        }

    @property
    def files(self) -> list[Path]:
        """Files that it names."""
        return [Path(value) for key in FILES if (value := getattr(self, key))]

    def _words(self) -> list[str]:
        found = []
        for key, value in self.given.items():
            if key == "fill":
                found += [f"{_FILL}{name}={_number(number)}" for name, number in value]
            elif key == "size":
                found.append(f"size={value[0]}x{value[1]}")
            elif key == "range":
                found.append(f"range={_number(value[0])}..{_number(value[1])}")
            elif isinstance(value, tuple):
                found.append(f"{key}={','.join(map(_number, value))}")
            else:
                found.append(f"{key}={_number(value)}")
        return found


def _number(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _from_file(path: Path) -> Preprocess:
    """Files that it names are beside it."""
    try:
        document = parse_toml(read_text(path))
    except InputError as error:
        raise InputError(f"{path}: cannot read the preprocessing: {error}") from error
    made = _made(_pieces_of(document, str(path)), str(path))
    beside: dict[str, Any] = {
        key: str(path.parent / v) for key in FILES if (v := getattr(made, key))
    }
    return replace(made, **beside)


def _split(text: str) -> dict[str, list[str]]:
    """Key -> pieces of its value; a word without `=` goes on with a list, or is a way to fit."""
    found: dict[str, list[str]] = {}
    key = ""
    for word in filter(None, (w.strip() for w in text.split(","))):
        name, equals, value = word.partition("=")
        if not equals and word in FITS and key != "columns":
            name, value = "fit", word
        elif not equals:
            if key not in _LISTS:
                known = expected(word, [*FITS, *_keys()])
                raise InputError(f"--preprocess {word!r}: is no key=value; {known}")
            found[key].append(word)
            continue
        key = name.strip()
        if key in found:
            raise InputError(f"--preprocess {key}: is given twice")
        found[key] = [value.strip()]
    return found


def _pieces_of(document: Mapping[str, Any], where: str) -> dict[str, list[str]]:
    """The same of TOML or Python values."""
    found: dict[str, list[str]] = {}
    for key, value in document.items():
        if key == "fill" and isinstance(value, Mapping):
            found |= {f"{_FILL}{name}": [str(number)] for name, number in value.items()}
        elif key in FITS and isinstance(value, bool):
            found |= {"fit": [str(key)]} if value else {}
        elif key == "range" and isinstance(value, (list, tuple)):
            found[key] = ["..".join(map(str, value))]
        elif key == "size" and isinstance(value, (list, tuple)):
            found[key] = ["x".join(map(str, value))]
        elif isinstance(value, (list, tuple)):
            found[key] = [str(one) for one in value]
        elif isinstance(value, (str, int, float, os.PathLike)) and not isinstance(value, bool):
            found[str(key)] = [str(value)]
        else:
            raise InputError(f"{where}: {key}: a {type(value).__name__} is no value for it")
    return found


def _made(pieces: Mapping[str, list[str]], where: str) -> Preprocess:
    values: dict[str, Any] = {}
    fill: list[tuple[str, float]] = []
    for key, value in pieces.items():
        reader = real_of if key.startswith(_FILL) else _READERS.get(key)
        if reader is None:
            raise InputError(f"{where}: {key!r} is no key of it; {expected(key, _keys())}")
        try:
            read = reader(value)
        except ValueError as error:
            raise InputError(f"{where} {key}={','.join(value)[:80]}: {error}") from error
        if key.startswith(_FILL):
            fill.append((key.removeprefix(_FILL), read))
        else:
            values[key] = read
    if "seconds" in values and "samples" in values:
        raise InputError(f"{where}: seconds and samples say the same: leave one of them out")
    return Preprocess(**values, fill=tuple(fill))


def _keys() -> list[str]:
    return [*_READERS, f"{_FILL}INPUT"]


def _one(value: list[str]) -> str:
    if len(value) != 1 or not value[0]:
        raise ValueError("expected one value")
    return value[0]


def real_of(value: list[str]) -> float:
    """One finite number. Raises ValueError."""
    return real(_one(value))


def _size(value: list[str]) -> tuple[int, int]:
    width, _, height = _one(value).partition("x")
    found = whole(width), whole(height or width)
    if not all(0 < side <= _LARGEST for side in found):
        raise ValueError("expected WIDTHxHEIGHT in pixels")
    return found


def _range(value: list[str]) -> tuple[float, float]:
    low, dots, high = _one(value).partition("..")
    if not dots or real(low) >= real(high):
        raise ValueError("expected LOW..HIGH, such as 0..1, -1..1 or 0..255")
    return real(low), real(high)


def _numbers(value: list[str]) -> Numbers:
    return tuple(map(real, value))


def _above_zero(value: list[str]) -> Numbers:
    found = _numbers(value)
    if not all(number > 0 for number in found):
        raise ValueError("expected numbers above 0")
    return found


def _count(value: list[str]) -> int:
    found = whole(_one(value))
    if not 0 < found < 1 << 31:
        raise ValueError("expected a whole number above 0")
    return found


def _time(value: list[str]) -> float:
    return _above_zero([_one(value)])[0]


def _of(names: tuple[str, ...]) -> Callable[[list[str]], str]:
    def read(value: list[str]) -> str:
        if _one(value) not in names:
            raise ValueError(expected(value[0], names))
        return value[0]

    return read


_READERS: dict[str, Callable[[list[str]], Any]] = {
    "size": _size,
    "fit": _of(FITS),
    "pad": real_of,
    "resize": _of(RESIZES),
    "color": _of(COLORS),
    "layout": _of(LAYOUTS),
    "range": _range,
    "mean": _numbers,
    "std": _above_zero,
    "rate": _count,
    "seconds": _time,
    "samples": _count,
    "tokenizer": _one,
    "length": _count,
    "padding": _of(PADDINGS),
    "columns": tuple,
    "label": _one,
    "labels": _one,
    "classes": _one,
    "boxes": _one,
    "batch": _count,
    "limit": _count,
}
_LISTS = ("mean", "std", "columns")
