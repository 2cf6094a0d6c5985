"""Computes in 16-bit floats, written into the graph."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from lwqc.graph.float_slots import float_slots, is_float32, result_types
from lwqc.model.edit import add_constant, lazy_tensor, replace_stored
from lwqc.model.names import unique_name
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.plans.plan import Floats

_SMALL = 1 << 20  # numbers in a mask
_ATTRIBUTE_TYPED = frozenset({"Cast", "ConstantOfShape"})  # the result's type is an attribute


@dataclass(frozen=True)
class ConvertFloats(Pass):
    """Let float32 operators compute in float16 or bfloat16.

    Matches: float32 operands and results that an operator's schema allows in the other type.
    Rewrites to: the same operators on tensors of that type, stored weights converted when the
        model is saved, a Cast wherever a value is needed in the other type, one for all readers.
    Leaves alone: `keep`, nodes by the name of their first output; operators without such a form;
        arithmetic on stored codes, which the runtime folds in float32; what crosses the border of
        a subgraph. Graph inputs and outputs keep their type unless `boundary` says otherwise.
    Changes: finite stored numbers beyond `clamp` are moved to it, and those of the graph inputs
        `clamped`; masks have such numbers.
    """

    exact: ClassVar[bool] = False
    to: Literal["float16", "bfloat16"] = "float16"
    keep: tuple[str, ...] = ()
    boundary: bool = False
    clamp: float | None = None
    clamped: tuple[str, ...] = ()

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Convert all graphs of the model."""
        dtype = ir.DataType[self.to.upper()]
        clamped = 0
        if self.clamp is not None:
            clamped = int(clamp_stored(model, self.clamp))
            clamped += clamp_inputs(model, self.clamped, self.clamp)
        main = _Conversion(model, dtype, frozenset(self.keep), boundary=self.boundary)
        if self.boundary:
            for value in model.graph.inputs:
                if is_float32(value) and not value.is_initializer():
                    value.type = ir.TensorType(dtype)
                    main.low.add(value)
        main.graph(model.graph, outputs_too=self.boundary)
        main.store(model)
        return len(main.low) + clamped


def clamp_stored(model: ir.Model, limit: float) -> bool:
    """Move finite stored float32 numbers beyond the limit to it; tells whether there were any.

    Only small tensors are looked at: numbers that large are fillings of masks.
    """
    changed = False
    for graph in model.graphs():
        values = [*graph.initializers.values(), *(v for n in graph for v in n.outputs)]
        for value in values:
            tensor = stored_tensor(value)
            if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size <= _SMALL:
                array = read_array(tensor)
                if (beyond := np.isfinite(array) & (np.abs(array) > limit)).any():
                    moved = np.where(beyond, np.sign(array) * np.float32(limit), array)
                    replace_stored(value, ir.tensor(moved.astype(np.float32), name=tensor.name))
                    changed = True
        for node in graph:
            fill = node.attributes.get("value")
            if node.op_type != "ConstantOfShape" or fill is None:
                continue
            number = fill.as_tensor().numpy()
            if number.dtype == np.float32 and np.isfinite(number).all() and abs(number) > limit:
                moved = np.sign(number) * np.float32(limit)
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(moved))
                changed = True
    return changed


def clamp_inputs(model: ir.Model, names: Collection[str], limit: float) -> int:
    """Clip graph inputs to within the limit, as masks are so large that they overflow; how many."""
    graph, clamped = model.graph, 0
    for value in graph.inputs:
        if value.name in names:
            uses = list(value.uses())
            ends = [
                add_constant(graph, f"{value.name}/{side}", np.float32(end))
                for side, end in (("least", -limit), ("largest", limit))
            ]
            name = unique_name(graph, f"{value.name}/clamped")
            clip = ir.node("Clip", [value, *ends], name=name)
            result = clip.outputs[0]
            result.name, result.shape, result.type = clip.name, value.shape, value.type
            graph.insert_before(graph[0], clip)
            for use in uses:
                use.node.replace_input_with(use.idx, result)
            clamped += 1
    return clamped


