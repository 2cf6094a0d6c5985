"""onnx-graphsurgeon as a front door: its scripts run as passes, its graphs come in and go out.

graphsurgeon 0.6.1 cannot export 4-bit and other sub-byte constants, and drops metadata and doc
strings. A round trip through here keeps them: sub-byte tensors travel as placeholders of the same
name, and whatever the script left in place gets its tensor, metadata and doc string back by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir

from lwqc import io
from lwqc.errors import InputError

_PLACEHOLDER = "lwqc_placeholder_"


class GraphSurgeonPass(ir.passes.FunctionalPass):
    """Run a `gs.Graph -> gs.Graph` function (or one that edits in place) as a pass.

    Refuses (InputError): results that are no valid ONNX graph, and functions that edit a sub-byte
    constant, which graphsurgeon cannot represent.
    """

    def __init__(self, function: Callable[[gs.Graph], gs.Graph | None]) -> None:
        super().__init__()
        self._function = function

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the function; the input model is left alone."""
        graph = to_graphsurgeon(model)
        name = getattr(self._function, "__name__", "function")
        try:
            result = self._function(graph)
        except Exception as error:
            raise InputError(f"graphsurgeon function {name} failed: {error!r}") from error
        rebuilt = from_graphsurgeon(graph if result is None else result, like=model)
        return ir.passes.PassResult(rebuilt, modified=True)


def as_pass(function: Callable[[gs.Graph], gs.Graph | None]) -> GraphSurgeonPass:
    """A graphsurgeon function as a pass."""
    return GraphSurgeonPass(function)


def to_graphsurgeon(model: ir.Model) -> gs.Graph:
    """The model as a graphsurgeon graph; see `from_graphsurgeon` for the way back.

    Sub-byte tensors are uint8 placeholders with their packed bytes; leave them as they are.
    """
    proto = onnx.ModelProto()
    proto.ParseFromString(io.to_bytes(model))
    for tensor in _tensors(proto.graph):
        if ir.DataType(tensor.data_type).bitwidth < 8:
            _hide(tensor)
    return gs.import_onnx(proto)


def from_graphsurgeon(graph: gs.Graph, like: ir.Model | None = None) -> ir.Model:
    """A graphsurgeon graph as a model.

    like: the model it came from; what the graph still has by name gets its metadata, doc strings,
        sub-byte tensors, and the model its IR version, functions and properties back.

    Raises InputError when the graph cannot be exported or is not valid ONNX.
    """
    try:
        graph.toposort()
        proto = gs.export_onnx(graph, do_type_check=False)
    except Exception as error:
        raise InputError(f"graphsurgeon cannot export the graph: {error!r}") from error
    if like is not None:
        _restore(proto, like)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"the graphsurgeon graph is not valid ONNX: {line}") from error
    return ir.serde.deserialize_model(proto)


def _hide(tensor: onnx.TensorProto) -> None:
    """Turn a sub-byte tensor into a uint8 placeholder that holds the packed bytes."""
    packed = ir.serde.deserialize_tensor(tensor).tobytes()
    shape = "x".join(map(str, tensor.dims))
    label = f"{_PLACEHOLDER}{tensor.data_type}_{shape}"
    name = tensor.name
    tensor.Clear()
    tensor.name, tensor.doc_string = name, label
    tensor.data_type = onnx.TensorProto.UINT8
    tensor.dims.append(len(packed))
    tensor.raw_data = packed


@dataclass
class _Memory:
    """What graphsurgeon loses, by name."""

    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    nodes: dict[tuple[str, ...], onnx.NodeProto] = field(default_factory=dict)
    values: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)


