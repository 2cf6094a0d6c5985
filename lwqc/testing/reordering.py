"""What another order of channels does to the stored tensors that hold them or point at them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.axes import Factor, Kind
from lwqc.graph.axis_analysis import Use
from lwqc.graph.repairs import Indices, Repair

Order = NDArray[np.intp]
Array = NDArray[np.generic]


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
