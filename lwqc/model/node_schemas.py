"""Nodes of a model file against the schemas of their operators, as far as ONNX has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import onnx
from onnx.defs import OpSchema

from lwqc.errors import InputError
from lwqc.model.model_scopes import bodies

_Attribute = onnx.AttributeProto
# Where a value of each type is; a field that is set and does not belong to the type is a lie.
_FIELDS: Mapping[int, str] = {
    _Attribute.FLOAT: "f",
    _Attribute.INT: "i",
    _Attribute.STRING: "s",
    _Attribute.TENSOR: "t",
    _Attribute.GRAPH: "g",
    _Attribute.SPARSE_TENSOR: "sparse_tensor",
    _Attribute.TYPE_PROTO: "tp",
    _Attribute.FLOATS: "floats",
    _Attribute.INTS: "ints",
    _Attribute.STRINGS: "strings",
    _Attribute.TENSORS: "tensors",
    _Attribute.GRAPHS: "graphs",
    _Attribute.SPARSE_TENSORS: "sparse_tensors",
    _Attribute.TYPE_PROTOS: "type_protos",
}
_KINDS = onnx.AttributeProto.AttributeType
_CONSTANT = ("", "Constant")
_RUNTIME_DOMAINS = frozenset({"", "com.microsoft"})  # some of its own are in the domain of ONNX
RUNTIME_ATTRIBUTES: Mapping[str, int] = {
    **dict.fromkeys(
        [
            "K",
            "N",
            "accuracy_level",
            "axis",
            "bits",
            "block_size",
            "channels_last",
            "do_rotary",
            "gather_axis",
            "group",
            "groups",
            "interleaved",
            "is_causal",
            "keepdims",
            "kv_num_heads",
            "local_window_size",
            "num_heads",
            "past_present_share_buffer",
            "quantize_axis",
            "rotary_embedding_dim",
            "scale_type",
            "smooth_softmax",
            "transA",
            "transB",
            "transBatchA",
            "transBatchB",
            "unidirectional",
            "weight_prepacked",
        ],
        _Attribute.INT,
    ),
    **dict.fromkeys(
        ["alpha", "beta", "epsilon", "mask_filter_value", "scale", "softcap"], _Attribute.FLOAT
    ),
    **dict.fromkeys(
        ["dilations", "kernel_shape", "output_padding", "pads", "qkv_hidden_sizes", "strides"],
        _Attribute.INTS,
    ),
    **dict.fromkeys(["auto_pad", "equation"], _Attribute.STRING),
}


def check_nodes(proto: onnx.ModelProto) -> None:
    """Check attributes and the numbers of inputs and outputs of every node. Raises InputError.

    Of operators that ONNX does not know only the form of the attributes is checked.
    """
    own = {(_domain(f.domain), f.name) for f in proto.functions}
    _check(proto.graph.node, _versions(proto.opset_import), own, "", inside=False)
    for function in proto.functions:
        versions = _versions(proto.opset_import) | _versions(function.opset_import)
        _check(function.node, versions, own, f"function {function.name}: ", inside=True)


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {_domain(entry.domain): entry.version for entry in imports}


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check(
    nodes: Iterable[onnx.NodeProto],
    versions: Mapping[str, int],
    own: set[tuple[str, str]],
    where: str,
    *,
    inside: bool,
) -> None:
    """inside: of a function, whose attributes may be those of the call."""
    for node in nodes:
        here = f"{where}{node.op_type} {node.name or (node.output[0] if node.output else '')}"
        if not node.op_type:
            raise InputError(f"{here}: is no operator")
        domain = _domain(node.domain)
        _check_form(node, here, inside=inside)
        if (domain, node.op_type) not in own:
            if domain not in versions:
                raise InputError(f"{here}: the model imports no operators of {domain or 'ai.onnx'}")
            schema = _schema(node.op_type, versions[domain], domain)
            if schema is not None:
                _check_counts(node, schema, here)
                _check_attributes(node, schema, here)
            elif domain in _RUNTIME_DOMAINS:
                check_runtime_attributes(node, here)
        for attribute in node.attribute:
            for body in bodies(attribute):
                _check(body.node, versions, own, f"{here}: ", inside=inside)


@cache
def _schema(op_type: str, version: int, domain: str) -> OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError):  # not known; a version that is no C integer
        return None


def check_runtime_attributes(node: onnx.NodeProto, here: str) -> None:
    """Of ONNX Runtime's own operators: types by name, which are the same for all of them."""
    for attribute in node.attribute:
        wanted = RUNTIME_ATTRIBUTES.get(attribute.name)
        if wanted is not None and attribute.type != wanted:
            raise InputError(
                f"{here}: attribute {attribute.name}: is not of type {_KINDS.Name(wanted)}"
            )


