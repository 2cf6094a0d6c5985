"""Load and save models: lazily, atomically, and without trusting the file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx_ir import external_data as ir_external

from lwqc.errors import InputError
from lwqc.graph.weights import static_shape
from lwqc.paths import external_file, link_free

MIN_OPSET, MAX_OPSET = 7, 26  # onnxruntime 1.31 loads no newer one
EXTERNAL_ABOVE_BYTES = 1_500_000_000  # a protobuf file ends at 2 GB
_PROTOBUF_LIMIT = 2**31 - 1
_CHUNK = 1 << 22


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Load a model; external weights stay in their file until they are read.

    Raises InputError, in one line, for anything that is not a readable, supported ONNX model, and
    for external data that is missing, too short or outside the model's folder.
    """
    file = Path(path)
    proto = _parse(file)
    _check_versions(file, proto)
    for tensor in _tensor_protos(proto):
        _check_tensor(file, tensor)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise InputError(f"{file}: not a valid ONNX model: {_line(error)}") from error
    ir_external.set_base_dir(model.graph, str(file.parent))
    for function in model.functions.values():
        ir_external.set_base_dir(function, str(file.parent))  # type: ignore[arg-type]
    model.meta["lwqc_path"] = str(file)
    return model


def _parse(file: Path) -> onnx.ModelProto:
    if file.is_dir():
        raise InputError(f"{file}: is a folder; expected an ONNX file")
    if not file.exists():
        raise InputError(f"{file}: no such file")
    try:
        size = file.stat().st_size
        if size == 0:
            raise InputError(f"{file}: is empty; expected an ONNX file")
        if size > _PROTOBUF_LIMIT:
            raise InputError(f"{file}: {size} bytes are over the 2 GB of a protobuf file")
        proto = onnx.ModelProto()
        proto.ParseFromString(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not an ONNX file, or cut short") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise InputError(f"{file}: not an ONNX model: it has no graph or no opset")
    return proto


def _check_versions(file: Path, proto: onnx.ModelProto) -> None:
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not MIN_OPSET <= entry.version <= MAX_OPSET:
            raise InputError(
                f"{file}: opset {entry.version} is not supported; expected {MIN_OPSET} to "
                f"{MAX_OPSET}; convert it with onnx.version_converter"
            )
    if not 3 <= proto.ir_version <= onnx.IR_VERSION:
        raise InputError(
            f"{file}: IR version {proto.ir_version} is not supported; "
            f"expected 3 to {onnx.IR_VERSION}"
        )


def _tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(proto.graph, 0)
    for function in proto.functions:
        yield from _node_tensors(function.node, 0)


def _graph_tensors(graph: onnx.GraphProto, depth: int) -> Iterator[onnx.TensorProto]:
    if depth > 50:
        raise InputError("subgraphs are nested more than 50 deep; the model is refused")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node, depth)


def _node_tensors(nodes: Iterable[onnx.NodeProto], depth: int) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g, depth + 1)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph, depth + 1)


