"""Whole candidates on one session: formats, widths and branches change from run to run.

Weights under trial are inputs of the session, removed channels are zero in them (with the others
making up for it in closed form), and branches are behind gates. Everything that a session needs is
in a `TrialSpec`, plain data that can be sent to other processes and machines.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.scores.channels.final_error import without
from lwqc.decide.scores.channels.nested import NestedRefit
from lwqc.plans.plan import SiteEntry
from lwqc.quant.methods import encode_by
from lwqc.runtime.counted import counted
from lwqc.runtime.measure import weighted
from lwqc.runtime.session import Session, SessionSettings
from lwqc.runtime.stats.output_divergence import Measure, OutputDivergence

Array = NDArray[Any]
Mask = NDArray[np.bool_]
LITTLE, PART, ALL = range(3)  # of the data: what the stages look at
_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Cut:
    """An axis of a stored tensor that shrinks with a width. owner: channel at each position, or -1.

    item: of the width in candidates.
    """

    axis: int
    item: int
    owner: NDArray[np.intp]


@dataclass(frozen=True)
class TrialTensor:
    """A stored tensor that is an input of the session.

    item: of its format in candidates, or None. entries: by level, None for float. gains: by level,
    error of the entry's method over that of rounding to nearest. flipped: the site's matrix [N, K]
    is the transposed tensor. gram: mean of x xᵀ of its input [groups, K, K].
    """

    name: str
    values: Array
    cuts: tuple[Cut, ...] = ()
    item: int | None = None
    entries: tuple[SiteEntry | None, ...] = (None,)
    gains: tuple[float, ...] = (1.0,)
    flipped: bool = False
    gram: NDArray[np.float64] | None = None

    @property
    def matrix(self) -> Array:
        """The site's matrix [N, K]."""
        return self.values.T if self.flipped else self.values.reshape(len(self.values), -1)


@dataclass(frozen=True)
class TrialSpec:
    """Everything that candidates are evaluated with.

    model: ONNX bytes whose trial tensors and gates are inputs. keeps: item of a width -> mask of
    the channels that stay, by level. gates: item of a branch or format, input and its values by
    level. top: the candidate that is the original. batches: feeds, of rows of data each. stages:
    how many of them each stage of selection looks at: little, a part, all. risky: see `Session`.
    weights: of outputs. shorter: the item of tokens, and models that go on with fewer of them, by
    its levels below that of all.
    """

    model: bytes
    tensors: tuple[TrialTensor, ...]
    keeps: Mapping[int, tuple[Mask, ...]]
    gates: tuple[tuple[int, str, tuple[Array, ...]], ...]
    top: Candidate
    batches: tuple[Mapping[str, Array], ...]
    rows: tuple[int, ...]
    stages: tuple[int, int, int]
    measure: Measure = "kl"
    risky: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    shorter: tuple[int, tuple[bytes, ...]] = (0, ())

    def graph(self, candidate: Candidate) -> bytes:
        """What a candidate's inputs are given to."""
        item, models = self.shorter
        level = candidate[item] if models else 0
        return models[level] if level < len(models) else self.model


