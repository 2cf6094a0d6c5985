"""Load and save models: lazily, atomically, and without trusting the file.

The parts: `untrusted` parses and checks, `paths` keeps data files in the model's folder,
`tensor_bytes` reads weights, `model_stream` and `saving` write.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir import external_data as ir_external

from lwqc.errors import InputError
from lwqc.model.gate import check_model
from lwqc.model.kept_parts import keep_parts, leave_to_inference
from lwqc.model.metadata import without_metadata
from lwqc.model.model_stream import skeleton, weightless, write_inline
from lwqc.model.normal_form import normalise
from lwqc.model.outputs import check_output
from lwqc.model.saving import EXTERNAL_ABOVE_BYTES, Draft, SavedModel, drafted, save, weight_bytes
from lwqc.model.tensor_bytes import chunks, read_array, read_rows
from lwqc.model.untrusted import MAX_OPSET, MIN_OPSET, check_proto, checked_proto
from lwqc.model.weights import static_shape

__all__ = [
    "EXTERNAL_ABOVE_BYTES",
    "MAX_OPSET",
    "MIN_OPSET",
    "Draft",
    "SavedModel",
    "check_output",
    "detached",
    "drafted",
    "from_proto",
    "load",
    "model_digest",
    "read_array",
    "read_rows",
    "save",
    "serialized_bytes",
    "to_bytes",
    "weight_bytes",
]


def load(path: str | os.PathLike[str], *, constant_inputs: bool = False) -> ir.Model:
    """Load a model; external weights stay in their file until they are read.

    constant_inputs: inputs with a default value, which callers may override, are constants.

    Raises InputError, in one line, for anything that is not a readable, supported ONNX model, and
    for external data that is missing, too short or outside the model's folder.
    """
    file = Path(path)
    try:
        proto, base = checked_proto(file)
    except InputError as error:
        raise InputError(f"{error}{_other_framework(file)}") from error
    model = _deserialized(proto, str(file), base, constant_inputs)
    model.meta["lwqc_path"] = str(file)
    return model


def _other_framework(file: Path) -> str:
    """What to do with a file that is not called one of ONNX's."""
    called_so = file.suffix.lower() == ".onnx" or not file.exists()
    return "" if called_so else f"; one of another framework: lwqc convert {file} -o model.onnx"


def from_proto(proto: onnx.ModelProto, *, constant_inputs: bool = False) -> ir.Model:
    """The same from a model in memory, which is left alone."""
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    check_proto(own, "model")
    return _deserialized(own, "model", None, constant_inputs)


def _deserialized(
    proto: onnx.ModelProto, label: str, base: Path | None, constant_inputs: bool
) -> ir.Model:
    """meta `lwqc_notes`: what a user should know of how the file was read. `lwqc_declared`: outputs
    whose shapes are only declared.
    """
    try:
        keep_parts(proto)
        notes = normalise(proto, constant_inputs=constant_inputs)
        declared = check_model(proto)
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise InputError(f"{label}: not a valid ONNX model: {_line(error)}") from error
    if base is not None:
        ir_external.set_base_dir(model.graph, str(base))
        for function in model.functions.values():
            ir_external.set_base_dir(function.graph, str(base))
    model.meta["lwqc_notes"] = (*notes, *declared.notes)
    model.meta["lwqc_declared"] = declared.unconfirmed
    return model


def detached(model: ir.Model) -> ir.Model:
    """The model with every external weight read into memory, for when its files will go."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(
                    read_array(tensor),
                    dtype=tensor.dtype,
                    shape=ir.Shape(tensor.shape),
                    name=tensor.name,
                    doc_string=tensor.doc_string,
                    metadata_props=dict(tensor.metadata_props),
                )
    return model


def to_bytes(model: ir.Model) -> bytes:
    """The serialised model, weights inlined. Raises InputError above the 2 GB of protobuf."""
    file = BytesIO()
    write_inline(model, file, workers=1, in_flight_bytes=128 << 20)
    return file.getvalue()


def serialized_bytes(model: ir.Model) -> int:
    """Size of the model when saved, without evaluating any weight.

    Never too small: of each weight's protobuf fields, the lengths are counted at their largest.
    """
    with weightless(model):
        proto = ir.serde.serialize_model(model)
    leave_to_inference(model, proto)
    weights = (v.const_value for v in model.graph.initializers.values())
    return int(proto.ByteSize()) + sum(_field_bytes(t) for t in weights if t is not None)


def _field_bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes of a weight's data, dimensions and length prefixes, at most."""
    data = int(tensor.nbytes)
    prefixes = 1 + 2 * _varint_bytes(data + 1024)
    return data + prefixes + sum(1 + _varint_bytes(d) for d in static_shape(tensor))


def _varint_bytes(number: int) -> int:
    """Length of a protobuf integer: seven bits per byte."""
    return max(1, -(-number.bit_length() // 7))


def model_digest(model: ir.Model) -> str:
    """sha256 of graph and weights, for inline and external storage, and any metadata, the same."""
    values: Sequence[ir.Value] = list(model.graph.initializers.values())
    digest = hashlib.sha256()
    with ThreadPoolExecutor(2) as pool:
        for weight in pool.map(_weight_digest, values):
            digest.update(weight)
    digest.update(skeleton(without_metadata(model)[0]).SerializeToString(deterministic=True))
    return digest.hexdigest()


def _weight_digest(value: ir.Value) -> bytes:
    tensor = value.const_value
    digest = hashlib.sha256(repr(value.name).encode())
    if tensor is not None:
        digest.update(f"{tensor.dtype.name}{static_shape(tensor)}".encode())
        if tensor.dtype is ir.DataType.STRING:
            digest.update(ir.serde.serialize_tensor(tensor).SerializeToString(deterministic=True))
        else:
            for chunk in chunks(tensor):
                digest.update(chunk)
    return digest.digest()


def _line(error: BaseException) -> str:
    """First 300 characters of an error as one line; of a chain, its first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
