"""Types and ranks that a model file declares, against those that follow from its operators."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from lwqc.errors import InputError, SessionError
from lwqc.model.inference import bare, infer
from lwqc.model.node_schemas import only_types


@dataclass(frozen=True)
class Declared:
    """What a model only declares.

    unconfirmed: outputs whose ranks do not follow from the operators, as behind a Reshape to
    computed sizes. notes: outputs that were declared with another rank than their operators give.
    """

    unconfirmed: tuple[str, ...]
    notes: tuple[str, ...]


def check_declared(proto: onnx.ModelProto) -> Declared:
    """Check that operands fit their operators, and let what is declared have the ranks they give.

    Sizes may differ, and within bodies ranks too: runtimes take those that they find, and
    Paddle2ONNX declares conditions of loops as scalars that are vectors. Raises InputError.
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
        _forget_shapes_of_bodies(plain.graph)
        inferred = infer(plain, strict=True).graph
    except SessionError as error:
        raise InputError(f"its operators do not fit together: {error}") from error
    found = {v.name: v for v in (*inferred.value_info, *inferred.output)}
    for value in (*proto.graph.value_info, *proto.graph.output):
        if value.name in found:
            _compare_types(value, found[value.name])
    wrong = [v for v in proto.graph.output if _has_wrong_rank(v, found.get(v.name, _UNKNOWN))]
    notes = [
        f"output {value.name}: is declared with {len(value.type.tensor_type.shape.dim)} "
        f"dimensions, its operator gives {len(found[value.name].type.tensor_type.shape.dim)}"
        for value in wrong
    ]
    for value in (*proto.graph.value_info, *wrong):
        if _has_wrong_rank(value, given := found.get(value.name, _UNKNOWN)):
            value.type.tensor_type.shape.CopyFrom(given.type.tensor_type.shape)
    unconfirmed = (
        value.name
        for value in proto.graph.output
        if _shape(value) is not None and _shape(found.get(value.name, _UNKNOWN)) is None
    )
    return Declared(tuple(unconfirmed), tuple(notes))


_UNKNOWN = onnx.ValueInfoProto()


def _forget_shapes_of_bodies(graph: onnx.GraphProto) -> None:
    """Leave the types alone of what bodies declare, in place."""
    for body in (b for n in graph.node for a in n.attribute for b in (a.g, *a.graphs)):
        for own in (*body.input, *body.output, *body.value_info):
            if own.type.HasField("tensor_type"):
                own.type.tensor_type.ClearField("shape")
        _forget_shapes_of_bodies(body)


def _has_wrong_rank(declared: onnx.ValueInfoProto, found: onnx.ValueInfoProto) -> bool:
    said, known = _shape(declared), _shape(found)
    return said is not None and known is not None and len(said.dim) != len(known.dim)


def _compare_types(declared: onnx.ValueInfoProto, found: onnx.ValueInfoProto) -> None:
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
