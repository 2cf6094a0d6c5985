"""Models as text in which two of them are equal where their graphs are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from lwqc.model.names import bodies
from lwqc.model.weights import static_shape, stored_tensor

_SHOWN = 8  # numbers of a stored tensor that are written out
Numbers = Callable[[ir.TensorProtocol], str]


def content(tensor: ir.TensorProtocol) -> bytes:
    """What a tensor holds; texts, which have no bytes in a row, as a list of them."""
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    return tensor.tobytes()


def digest_of(tensor: ir.TensorProtocol) -> str:
    """What stands for the numbers of a larger tensor."""
    return hashlib.sha256(content(tensor)).hexdigest()[:8]


def to_text(model: ir.Model, large: Numbers = digest_of) -> str:
    """The graph from its outputs back to its inputs, one node a line, and functions after it.

    The same for graphs that differ in names of values inside, in the order of nodes, or in whether
    a constant is an initializer or a Constant node. large: what stands for the numbers of a larger
    tensor.
    """
    lines = list(_lines(model.graph, {}, "", large))
    for function in model.functions.values():
        lines.append(f"function {function.domain}.{function.name}:")
        lines += _lines(function.graph, {}, "  ", large)
    return "\n".join(lines)


def _lines(
    graph: ir.Graph, around: Mapping[ir.Value, str], indent: str, large: Numbers
) -> Iterator[str]:
    names = dict(around)
    for value in graph.inputs:
        names[value] = value.name or ""
        default = (
            f" = {_numbers(value.const_value, large)}" if value.const_value is not None else ""
        )
        yield f"{indent}input {value.name}: {_type(value)}{default}"
    made = f"{indent.replace(' ', '_')}v"
    for number, node in enumerate(_from_outputs(graph)):
        for place, value in enumerate(node.outputs):
            names[value] = (
                f"{made}{number}" if len(node.outputs) == 1 else f"{made}{number}.{place}"
            )
        results = ", ".join(names[value] for value in node.outputs)
        operands = ", ".join("-" if v is None else _operand(v, names, large) for v in node.inputs)
        plain = [
            _attribute(a, large) for _, a in sorted(node.attributes.items()) if not _holds_graph(a)
        ]
        written = f" <{', '.join(plain)}>" if plain else ""
        domain = f"{node.domain}." if node.domain else ""
        yield f"{indent}{results} = {domain}{node.op_type}({operands}){written}"
        for attribute, body in bodies(node):
            yield f"{indent}  {attribute}:"
            yield from _lines(body, names, f"{indent}    ", large)
    for value in graph.outputs:
        name = f"{value.name} = " if not indent else ""
        yield f"{indent}output {name}{_operand(value, names, large)}"


def _from_outputs(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that the outputs need, each behind those that it reads; constants left out."""
    found: dict[ir.Node, None] = {}
    pending = [(v.producer(), False) for v in reversed(graph.outputs)]
    while pending:
        node, ready = pending.pop()
        if node is None or node in found or node.graph is not graph:
            continue
        if stored_tensor(node.outputs[0]) is not None:
            continue
        if ready:
            found[node] = None
            continue
        pending.append((node, True))
        pending += [(v.producer(), False) for v in reversed(_read(node)) if v is not None]
    return list(found)


def _read(node: ir.Node) -> list[ir.Value | None]:
    """What a node and the bodies in it read."""
    read = [*node.inputs]
    for _, body in bodies(node):
        read += [v for inner in body for v in _read(inner)]
        read += list(body.outputs)
    return read


def _operand(value: ir.Value, names: Mapping[ir.Value, str], large: Numbers) -> str:
    tensor = stored_tensor(value)
    return names.get(value, f"?{value.name}") if tensor is None else _numbers(tensor, large)


def _numbers(tensor: ir.TensorProtocol, large: Numbers) -> str:
    kind = f"{tensor.dtype.name.lower()}{list(static_shape(tensor))}"
    if tensor.size <= _SHOWN:
        return f"{kind}{{{', '.join(map(str, tensor.numpy().ravel().tolist()))}}}"
    return f"{kind}#{large(tensor)}"


def _type(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ", ".join(map(str, value.shape))
    return f"{value.dtype.name.lower() if value.dtype else '?'}[{dims}]"


def _attribute(attribute: ir.Attr, large: Numbers) -> str:
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return f"{attribute.name}={_numbers(attribute.as_tensor(), large)}"
    return f"{attribute.name}={list(value) if isinstance(value, tuple) else value}"


def _holds_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
