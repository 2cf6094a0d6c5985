"""Types and ranks that a model file declares, against those that follow from its operators."""

from __future__ import annotations

import onnx

from lwqc.errors import InputError, SessionError
from lwqc.model.inference import bare, infer
from lwqc.model.node_schemas import only_types


def check_declared(proto: onnx.ModelProto) -> None:
    """Check that operands fit their operators, and that what is declared has the ranks it should.

    Sizes may differ: runtimes take those that they find. Raises InputError.
    """
    stored = {t.name: len(t.dims) for t in proto.graph.initializer}
    for value in proto.graph.input:
        shape = _shape(value)
        if value.name in stored and shape is not None and len(shape.dim) != stored[value.name]:
            raise InputError(
                f"input {value.name}: has {len(shape.dim)} dimensions, its default "
                f"{stored[value.name]}"
            )
    try:
        plain = bare(proto)
        plain.graph.value_info.extend(only_types(plain))
        inferred = infer(plain, strict=True).graph
    except SessionError as error:
        raise InputError(f"its operators do not fit together: {error}") from error
    found = {v.name: v for v in (*inferred.value_info, *inferred.output)}
    for value in (*proto.graph.value_info, *proto.graph.output):
        if value.name in found:
            _compare(value, found[value.name])


def _compare(declared: onnx.ValueInfoProto, found: onnx.ValueInfoProto) -> None:
    said, known = _shape(declared), _shape(found)
    if said is not None and known is not None and len(said.dim) != len(known.dim):
        raise InputError(
            f"value {declared.name}: is declared with {len(said.dim)} dimensions, its operator "
            f"gives {len(known.dim)}"
        )
    a, b = declared.type.tensor_type.elem_type, found.type.tensor_type.elem_type
    if a and b and a != b:
        raise InputError(
            f"value {declared.name}: is declared as {_kind(a)}, its operator gives {_kind(b)}"
        )


def _kind(number: int) -> str:
    """Name of an element type, or the number that none has."""
    names = onnx.TensorProto.DataType
    return names.Name(number) if number in names.values() else f"type {number}"


def _shape(value: onnx.ValueInfoProto) -> onnx.TensorShapeProto | None:
    if value.type.WhichOneof("value") != "tensor_type":
        return None
    kind = value.type.tensor_type
    return kind.shape if kind.HasField("shape") else None
