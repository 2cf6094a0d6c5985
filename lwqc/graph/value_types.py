"""Types and shapes of values that a file does not state, as ONNX infers them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from lwqc.errors import SessionError
from lwqc.model.inference import infer
from lwqc.model.names import nodes_of

_SMALL = 1 << 10  # numbers in a tensor that shapes may be computed from


def is_tensor(value: ir.Value | None) -> bool:
    """Whether a value is a tensor, or of no stated type."""
    return value is None or value.type is None or isinstance(value.type, ir.TensorType)


def forget_uncertain(model: ir.Model, stated: Sequence[ir.Shape | None]) -> None:
    """Forget shapes of sequences and optionals, and of what is taken out of them, in place.

    The elements of a sequence may differ in shape; a shape stored for one of them makes a file that
    does not run. stated: what the file says of its outputs, which stays.
    """
    for node in nodes_of(model.graph):
        opaque = not all(map(is_tensor, node.inputs))
        for value in node.outputs:
            if opaque or not is_tensor(value):
                value.shape = None
    for value, shape in zip(model.graph.outputs, stated, strict=True):
        value.shape = value.shape if shape is None else shape


def output_shapes(model: ir.Model) -> list[ir.Shape | None]:
    """What a model states of its outputs."""
    return [value.shape for value in model.graph.outputs]


def infer_types(model: ir.Model) -> None:
    """State the types and shapes of all values of a model as far as ONNX infers them, in place.

    Types that the file states stay, and so do sizes that are numbers. ONNX Runtime's own operators
    are not known to ONNX: their results stay without a type.
    """
    proto, stated = light(model), output_shapes(model)
    try:
        inferred = infer(proto, data=True)
    except SessionError:
        return
    _take(model.graph, inferred.graph)
    forget_uncertain(model, stated)


def with_own_sizes(model: ir.Model, symbol: str) -> ir.Model:
    """A copy in which sizes of that name are unknown, each of its own."""
    copy = model.clone()
    copy.meta.update(model.meta)
    for graph in copy.graphs():
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape(
                    None if not isinstance(d, int) and d.value == symbol else d for d in value.shape
                )
    return copy


def light(model: ir.Model) -> onnx.ModelProto:
    """The model with its larger initializers as inputs, so that no weight is copied."""
    large = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.size > _SMALL
    }
    values = {name: model.graph.initializers[name] for name in large}
    try:
        for name, value in values.items():
            value.const_value = ir.Tensor(np.zeros(0, np.uint8), name=name)
        proto = ir.serde.serialize_model(model)
    finally:
        for name, value in values.items():
            value.const_value = large[name]
    small = [t for t in proto.graph.initializer if t.name not in large]
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in small]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    given = {v.name for v in proto.graph.input}
    for name, tensor in large.items():
        if name not in given:
            dims = [d for d in tensor.shape if isinstance(d, int)]
            info = onnx.helper.make_tensor_value_info(name, tensor.dtype.value, dims)
            proto.graph.input.append(info)
    return proto


def _take(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    types = {v.name: v.type for v in (*proto.value_info, *proto.output)}
    for node, same in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            if value.name in types:
                _state(value, types[value.name])
        bodies = dict(_bodies(same))
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH and name in bodies:
                _take(attribute.as_graph(), bodies[name])


def _bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    return ((a.name, a.g) for a in node.attribute if a.HasField("g"))


def _state(value: ir.Value, proto: onnx.TypeProto) -> None:
    if value.type is None and _is_readable(proto):
        value.type = ir.serde.deserialize_type_proto_for_type(proto)
    if isinstance(value.type, ir.TensorType) and proto.WhichOneof("value") == "tensor_type":
        value.shape = _merged(value.shape, ir.serde.deserialize_type_proto_for_shape(proto))


def _merged(known: ir.Shape | None, found: ir.Shape | None) -> ir.Shape | None:
    if known is None or found is None:
        return found if known is None else known
    if len(known) != len(found):
        return known
    return ir.Shape(
        a if isinstance(a, int) or (a.value is not None and not isinstance(b, int)) else b
        for a, b in zip(known, found, strict=True)
    )


def _is_readable(proto: onnx.TypeProto) -> bool:
    """Whether every level of the type is stated, and none is a map."""
    which = proto.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return _is_readable(getattr(proto, which).elem_type)
    return which == "tensor_type" and proto.tensor_type.elem_type != 0
