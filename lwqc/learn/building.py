"""From a graph to its program: operators are looked up, attributes read, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
import torch

from lwqc.errors import InputError
from lwqc.learn.batch_statistics import ByMode, Mode, claim
from lwqc.learn.operation import Call, Operation
from lwqc.learn.program import Program, Step, function_call
from lwqc.learn.relevance import Rule, relevant
from lwqc.learn.table import OPERATIONS
from lwqc.learn.tensors import TYPES, to_torch_tensor, torch_type

_TYPE_ATTRIBUTES = frozenset({"dtype", "output_datatype"})
_READS_SCOPE = ir.AttributeType.GRAPH
_CONSTANT = ("", "Constant")
_LARGEST = 2**62  # numbers that torch can count in a tensor
Attributes = Mapping[str, ir.Attr]


class Builder:
    """Builds the program of a model.

    places: number of each value. missing: why nodes have no function, by label. drawn: nodes that
    draw random numbers. mode: of the module, where batches change statistics; moving: those, with
    the node that they are of.
    """

    def __init__(
        self,
        model: ir.Model,
        given: frozenset[ir.Node] = frozenset(),
        *,
        batch_statistics: bool = False,
        rule: Rule | None = None,
    ) -> None:
        """given: nodes whose results are there already. rule: by which slopes are relevance."""
        self._model, self._given, self._rule = model, given, rule
        self.mode = Mode() if batch_statistics else None
        self.moving: dict[ir.Value, str] = {}
        self.places: dict[ir.Value, int] = {}
        self.missing: dict[str, str] = {}
        self.drawn: list[str] = []
        self.program = self.graph(model.graph, model.opset_imports, {})
        if self.missing:
            raise InputError("; ".join(f"{n}: {why}" for n, why in list(self.missing.items())[:3]))

    def place(self, value: ir.Value) -> int:
        """The number of a value's place."""
        return self.places.setdefault(value, len(self.places))

    def graph(self, graph: ir.Graph, opsets: Mapping[str, int], bound: Attributes) -> Program:
        """bound: attributes of the call, where the graph is that of a function."""
        inputs = tuple(self.place(v) for v in graph.inputs)
        # Constants stay where they are: a body runs again.
        nodes = [n for n in graph if (n.domain, n.op_type) != _CONSTANT and n not in self._given]
        steps = [self.step(node, opsets, bound) for node in nodes]
        outputs = tuple(self.place(v) for v in graph.outputs)
        empty = tuple(_no_rows(v) for v in graph.outputs)
        return Program.of(inputs, outputs, steps, empty)

    def step(self, node: ir.Node, opsets: Mapping[str, int], bound: Attributes) -> Step:
        """The step of a node; a nameless one where there is no function for it."""
        label = f"{node.op_type} {node.name or node.outputs[0].name}"
        function = self._model.functions.get(node.op_identifier())
        inputs = tuple(None if v is None else self.place(v) for v in node.inputs)
        outputs = tuple(self.place(v) for v in node.outputs)
        if function is not None:
            inner = self._function(node, function, bound)
            call, read = Call(label, 0, {}), tuple(sorted(inner.reads))
            return Step(function_call(inner), call, inputs, outputs, scoped=True, captured=read)
        domain = "" if node.domain == "ai.onnx" else node.domain
        operation = OPERATIONS.get((domain, node.op_type))
        opset = opsets.get(domain, 1)
        if operation is None:
            which = f"{domain}.{node.op_type}" if domain else node.op_type
            self.missing[label] = f"gradients are not known of the operator {which}"
            return Step(_nothing, Call(label, opset, {}), inputs, outputs)
        if operation.drawn_from is not None and len(node.inputs) >= operation.drawn_from:
            self.drawn.append(label)
        call = Call(
            label,
            opset,
            self._attributes(node, opset, opsets, bound),
            tuple(bool(v.name) for v in node.outputs),
            tuple(None if v is None else v.dtype for v in node.inputs),
        )
        refusal = operation.refused(call, node)
        run = operation.run if self._rule is None else relevant(node, operation, self._rule)
        if self.mode is not None and operation.by_batch and not call.get("training_mode", 0):
            refusal = refusal or claim(self.moving, label, node)
            run = ByMode(operation, self.mode)
        if refusal:
            self.missing[label] = refusal
        bodies = [a for a in call.attributes.values() if isinstance(a, Program)]
        read = tuple(sorted({place for body in bodies for place in body.reads}))
        return Step(run, call, inputs, outputs, operation.numbers, operation.scoped, captured=read)

    def _function(self, node: ir.Node, function: ir.Function, bound: Attributes) -> Program:
        """A program for each call, as the attributes of the call are its own."""
        given = {n: a for n, a in function.attributes.items() if a.value is not None}
        given |= {n: b for n, a in node.attributes.items() if (b := _resolved(a, bound))}
        return self.graph(function.graph, function.opset_imports, given)

    def _attributes(
        self, node: ir.Node, opset: int, opsets: Mapping[str, int], bound: Attributes
    ) -> dict[str, Any]:
        found = dict(_defaults(node.op_type, opset)) if node.domain in ("", "ai.onnx") else {}
        for name, attribute in node.attributes.items():
            given = _resolved(attribute, bound)
            if given is None:
                continue
            if given.type is _READS_SCOPE:
                found[name] = self.graph(given.as_graph(), opsets, bound)
            else:
                found[name] = _python(given, f"{node.op_type} {node.name}")
        return found


def _nothing(call: Call, *inputs: Any) -> None:
    """Stands where an operator is missing; the model is refused before it could run."""


def operation_of(node: ir.Node) -> Operation | None:
    """The row of a node's operator."""
    return OPERATIONS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def _no_rows(value: ir.Value) -> torch.Tensor | None:
    """What a loop of no rounds stacks of an output; sizes that are not known are 0."""
    kind = None if value.dtype is None else TYPES.get(value.dtype)
    if kind is None or value.shape is None:
        return None
    sizes = [d if isinstance(d, int) else 0 for d in value.shape]
    if math.prod(max(d, 1) for d in sizes) > _LARGEST:
        return None
    return torch.zeros([0, *sizes], dtype=kind)


def _resolved(attribute: ir.Attr, bound: Attributes) -> ir.Attr | None:
    """An attribute itself, or what a reference to one of the call's stands for."""
    if not attribute.is_ref():
        return attribute
    return bound.get(attribute.ref_attr_name or "")


def _python(attribute: ir.Attr, label: str) -> Any:
    if attribute.type is ir.AttributeType.TENSOR:
        return to_torch_tensor(attribute.as_tensor(), label)
    if attribute.name in _TYPE_ATTRIBUTES:
        return torch_type(ir.DataType(attribute.as_int()), label)
    return attribute.value


@cache
def _defaults(op_type: str, opset: int) -> dict[str, Any]:
    """What the schema says where a node says nothing; nothing for operators that ONNX lacks."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return {}
    found = {}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name and name not in _TYPE_ATTRIBUTES:
            given = ir.serde.deserialize_attribute(attribute.default_value)
            if isinstance(given, ir.Attr):
                found[name] = _python(given, op_type)
    return found