def _check_tensor(file: Path, tensor: onnx.TensorProto) -> None:
    label = f"{file}: tensor {tensor.name or '(unnamed)'}"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise InputError(f"{label}: unknown element type {tensor.data_type}") from error
    if any(d < 0 for d in tensor.dims):
        raise InputError(f"{label}: negative dimension in {list(tensor.dims)}")
    if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return
    count = 1
    for d in tensor.dims:
        count *= d
    need = -(-count * dtype.bitwidth // 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(file, label, tensor, need)
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != need:
            raise InputError(
                f"{label}: {len(tensor.raw_data)} bytes of data, {list(tensor.dims)} "
                f"of {dtype.name} needs {need}"
            )
    elif _listed(tensor) * 8 < need:  # at the least one list element per eight bytes
        raise InputError(f"{label}: has fewer values than its shape {list(tensor.dims)} needs")


def _listed(tensor: onnx.TensorProto) -> int:
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    return sum(len(getattr(tensor, name)) for name in fields)


def _check_external(file: Path, label: str, tensor: onnx.TensorProto, need: int) -> None:
    entries = {e.key: e.value for e in tensor.external_data}
    data = external_file(file, label, entries.get("location", ""))
    try:
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", need) or need)
    except ValueError as error:
        raise InputError(f"{label}: offset or length of its data is not a number") from error
    have = data.stat().st_size
    if offset < 0 or length < 0 or length != need:
        raise InputError(f"{label}: offset {offset}, length {length}; its shape needs {need} bytes")
    if offset + length > have:
        raise InputError(
            f"{label}: {data.name} has {have} bytes, the tensor ends at {offset + length}"
        )


def read_array(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """A tensor's values in memory of our own.

    External tensors are read from their file rather than mapped: mapped pages that were touched
    count as resident memory for as long as the model is open.
    """
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < 8:
        return tensor.numpy()
    dtype = tensor.dtype.numpy()
    count = int(np.prod(static_shape(tensor), dtype=np.int64))
    raw = np.fromfile(
        tensor.path, dtype=np.uint8, count=count * dtype.itemsize, offset=tensor.offset or 0
    )
    return raw.view(dtype).reshape(static_shape(tensor))


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, subgraphs included."""
    return sum(
        int(value.const_value.nbytes)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def to_bytes(model: ir.Model) -> bytes:
    """The serialised model, weights inlined. Raises InputError above the 2 GB of protobuf."""
    if weight_bytes(model) > _PROTOBUF_LIMIT:
        raise InputError("the model is over 2 GB; it must be saved with external data")
    with _inlined(model):
        return bytes(ir.serde.serialize_model(model).SerializeToString())


@contextlib.contextmanager
def _inlined(model: ir.Model) -> Iterator[None]:
    """Replace external and lazy weights by in-memory ones for the duration."""
    kept: list[tuple[ir.Value, ir.TensorProtocol]] = []
    try:
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor):
                    kept.append((value, tensor))
                    value.const_value = _in_memory(tensor)
        yield
    finally:
        for value, tensor in kept:
            value.const_value = tensor


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    if tensor.dtype.bitwidth < 8:
        return ir_external.convert_tensors_from_external([tensor])[0]
    return ir.Tensor(
        read_array(tensor),
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=tensor.name,
        doc_string=tensor.doc_string,
    )


@dataclass(frozen=True)
class SavedModel:
    """A model on disk. size_bytes counts the model file and its data file."""

    path: Path
    data_path: Path | None
    size_bytes: int


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse, before any work, an output that cannot be written or that is one of the inputs."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target}: is a folder; expected a file name for the output")
    folder = target.parent
    if not folder.is_dir():
        raise InputError(f"{target}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK) or not _can_create(folder):
        raise InputError(f"{target}: the folder {folder} is not writable")
    for other in inputs:
        if target.exists() and Path(other).exists() and target.samefile(other):
            raise InputError(f"{target}: is the input itself; choose another output")


def _can_create(folder: Path) -> bool:
    probe = folder / f".lwqc-probe-{os.getpid()}.tmp"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    workers: int = 1,
    in_flight_bytes: int = 128 << 20,
) -> SavedModel:
    """Write a model; the target appears whole or not at all.

    external_data: True writes weights to a file of their own beside the model, None does so above
    1.5 GB. Lazy weights are evaluated while writing, `workers` at a time.

    The data file is renamed into place before the model that names it. A data file name that is
    already taken is not reused, so an older model beside it stays whole if the save is
    interrupted between the two renames; the older data file is removed last.

    Raises InputError when the folder cannot be written or the disk is full; nothing is left then.
    """
    target = link_free(Path(path))
    check_output(target, [])
    _remove_stale(target)
    if external_data is None:
        external_data = weight_bytes(model) > EXTERNAL_ABOVE_BYTES
    temporary = target.parent / f".{target.name}.lwqc-{os.getpid()}.tmp"
    temporary_data = target.parent / f"{temporary.name}.data"
    data = _free_data_name(target) if external_data else None
    old = _data_names(target) if target.exists() else set()
    replaced = False
    try:
        with _interruptible():
            if data is not None:
                _write_external(
                    model, temporary, temporary_data, data.name, workers, in_flight_bytes
                )
                os.replace(temporary_data, data)
            else:
                _write(temporary, to_bytes(model))
            os.replace(temporary, target)
            replaced = True
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
        temporary_data.unlink(missing_ok=True)
        if data is not None and not replaced:
            data.unlink(missing_ok=True)
    _remove_old_data(target, old, data)
    size = target.stat().st_size + (data.stat().st_size if data else 0)
    return SavedModel(target, data, size)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_external(
    model: ir.Model, path: Path, data: Path, final: str, workers: int, in_flight_bytes: int
) -> None:
    """Stream the weights to `data` and write a model that refers to them as `final`."""
    values = [v for g in model.graphs() for v in g.initializers.values()]
    kept = [v.const_value for v in values]
    try:
        ir_external.unload_from_model(
            model,
            str(data.parent),
            data.name,
            size_threshold_bytes=256,
            max_workers=workers,
            max_in_flight_bytes=in_flight_bytes,
        )
        with data.open("rb+") as file:
            os.fsync(file.fileno())
        proto = ir.serde.serialize_model(model)
        for stored in _tensor_protos(proto):
            for entry in stored.external_data:
                if entry.key == "location" and entry.value == data.name:
                    entry.value = final
        _write(path, proto.SerializeToString())
    finally:
        for value, tensor in zip(values, kept, strict=True):
            value.const_value = tensor


def _free_data_name(target: Path) -> Path:
    plain = target.with_name(f"{target.name}.data")
    if not plain.exists():
        return plain
    return target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.data")


def _data_names(target: Path) -> set[str]:
    """Data files that the model now at `target` refers to; none if there is no readable model."""
    try:
        proto = onnx.load(target, load_external_data=False)
    except (OSError, DecodeError, ValueError):
        return set()
    return {e.value for t in _tensor_protos(proto) for e in t.external_data if e.key == "location"}


def _remove_old_data(target: Path, old: set[str], current: Path | None) -> None:
    """Remove the data files, named by an earlier save, of the model that was just replaced."""
    ours = re.compile(re.escape(target.name) + r"(\.[0-9a-f]{8})?\.data")
    for name in old:
        if ours.fullmatch(name) and (current is None or name != current.name):
            target.with_name(name).unlink(missing_ok=True)


def _remove_stale(target: Path) -> None:
    """Remove temporaries of processes that were killed while saving this target."""
    prefix = f".{target.name}.lwqc-"
    for file in target.parent.glob(f"{prefix}*.tmp*"):
        pid = file.name.removeprefix(prefix).split(".")[0]
        if pid.isdigit() and int(pid) != os.getpid() and not _alive(int(pid)):
            file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that temporaries are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def detached(model: ir.Model) -> ir.Model:
    """The model with every external weight read into memory, for when its files will go."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _in_memory(value.const_value)
    return model


@contextlib.contextmanager
def _weightless(model: ir.Model) -> Iterator[None]:
    """Take the weights out of the model for the duration."""
    values = [v for g in model.graphs() for v in g.initializers.values()]
    kept = [v.const_value for v in values]
    try:
        for value in values:
            if value.const_value is not None:
                value.const_value = ir.tensor(np.zeros(0, np.uint8), name=value.name)
        yield
    finally:
        for value, tensor in zip(values, kept, strict=True):
            value.const_value = tensor


def serialized_bytes(model: ir.Model) -> int:
    """Size of the model when saved, within a few bytes per weight, without evaluating any."""
    with _weightless(model):
        graph = ir.serde.serialize_model(model).ByteSize()
    return weight_bytes(model) + int(graph)


def model_digest(model: ir.Model) -> str:
    """sha256 of graph and weights, the same for inline and external storage."""
    digest = hashlib.sha256()
    values = [v for g in model.graphs() for v in g.initializers.values()]
    with ThreadPoolExecutor() as pool:  # hashing and reading release the lock
        for found in pool.map(_tensor_digest, values):
            digest.update(found)
    with _weightless(model):
        digest.update(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
    return digest.hexdigest()


def _tensor_digest(value: ir.Value) -> bytes:
    tensor = value.const_value
    if tensor is None:
        return b""
    label = f"{value.name}:{tensor.dtype.name}:{static_shape(tensor)}"
    digest = hashlib.sha256(label.encode())
    for chunk in _chunks(tensor):
        digest.update(chunk)
    return digest.digest()


def _chunks(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor.tobytes()
        return
    left = int(tensor.nbytes)
    with open(tensor.path, "rb") as file:
        file.seek(tensor.offset or 0)
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk


def _line(error: BaseException) -> str:
    """First 300 characters of an error as one line; of a chain, its first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
