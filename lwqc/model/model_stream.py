"""Write a model without ever holding all its weights.

An ONNX file is a protobuf message, and protobuf is a sequence of tagged fields with their length
before them. So the graph without its weights is serialised first, then each weight is appended as
one more `initializer` field, in order. The result is an ordinary ONNX file.

Only weights of the main graph are streamed; those of subgraphs and Constant nodes are small.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.traversal import RecursiveGraphIterator

from lwqc.errors import InputError
from lwqc.model.kept_parts import leave_to_inference, put_back
from lwqc.model.tensor_bytes import evaluated, read_array
from lwqc.model.untrusted import PROTOBUF_LIMIT_BYTES, tensor_protos
from lwqc.model.weights import static_shape

INLINE_UP_TO_BYTES = 256  # smaller tensors stay in the model file
_SIZES_UP_TO_BYTES = 1 << 16  # integers that may tell of sizes, which the runtime needs at once
_ALIGN_ABOVE, _ALIGNMENT = 1 << 20, 4096  # pages can then be mapped straight from the file
# Field numbers of onnx.proto as protobuf tags (number * 8 + 2, length-delimited).
_GRAPH_TAG, _INITIALIZER_TAG, _RAW_DATA_TAG = b"\x3a", b"\x2a", b"\x4a"
_NUMPY_TYPES = frozenset(
    ir.DataType.from_numpy(np.dtype(kind))
    for kind in ("f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?")
)


class Sink(Protocol):
    """What a model is written to: a file, or memory."""

    def write(self, content: bytes | memoryview, /) -> int:
        """Append bytes."""
        ...


def write_inline(model: ir.Model, file: Sink, workers: int, in_flight_bytes: int) -> None:
    """Write a model with its weights inside. Raises InputError above the 2 GB of protobuf."""
    proto = skeleton(model)
    leave_to_inference(model, proto)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    weights = _weights(model)
    total = len(graph) + sum(_field_bytes(value, tensor) for value, tensor in weights)
    if total + proto.ByteSize() + 16 > PROTOBUF_LIMIT_BYTES:
        raise InputError(
            f"the model has {total} bytes, over the 2 GB of a protobuf file; "
            f"save it with external data"
        )
    file.write(proto.SerializeToString() + _GRAPH_TAG + _varint(total) + graph)
    streamed = evaluated((t for _, t in weights if not _verbatim(t)), workers, in_flight_bytes)
    with contextlib.closing(streamed):
        for value, tensor in weights:
            file.write(_head(value, tensor))
            if not _verbatim(tensor):
                for part in next(streamed):
                    file.write(part)


def write_data(
    model: ir.Model, file: Sink, workers: int, in_flight_bytes: int
) -> tuple[dict[str, int], str]:
    """Write the larger weights to a data file; return their offsets by name, and its sha256."""
    weights = [(v, t) for v, t in _weights(model) if _is_large(t)]
    offsets: dict[str, int] = {}
    digest = hashlib.sha256()
    position = 0
    streamed = evaluated((t for _, t in weights), workers, in_flight_bytes)
    with contextlib.closing(streamed):
        for (value, tensor), parts in zip(weights, streamed, strict=True):
            gap = -position % _ALIGNMENT if tensor.nbytes > _ALIGN_ABOVE else 0
            offsets[value.name or ""] = position + gap
            for part in chain([bytes(gap)], parts):
                file.write(part)
                digest.update(part)
            position += gap + int(tensor.nbytes)
    return offsets, digest.hexdigest()


def external_proto(model: ir.Model, offsets: dict[str, int], location: str) -> bytes:
    """A model file whose weights with an offset are in the data file at `location`."""
    proto = skeleton(model)
    leave_to_inference(model, proto)
    for value, tensor in _weights(model):
        if value.name in offsets:
            stored = _described(value, tensor)
            stored.data_location = onnx.TensorProto.EXTERNAL
            where = {
                "location": location,
                "offset": offsets[value.name],
                "length": tensor.nbytes,
            }
            for key, entry in where.items():
                stored.external_data.add(key=key, value=str(entry))
        elif _verbatim(tensor):
            tensor.name = value.name
            stored = ir.serde.serialize_tensor(tensor)
        else:
            stored = _described(value, tensor)
            stored.raw_data = b"".join(next(iter(evaluated([tensor], 1, 1))))
        proto.graph.initializer.append(stored)
    if proto.ByteSize() > PROTOBUF_LIMIT_BYTES:
        raise InputError("the graph without its weights is over the 2 GB of a protobuf file")
    return bytes(proto.SerializeToString())


def apart(model: ir.Model) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """A model that only describes its larger weights, and their values by name.

    Types that numpy does not know, such as 4 bits, stay in the model, and what nothing reads: the
    runtime has removed it when it looks for the values. It needs sizes before that, such as those
    of many parts.
    """
    read = {value for node in model.graph.all_nodes() for value in node.inputs}
    weights = {
        v.name or "": t
        for v, t in _weights(model)
        if _is_large(t) and t.dtype in _NUMPY_TYPES and v in read
    }
    proto = external_proto(model, dict.fromkeys(weights, 0), "in memory")
    return proto, {n: np.ascontiguousarray(read_array(t)) for n, t in weights.items()}


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The model without the weights of its main graph; nothing in it is external."""
    with weightless(model):
        proto = ir.serde.serialize_model(model)
    del proto.graph.initializer[:]
    externals = {_key(t.location, t.offset, t.length): t for t in _nested_externals(model)}
    for stored in tensor_protos(proto):
        if stored.data_location == onnx.TensorProto.EXTERNAL:
            where = {e.key: e.value for e in stored.external_data}
            key = _key(where["location"], where.get("offset"), where.get("length"))
            array = read_array(externals[key])
            stored.raw_data = ir.tensor(array, dtype=externals[key].dtype).tobytes()
            stored.ClearField("data_location")
            del stored.external_data[:]
    put_back(proto, model.graph.initializers)
    return proto