class TrialModel:
    """A session for all candidates, with the original's outputs as the reference."""

    def __init__(self, spec: TrialSpec, threads: int = 0) -> None:
        """threads: of the session; 0 lets the runtime choose."""
        self.spec = spec
        self._settings = SessionSettings(threads=threads)
        self._sessions: dict[bytes, Session] = {}
        self._cache: OrderedDict[tuple[Any, ...], Any] = OrderedDict()  # with `nbytes`
        self._held = 0
        self._orders = [nested_order(t, spec.keeps) for t in spec.tensors]
        self._lock = threading.Lock()  # workers may have several threads
        runs = (self.outputs(spec.top, feeds) for feeds in spec.batches)
        self._references = [
            {
                name: OutputDivergence(value, spec.measure)
                for name, value in found.items()
                if value.dtype.kind == "f"
            }
            for found in counted(runs, "outputs of the original", len(spec.batches))
        ]

    def score(self, candidate: Candidate, stage: int) -> float:
        """Divergence on the data of a stage: mean over its rows, worst over the outputs."""
        inputs, count = self._inputs(candidate), self.spec.stages[stage]
        return self._divergence(self._session(candidate), inputs, count)

    def perturbed(self, changed: Mapping[str, Array]) -> float:
        """Divergence of the original with other values of some tensors, on a part of the data."""
        top, count = self.spec.top, self.spec.stages[PART]
        return self._divergence(self._session(top), {**self._inputs(top), **changed}, count)

    def _session(self, candidate: Candidate) -> Session:
        """Of the candidate's tokens."""
        graph = self.spec.graph(candidate)
        with self._lock:
            if graph not in self._sessions:
                self._sessions[graph] = Session(
                    graph, self._settings, label="trial model", risky=self.spec.risky
                )
            return self._sessions[graph]

    def _divergence(self, run: Session, inputs: Mapping[str, Array], count: int) -> float:
        totals: dict[str, float] = {}
        rows = self.spec.rows[:count]
        for feeds, references, own in zip(
            self.spec.batches[:count], self._references[:count], rows, strict=True
        ):
            found = _ran(run, feeds, inputs)
            for name, reference in references.items():
                totals[name] = totals.get(name, 0.0) + own * reference(found[name])
        weighed = (weighted(loss, name, self.spec.weights) for name, loss in totals.items())
        return max(weighed, default=0.0) / sum(rows)

    def outputs(self, candidate: Candidate, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What a candidate computes."""
        return _ran(self._session(candidate), feeds, self._inputs(candidate))

    def _inputs(self, candidate: Candidate) -> dict[str, Array]:
        found = {t.name: self._values(i, t, candidate) for i, t in enumerate(self.spec.tensors)}
        found |= {name: by_level[candidate[i]] for i, name, by_level in self.spec.gates}
        return found

    def _values(self, index: int, tensor: TrialTensor, candidate: Candidate) -> Array:
        entry = None if tensor.item is None else tensor.entries[candidate[tensor.item]]
        widths = tuple(candidate[cut.item] for cut in tensor.cuts)
        if entry is None and widths == tuple(self.spec.top[cut.item] for cut in tensor.cuts):
            return tensor.values
        level = -1 if entry is None or tensor.item is None else candidate[tensor.item]
        key = (index, level, widths)
        with self._lock:
            made: Array = self._cached(
                key, lambda: self._made(index, tensor, entry, level, candidate)
            )
        return made

    def _made(
        self,
        index: int,
        tensor: TrialTensor,
        entry: SiteEntry | None,
        level: int,
        candidate: Candidate,
    ) -> Array:
        masks = axis_masks(tensor.cuts, candidate, self.spec.keeps)
        if tensor.item is None:
            return _zeroed(tensor.values, masks)
        rows, columns = matrix_masks(tensor.values.shape, tensor.flipped, masks)
        kept = columns.tobytes()
        matrix = self._cached((index, kept), lambda: self._narrowed(index, tensor, columns))
        values = self._cached(
            (index, level, kept), lambda: trial_values(tensor, matrix, level, columns)
        )
        own = tensor.values.ndim - 1 if tensor.flipped else 0
        return values if rows.all() else _zeroed(values, {own: rows})

    def _narrowed(self, index: int, tensor: TrialTensor, columns: Mask) -> Array:
        order = self._orders[index]
        if order is None or columns.all() or tensor.gram is None:
            return narrowed(tensor, columns)
        gram = tensor.gram
        refit = self._cached((index,), lambda: NestedRefit(tensor.matrix, gram, order))
        return np.ascontiguousarray(refit(int(columns.sum())), np.float32)

    def _cached(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._cache:
            made = make()
            self._cache[key] = made
            self._held += made.nbytes
            while self._held > _CACHE_BYTES and len(self._cache) > 1:
                self._held -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(key)
        return self._cache[key]


def _ran(run: Session, feeds: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs. What fewer tokens make superfluous is no input."""
    return run({**feeds, **{name: inputs[name] for name in run.inputs if name in inputs}})


def axis_masks(
    cuts: Sequence[Cut],
    candidate: Candidate | Mapping[int, int],
    keeps: Mapping[int, Sequence[Mask]],
) -> dict[int, Mask]:
    """Positions that stay, by axis; whole axes are absent."""
    found: dict[int, Mask] = {}
    for cut in cuts:
        keep = keeps[cut.item][candidate[cut.item]]
        if keep.all():
            continue
        mask = np.where(cut.owner >= 0, keep[cut.owner], True)
        found[cut.axis] = found[cut.axis] & mask if cut.axis in found else mask
    return found


def _zeroed(values: Array, masks: Mapping[int, Mask]) -> Array:
    for axis, mask in masks.items():
        shape = [1] * values.ndim
        shape[axis] = -1
        values = values * mask.reshape(shape).astype(values.dtype)
    return np.ascontiguousarray(values)


def narrowed(tensor: TrialTensor, columns: Mask) -> Array:
    """A site's matrix [N, K left] without some columns; the others make up for them by the Gram."""
    matrix, gram = tensor.matrix, tensor.gram
    if not columns.all() and gram is not None:
        owners = np.tile(np.where(columns, -1, 0), (len(gram), 1))
        matrix = without(matrix.astype(np.float64), gram, owners, [0])
    return np.ascontiguousarray(matrix[:, columns], np.float32)


def nested_order(
    tensor: TrialTensor, keeps: Mapping[int, Sequence[Mask]]
) -> NDArray[np.intp] | None:
    """Columns of a site's matrix in the order in which they go; None unless one width cuts them,
    always the same columns first.
    """
    axes = {0} if tensor.flipped else set(range(1, tensor.values.ndim))
    cuts = [cut for cut in tensor.cuts if cut.axis in axes]
    items = {cut.item for cut in cuts}
    if len(items) != 1 or tensor.gram is None:
        return None
    item = items.pop()
    by_level = []
    for level in range(len(keeps[item])):
        masks = axis_masks(cuts, {item: level}, keeps)
        by_level.append(matrix_masks(tensor.values.shape, tensor.flipped, masks)[1])
    order = np.argsort(-np.sum(by_level, axis=0), kind="stable")
    nested = all(columns[order[: int(columns.sum())]].all() for columns in by_level)
    return order if nested else None


def trial_values(tensor: TrialTensor, matrix: Array, level: int, columns: Mask) -> Array:
    """The stored tensor of a site as a level stores its narrowed matrix [N, K left].

    Methods that look at the data take long for every width: codes are rounded to nearest, and
    their error is shrunk to what the method's was measured to be. Rows are independent of each
    other in all methods, so those that go can be set to zero afterwards.
    """
    entry = tensor.entries[level] if level >= 0 else None
    kept = matrix
    if entry is not None and matrix.size:
        rounded = encode_by("rtn", matrix, entry.weight, None, search=entry.search).decode()
        kept = matrix + np.float32(np.sqrt(tensor.gains[level])) * (rounded - matrix)
    values = tensor.values
    rows = values.shape[1] if tensor.flipped else len(values)
    result = np.zeros((rows, len(columns)), np.float32)
    result[:, columns] = kept
    stored = result.T if tensor.flipped else result.reshape(values.shape)
    return np.ascontiguousarray(stored, values.dtype)


def matrix_masks(
    shape: Sequence[int], flipped: bool, masks: Mapping[int, Mask]
) -> tuple[Mask, Mask]:
    """Rows and columns of a site's matrix that stay."""
    by_axis = [masks.get(axis, np.ones(size, np.bool_)) for axis, size in enumerate(shape)]
    if flipped:
        return by_axis[1], by_axis[0]
    columns = np.ones(1, np.bool_)
    for mask in by_axis[1:]:
        columns = np.logical_and.outer(columns, mask).ravel()
    return by_axis[0], columns
