"""Parse an ONNX file that comes from a stranger, and check it before anything is allocated.

Memory is bounded by the size of the file: no number in it is believed before it was compared with
the bytes that are there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from lwqc.errors import InputError
from lwqc.model.paths import external_file, model_folders
from lwqc.model.texts import check_texts

MIN_OPSET, MAX_OPSET = 7, 26  # onnxruntime 1.31 loads no newer one
_VERSIONS = 2**31  # so many fit into the number that ONNX has for them
MIN_IR_VERSION, MAX_IR_VERSION = 3, int(onnx.IR_VERSION)
PROTOBUF_LIMIT_BYTES = 2**31 - 1
_LARGEST_TENSOR_BYTES = 2**46  # zero dimensions left out; nothing real comes near
_DEEPEST_SUBGRAPH = 50
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


def checked_proto(file: Path) -> tuple[onnx.ModelProto, Path]:
    """Parse and check a model file; return it and the folder that its data locations refer to.

    Locations of external data are rewritten to their real files, relative to that folder.

    Raises InputError, in one line, for everything that is not a readable, supported ONNX model.
    """
    proto = _parse(file)
    externals = check_proto(proto, str(file))
    return proto, _resolve_locations(file, externals)


def check_proto(proto: onnx.ModelProto, label: str) -> list[onnx.TensorProto]:
    """Check versions and tensors; the tensors whose data is in other files are returned.

    Raises InputError that starts with `label`.
    """
    if not proto.HasField("graph") or not proto.opset_import:
        raise InputError(f"{label}: not an ONNX model: it has no graph or no opset")
    try:
        _check_versions(label, proto)
        _check_supported(label, proto)
        check_texts(proto, label)
        return [t for t in tensor_protos(proto) if _is_external(f"{label}: {_named(t)}", t)]
    except RecursionError as error:
        raise InputError(f"{label}: subgraphs are nested too deep") from error


def _parse(file: Path) -> onnx.ModelProto:
    try:
        if file.is_dir():
            raise InputError(f"{file}: is a folder; expected an ONNX file")
        if not file.exists():
            raise InputError(f"{file}: no such file")
        if not file.is_file():
            raise InputError(f"{file}: is not a regular file; expected an ONNX file")
        size = file.stat().st_size
        if size == 0:
            raise InputError(f"{file}: is empty; expected an ONNX file")
        if size > PROTOBUF_LIMIT_BYTES:
            raise InputError(
                f"{file}: {size} bytes are over the 2 GB of a protobuf file; "
                f"save it with external data"
            )
        proto = onnx.ModelProto()
        proto.ParseFromString(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    except (DecodeError, ValueError) as error:
        raise InputError(f"{file}: not an ONNX file, or cut short") from error
    return proto


def _check_versions(file: str, proto: onnx.ModelProto) -> None:
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not MIN_OPSET <= entry.version <= MAX_OPSET:
            raise InputError(
                f"{file}: opset {entry.version} is not supported; expected {MIN_OPSET} to "
                f"{MAX_OPSET}; convert it with onnx.version_converter"
            )
    own = (entry for function in proto.functions for entry in function.opset_import)
    for entry in (*proto.opset_import, *own):
        if not 0 <= entry.version < _VERSIONS:
            raise InputError(
                f"{file}: version {entry.version} of domain {entry.domain[:60]!r} is not "
                f"supported; expected 0 to {_VERSIONS - 1}"
            )
    if not MIN_IR_VERSION <= proto.ir_version <= MAX_IR_VERSION:
        raise InputError(
            f"{file}: IR version {proto.ir_version} is not supported; expected "
            f"{MIN_IR_VERSION} to {MAX_IR_VERSION}; export it again with another version of onnx"
        )


def _check_supported(file: str, proto: onnx.ModelProto) -> None:
    """Refuse what onnx_ir 1.1 drops without a word: the saved model would be another one."""
    if proto.training_info:
        raise InputError(f"{file}: has training information; export the inference model")
    for graph in graph_protos(proto):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise InputError(f"{file}: tensor {name}: sparse initializers are not supported")


def graph_protos(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """All graphs of a model: its own, those of its functions, and those nested in nodes."""
    yield proto.graph
    yield from _nested(proto.graph.node, 0)
    for function in proto.functions:
        yield from _nested(function.node, 0)


def _nested(nodes: Iterable[onnx.NodeProto], depth: int) -> Iterator[onnx.GraphProto]:
    if depth > _DEEPEST_SUBGRAPH:
        raise RecursionError
    for node in nodes:
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else []
            for graph in [*graphs, *attribute.graphs]:
                yield graph
                yield from _nested(graph.node, depth + 1)


def tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: initializers and tensor attributes, functions included."""
    for graph in graph_protos(proto):
        yield from graph.initializer
        yield from _attribute_tensors(graph.node)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)
        for default in function.attribute_proto:
            yield from _tensors_of(default)


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _tensors_of(attribute)


