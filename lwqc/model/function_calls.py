"""Functions of a model file: each is there once, is called as it is declared, and not by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from lwqc.errors import InputError
from lwqc.model.model_scopes import bodies

Key = tuple[str, str, str]  # domain, name, overload


def check_functions(proto: onnx.ModelProto) -> None:
    """Check that functions are distinct, calls fit, and none go in a circle. Raises InputError."""
    functions: dict[Key, onnx.FunctionProto] = {}
    for function in proto.functions:
        key = (_domain(function.domain), function.name, function.overload)
        if key in functions:
            raise InputError(f"function {function.name}: is there twice")
        functions[key] = function
    for node in _nodes(proto.graph.node):
        _check_call(node, functions)
    calls: dict[Key, set[Key]] = {}
    for key, function in functions.items():
        inner = list(_nodes(function.node))
        for node in inner:
            _check_call(node, functions)
        calls[key] = {_key(node) for node in inner}
    left = dict(calls)
    while done := [key for key, used in left.items() if not used & left.keys()]:
        for key in done:
            del left[key]
    if left:
        raise InputError(f"function {min(left)[1]}: calls itself, or another one that does")


def _check_call(node: onnx.NodeProto, functions: dict[Key, onnx.FunctionProto]) -> None:
    function = functions.get(_key(node))
    if function is None:
        return
    here = f"{node.op_type} {node.name or (node.output[0] if node.output else '')}"
    for what, given, most in (
        ("inputs", node.input, function.input),
        ("outputs", node.output, function.output),
    ):
        if len(given) > len(most):
            raise InputError(f"{here}: has {len(given)} {what}; its function has {len(most)}")
    known = {*function.attribute, *(a.name for a in function.attribute_proto)}
    for attribute in node.attribute:
        if attribute.name not in known:
            raise InputError(f"{here}: attribute {attribute.name}: its function has none")


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """With those of bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in bodies(attribute):
                yield from _nodes(body.node)


def _key(node: onnx.NodeProto) -> Key:
    return _domain(node.domain), node.op_type, node.overload


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
