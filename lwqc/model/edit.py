"""Small edits of the graph that several passes need."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from lwqc.model.names import gather_names, unique_name
from lwqc.model.weights import static_shape

_KEPT_BYTES = 128 << 20  # of tensors that are evaluated when they are read


class Rewrite(ir.passes.InPlacePass):
    """A pass whose new names are unique in every scope of the model."""

    def requires(self, model: ir.Model) -> None:
        """Learn the names that are taken."""
        gather_names(model)


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Store a tensor under its own name (made unique) and return its value."""
    tensor.name = unique_name(graph, tensor.name or "constant")
    value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(static_shape(tensor)),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def add_constant(graph: ir.Graph, name: str, values: ArrayLike) -> ir.Value:
    """Store a small numpy array as an initializer."""
    return add_initializer(graph, ir.tensor(np.asarray(values), name=name))


def insert_before(
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    outputs: Sequence[str],
    attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
    domain: str = "",
) -> tuple[ir.Value, ...]:
    """Create a node in front of `anchor`; returns its output values.

    outputs: their names, made unique.
    """
    graph = anchor.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{anchor.name} is in no graph")
    values = [ir.Value(name=unique_name(graph, name)) for name in outputs]
    name = f"{values[0].name}/{op_type}"
    node = ir.node(op_type, inputs, attributes, domain=domain, outputs=values, name=name)
    graph.insert_before(anchor, node)
    return tuple(values)


def replace_node(node: ir.Node, *values: ir.Value) -> None:
    """Let values take the places, names and graph-output roles of the node's outputs, in order."""
    graph = node.graph
    if graph is None:
        raise ValueError(f"{node.name} is in no graph")
    pairs = list(zip(node.outputs, values, strict=False))  # the rest is read by nothing
    taken = [(value, old.name, dict(old.metadata_props)) for old, value in pairs]
    for old, value in pairs:
        value.shape, value.type = old.shape, old.type
        old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for value, name, metadata in taken:
        value.name = name
        value.metadata_props.update(metadata)


def replace_stored(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Let an initializer, or the output of a Constant node, hold another tensor."""
    producer = value.producer()
    if producer is None:
        value.const_value = tensor
    else:
        producer.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy()))


def lazy_like(
    like: ir.TensorProtocol, name: str | None, values: Callable[[], NDArray[np.generic]]
) -> ir.LazyTensor:
    """A tensor of the same type and shape, evaluated when it is first read."""
    return lazy_tensor(like.dtype, static_shape(like), name, values)


def lazy_tensor(
    dtype: ir.DataType,
    shape: Sequence[int],
    name: str | None,
    values: Callable[[], NDArray[np.generic]],
) -> ir.LazyTensor:
    """A tensor of that type and shape, evaluated when it is read.

    Its numbers are kept for as long as they are among those that were read last, see `_Recent`.
    """
    key = object()

    def evaluate() -> ir.TensorProtocol:
        def made() -> ir.TensorProtocol:
            array = np.ascontiguousarray(values().astype(dtype.numpy(), copy=False))
            return ir.tensor(array, dtype=dtype, name=name)

        return _recent.get(key, made)

    tensor = ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(shape), name=name)
    weakref.finalize(tensor, _recent.forget, key)
    return tensor


class _Recent:
    """Evaluated tensors, of at most `_KEPT_BYTES` together: a model may be larger than memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, ir.TensorProtocol] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()  # a tensor may end, and be forgotten, at any time

    def get(self, key: object, make: Callable[[], ir.TensorProtocol]) -> ir.TensorProtocol:
        """The tensor, made if it is not there."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()  # which may read others
        with self._lock:
            if key not in self._kept and made.nbytes <= _KEPT_BYTES:
                self._kept[key] = made
                self._bytes += made.nbytes
            while self._bytes > _KEPT_BYTES:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return made

    def forget(self, key: object) -> None:
        """Nobody has the tensor any more."""
        with self._lock:
            if (found := self._kept.pop(key, None)) is not None:
                self._bytes -= found.nbytes


_recent = _Recent()


def float_type(value: ir.Value | None) -> ir.DataType:
    """Element type of a value, float32 where the model does not say."""
    return value.dtype if value is not None and value.dtype is not None else ir.DataType.FLOAT
