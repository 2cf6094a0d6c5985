"""Models as text, in and out; and what makes two of them the same graph."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.value_types import infer_types
from lwqc.model.names import bodies
from lwqc.model.weights import static_shape, stored_tensor

HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'
_SHOWN = 8  # numbers of a stored tensor that are written out


def model_of(
    text: str, stored: Sequence[str] | Mapping[str, NDArray[Any]] = (), *, seed: int = 0
) -> ir.Model:
    """The model that a text in ONNX's own syntax describes, with types and shapes inferred.

    A text without a header is of opset 20. stored: inputs of the text that are weights instead,
    with their numbers, or just their names: then numbers are drawn.

    Raises InputError for what is no ONNX text.
    """
    try:
        model = ir.from_onnx_text(text if text.lstrip().startswith("<") else HEADER + text)
    except (ValueError, onnx.parser.ParseError) as error:
        raise InputError(f"not ONNX text: {' '.join(str(error).split())}") from error
    rng = np.random.default_rng(seed)
    inputs = {value.name: value for value in model.graph.inputs}
    for name in stored:
        if name not in inputs:
            raise InputError(f"{name}: is no input of the text")
        given = stored[name] if isinstance(stored, Mapping) else _drawn(inputs[name], rng)
        _store(model.graph, inputs[name], given)
    infer_types(model)
    return model


def _drawn(value: ir.Value, rng: np.random.Generator) -> NDArray[Any]:
    sizes = [dim for dim in value.shape or () if isinstance(dim, int)]
    if value.shape is None or len(sizes) < len(value.shape) or value.dtype is None:
        raise InputError(f"{value.name}: a weight needs a type and sizes that are numbers")
    if value.dtype.is_integer():
        return rng.integers(-8, 8, sizes).astype(value.dtype.numpy())
    # A product with it keeps the size of its operand.
    fan = sizes[0] if len(sizes) == 2 else math.prod(sizes[1:])
    drawn: NDArray[Any] = rng.standard_normal(sizes) * fan**-0.5
    return drawn.astype(value.dtype.numpy())


def _store(graph: ir.Graph, value: ir.Value, numbers: NDArray[Any]) -> None:
    value.const_value = ir.tensor(numbers, name=value.name)
    value.shape, value.dtype = ir.Shape(numbers.shape), value.const_value.dtype
    graph.inputs.remove(value)
    graph.register_initializer(value)


def to_text(model: ir.Model) -> str:
    """The graph from its outputs back to its inputs, one node a line.

    The same for graphs that differ in names of values inside, in the order of nodes, or in whether
    a constant is an initializer or a Constant node. Of larger tensors a digest stands for the
    numbers.
    """
    return "\n".join(_lines(model.graph, {}, ""))


def _lines(graph: ir.Graph, around: Mapping[ir.Value, str], indent: str) -> Iterator[str]:
    names = dict(around)
    for value in graph.inputs:
        names[value] = value.name or ""
        yield f"{indent}input {value.name}: {_type(value)}"
    made = f"{indent.replace(' ', '_')}v"
    for number, node in enumerate(_from_outputs(graph)):
        for place, value in enumerate(node.outputs):
            names[value] = (
                f"{made}{number}" if len(node.outputs) == 1 else f"{made}{number}.{place}"
            )
        results = ", ".join(names[value] for value in node.outputs)
        operands = ", ".join("-" if v is None else _operand(v, names) for v in node.inputs)
        plain = [_attribute(a) for _, a in sorted(node.attributes.items()) if not _holds_graph(a)]
        written = f" <{', '.join(plain)}>" if plain else ""
        domain = f"{node.domain}." if node.domain else ""
        yield f"{indent}{results} = {domain}{node.op_type}({operands}){written}"
        for attribute, body in bodies(node):
            yield f"{indent}  {attribute}:"
            yield from _lines(body, names, f"{indent}    ")
    for value in graph.outputs:
        name = f"{value.name} = " if not indent else ""
        yield f"{indent}output {name}{_operand(value, names)}"


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


def _operand(value: ir.Value, names: Mapping[ir.Value, str]) -> str:
    tensor = stored_tensor(value)
    return names.get(value, f"?{value.name}") if tensor is None else _numbers(tensor)


def _numbers(tensor: ir.TensorProtocol) -> str:
    kind = f"{tensor.dtype.name.lower()}{list(static_shape(tensor))}"
    if tensor.size <= _SHOWN:
        return f"{kind}{{{', '.join(map(str, tensor.numpy().ravel().tolist()))}}}"
    return f"{kind}#{hashlib.sha256(tensor.tobytes()).hexdigest()[:8]}"


def _type(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ", ".join(map(str, value.shape))
    return f"{value.dtype.name.lower() if value.dtype else '?'}[{dims}]"


def _attribute(attribute: ir.Attr) -> str:
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return f"{attribute.name}={_numbers(attribute.as_tensor())}"
    return f"{attribute.name}={list(value) if isinstance(value, tuple) else value}"


def _holds_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
