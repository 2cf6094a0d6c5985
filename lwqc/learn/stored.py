"""The tensors that a model stores: initializers and constants, of bodies and functions too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.model.edit import replace_stored
from lwqc.model.weights import stored_tensor

Place = tuple[str, ...]
_TYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


@dataclass(frozen=True)
class Stored:
    """One stored tensor. place: its name, behind the names of what it lies in."""

    place: Place
    value: ir.Value
    tensor: ir.TensorProtocol

    @property
    def name(self) -> str:
        """Its name in its graph."""
        return self.place[-1]


def stored_tensors(model: ir.Model) -> Iterator[Stored]:
    """All stored tensors; those that callers may override are not among them."""
    yield from _of_graph(model.graph, ())
    for function in model.functions.values():
        yield from _of_graph(function.graph, (str(function.identifier()),))


def _of_graph(graph: ir.Graph, where: Place) -> Iterator[Stored]:
    for value in graph.initializers.values():
        tensor = stored_tensor(value)
        if tensor is not None:
            yield Stored((*where, value.name or ""), value, tensor)
    for node in graph:
        if node.domain == "" and node.op_type == "Constant":
            yield Stored((*where, node.outputs[0].name or ""), node.outputs[0], _constant(node))
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
                inner = (*where, node.outputs[0].name or "", attribute.name)
                yield from _of_graph(attribute.as_graph(), inner)


def _constant(node: ir.Node) -> ir.TensorProtocol:
    """What a Constant node holds, in whichever of its attributes. Raises InputError for others."""
    for name, attribute in node.attributes.items():
        if name == "value":
            return attribute.as_tensor()
        if name in _TYPES:
            numbers = np.asarray(attribute.value, _TYPES[name])
            return ir.tensor(numbers, name=node.outputs[0].name)
    raise InputError(f"Constant {node.outputs[0].name}: holds no numbers that torch could have")


def replaced(stored: Stored, tensor: ir.TensorProtocol) -> None:
    """Let a model store another tensor in its place."""
    tensor.name = stored.tensor.name
    node = stored.value.producer()
    if node is not None:
        for name in _TYPES.keys() & node.attributes.keys():
            node.attributes.pop(name)
    replace_stored(stored.value, tensor)
