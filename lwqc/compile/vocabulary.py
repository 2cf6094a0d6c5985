"""Taking token ids out of a model that its texts never have: which ones, and whether that shows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.saved_check import check_saved
from lwqc.errors import InputError, UnsoundResult
from lwqc.model import io
from lwqc.model.data_files import model_files
from lwqc.model.outputs import check_outputs
from lwqc.model.told import Told
from lwqc.passes.prune_vocabulary import PrunedVocabulary, VocabularyPruning
from lwqc.runtime.data import Dataset, Feeds
from lwqc.runtime.session import Session, SessionSettings

_COMPARED = 64  # feeds, at most
_ROUNDING = 1e-4  # of the largest number of an output: products of other widths add up otherwise
_ADDED = ".ids.npz"  # to the name of a model, for the file that maps its ids
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class VocabularyReport(Told):
    """What became of the ids. ids: the input that holds them. before, after: how many there are.

    used: how many the data has, of `feeds`. tables: stored tensors whose rows they are. heads:
    outputs over the kept ids alone. whole: outputs over all of them still, and why. unknown: id
    that others become, None: they are refused when the model is run. compared: feeds whose outputs
    were. exact: whether some were and all of them are equal, bit by bit. difference: largest, of
    the largest number of an output. output, map: the files. bytes: of the original and of the
    result.
    """

    ids: str
    before: int
    after: int
    used: int
    feeds: int
    tables: tuple[str, ...]
    heads: tuple[str, ...]
    whole: Mapping[str, str]
    unknown: int | None
    compared: int
    exact: bool
    difference: float
    source_bytes: int
    output_bytes: int = 0
    output: str = ""
    map: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "whole": dict(self.whole)}

    def told(self) -> dict[str, str]:
        """How many ids and bytes are left."""
        return {
            "ids": f"{self.after} of {self.before} of {self.ids}",
            "bytes": f"{self.source_bytes} -> {self.output_bytes}",
            "outputs": self._outputs(),
        }

    def _outputs(self) -> str:
        if not self.compared:
            return "not compared"
        return "equal" if self.exact else f"differ by {self.difference:.2g}"


@dataclass(frozen=True, eq=False, repr=False)
class SmallerVocabulary(Told):
    """A model that knows fewer token ids.

    kept: the old id of each new one. map: the new id of each old one, [old ids]; where there is no
    token for unknown ones, theirs is one more than the model has, which it refuses.
    """

    model: ir.Model
    kept: Ids
    map: Ids
    report: VocabularyReport
    read: Sequence[Path] = ()

    def told(self) -> dict[str, str]:
        """Of its report."""
        return self.report.told()

    def feeds(self, feeds: Feeds) -> Feeds:
        """Inputs of the original as this model takes them."""
        ids = feeds[self.report.ids]
        return {**feeds, self.report.ids: self.map[ids].astype(ids.dtype)}

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        ids: str | os.PathLike[str] | None = None,
        external_data: bool | None = None,
        verify: bool = True,
    ) -> VocabularyReport:
        """Write the model, and beside it `kept` and `map` as an `.npz`; both or none of them.

        ids: where that goes, by default the model's name and `.ids.npz`. Raises InputError where
        they cannot be written, and UnsoundResult where the runtime does not load the model.
        """
        target = Path(path)
        mapped = map_of(target, ids)
        check_outputs([target, mapped], list(self.read))
        with io.drafted(self.model, target, external_data=external_data) as draft:
            if verify:
                check_saved(draft.path, None, SessionSettings(), str(draft.target))
            draft.add_made(mapped, lambda file: np.savez(file, kept=self.kept, map=self.map))
            size = draft.size_bytes
            draft.publish()
        return replace(self.report, output=str(target), output_bytes=size, map=str(mapped))


def map_of(model: Path, chosen: str | os.PathLike[str] | None = None) -> Path:
    """Where the map of a model's ids goes. Raises InputError."""
    path = model.with_name(model.name + _ADDED) if chosen is None else Path(chosen)
    if path.suffix != ".npz":
        raise InputError(f"{path}: the map of ids is an .npz file")
    return path


