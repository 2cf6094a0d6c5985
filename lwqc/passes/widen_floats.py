"""Models that compute in 16-bit floats, in float32: what a later conversion starts from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from lwqc.model.names import unique_name
from lwqc.model.weights import stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.passes.inline import inline_functions

_LOW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_WIDE = ir.DataType.FLOAT
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


class WidenFloats(Pass):
    """Compute in float32.

    Matches: float16 and bfloat16 tensors of all graphs, sequences and optionals of them; functions
        are inlined where there are any.
    Rewrites to: float32 ones. Stored tensors stay as they are, with one Cast for all readers, which
        takes no room in a file and is folded when it is loaded. Casts that have nothing to do any
        more go.
    Leaves alone: types of graph inputs and outputs, which get a Cast.
    """

    exact = False

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Widen all graphs."""
        low = list(_low_values(model))
        if all(_is_border(model, value) for value in low):
            return 0
        if model.functions:
            inline_functions(model)
        outputs = [(i, v, v.dtype) for i, v in enumerate(model.graph.outputs) if v.dtype in _LOW]
        nodes = list(model.graph.all_nodes())
        for graph in model.graphs():
            for value in [*graph.inputs, *graph.initializers.values()]:
                self._widen_source(model, graph, value)
        for node in nodes:
            self._widen(node)
        for index, value, dtype in outputs:
            self._narrow(model.graph, index, value, dtype)
        for node in nodes:
            _drop_idle_cast(node)
        return len(low)

    def _widen_source(self, model: ir.Model, graph: ir.Graph, value: ir.Value) -> None:
        given = graph is model.graph and value.is_graph_input()
        if given or value.is_initializer():
            if value.dtype in _LOW:
                _read_wide(graph, value)
        else:
            _retype(value)

    def _widen(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and node.domain == "":
            graph = node.graph
            if node.outputs[0].dtype in _LOW and isinstance(graph, ir.Graph):
                _read_wide(graph, node.outputs[0])
            return
        for name in _TYPE_ATTRIBUTES:
            attribute = node.attributes.get(name)
            typed = attribute is not None and attribute.type == ir.AttributeType.INT
            if typed and node.attributes[name].as_int() in _LOW:
                node.attributes[name] = ir.AttrInt64(name, int(_WIDE))
        fill = node.attributes.get("value")
        if node.op_type == "ConstantOfShape" and fill is not None:
            tensor = fill.as_tensor()
            if tensor.dtype in _LOW:
                wide = tensor.numpy().astype(np.float32)
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(wide))
        for value in node.outputs:
            _retype(value)

    def _narrow(
        self, graph: ir.Graph, index: int, value: ir.Value, dtype: ir.DataType | None
    ) -> None:
        """Give a graph output its type back."""
        if value.dtype != _WIDE or dtype is None:
            return  # a graph input or a stored tensor: as it was
        name = value.name or ""
        value.name = unique_name(graph, f"{name}/wide")
        cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{name}/narrow")
        result = cast.outputs[0]
        result.name, result.shape, result.type = name, value.shape, ir.TensorType(dtype)
        graph.append(cast)
        graph.outputs[index] = result


def has_low_floats(model: ir.Model) -> bool:
    """Whether any tensor of the model has a 16-bit float type."""
    return any(True for _ in _low_values(model))


def _low_values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            if value.dtype in _LOW:
                yield value


def _is_border(model: ir.Model, value: ir.Value) -> bool:
    """Whether a 16-bit value is only stored or passed in or out, with a Cast to or from float32."""
    node = value.producer()
    if node is None or stored_tensor(value) is not None:
        given = value.graph is model.graph or value.is_initializer() or node is not None
        return given and all(_widens(use.node) for use in value.uses())
    narrowed = (node.domain, node.op_type) == ("", "Cast") and node.graph is model.graph
    return narrowed and value.is_graph_output() and not value.uses()


def _widens(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Cast") and node.outputs[0].dtype == _WIDE


def _read_wide(graph: ir.Graph, value: ir.Value) -> None:
    """Let all readers of a value read it in float32."""
    uses = list(value.uses())
    if not uses:
        return
    name = unique_name(graph, f"{value.name}/wide")
    cast = ir.node("Cast", [value], {"to": int(_WIDE)}, name=name)
    result = cast.outputs[0]
    result.name, result.shape, result.type = name, value.shape, ir.TensorType(_WIDE)
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, cast)
    else:
        graph.insert_before(graph[0], cast)
    for use in uses:
        use.node.replace_input_with(use.idx, result)


def _retype(value: ir.Value) -> None:
    if value.type is not None:
        value.type = _wide_type(value.type)


def _wide_type(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return type(kind)(_wide_type(kind.elem_type))
    if isinstance(kind, ir.TensorType | ir.SparseTensorType) and kind.dtype in _LOW:
        return type(kind)(_WIDE)
    return kind


def _drop_idle_cast(node: ir.Node) -> None:
    """Take out a Cast from float32 to float32."""
    source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
    if (node.domain, node.op_type) != ("", "Cast") or source is None:
        return
    idle = source.dtype == _WIDE and node.attributes["to"].as_int() == _WIDE
    if idle and not output.is_graph_output() and stored_tensor(source) is None:
        output.replace_all_uses_with(source)
        if isinstance(node.graph, ir.Graph):
            node.graph.remove(node, safe=True)