class _Conversion:
    """low: values that have the new type. A node is converted as a whole, in order."""

    def __init__(
        self, model: ir.Model, dtype: ir.DataType, keep: frozenset[str], *, boundary: bool = False
    ) -> None:
        self._open = model.graph if boundary else None
        self._opsets = model.opset_imports
        self._dtype = dtype
        self._keep = keep
        self.low: set[ir.Value] = set()
        self._stored_low: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        self._constant: dict[ir.Value, bool] = {}
        self._casts: dict[tuple[ir.Value, ir.Graph, ir.DataType], ir.Value] = {}

    def graph(self, graph: ir.Graph, *, outputs_too: bool = False) -> None:
        for node in list(graph):
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    self.graph(attribute.as_graph())
            self._node(node)
        if not outputs_too:
            for index, value in enumerate(graph.outputs):
                self._restore_output(graph, index, value)

    def _node(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and node.domain == "":
            return
        self._note_constant(node)
        opset = self._opsets.get(node.domain, 1)
        untyped = [output for output in node.outputs if output.type is None]
        _tell_types(node, opset)
        if node.op_type in _ATTRIBUTE_TYPED and node.domain == "":
            self._attribute_typed(node)
            return
        slots = float_slots(node, self._dtype, opset)
        convert = bool(slots.inputs) and self._wanted(node, bool(slots.outputs))
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if convert and index in slots.inputs:
                self._need_low(node, index, value)
            elif value in self.low:
                node.replace_input_with(index, self._cast(value, node, ir.DataType.FLOAT))
        if convert:
            for index in slots.outputs:
                self._lower(node.outputs[index])
        else:  # operands in 16 bits are float32 by now
            for output in untyped:
                output.type = None
            _tell_types(node, opset)

    def _wanted(self, node: ir.Node, gives_floats: bool) -> bool:
        if node.outputs[0].name in self._keep or self._unpacks(node):
            return False
        # Comparisons, Shape and the like take their operands as they come; the two halves of a
        # Q/DQ pair share their scale.
        if gives_floats or node.op_type == "QuantizeLinear":
            return True
        return any(v in self.low for v in node.inputs if v is not None)

    def _unpacks(self, node: ir.Node) -> bool:
        """Whether the node is arithmetic that makes floats of stored codes."""
        return self._constant.get(node.outputs[0], False)

    def _note_constant(self, node: ir.Node) -> None:
        """Remember results that depend on stored tensors only; True: on 8-bit or smaller codes."""
        codes = False
        for value in node.inputs:
            tensor = stored_tensor(value)
            if tensor is not None:
                codes |= tensor.dtype.is_integer() and tensor.dtype.bitwidth <= 8
            elif value is not None:
                if value not in self._constant:
                    return
                codes |= self._constant[value]
        if node.inputs and node.op_type != "DequantizeLinear":
            self._constant |= dict.fromkeys(node.outputs, codes)

    def _attribute_typed(self, node: ir.Node) -> None:
        output = node.outputs[0]
        source = node.inputs[0]
        if not is_float32(output) or output.name in self._keep or self._unpacks(node):
            return
        if node.op_type == "Cast":
            low = source is not None and source.dtype == self._dtype
            if low and output.is_graph_output() and output.graph is not self._open:
                return  # it is what brings an output back to its type
            node.attributes["to"] = ir.AttrInt64("to", int(self._dtype))
            if source is not None and source.dtype == self._dtype and not output.is_graph_output():
                output.replace_all_uses_with(source)
                self.low.add(source)
        else:
            given = node.attributes.get("value")
            fill = given.as_tensor().numpy() if given is not None else np.zeros(1, np.float32)
            tensor = ir.tensor(fill.astype(self._dtype.numpy()), dtype=self._dtype)
            node.attributes["value"] = ir.AttrTensor("value", tensor)
        self._lower(output)

    def _lower(self, value: ir.Value) -> None:
        value.type = ir.TensorType(self._dtype)
        self.low.add(value)

    def _need_low(self, node: ir.Node, index: int, value: ir.Value) -> None:
        if value in self.low:
            return
        if stored_tensor(value) is not None:
            self._stored_low.setdefault(value, []).append((node, index))
        else:
            node.replace_input_with(index, self._cast(value, node, self._dtype))

    def _cast(self, value: ir.Value, reader: ir.Node, dtype: ir.DataType) -> ir.Value:
        """The value in the other type: one Cast per graph, right behind the producer."""
        graph = reader.graph
        assert isinstance(graph, ir.Graph)
        key = (value, graph, dtype)
        if key not in self._casts:
            cast = _cast_node(graph, value, dtype)
            producer = value.producer()
            if producer is not None and producer.graph is graph:
                graph.insert_after(producer, cast)
            else:
                graph.insert_before(graph[0], cast)
            self._casts[key] = cast.outputs[0]
            if dtype == self._dtype:
                self.low.add(cast.outputs[0])
        return self._casts[key]

    def _restore_output(self, graph: ir.Graph, index: int, value: ir.Value) -> None:
        """Give a graph output its type, and its name, back."""
        if value not in self.low:
            return
        name = value.name or ""
        if value.graph is graph:
            value.name = unique_name(graph, f"{name}/{self._dtype.name.lower()}")
        else:
            name = unique_name(graph, f"{name}/output")
        cast = _cast_node(graph, value, ir.DataType.FLOAT)
        graph.append(cast)
        cast.outputs[0].name = name
        graph.outputs[index] = cast.outputs[0]

    def store(self, model: ir.Model) -> None:
        """Convert stored tensors; those with float32 readers too get a Cast instead."""
        for value, readers in self._stored_low.items():
            if len(readers) == len(list(value.uses())) and not value.is_graph_output():
                self._convert_stored(value)
                continue
            for node, index in readers:
                node.replace_input_with(index, self._cast(value, node, self._dtype))

    def _convert_stored(self, value: ir.Value) -> None:
        tensor = stored_tensor(value)
        assert tensor is not None
        dtype = self._dtype
        shape = tuple(int(d) for d in tensor.shape if isinstance(d, int))
        producer = value.producer()
        if producer is None:
            value.const_value = lazy_tensor(dtype, shape, tensor.name, lambda: read_array(tensor))
        else:
            array = read_array(tensor).astype(dtype.numpy())
            producer.attributes["value"] = ir.AttrTensor("value", ir.tensor(array, dtype=dtype))
        value.type = ir.TensorType(dtype)


def _tell_types(node: ir.Node, opset: int) -> None:
    for index, dtype in result_types(node, opset).items():
        node.outputs[index].type = ir.TensorType(dtype)


def _cast_node(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Node:
    name = unique_name(graph, f"{value.name}/to_{dtype.name.lower()}")
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
    node.outputs[0].name = name
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    return node


def convert_floats(floats: Floats) -> ConvertFloats:
    """The pass that executes this part of a plan."""
    kept, clamped = tuple(floats.keep), tuple(floats.clamped)
    return ConvertFloats(floats.dtype, kept, floats.boundary, floats.clamp, clamped)