def smaller_vocabulary(
    model: ir.Model,
    *,
    data: Dataset | None = None,
    keep: Sequence[int] = (),
    unknown: int | None = None,
    ids: str | None = None,
    heads: Sequence[str] = (),
    label: str = "model",
) -> SmallerVocabulary:
    """A model without the token ids that neither the data nor `keep` has.

    It changes what inputs mean: new ids are `map[old ids]`, and outputs over ids are those of
    `kept`. The same texts give the same outputs, which is checked on the data.

    unknown: an id that all that are gone become; it stays. ids: the input that holds them. heads:
    outputs over the same ids that share no table with them. label: of the model, for messages.
    Raises InputError for ids and heads that are not there, and for models that do not take rows of
    tables by ids alone; UnsoundResult where outputs differ.
    """
    pruning = VocabularyPruning(model, ids, heads)
    name, size = pruning.ids.name, pruning.ids.size
    used, count = _used(data, name, size)
    special = [*keep, *([] if unknown is None else [unknown])]
    rows = np.unique(np.asarray([*used, *special], np.int64))
    done = pruning.kept([int(i) for i in rows])
    new = np.full(size, len(rows), np.int64)
    new[rows] = np.arange(len(rows))
    if unknown is not None:
        gone = np.setdiff1d(np.arange(size), rows)
        new[gone] = new[unknown]
    report = VocabularyReport(
        ids=name,
        before=size,
        after=len(rows),
        used=len(used),
        feeds=count,
        tables=tuple(t.name or "" for t in done.ids.tables),
        heads=done.heads,
        whole=dict(done.whole),
        unknown=unknown,
        compared=0,
        exact=False,
        difference=0.0,
        source_bytes=io.serialized_bytes(model),
        output_bytes=io.serialized_bytes(done.model),
    )
    made = SmallerVocabulary(done.model, rows, new, report, model_files(model))
    if data is None:
        return made
    return replace(made, report=_compared(model, made, done, data, label))


def _used(data: Dataset | None, name: str, size: int) -> tuple[Ids, int]:
    """The ids of the data, and of how many feeds. Raises InputError."""
    found, count = np.zeros(size, np.bool_), 0
    for feeds in () if data is None else data:
        ids = np.asarray(feeds[name])
        if ids.size and (ids.min() < 0 or ids.max() >= size):
            raise InputError(f"{name}: has ids from 0 to {size - 1}, the data has others")
        found[ids] = True
        count += 1
    return np.flatnonzero(found).astype(np.int64), count


def _compared(
    model: ir.Model, made: SmallerVocabulary, done: PrunedVocabulary, data: Dataset, label: str
) -> VocabularyReport:
    """The report with what the outputs on the data say. Raises UnsoundResult."""
    before, after = Session(model, label=label), Session(made.model, label="with fewer ids")
    exact, worst, count = True, 0.0, 0
    for feeds in data.limited(_COMPARED):
        old, new = before(feeds), after(made.feeds(feeds))
        for name, value in old.items():
            expected = value[..., made.kept] if name in done.heads else value
            exact &= expected.tobytes() == new[name].tobytes()
            worst = max(worst, _difference(expected, new[name]))
        count += 1
    if not worst <= _ROUNDING:
        raise UnsoundResult(f"{label}: with fewer ids outputs differ by {worst:.2g} of their size")
    return replace(made.report, compared=count, exact=exact, difference=worst)


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Of the largest number; infinite where shapes, or what is no number, differ."""
    if expected.shape != found.shape:
        return math.inf
    if expected.size == 0 or np.array_equal(expected, found, equal_nan=expected.dtype.kind == "f"):
        return 0.0
    if expected.dtype.kind != "f":
        return math.inf
    there = np.isfinite(expected)
    if not np.array_equal(expected[~there], found[~there], equal_nan=True):
        return math.inf
    distance = np.abs(expected[there] - found[there]).max(initial=0.0)
    distance = distance if np.isfinite(distance) else np.inf
    return float(distance / max(np.abs(expected[there]).max(initial=0.0), 1e-30))
