"""Texts in a model file: protobuf hands out those that are no UTF-8 as bytes, without a word."""

from __future__ import annotations

from typing import Any

import onnx
from google.protobuf.message import Message

from lwqc.errors import InputError

_OF_TENSORS = [
    onnx.TensorProto.DESCRIPTOR.fields_by_name[name]
    for name in ("name", "doc_string", "external_data", "metadata_props")
]  # all but numbers, which would be copied


def check_texts(message: Message, label: str) -> None:
    """Raise InputError for a name, or another text, that is not UTF-8; data is not read."""
    todo: list[Any] = [message]
    while todo:
        one = todo.pop()
        tensor = isinstance(one, onnx.TensorProto)
        fields = ((f, getattr(one, f.name)) for f in _OF_TENSORS) if tensor else one.ListFields()
        for field, value in fields:
            values = [value] if isinstance(value, (str, bytes, Message)) else value
            if field.type == field.TYPE_MESSAGE:
                todo.extend(values)
            elif field.type == field.TYPE_STRING and not all(isinstance(v, str) for v in values):
                raise InputError(f"{label}: not a valid ONNX model: a name is not UTF-8")
