"""onnx-graphsurgeon as a front door: its scripts run as passes, its graphs come in and go out.

graphsurgeon 0.6.1 cannot export new constants of less than 8 bits, copies every weight, and drops
metadata, doc strings and some attributes. Here weights travel by reference: a constant holds the
onnx_ir tensor, is evaluated only when a script reads `values`, and is put back on the way out.
Whatever else graphsurgeon loses comes back from the original model, by name, where the script
left it in place.
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_ir.passes.common import CheckerPass

from lwqc.errors import InputError

_MARK = "lwqc tensor "
_LOST_ATTRIBUTES = frozenset(
    {
        ir.AttributeType.TYPE_PROTO,
        ir.AttributeType.TYPE_PROTOS,
        ir.AttributeType.TENSORS,
        ir.AttributeType.SPARSE_TENSOR,
        ir.AttributeType.SPARSE_TENSORS,
    }
)
_Body = ir.Graph | ir.Function


class GraphSurgeonPass(ir.passes.FunctionalPass):
    """Run a `gs.Graph -> gs.Graph` function (or one that edits in place) as a pass.

    Refuses (InputError): functions that fail, results that are not valid ONNX, and models that
    `to_graphsurgeon` refuses.
    """

    def __init__(self, function: Callable[[gs.Graph], gs.Graph | None]) -> None:
        super().__init__()
        self._function = function

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the function; the input model is left alone."""
        graph = to_graphsurgeon(model)
        name = getattr(self._function, "__name__", "function")
        try:
            result = self._function(graph)
        except Exception as error:
            raise InputError(f"graphsurgeon function {name} failed: {_line(error)}") from error
        if result is not None and not isinstance(result, gs.Graph):
            kind = type(result).__name__
            raise InputError(f"function {name} returned {kind}, expected a graphsurgeon graph")
        rebuilt = from_graphsurgeon(graph if result is None else result, like=model)
        return ir.passes.PassResult(rebuilt, modified=True)


def as_pass(function: Callable[[gs.Graph], gs.Graph | None]) -> GraphSurgeonPass:
    """A graphsurgeon function as a pass."""
    return GraphSurgeonPass(function)


def to_graphsurgeon(model: ir.Model) -> gs.Graph:
    """The model as a graphsurgeon graph; weights are shared, not copied, and never written to.

    Raises InputError for what graphsurgeon cannot hold: attributes that are lists of graphs, and
    overloads of one function.
    """
    _refuse(model)
    tensors: list[ir.TensorProtocol] = []
    try:
        graph = gs.import_onnx(_skeleton(model, tensors))
    except Exception as error:
        raise InputError(f"graphsurgeon cannot import the model: {_line(error)}") from error
    for constant in _constants(graph):
        index = _marked(getattr(constant._values, "tensor", None))
        if index is not None:
            constant._values = _Stored(tensors[index])
            constant.data_location = None
    return graph


def from_graphsurgeon(graph: gs.Graph, like: ir.Model | None = None) -> ir.Model:
    """A graphsurgeon graph as a model; its nodes are sorted if they are not.

    like: the model it came from. What is still there by name gets back its metadata, doc strings
        and fixed details: nodes by operator and outputs, values, unchanged functions, the model's
        version, IR version and properties, inputs with a default, tensors of less than 8 bits.
        Initializers that nothing uses are dropped, and ones used in one subgraph only move there.

    Raises InputError when the graph cannot be exported or is not valid ONNX.
    """
    tensors: list[ir.TensorProtocol] = []
    _check_names(graph)
    for body in _bodies(graph):
        _sort(body)
    with _stubs(graph, tensors):
        try:
            proto = gs.export_onnx(graph, do_type_check=False)
        except Exception as error:
            raise InputError(f"graphsurgeon cannot export the graph: {_line(error)}") from error
    _hoist(proto.graph, set(like.graph.initializers) if like is not None else set())
    model: ir.Model = ir.from_proto(proto)
    _fill(model, tensors)
    if like is not None:
        _restore_model(model, like)
    try:
        CheckerPass()(model)
    except Exception as error:
        raise InputError(f"the graphsurgeon graph is not valid ONNX: {_line(error)}") from error
    if like is not None:  # last: the checker of onnx_ir 1.1.0 moves large initializers to the end
        _restore_initializer_order(model.graph, like.graph)
    return model