def _check_form(node: onnx.NodeProto, here: str, *, inside: bool) -> None:
    seen: set[str] = set()
    for attribute in node.attribute:
        label = f"{here}: attribute {attribute.name}"
        if attribute.name in seen:
            raise InputError(f"{label}: is given twice")
        seen.add(attribute.name)
        if attribute.ref_attr_name:
            if not inside:
                raise InputError(f"{label}: refers to that of a function, but is in none")
            if attribute.type in (_Attribute.GRAPH, _Attribute.GRAPHS):
                raise InputError(f"{label}: takes its body from whoever calls the function")
            continue
        field = _FIELDS.get(attribute.type)
        if field is None:
            raise InputError(f"{label}: has no type")
        for set_field, _ in attribute.ListFields():
            if set_field.name in _VALUES and set_field.name != field:
                raise InputError(f"{label}: holds {set_field.name}, which is not of its type")
        if attribute.type in _MESSAGES and not attribute.HasField(field):
            raise InputError(f"{label}: holds nothing")


_VALUES = frozenset(_FIELDS.values())
_MESSAGES = frozenset({_Attribute.TENSOR, _Attribute.GRAPH, _Attribute.SPARSE_TENSOR,
                       _Attribute.TYPE_PROTO})  # fmt: skip


def only_types(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Outputs of operators that give one type alone, which ONNX's inference need not know of.

    So it is with the scores of TreeEnsembleClassifier, of which it infers the labels only.
    """
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    found = []
    for node in proto.graph.node:
        schema = _schema(node.op_type, versions.get(node.domain, 1), node.domain)
        for name, formal in zip(node.output, schema.outputs if schema else (), strict=False):
            kinds = list(formal.types)
            if name and len(kinds) == 1 and kinds[0].startswith(_TENSOR):
                number = onnx.TensorProto.DataType.Value(kinds[0][len(_TENSOR) : -1].upper())
                found.append(onnx.helper.make_tensor_value_info(name, number, None))
    return found


_TENSOR = "tensor("


def _check_counts(node: onnx.NodeProto, schema: OpSchema, here: str) -> None:
    for what, names, least, most, slots in (
        ("inputs", node.input, schema.min_input, schema.max_input, schema.inputs),
        ("outputs", node.output, schema.min_output, schema.max_output, schema.outputs),
    ):
        if not least <= len(names) <= most:
            expected = f"{least}" if least == most else f"{least} to {most}"
            if most > 2**30:
                expected = f"at least {least}"
            raise InputError(f"{here}: has {len(names)} {what}; expected {expected}")
        for name, slot in zip(names, slots, strict=False):
            if not name and slot.option == OpSchema.FormalParameterOption.Single:
                raise InputError(f"{here}: leaves out {slot.name}, one of its {what}")


def _check_attributes(node: onnx.NodeProto, schema: OpSchema, here: str) -> None:
    known = schema.attributes
    for attribute in node.attribute:
        if attribute.name.startswith("__"):  # ONNX leaves these to tools
            continue
        if attribute.name not in known:
            raise InputError(f"{here}: attribute {attribute.name}: the operator has none")
        wanted = _name(known[attribute.name].type)
        if wanted != "UNDEFINED" and _KINDS.Name(attribute.type) != wanted:
            raise InputError(f"{here}: attribute {attribute.name}: is not of type {wanted}")
    given = {attribute.name for attribute in node.attribute}
    if missing := sorted(_required(schema) - given):
        raise InputError(f"{here}: attribute {missing[0]} is missing")
    if (schema.domain, schema.name) == _CONSTANT and len(given) != 1:
        raise InputError(f"{here}: has {len(given)} values; expected one")


def _required(schema: OpSchema) -> set[str]:
    return {name for name, attribute in schema.attributes.items() if attribute.required}


def _name(kind: Any) -> str:
    """What the schemas of ONNX call a type; their Python types are not annotated."""
    return str(kind.name)
