"""What samples are: names of their classes, or texts."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.documents import read_text
from lwqc.model.numerals import real


@dataclass(frozen=True)
class Labels:
    """One for each sample, in their order.

    classes: names in the order of the model's channels. of_folders: they are names of the folders
    that samples are in, which are classes rather than texts. boxes: of each sample [things, 5],
    channel, left, top, right and bottom in pixels of the input; None where nothing has boxes.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    of_folders: bool = False
    boxes: tuple[NDArray[np.float64], ...] | None = None

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """Channels: of whole numbers themselves, else by `classes`, or in alphabetical order.

        Raises InputError for a name that is no class.
        """
        found = _whole(self.names) if not self.classes else None
        if found is not None:
            return np.array(found, np.int64)
        known = self.classes or tuple(sorted(set(self.names)))
        index = {name: number for number, name in enumerate(known)}
        for name in self.names:
            if name not in index:
                raise InputError(f"label {name!r}: is none of the {len(known)} classes")
        return np.array([index[name] for name in self.names], np.int64)


def of_folders(root: Path, files: Sequence[Path]) -> tuple[str, ...] | None:
    """Names of the folders that files are in; None where that tells nothing."""
    parts = [file.relative_to(root).parts for file in files]
    if not all(len(one) > 1 for one in parts) or len({one[0] for one in parts}) < 2:
        return None
    return tuple(one[0] for one in parts)


def of_table(table: Path, root: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """The second column of a table whose first one names the files. Raises InputError."""
    rows = [row for row in csv.reader(StringIO(text_of(table), newline="")) if row]
    bad = next((row for row in rows if len(row) < 2), None)
    if bad is not None:
        raise InputError(f"{table}: row {bad[0][:40]!r}: expected two columns, file and label")
    known = {row[0]: row[1] for row in rows}
    names = []
    for file in files:
        relative = file.relative_to(root).as_posix() if file != root else file.name
        label = known.get(relative, known.get(file.name))
        if label is None:
            raise InputError(f"{table}: has no row for {relative}")
        names.append(label)
    return tuple(names)


def read_classes(path: str) -> tuple[str, ...]:
    """Names of classes, a line each; none where there is no file."""
    if not path:
        return ()
    return tuple(text_of(Path(path)).rstrip("\n").split("\n"))


def text_of(path: Path) -> str:
    """The text of a file. Raises InputError with its name."""
    try:
        return read_text(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _whole(names: Sequence[str]) -> list[int] | None:
    """Numbers of classes, as tables may write them with a decimal point too."""
    try:
        numbers = [real(name) for name in names]
    except ValueError:
        return None
    return [int(n) for n in numbers] if all(n.is_integer() for n in numbers) else None