class _Stored(LazyValues):  # type: ignore[misc] # graphsurgeon is not typed
    """Values of a constant, held as an onnx_ir tensor."""

    def __init__(self, stored: ir.TensorProtocol) -> None:
        self.stored = stored
        self.shape = [int(d) for d in stored.shape if isinstance(d, int)]
        self.nbytes = stored.nbytes
        self.dtype = stored.dtype.numpy()

    @property
    def tensor(self) -> onnx.TensorProto:
        """A copy, for graphsurgeon's own exports (constant folding runs parts of the graph)."""
        return ir.to_proto(self.stored)

    def load(self) -> NDArray[Any]:
        """A copy that the script may edit; 4-bit values as ml_dtypes."""
        return np.array(self.stored.numpy())


class _Stub(LazyValues):  # type: ignore[misc] # graphsurgeon is not typed
    """What stands for a tensor in an export: its type and shape, and a mark to find it by."""

    def __init__(self, stored: ir.TensorProtocol, index: int) -> None:
        held = _Stored(stored)
        self.shape, self.dtype, self.nbytes = held.shape, held.dtype, held.nbytes
        self.tensor = _stub(stored, index)


def _stub(tensor: ir.TensorProtocol, index: int) -> onnx.TensorProto:
    dims = [int(d) for d in tensor.shape if isinstance(d, int)]
    return onnx.TensorProto(
        name=tensor.name or "",
        data_type=int(tensor.dtype),
        dims=dims,
        doc_string=f"{_MARK}{index}",
    )


def _marked(tensor: object) -> int | None:
    """Index of the tensor that a stub stands for."""
    doc = getattr(tensor, "doc_string", None) or ""
    return int(doc.removeprefix(_MARK)) if re.fullmatch(_MARK + r"\d+", doc) else None


def _model_bodies(model: ir.Model) -> list[_Body]:
    return [model.graph, *model.functions.values()]


def _refuse(model: ir.Model) -> None:
    seen: set[tuple[str, str]] = set()
    for domain, name, _ in model.functions:
        if (domain, name) in seen:
            raise InputError(f"function {domain}:{name} has overloads, which graphsurgeon confuses")
        seen.add((domain, name))
    for body in _model_bodies(model):
        for node in body.all_nodes():
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPHS:
                    raise InputError(
                        f"node {node.name or node.op_type}: attribute {attribute.name} is a list "
                        "of graphs, which graphsurgeon drops; edit the model without it"
                    )