def _tensors_of(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for each in [*sparse, *attribute.sparse_tensors]:
        yield from (each.values, each.indices)


def _named(tensor: onnx.TensorProto) -> str:
    return f"tensor {tensor.name or '(unnamed)'}"


def _is_external(label: str, tensor: onnx.TensorProto) -> bool:
    """Check a tensor's type, dimensions and inline bytes; True if its data is in another file."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise InputError(f"{label}: unknown element type {tensor.data_type}") from error
    if dtype is ir.DataType.UNDEFINED:
        raise InputError(f"{label}: has no element type")
    dims = list(tensor.dims)
    if any(d < 0 for d in dims):
        raise InputError(f"{label}: negative dimension in {dims}")
    if len(dims) > 64 or math.prod(d or 1 for d in dims) > _LARGEST_TENSOR_BYTES:
        raise InputError(f"{label}: no tensor is as large as {dims[:8]}")
    if tensor.HasField("segment"):
        raise InputError(f"{label}: tensors stored in segments are not supported")
    count = math.prod(dims)
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if dtype is ir.DataType.STRING:
        if external or tensor.HasField("raw_data") or len(tensor.string_data) != count:
            raise InputError(
                f"{label}: has {len(tensor.string_data)} strings, {dims} needs {count}"
            )
    elif not external:
        _check_inline(label, tensor, dtype, count)
    return external


def _check_inline(label: str, tensor: onnx.TensorProto, dtype: ir.DataType, count: int) -> None:
    dims = list(tensor.dims)
    if tensor.HasField("raw_data"):
        need = stored_bytes(dtype, count)
        if len(tensor.raw_data) != need:
            raise InputError(
                f"{label}: has {len(tensor.raw_data)} bytes of data, {dims} of {dtype.name} "
                f"needs {need}"
            )
        return
    field, need = _list_field(dtype, count)
    have = len(getattr(tensor, field))
    if have != need:
        raise InputError(
            f"{label}: has {have} values in {field}, {dims} of {dtype.name} needs {need}"
        )


def _list_field(dtype: ir.DataType, count: int) -> tuple[str, int]:
    """The list that holds values of a type (onnx.proto, TensorProto) and its length."""
    kinds = ir.DataType
    if dtype in (kinds.FLOAT, kinds.COMPLEX64):
        return "float_data", count * (2 if dtype is kinds.COMPLEX64 else 1)
    if dtype in (kinds.DOUBLE, kinds.COMPLEX128):
        return "double_data", count * (2 if dtype is kinds.COMPLEX128 else 1)
    if dtype is kinds.INT64:
        return "int64_data", count
    if dtype in (kinds.UINT32, kinds.UINT64):
        return "uint64_data", count
    packed = 8 // dtype.bitwidth if dtype.bitwidth in (2, 4) else 1
    return "int32_data", -(-count // packed)


def stored_bytes(dtype: ir.DataType, count: int) -> int:
    """Bytes of `count` packed values."""
    return -(-count * dtype.bitwidth // 8)


def _resolve_locations(file: Path, externals: list[onnx.TensorProto]) -> Path:
    """Check external data and point it at the real files; return the folder they are below."""
    real = {id(t): _checked_external(file, t) for t in externals}
    folders = model_folders(file)
    base = next((f for f in folders if all(r.is_relative_to(f) for r in real.values())), None)
    if base is None:
        raise InputError(f"{file}: its data files lie in two folders; put them beside the model")
    for tensor in externals:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = real[id(tensor)].relative_to(base).as_posix()
    return base


def _checked_external(file: Path, tensor: onnx.TensorProto) -> Path:
    label = f"{file}: {_named(tensor)}"
    entries = {e.key: e.value for e in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise InputError(f"{label}: its external data gives a key twice")
    data = external_file(file, label, entries.get("location", ""))
    need = stored_bytes(ir.DataType(tensor.data_type), math.prod(tensor.dims))
    offset, length = (entries.get(k) for k in ("offset", "length"))
    for number in (offset, length):
        if number is not None and not _NUMBER.fullmatch(number):
            raise InputError(f"{label}: offset or length {number[:40]!r} of its data is no number")
    start, size = int(offset or 0), need if length is None else int(length)
    if size != need:
        raise InputError(f"{label}: its data has length {size}; its shape needs {need} bytes")
    if start + size > (have := data.stat().st_size):
        raise InputError(
            f"{label}: its data file {data.name} has {have} bytes, the tensor ends at "
            f"{start + size}; is the file complete?"
        )
    return data