def _restore(proto: onnx.ModelProto, like: ir.Model) -> None:
    original = onnx.ModelProto()
    original.ParseFromString(io.to_bytes(like))
    memory = _Memory()
    for tensor in _tensors(original.graph):
        memory.tensors[tensor.name] = tensor
    for node in _nodes(original.graph):
        memory.nodes[(node.op_type, *node.output)] = node
    for value in _values(original.graph):
        memory.values[value.name] = value
    for tensor in _tensors(proto.graph):
        _restore_tensor(tensor, memory)
    for node in _nodes(proto.graph):
        before = memory.nodes.get((node.op_type, *node.output))
        if before is not None:
            node.doc_string = before.doc_string
            node.metadata_props.extend(before.metadata_props)
            node.overload = before.overload
    for value in _values(proto.graph):
        if (known := memory.values.get(value.name)) is not None:
            value.doc_string = known.doc_string
            value.metadata_props.extend(known.metadata_props)
            if known.type.HasField("tensor_type"):
                _restore_dims(value, known)
    _restore_sub_byte_types(proto.graph, memory)
    _restore_model(proto, original)


def _restore_tensor(tensor: onnx.TensorProto, memory: _Memory) -> None:
    before = memory.tensors.get(tensor.name)
    if before is None:
        return
    if ir.DataType(before.data_type).bitwidth >= 8:
        tensor.doc_string = before.doc_string
        tensor.metadata_props.extend(before.metadata_props)
        return
    packed = ir.serde.deserialize_tensor(before).tobytes()
    if tensor.data_type != onnx.TensorProto.UINT8 or tensor.raw_data != packed:
        kind = ir.DataType(before.data_type).name
        raise InputError(
            f"{tensor.name}: is a {kind} constant, which graphsurgeon cannot edit; "
            "dequantize it first or leave it untouched"
        )
    tensor.CopyFrom(before)


def _restore_dims(value: onnx.ValueInfoProto, known: onnx.ValueInfoProto) -> None:
    """Dimension names, where rank and fixed sizes are unchanged."""
    new, old = value.type.tensor_type.shape.dim, known.type.tensor_type.shape.dim
    if len(new) != len(old):
        return
    for a, b in zip(new, old, strict=True):
        if not a.HasField("dim_value") and b.HasField("dim_param"):
            a.dim_param = b.dim_param
        a.denotation = b.denotation


def _restore_sub_byte_types(graph: onnx.GraphProto, memory: _Memory) -> None:
    """Value infos that describe a placeholder would contradict the restored tensor."""
    hidden = {name for name, t in memory.tensors.items() if ir.DataType(t.data_type).bitwidth < 8}
    for i in reversed(range(len(graph.value_info))):
        if graph.value_info[i].name in hidden:
            del graph.value_info[i]


def _restore_model(proto: onnx.ModelProto, original: onnx.ModelProto) -> None:
    proto.ir_version = original.ir_version
    proto.doc_string, proto.domain = original.doc_string, original.domain
    proto.producer_name = original.producer_name
    proto.producer_version = original.producer_version
    proto.model_version = original.model_version
    proto.graph.doc_string = original.graph.doc_string
    for new, old in (
        (proto.metadata_props, original.metadata_props),
        (proto.graph.metadata_props, original.graph.metadata_props),
    ):
        del new[:]
        new.extend(old)
    known = {(e.domain, e.version) for e in proto.opset_import}
    domains = {domain for domain, _ in known}
    proto.opset_import.extend(e for e in original.opset_import if e.domain not in domains)
    if not proto.functions:
        proto.functions.extend(original.functions)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for subgraph in _subgraphs(node):
            yield from _nodes(subgraph)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers, and the values of Constant nodes under the name of their output."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and node.op_type == "Constant":
                attribute.t.name = node.output[0]
                yield attribute.t
        for subgraph in _subgraphs(node):
            yield from _tensors(subgraph)


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    for values in (graph.input, graph.output, graph.value_info):
        yield from values


def _subgraphs(node: onnx.NodeProto) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


__all__ = ["GraphSurgeonPass", "as_pass", "from_graphsurgeon", "to_graphsurgeon"]