def _skeleton(model: ir.Model, tensors: list[ir.TensorProtocol]) -> onnx.ModelProto:
    """The model with stubs for its tensors, which are appended to `tensors`."""
    copy = model.clone()

    def stub(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
        tensors.append(tensor)
        proto = _stub(tensor, len(tensors) - 1)
        # graphsurgeon fails to import some types, and only needs a place to put the tensor.
        proto.name, proto.data_type = name or "", onnx.TensorProto.UINT8
        return ir.serde.TensorProtoTensor(proto)

    _replace_tensors(copy, stub)
    return ir.to_proto(copy)


def _fill(model: ir.Model, tensors: list[ir.TensorProtocol]) -> None:
    """Put the tensors back in the place of their stubs."""

    def stored(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
        index = _marked(tensor)
        return tensor if index is None else _named(tensors[index], name)

    _replace_tensors(model, stored)


def _named(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    """The tensor under a name; a renamed one is read through to the original."""
    if (tensor.name or "") == (name or ""):
        return tensor
    return ir.LazyTensor(
        lambda: tensor, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name,
        doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def _replace_tensors(
    model: ir.Model, new: Callable[[ir.TensorProtocol, str | None], ir.TensorProtocol]
) -> None:
    """Replace the tensors of initializers and attributes by new(tensor, name)."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is None:
                raise InputError(f"initializer {name} has no data; load the model with its weights")
            value.const_value = new(value.const_value, name)
    for body in _model_bodies(model):
        for node in body.all_nodes():
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = attribute.as_tensor()
                    node.attributes[name] = ir.AttrTensor(
                        name, new(tensor, tensor.name), doc_string=attribute.doc_string
                    )


@contextmanager
def _stubs(graph: gs.Graph, tensors: list[ir.TensorProtocol]) -> Iterator[None]:
    """The graph's constants are stubs inside; their tensors are appended to `tensors`."""
    swapped: list[tuple[gs.Constant, Any]] = []
    try:
        for constant in _constants(graph):
            stored = _tensor_of(constant)
            if stored is not None:
                swapped.append((constant, constant._values))
                constant._values = _Stub(stored, len(tensors))
                tensors.append(stored)
        yield
    finally:
        for constant, values in swapped:
            constant._values = values


def _tensor_of(constant: gs.Constant) -> ir.TensorProtocol | None:
    """The tensor of a constant of ours or of an array; None leaves it to graphsurgeon."""
    values = constant._values
    if isinstance(values, _Stored):
        return values.stored
    if not isinstance(values, np.ndarray) or values.dtype.kind in "OSU":
        return None
    if constant._export_dtype not in (None, values.dtype):
        return None
    return ir.Tensor(values, name=constant.name)


def _bodies(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The graph, its functions and all their subgraphs."""
    todo = [graph, *graph.functions]
    while todo:
        body = todo.pop()
        yield body
        todo.extend(_subgraphs(body.nodes))


def _subgraphs(nodes: Iterable[gs.Node]) -> Iterator[gs.Graph]:
    for node in nodes:
        yield from (v for v in node.attrs.values() if isinstance(v, gs.Graph))


def _constants(graph: gs.Graph) -> list[gs.Constant]:
    """Every constant once, those of attributes included."""
    found: dict[int, gs.Constant] = {}
    for body in _bodies(graph):
        tensors = [*body.inputs, *body.outputs]
        for node in body.nodes:
            tensors += [*node.inputs, *node.outputs, *node.attrs.values()]
        found.update((id(t), t) for t in tensors if isinstance(t, gs.Constant))
    return list(found.values())


def _check_names(graph: gs.Graph) -> None:
    """graphsurgeon keeps one of two tensors of a name, and connects the other's users to it."""
    for body in _bodies(graph):
        named: dict[str, gs.Tensor] = {}
        tensors = [*body.inputs, *body.outputs]
        for node in body.nodes:
            tensors += [*node.inputs, *node.outputs]
        for tensor in tensors:
            if not tensor.is_empty() and named.setdefault(tensor.name, tensor) is not tensor:
                raise InputError(
                    f"the graphsurgeon graph has two tensors named {tensor.name}; "
                    "names must be unique: rename one"
                )


def _sort(body: gs.Graph) -> None:
    """Put nodes after the producers of what they read, if they are not; refuses cycles.

    graphsurgeon 0.6.1 sorts recursively: it overflows on deep graphs, and on any graph that has
    both a function and a subgraph.
    """
    position = {id(node): i for i, node in enumerate(body.nodes)}
    needs = {
        i: {position[id(p)] for t in _reads(node) for p in t.inputs if id(p) in position}
        for i, node in enumerate(body.nodes)
    }
    if all(i > max(before, default=-1) for i, before in needs.items()):
        return
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        node = body.nodes[error.args[1][0]]
        name = node.name or node.op
        raise InputError(f"the graphsurgeon graph has a cycle through node {name}") from error
    body.nodes = [body.nodes[i] for i in order]


def _reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Inputs of a node and of the nodes in its subgraphs."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield from node.inputs
        todo.extend(inner for graph in _subgraphs([node]) for inner in graph.nodes)


def _hoist(graph: onnx.GraphProto, main: set[str]) -> None:
    """Move initializers named in `main` from subgraphs to the graph.

    graphsurgeon exports an outer constant into each subgraph that reads it.
    """
    have = {tensor.name for tensor in graph.initializer}
    todo = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    while todo:
        inner = todo.pop()
        todo.extend(a.g for node in inner.node for a in node.attribute if a.HasField("g"))
        for i in reversed(range(len(inner.initializer))):
            tensor = inner.initializer[i]
            if tensor.name in main and tensor.name not in have:
                graph.initializer.add().CopyFrom(tensor)
                have.add(tensor.name)
            if tensor.name in have:
                del inner.initializer[i]


def _restore_model(model: ir.Model, like: ir.Model) -> None:
    model.domain, model.model_version = like.domain, like.model_version
    model.doc_string = like.doc_string
    model.meta.update(like.meta)
    model.metadata_props.clear()
    model.metadata_props.update(like.metadata_props)
    for domain, version in like.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
    _restore_inputs(model.graph, like.graph)
    _restore_body(model.graph, like.graph)
    originals = {f.identifier()[:2]: f for f in like.functions.values()}
    functions = list(model.functions.values())
    model.functions.clear()
    for function in functions:
        original = originals.get(function.identifier()[:2])
        if original is not None:
            function.overload = original.overload
            _restore_body(function, original)
        model.functions[function.identifier()] = function


def _restore_inputs(graph: ir.Graph, like: ir.Graph) -> None:
    """Inputs with a default value: graphsurgeon keeps only the value."""
    names = {v.name for v in graph.inputs}
    defaults = [
        (i, graph.initializers[v.name])
        for i, v in enumerate(like.inputs)
        if v.name and v.name not in names and v.name in graph.initializers
    ]
    for position, value in defaults:
        graph.inputs.insert(min(position, len(graph.inputs)), value)


def _restore_initializer_order(graph: ir.Graph, like: ir.Graph) -> None:
    order = {name: i for i, name in enumerate(like.initializers)}
    names = sorted(graph.initializers, key=lambda n: order.get(n, len(order)))
    values = [graph.initializers[n] for n in names]
    graph.initializers.clear()
    for value in values:
        graph.register_initializer(value)


def _restore_body(body: _Body, like: _Body) -> None:
    body.doc_string = like.doc_string
    body.metadata_props.clear()
    body.metadata_props.update(like.metadata_props)
    values = {v.name: v for v in _values(like)}
    for value in _values(body):
        if (original := values.get(value.name)) is not None:
            _restore_value(value, original)
    nodes = {_key(node): node for node in like.all_nodes()}
    for node in body.all_nodes():
        if (before := nodes.get(_key(node))) is not None:
            _restore_node(node, before)


def _key(node: ir.Node) -> tuple[str | None, ...]:
    return (node.domain, node.op_type, *(v.name for v in node.outputs))


def _values(body: _Body) -> Iterator[ir.Value]:
    yield from body.inputs
    graphs = [*body.subgraphs()]
    for graph in [body, *graphs] if isinstance(body, ir.Graph) else graphs:
        yield from graph.inputs
        yield from graph.initializers.values()
    for node in body.all_nodes():
        yield from node.outputs


def _restore_value(value: ir.Value, like: ir.Value) -> None:
    value.doc_string = like.doc_string
    value.metadata_props.update(like.metadata_props)
    value.meta.update(like.meta)
    if value.type is None or not isinstance(like.type, ir.TensorType):
        value.type = like.type
    if value.shape is None or _same_sizes(value.shape, like.shape):
        value.shape = ir.Shape(like.shape) if like.shape is not None else None
        if value.shape is not None and like.shape is not None:
            for axis in range(len(like.shape)):
                value.shape.set_denotation(axis, like.shape.get_denotation(axis))


def _same_sizes(shape: ir.Shape, like: ir.Shape | None) -> bool:
    """Whether two shapes agree apart from the names of unknown sizes."""
    if like is None or len(shape) != len(like):
        return False
    return all(
        a == b or (not isinstance(a, int) and a.value is None and not isinstance(b, int))
        for a, b in zip(shape, like, strict=True)
    )


def _restore_node(node: ir.Node, like: ir.Node) -> None:
    node.doc_string, node.overload = like.doc_string, like.overload
    node.metadata_props.update(like.metadata_props)
    node.meta.update(like.meta)
    for name, before in like.attributes.items():
        attribute = node.attributes.get(name)
        if attribute is None:
            if before.type in _LOST_ATTRIBUTES:
                node.attributes[name] = before
        elif before.type == attribute.type == ir.AttributeType.GRAPH:
            graph, original = attribute.as_graph(), before.as_graph()
            graph.doc_string, graph.name = original.doc_string, original.name
            graph.metadata_props.update(original.metadata_props)
            _restore_initializer_order(graph, original)
        if attribute is not None and before.doc_string:
            attribute.doc_string = before.doc_string


def _line(error: BaseException) -> str:
    """The message in one line."""
    return " ".join(f"{type(error).__name__}: {error.__cause__ or error}".split())[:300]


__all__ = ["GraphSurgeonPass", "as_pass", "from_graphsurgeon", "to_graphsurgeon"]
