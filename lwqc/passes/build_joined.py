"""Makes the nodes that `lwqc.graph.twins` plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.twins import Joined, Stacked, Whole
from lwqc.model.edit import add_constant, add_initializer, lazy_tensor
from lwqc.model.names import unique_name
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import through, weight_shape

_SPLIT_INPUT = 13  # opset from which a Split reads its sizes


class Builder:
    """Adds nodes in front of an anchor. layers: the linear layers among them."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node) -> None:
        self._graph = graph
        self._anchor = anchor
        self._made: dict[Whole, ir.Value] = {}
        self.layers: set[ir.Node] = set()

    def value(self, whole: Whole) -> ir.Value:
        """The value of what was planned; made once."""
        if isinstance(whole, ir.Value):
            return whole
        if whole not in self._made:
            made = self._joined(whole) if isinstance(whole, Joined) else self.stored(whole)
            self._made[whole] = made
        return self._made[whole]

    def stored(self, stacked: Stacked) -> ir.Value:
        """A new stored tensor, computed from the old ones when it is first read."""
        axis = stacked.axis
        # The tensors themselves: their values leave the graph with the nodes that read them.
        parts = [(weight.tensor, weight.steps) for weight in stacked.parts]
        shapes = [weight_shape(weight) or () for weight in stacked.parts]
        shape = list(shapes[0])
        if axis is not None:
            shape[axis] = sum(s[axis] for s in shapes)

        def values() -> NDArray[np.generic]:
            arrays = [through(steps, read_array(tensor), read_array) for tensor, steps in parts]
            if axis is not None:
                return np.concatenate(arrays, axis)
            return np.asarray(np.sum(arrays, axis=0))

        name = f"{stacked.parts[0].name}/merged"
        return add_initializer(self._graph, lazy_tensor(parts[0][0].dtype, shape, name, values))

    def layer(self, like: ir.Node, inputs: Sequence[ir.Value]) -> ir.Value:
        """A layer of the same operator, attributes and output shape."""
        return self._like(like, inputs, like.outputs[0].shape)

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """Values side by side."""
        sizes = [v.shape[axis] if v.shape is not None else None for v in values]
        shape = _resized(values[0], axis, sizes)
        attributes = {"axis": _from_start(axis, values[0])}
        (value,) = self._append("Concat", values, attributes, f"{values[0].name}/beside")
        value.shape, value.type = shape, values[0].type
        return value

    def add(self, values: Sequence[ir.Value]) -> ir.Value:
        """The sum, from left to right."""
        total = values[0]
        for other in values[1:]:
            (value,) = self._append("Add", [total, other], {}, f"{other.name}/added")
            value.shape, value.type = _broadcast(total, other), total.type or other.type
            total = value
        return total

    def split(self, value: ir.Value, joined: Joined, version: int) -> Sequence[ir.Value]:
        """The pieces of a value, as the members had them. version: of the operator set."""
        inputs, sizes = [value], list(joined.sizes)
        attributes: dict[str, int | list[int]] = {"axis": _from_start(joined.axis, value)}
        if version >= _SPLIT_INPUT:
            inputs.append(
                add_constant(self._graph, f"{value.name}/sizes", np.asarray(sizes, np.int64))
            )
        else:
            attributes["split"] = sizes
        return self._append("Split", inputs, attributes, f"{value.name}/piece", len(sizes))

    def _joined(self, joined: Joined) -> ir.Value:
        inputs = [None if i is None else self.value(i) for i in joined.inputs]
        like = joined.members[0]
        shape = _resized(like.outputs[0], joined.axis, joined.sizes)
        return self._like(like, inputs, shape, joined.groups)

    def _like(
        self,
        like: ir.Node,
        inputs: Sequence[ir.Value | None],
        shape: ir.Shape | None,
        groups: int = 0,
    ) -> ir.Value:
        attributes = dict(like.attributes)
        if groups:
            attributes["group"] = ir.AttrInt64("group", groups)
        old = like.outputs[0]
        value = ir.Value(
            name=unique_name(self._graph, f"{old.name}/merged"), type=old.type, shape=shape
        )
        node = ir.Node(
            like.domain,
            like.op_type,
            inputs,
            list(attributes.values()),
            overload=like.overload,
            outputs=[value],
            name=value.name,
        )
        self._graph.insert_before(self._anchor, node)
        self.layers.add(node)
        return value

    def _append(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, int | list[int]],
        name: str,
        count: int = 1,
    ) -> Sequence[ir.Value]:
        """A new node; its outputs are named `name`, or `name`0, `name`1, ..."""
        names = [name] if count == 1 else [f"{name}{i}" for i in range(count)]
        outputs = [ir.Value(name=unique_name(self._graph, n)) for n in names]
        node = ir.node(op_type, inputs, dict(attributes), outputs=outputs, name=outputs[0].name)
        self._graph.insert_before(self._anchor, node)
        return outputs


def _from_start(axis: int, value: ir.Value) -> int:
    """The axis counted from the start where the rank is known: old operators know no other."""
    return axis if value.shape is None else axis + value.shape.rank()


def _resized(value: ir.Value, axis: int, sizes: Sequence[object]) -> ir.Shape | None:
    """The shape with as many channels as the pieces have together, if that is known."""
    known = [n for n in sizes if isinstance(n, int)]
    if value.shape is None or len(known) < len(sizes):
        return None
    dims = list(value.shape)
    dims[axis] = sum(known)
    return ir.Shape(dims)


def _broadcast(a: ir.Value, b: ir.Value) -> ir.Shape | None:
    """The shape of a sum where it is that of the operand with more dimensions, or of both."""
    if a.shape is None or b.shape is None or a.shape == b.shape:
        return a.shape
    if a.shape.rank() == b.shape.rank():
        return None
    return a.shape if a.shape.rank() > b.shape.rank() else b.shape
