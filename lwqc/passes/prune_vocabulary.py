"""Takes token ids out of a model: rows of tables, and what outputs say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.axes import Factor
from lwqc.graph.groups import Group, Groups, find_groups
from lwqc.graph.shapes import declared_shapes
from lwqc.graph.token_ids import TokenIds, find_token_ids
from lwqc.model.edit import add_constant, add_initializer, lazy_tensor, replace_stored
from lwqc.model.tensor_bytes import read_array
from lwqc.model.unused import RemoveUnused
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.passes.prune_channels import prune_channels


@dataclass(frozen=True)
class PrunedVocabulary:
    """A model that knows fewer ids. heads: outputs whose last axis has only the kept ids. whole:
    outputs that keep all of them, and why.
    """

    model: ir.Model
    ids: TokenIds
    heads: tuple[str, ...]
    whole: Mapping[str, str]


class VocabularyPruning:
    """The rewrite of one model; first what there is to take out, then `kept` says what stays."""

    def __init__(self, model: ir.Model, name: str | None = None, heads: Sequence[str] = ()) -> None:
        """name: of the input of ids, None for the one with the largest tables. heads: outputs over
        the same ids though they share no table with them.

        Raises InputError, see `find_token_ids`, and for heads that are no outputs.
        """
        self._model, _ = prepare_pruning(model)
        RemoveUnused()(self._model)
        self.ids = find_token_ids(self._model.graph, name)
        self._sliced: set[str] = set()
        self._named = frozenset(heads)
        if unknown := self._named - {v.name for v in self._model.graph.outputs}:
            raise InputError(f"--head {min(unknown)}: the model has no such output")

    def kept(self, ids: Sequence[int]) -> PrunedVocabulary:
        """The model that knows only these ids, in rising order; to be called once.

        Tables lose the other rows. An output whose last axis runs over all ids, by a table that it
        shares or because it was named, and that nothing mixes along it, loses the other columns
        with all that computes them, see `prune_channels`.
        What is left is computed as before. Raises InputError for ids that the model has not, where
        none would stay, where an id that the graph compares with would go, and where a head that
        shares a table cannot follow.
        """
        rows = np.unique(np.asarray(ids, np.intp))
        self._check(rows)
        copies = self._untied()
        heads, whole = self._heads(rows, copies)
        shared = [name for name in copies if name not in self._sliced]
        if shared:
            reasons = "; ".join(whole.values()) or "it computes no output over all ids"
            raise InputError(
                f"{copies[shared[0]].name}: is shared with a head that stays: {reasons}"
            )
        for table in self.ids.tables:
            _take_rows(table, rows)
        for node, index, number in self.ids.compared:
            value = node.inputs[index]
            assert value is not None
            before = stored_tensor(value)
            assert before is not None
            now = np.full(static_shape(before), np.searchsorted(rows, number), before.dtype.numpy())
            constant = add_constant(self._model.graph, f"{value.name}/kept", now)
            node.replace_input_with(index, constant)
        self._tied(copies)
        RemoveUnused()(self._model)
        return PrunedVocabulary(self._model, self.ids, heads, whole)

    def _check(self, rows: np.ndarray) -> None:
        """Raises InputError."""
        size, name = self.ids.size, self.ids.name
        if not len(rows):
            raise InputError(f"{name}: no id would stay")
        wrong = rows[(rows < 0) | (rows >= size)]
        if len(wrong):
            raise InputError(f"{name}: has ids from 0 to {size - 1}, there is no {wrong[0]}")
        for node, _, number in self.ids.compared:
            if number not in rows:
                raise InputError(
                    f"{name}: {node.op_type} {node.name} looks for id {number}: keep it"
                )

    def _untied(self) -> dict[str, ir.Value]:
        """Other readers of a table get a copy each: name of the copy -> table."""
        found: dict[str, ir.Value] = {}
        for node, index in self.ids.other:
            table = node.inputs[index]
            assert table is not None
            tensor = stored_tensor(table)
            assert tensor is not None
            name, read = f"{table.name}/head", partial(read_array, tensor)
            copy = lazy_tensor(tensor.dtype, static_shape(tensor), name, read)
            value = add_initializer(self._model.graph, copy)
            node.replace_input_with(index, value)
            found[value.name or ""] = table
        return found

    def _heads(
        self, rows: np.ndarray, copies: Mapping[str, ir.Value]
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """Outputs over the ids, cut; and those that stay whole, with the reason.

        copies: of shared tables. Equal sizes alone prove nothing: there may be as many features.
        """
        graph, size = self._model.graph, self.ids.size
        shapes, _ = declared_shapes(self._model)
        over = [
            v.name or ""
            for v in graph.outputs
            if v.shape is not None and len(v.shape) > 1 and v.shape[-1] == size
        ]
        groups = find_groups(self._model, shapes, resizable_outputs=over)
        gone = np.setdiff1d(np.arange(size), rows)
        removed: dict[str, list[int]] = {}
        whole: dict[str, str] = {}
        heads: list[str] = []
        for value in graph.outputs:
            if value.name not in over:
                continue
            name, factor = value.name or "", groups.analysis.dims[value][-1].find()
            group = _group(groups, factor)
            if group is None:
                whole[name] = factor.frozen or "its ids are not told apart"
            elif name in self._named or any(o.value.name in copies for o in group.occurrences):
                heads.append(name)
                removed[group.name] = [int(i) for i in gone]
            else:
                whole[name] = f"it has {size} numbers, but shares no table: --head says it is so"
        whole |= {name: why for name, why in self._others(over) if name not in whole}
        if removed:
            done = prune_channels(groups, removed)
            self._sliced = {name for name, axes in done.kept.items() if axes}
        return tuple(heads), whole

    def _others(self, over: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Outputs that may be of ids in a way that is not followed, and what is to be known."""
        size = self.ids.size
        for value in self._model.graph.outputs:
            name, shape = value.name or "", value.shape
            if name in over:
                continue
            if value.dtype is not None and value.dtype.is_integer():
                yield name, "numbers that are ids are the original's, which `kept` lists"
            elif name in self._named:
                yield name, f"its last axis is not known to be of {size}"
            elif shape is None or size in shape or (len(shape) and not isinstance(shape[-1], int)):
                yield name, f"whether an axis of it is over {size} ids is not known"

    def _tied(self, copies: Mapping[str, ir.Value]) -> None:
        """Copies that are what became of their table are the table again."""
        for name, table in copies.items():
            copy = self._model.graph.initializers.get(name)
            if copy is None:
                continue
            before, after = stored_tensor(table), stored_tensor(copy)
            assert before is not None
            assert after is not None
            if np.array_equal(read_array(before), read_array(after)):
                copy.replace_all_uses_with(table)


def _group(groups: Groups, factor: Factor) -> Group | None:
    """The group of an axis whose indices can go without changing what is left of it."""
    found = next((g for g in groups if g.factor is factor), None)
    return found if found is not None and not found.statistics else None


def _take_rows(table: ir.Value, rows: np.ndarray) -> None:
    tensor = stored_tensor(table)
    assert tensor is not None
    shape = (len(rows), *static_shape(tensor)[1:])

    def taken() -> np.ndarray:
        return np.ascontiguousarray(read_array(tensor)[rows])

    replace_stored(table, lazy_tensor(tensor.dtype, shape, table.name, taken))
    table.shape = ir.Shape(shape)
