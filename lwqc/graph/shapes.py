"""Sizes of every tensor at two settings of the dynamic dimensions.

A dimension that is equal in both is static. Two settings say more than symbols: exporters write
expressions such as `64*batch`, and shape arithmetic can be evaluated with plain integers.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import SessionError
from lwqc.graph.integers import Integers
from lwqc.graph.sampled import Sampled, Sizes, pair
from lwqc.model.inference import infer_node
from lwqc.model.weights import is_float, static_shape, stored_tensor

# Primes that divide no common channel count, so that sizes are not equal by accident.
_FEW = 16  # elements of the operands that sizes are computed from
_PRIMES = (
    (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53),
    (59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107),
)
_STRIDES = (32, 224)  # multiples of 2 to the 5th; of windows of 7 too
_NOTHING: Mapping[str, Sampled] = MappingProxyType({})
MOST_NAMES = len(_PRIMES[0])  # dynamic dimensions that can be told from each other
_ARITHMETIC: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


def declared_shapes(
    model: ir.Model, known: Mapping[str, Sampled] = _NOTHING
) -> tuple[dict[str, Sampled], tuple[str, ...]]:
    """What the file and ONNX shape inference tell, and the tensors they leave open.

    The model is not changed. Images of any size are none of a network with strides: where sizes
    that are prime leave tensors open, multiples of what strides add up to are tried. known: what
    this told of tensors that are there still; only those between them are inferred.
    """
    if known and (factor := _factor_of(model.graph, known)):
        found, missing = _declared(model, factor, known)
        if not missing:
            return found, ()
    best, left = _declared(model, 1)
    if left and _takes_pictures(model.graph):
        for factor in _STRIDES:
            found, missing = _declared(model, factor)
            if len(missing) < len(left):
                best, left = found, missing
    return best, tuple(sorted(left))


def _factor_of(graph: ir.Graph, known: Mapping[str, Sampled]) -> int:
    """What primes were multiplied with when these sizes were told; 0 where nothing fits."""
    fed = [value for value in graph.inputs if value.name in known]
    for factor in (1, *_STRIDES):
        first, second = _scaled(graph, factor)
        sizes = ((known[v.name or ""], _sizes(v, first), _sizes(v, second)) for v in fed)
        if all((k.first, k.second) == (a, b) for k, a, b in sizes):
            return factor
    return 0


def _scaled(graph: ir.Graph, factor: int) -> list[dict[str, int]]:
    """Both settings, at primes times a factor."""
    return [{n: s * factor for n, s in one.items()} for one in _settings(graph)]


def _declared(
    model: ir.Model, factor: int, known: Mapping[str, Sampled] = _NOTHING
) -> tuple[dict[str, Sampled], set[str]]:
    """The same at primes times a factor."""
    settings = _scaled(model.graph, factor)
    told = ({n: s.first for n, s in known.items()}, {n: s.second for n, s in known.items()})
    found = [
        {**_evaluated(model, setting), **sizes}
        for setting, sizes in zip(settings, told, strict=True)
    ]
    if any(_missing(model.graph, shapes) for shapes in found):
        found = [_inferred(model, shapes) for shapes in found]
    return pair(*found), _missing(model.graph, found[0]) | _missing(model.graph, found[1])


def _takes_pictures(graph: ir.Graph) -> bool:
    """Whether an input has two dimensions or more behind its channels of sizes that are open."""
    return any(
        sum(not isinstance(dim, int) for dim in value.shape[2:]) > 1
        for value in graph.inputs
        if value.shape is not None
    )


def dynamic_dimensions(graph: ir.Graph) -> tuple[str, ...]:
    """Names of the graph inputs' symbolic dimensions, in order; unnamed ones as `input:axis`.

    Expressions of the others, such as `past + sequence`, are left out.
    """
    names = (
        symbol
        for value in graph.inputs
        if value.shape is not None
        for axis, dim in enumerate(value.shape)
        if not isinstance(dim, int) and (symbol := symbol_of(value, axis, dim))
    )
    distinct = tuple(dict.fromkeys(names))
    return tuple(
        name
        for name in distinct
        if arithmetic(name, {other: 1 for other in distinct if other != name}) is None
    )


def symbol_of(value: ir.Value, axis: int, dim: ir.SymbolicDim) -> str:
    """Name of an input's dynamic dimension; one without a name is a size of its own."""
    return str(dim.value) if dim.value else f"{value.name}:{axis}"


def _settings(graph: ir.Graph) -> list[dict[str, int]]:
    names = dynamic_dimensions(graph)
    return [{n: primes[i % len(primes)] for i, n in enumerate(names)} for primes in _PRIMES]


def _evaluated(model: ir.Model, setting: Mapping[str, int]) -> dict[str, Sizes]:
    found = {}
    for value in _values(model.graph):
        sizes = _sizes(value, setting)
        if value.name and sizes is not None and None not in sizes:
            found[value.name] = tuple(int(s) for s in sizes if s is not None)
    return found


