"""Tables as inputs of a model: `.csv`, `.parquet` (extra `lwqc[parquet]`), or columns in memory."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.array_files import check_regular
from lwqc.model.extensions import expected
from lwqc.model.limits import beyond, limits
from lwqc.model.needed import needed
from lwqc.plans.preprocess import Preprocess
from lwqc.runtime.sources.folders import Found
from lwqc.runtime.sources.labels import Labels, read_classes, text_of
from lwqc.runtime.sources.samples import Arrays, Inputs, check_keys, fed, shape_text
from lwqc.runtime.sources.texts import KEYS as TEXT_KEYS
from lwqc.runtime.sources.texts import Encode, folder_of

KEYS = ("columns", "label", *TEXT_KEYS)
Columns = Mapping[str, Sequence[Any]]


class Table:
    """Rows of a table. See `lwqc.runtime.sources.samples.Samples`.

    Columns of the inputs' names are the inputs. Else one input takes the columns in their order, or
    with `tokenizer=` the one column of texts.
    """

    alike = True

    def __init__(
        self,
        columns: Columns,
        inputs: Inputs,
        settings: Preprocess,
        where: str,
        folders: Sequence[Path],
    ) -> None:
        """where: names the table in messages. folders: where a tokenizer may be.

        Raises InputError for what does not fit.
        """
        check_keys(settings, KEYS, "tables")
        self.files: Sequence[Path] = ()
        self.left_out = 0
        self.settings, self._where = settings, where
        self._label = None if not settings.label else _column(columns, settings.label, where)
        names = settings.columns or [n for n in columns if n != settings.label]
        self._columns = {name: _column(columns, name, where) for name in names}
        self._rows = len(next(iter(columns.values()), ()))
        self._inputs = fed(inputs, settings)
        self._encode: Encode | None = None
        if settings.tokenizer:
            if len(self._columns) != 1:
                raise InputError(f"{where}: write columns=NAME, the column of texts")
            self._encode = Encode(inputs, settings, folders)
            self.settings, self.alike = self._encode.settings, self._encode.alike
            return
        self._by_name = self._inputs.keys() <= self._columns.keys()
        self._check_fit()

    def _check_fit(self) -> None:
        unused = self._columns.keys() - self._inputs.keys()
        if self._by_name and unused and not self.settings.columns:
            raise InputError(
                f"{self._where}: the model has no input {', '.join(sorted(unused))}: write "
                "label=NAME for the labels, or columns=A,B,... for the inputs"
            )
        if self._by_name:
            return
        if len(self._inputs) != 1:
            missing = sorted(self._inputs.keys() - self._columns.keys())
            raise InputError(
                f"{self._where}: has no column for input {', '.join(missing)}; it has "
                f"{', '.join(self._columns)}"
            )
        ((name, value),) = self._inputs.items()
        shape = value.shape
        wide = shape[1] if shape is not None and len(shape) == 2 else None
        if shape is not None and len(shape) != 2:
            raise InputError(f"input {name} {shape_text(value)}: takes no rows, which have 2 axes")
        if isinstance(wide, int) and wide != len(self._columns):
            raise InputError(
                f"{self._where}: has {len(self._columns)} columns, and input {name} takes {wide}: "
                "write label=NAME for the labels, or columns=A,B,... for the inputs"
            )

    def __len__(self) -> int:
        return self._rows

    def batch(self, start: int, stop: int) -> Arrays:
        """Some rows."""
        part = {name: column[start:stop] for name, column in self._columns.items()}
        if self._encode is not None:
            return self._encode([str(one) for one in next(iter(part.values()))])
        if not self._by_name:
            ((name, value),) = self._inputs.items()
            rows = [_typed(c, value, f"{self._where}: column {n}") for n, c in part.items()]
            return {name: np.stack(rows, axis=1)}
        found = {}
        for name, value in self._inputs.items():
            typed = _typed(part[name], value, f"{self._where}: column {name}")
            found[name] = typed[:, None] if len(value.shape or ()) == 2 else typed
        return found

    def labels(self) -> Labels | None:
        """The column that `label=` names."""
        if self._label is None:
            return None
        return Labels(tuple(map(str, self._label)), read_classes(self.settings.classes))


def open_table(found: Found, inputs: Inputs, settings: Preprocess, beside: Path) -> Table:
    """A file as a table. beside: folder of the model. Raises InputError."""
    path = found.files[0]
    check_regular(path, "a table")
    if path.stat().st_size > limits().data:
        raise beyond(f"{path}: reading it", "data", path.stat().st_size)
    columns = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    table = Table(columns, inputs, settings, str(path), [beside, folder_of(path)])
    table.files, table.left_out = found.files, found.left_out
    return table


def _csv(path: Path) -> Columns:
    try:
        rows = [
            row
            for row in csv.reader(StringIO(text_of(path).removeprefix("\ufeff"), newline=""))
            if row
        ]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from error
    if len(rows) < 2:
        raise InputError(f"{path}: expected a line of names, and rows below it")
    head, *body = rows
    if len(set(head)) < len(head):
        raise InputError(f"{path}: two columns have one name")
    bad = next((number for number, row in enumerate(body, 2) if len(row) != len(head)), None)
    if bad is not None:
        raise InputError(f"{path}: line {bad}: expected {len(head)} values, as there are names")
    return {name: [row[i] for row in body] for i, name in enumerate(head)}


def _parquet(path: Path) -> Columns:
    parquet = needed("pyarrow.parquet", "Parquet files", "parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # those of pyarrow derive from them
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as a table: {reason}") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _column(columns: Columns, name: str, where: str) -> Sequence[Any]:
    if name not in columns:
        raise InputError(f"{where}: has no column {name}; {expected(name, list(columns))}")
    return columns[name]


def _typed(column: Sequence[Any], value: ir.Value, where: str) -> NDArray[Any]:
    if value.dtype == ir.DataType.STRING:
        return np.array([*map(str, column), None], dtype=object)[:-1]
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    kind: Any = int if dtype.kind in "iu" else float
    try:
        return np.array([kind(one) for one in column], dtype)
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{where}: {reason}; input {value.name} is of type {dtype}") from error
