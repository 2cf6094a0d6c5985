"""Reorders channels: every stored tensor that holds them, and tables that point at them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from lwqc.errors import InputError
from lwqc.graph.axes import Factor, Kind
from lwqc.graph.axis_analysis import Use
from lwqc.graph.groups import Groups, find_groups
from lwqc.graph.repairs import Indices, Repair
from lwqc.graph.shapes import declared_shapes
from lwqc.model.edit import Rewrite, add_initializer, lazy_like, replace_stored
from lwqc.model.weights import stored_tensor

Order = NDArray[np.intp]
Array = NDArray[np.generic]


class PermuteChannels(Rewrite):
    """Put the indices of groups into another order.

    orders: group name -> old index at each new place [size].
    Matches: every axis of every stored tensor in which a group takes part.
    Rewrites to: the same tensors with their axes reordered, and lists of indices into such an axis
    renumbered; names stay. A tensor whose readers want different orders gets a copy for each.
    The outputs change by no more than another order of summation does.
    Refuses: with InputError, an unknown group or what is no permutation of its indices.
    """

    def __init__(self, orders: Mapping[str, ArrayLike]) -> None:
        super().__init__()
        self._orders = {name: np.asarray(order) for name, order in orders.items()}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Analyse the model as it is (see `prepare_pruning`) and rewrite it."""
        groups = find_groups(model, declared_shapes(model)[0])
        return ir.passes.PassResult(model, permute_channels(groups, self._orders))


def permute_channels(groups: Groups, orders: Mapping[str, ArrayLike]) -> bool:
    """Reorder groups of the model that they were found in, in place; see `PermuteChannels`."""
    wanted = {}
    for name, given in orders.items():
        order = np.asarray(given)
        group = groups.by_name.get(name)
        if group is None:
            raise InputError(f"{name}: the model has no such group; see lwqc inspect --groups")
        if order.shape != (group.size,) or (np.sort(order) != np.arange(group.size)).any():
            raise InputError(f"{name}: expected a permutation of its {group.size} channels")
        if (order != np.arange(group.size)).any():
            wanted[group.factor.find()] = order.astype(np.intp)
    analysis = groups.analysis
    by_value: dict[ir.Value, list[tuple[Use | None, Reordering]]] = {}
    for key, dims in analysis.stored.items():
        use = key if isinstance(key, Use) else None
        move = Reordering.of(key, dims, analysis.repairs, wanted)
        by_value.setdefault(key.value if isinstance(key, Use) else key, []).append((use, move))
    changed = False
    for value, moves in by_value.items():
        if any(move for _, move in moves):
            _rewrite(analysis.graph, value, moves)
            changed = True
    return changed


class Reordering:
    """What happens to one stored tensor. False where nothing does."""

    def __init__(self, axes: Mapping[int, Order], renumber: Order | None) -> None:
        """axes: old index at each new place. renumber: new index for each index that it holds."""
        self.axes = axes
        self.renumber = renumber

    @classmethod
    def of(
        cls,
        key: Use | ir.Value,
        dims: Sequence[Factor],
        repairs: Iterable[Repair],
        orders: Mapping[Factor, Order],
    ) -> Reordering:
        """key, dims: as in `AxisAnalysis.stored`. orders: atom -> old index at each new place."""
        axes = {a: order_of(d, orders) for a, d in enumerate(dims) if _touches(d, orders)}
        renumber = None
        for item in repairs:
            if (
                isinstance(item, Indices)
                and _touches(item.dimension, orders)
                and _is_operand(key, item)
            ):
                renumber = np.argsort(order_of(item.dimension, orders))
        return cls(axes, renumber)

    def __bool__(self) -> bool:
        return bool(self.axes) or self.renumber is not None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reordering) or self.axes.keys() != other.axes.keys():
            return False
        if any((order != other.axes[a]).any() for a, order in self.axes.items()):
            return False
        if self.renumber is None or other.renumber is None:
            return self.renumber is other.renumber
        return bool((self.renumber == other.renumber).all())

    __hash__ = None  # type: ignore[assignment]  # compared by its arrays

    def apply(self, array: Array) -> Array:
        """The reordered tensor."""
        for axis, order in self.axes.items():
            array = np.take(array, order, axis)
        if self.renumber is not None:
            array = self.renumber[array.astype(np.intp)].astype(array.dtype)
        return np.ascontiguousarray(array).reshape(array.shape)


def order_of(dimension: Factor, orders: Mapping[Factor, Order]) -> Order:
    """Old index at each new index of an expression when its atoms are reordered."""
    factor = dimension.find()
    if not factor.kids:
        return orders.get(factor, np.arange(factor.size))
    parts = [order_of(kid, orders) for kid in factor.kids]
    if factor.kind is Kind.SUM:
        starts = np.cumsum([0, *(len(p) for p in parts)])
        return np.concatenate([p + s for p, s in zip(parts, starts, strict=False)])
    result = parts[0]
    for part in parts[1:]:
        result = (result[:, None] * part.size + part[None, :]).ravel()
    return result


def _touches(dimension: Factor, orders: Mapping[Factor, Order]) -> bool:
    return any(leaf in orders for leaf in dimension.leaves())


def _is_operand(key: Use | ir.Value, item: Indices) -> bool:
    if isinstance(key, Use):
        return key.node is item.node and key.index == item.operand
    return key is item.node.inputs[item.operand]


def _rewrite(
    graph: ir.Graph, value: ir.Value, moves: Sequence[tuple[Use | None, Reordering]]
) -> None:
    """Reorder a tensor in place where all its readers agree, else a copy per reader."""
    tensor = stored_tensor(value)
    assert tensor is not None
    shared = any(use is not None for use, _ in moves)
    agreed = all(move == moves[0][1] for _, move in moves)
    if agreed and (not shared or len(moves) == len(value.uses())):
        replace_stored(value, _reordered(tensor, moves[0][1], tensor.name))
        return
    for use, move in moves:
        if move and use is not None:
            copy = _reordered(
                tensor, move, f"{value.name}/{use.node.name or use.node.outputs[0].name}"
            )
            use.node.replace_input_with(use.index, add_initializer(graph, copy))


def _reordered(tensor: ir.TensorProtocol, move: Reordering, name: str | None) -> ir.LazyTensor:
    return lazy_like(tensor, name, lambda: move.apply(tensor.numpy()))