def _inferred(model: ir.Model, found: dict[str, Sizes]) -> dict[str, Sizes]:
    """ONNX's own inference node by node, with what the shape arithmetic computed so far.

    found: what is told already.
    """
    types = {
        v.name: ir.serde.serialize_type(v.type)
        for v in _values(model.graph)
        if v.name and v.type is not None
    }
    integers = Integers((), {})
    for node in model.graph:
        if any(o.name and (o.name not in found or o.name not in types) for o in node.outputs):
            for name, proto in _inferred_outputs(node, model, found, types, integers).items():
                types.setdefault(name, proto)
                sizes = _proto_sizes(proto)
                if sizes is not None:
                    found.setdefault(name, sizes)
        integers.add(node, {n: Sampled(found[n], found[n]) for n in _names(node) if n in found})
    return found


def _names(node: ir.Node) -> list[str]:
    return [v.name for v in node.inputs if v is not None and v.name]


def _inferred_outputs(
    node: ir.Node,
    model: ir.Model,
    found: Mapping[str, Sizes],
    types: Mapping[str, onnx.TypeProto],
    integers: Integers,
) -> dict[str, onnx.TypeProto]:
    try:
        data = {v.name or "": _small(v, integers) for v in node.inputs if v is not None}
        return infer_node(
            ir.to_proto(node),
            int(model.opset_imports[node.domain]),
            {name: _sized(types[name], found.get(name)) for name in _names(node)},
            {name: array for name, array in data.items() if array is not None},
        )
    except (KeyError, SessionError):
        return {}


def _small(value: ir.Value, integers: Integers) -> NDArray[np.generic] | None:
    """What a size can be computed from: known integers, and stored scales such as Resize's."""
    tensor = stored_tensor(value)
    if tensor is not None and is_float(tensor) and tensor.size <= _FEW:
        return tensor.numpy()
    return integers.static(value)


def _sized(proto: onnx.TypeProto, sizes: Sizes | None) -> onnx.TypeProto:
    result = onnx.TypeProto()
    result.CopyFrom(proto)
    if sizes is not None and result.HasField("tensor_type"):
        result.tensor_type.ClearField("shape")
        result.tensor_type.shape.SetInParent()
        for size in sizes:
            result.tensor_type.shape.dim.add().dim_value = size
    return result


def _proto_sizes(proto: onnx.TypeProto) -> Sizes | None:
    if not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    dims = proto.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


def _sizes(value: ir.Value, setting: Mapping[str, int]) -> Sequence[int | None] | None:
    tensor = stored_tensor(value)
    if tensor is not None:
        return static_shape(tensor)
    if value.shape is None:
        return None
    named = (
        dim if isinstance(dim, int) else arithmetic(symbol_of(value, axis, dim), setting)
        for axis, dim in enumerate(value.shape)
    )
    return tuple(named)


def arithmetic(text: str, setting: Mapping[str, int]) -> int | None:
    """Value of a dimension expression such as `64*batch`; None when it cannot be told."""
    if text in setting:
        return setting[text]
    try:
        return _value(ast.parse(text, mode="eval").body, setting)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.AST, setting: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name) and node.id in setting:
        return setting[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, setting)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_value(node.left, setting), _value(node.right, setting))
    raise ValueError(ast.dump(node))


def _missing(graph: ir.Graph, shapes: Mapping[str, Sizes]) -> set[str]:
    produced = (v for node in graph for v in node.outputs)
    return {v.name for v in (*graph.inputs, *produced) if v.name and v.name not in shapes}


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def shapes_at(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> dict[str, Sizes]:
    """Sizes of all tensors that can be told for inputs of the given sizes, by input name."""
    setting = named_sizes(model, inputs)
    found = _evaluated(model, setting)
    return _inferred(model, found) if _missing(model.graph, found) else found


def named_sizes(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Sizes of the dynamic dimensions for inputs of the given sizes, by input name."""
    return {
        symbol_of(value, axis, dim): int(inputs[value.name or ""][axis])
        for value in model.graph.inputs
        if value.name in inputs and value.shape is not None
        for axis, dim in enumerate(value.shape)
        if not isinstance(dim, int)
    }


def known_equal(a: ir.Value, b: ir.Value, but: int | None = None) -> bool | None:
    """Whether the model says that two shapes are equal or differ; None where it does not know.

    but: an axis that does not count.
    """
    if a.shape is None or b.shape is None:
        return None
    rank = a.shape.rank()
    if rank != b.shape.rank():
        return False
    skipped = None if but is None else but % max(rank, 1)
    pairs = [(a.shape[i], b.shape[i]) for i in range(rank) if i != skipped]
    if any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in pairs):
        return False
    return True if all(x == y and str(x) != "None" for x, y in pairs) else None