@contextlib.contextmanager
def weightless(model: ir.Model) -> Iterator[None]:
    """Take the weights out of the main graph for the duration."""
    kept = [(value, value.const_value) for value in model.graph.initializers.values()]
    try:
        for value, tensor in kept:
            if tensor is not None:
                value.const_value = ir.Tensor(np.zeros(0, np.uint8), name=value.name)
        yield
    finally:
        for value, tensor in kept:
            value.const_value = tensor


def _nested_externals(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """External tensors of subgraphs and of node attributes, functions included."""
    roots = [model.graph, *(f.graph for f in model.functions.values())]
    for root in roots:
        for graph in root.subgraphs():
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    yield value.const_value
        for node in RecursiveGraphIterator(root):
            for attribute in node.attributes.values():
                listed = attribute.value if isinstance(attribute.value, (list, tuple)) else ()
                for each in (attribute.value, *listed):
                    if isinstance(each, ir.ExternalTensor):
                        yield each


def _key(location: object, offset: object, length: object) -> tuple[str, ...]:
    return (str(location), str(offset), str(length))


def _weights(model: ir.Model) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    return [
        (v, v.const_value) for v in model.graph.initializers.values() if v.const_value is not None
    ]


def _verbatim(tensor: ir.TensorProtocol) -> bool:
    """Whether the tensor keeps its own protobuf form: strings, and numbers in fields by type.

    Raw bytes are told from their description and copied once; protobuf would encode them, that is
    copy them, for their length too.
    """
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        return not tensor.raw.HasField("raw_data") or tensor.dtype is ir.DataType.STRING
    return isinstance(tensor, ir.StringTensor) or tensor.dtype is ir.DataType.STRING


def _is_large(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor may be kept outside of the model; integers that may be sizes may not."""
    sizes = tensor.dtype in (ir.DataType.INT32, ir.DataType.INT64)
    least = _SIZES_UP_TO_BYTES if sizes else INLINE_UP_TO_BYTES
    return tensor.dtype is not ir.DataType.STRING and tensor.nbytes > least


def _described(value: ir.Value, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """A tensor's description without its data."""
    proto = onnx.TensorProto(
        name=value.name, data_type=tensor.dtype.value, dims=static_shape(tensor)
    )
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    for key, entry in sorted(tensor.metadata_props.items()):
        proto.metadata_props.add(key=key, value=entry)
    return proto


def _head(value: ir.Value, tensor: ir.TensorProtocol) -> bytes:
    """The initializer field up to its raw data, or all of it for a tensor kept verbatim."""
    if _verbatim(tensor):
        tensor.name = value.name
        proto = (
            tensor.raw
            if isinstance(tensor, ir.serde.TensorProtoTensor)
            else ir.serde.serialize_tensor(tensor)
        )
        content = proto.SerializeToString()
        return _INITIALIZER_TAG + _varint(len(content)) + bytes(content)
    size = int(tensor.nbytes)
    content = _described(value, tensor).SerializeToString() + _RAW_DATA_TAG + _varint(size)
    return _INITIALIZER_TAG + _varint(len(content) + size) + content


def _field_bytes(value: ir.Value, tensor: ir.TensorProtocol) -> int:
    """Size of a whole initializer field, its weights not evaluated or copied."""
    if isinstance(tensor, ir.serde.TensorProtoTensor) and _verbatim(tensor):
        tensor.name = value.name
        size = int(tensor.raw.ByteSize())
        return 1 + len(_varint(size)) + size
    return len(_head(value, tensor)) + (0 if _verbatim(tensor) else int(tensor.nbytes))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
