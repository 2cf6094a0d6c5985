"""Runs the axis algebra over a graph: which dimensions of which tensors are the same indices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from lwqc.graph.axes import Factor, Masks, fixed, freeze, one
from lwqc.graph.captures import captures
from lwqc.graph.integers import Integers
from lwqc.graph.repairs import Repair
from lwqc.graph.rules import all_rules
from lwqc.graph.rules.context import Context, Rules
from lwqc.graph.rules.fit import BarrierError, Dims
from lwqc.graph.sampled import Sampled
from lwqc.model.refusal import Refusal
from lwqc.model.weights import is_float, static_shape, stored_tensor


@dataclass(frozen=True)
class Use:
    """One operand of one node, where a stored tensor is looked at separately for each reader."""

    value: ir.Value
    node: ir.Node
    index: int


@dataclass
class AxisAnalysis:
    """Dimensions of all tensors of a graph.

    dims: by value; stored: the same for stored tensors, by the operand that reads them where
    several readers may need different slices (see `Use`).
    """

    graph: ir.Graph
    opset: int
    shapes: Mapping[str, Sampled]
    dims: dict[ir.Value, Dims] = field(default_factory=dict)
    stored: dict[Use | ir.Value, Dims] = field(default_factory=dict)
    repairs: list[Repair] = field(default_factory=list)
    barriers: list[Refusal] = field(default_factory=list)

    def operand(self, node: ir.Node, index: int) -> Sequence[Factor] | None:
        """Dimensions of an operand; None where it is left out or not known."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        if stored_tensor(value) is not None:
            return self.stored.get(Use(value, node, index)) or self.stored.get(value)
        return self.dims.get(value)

    def all_dims(self) -> Iterator[Sequence[Factor]]:
        """Dimensions of every tensor."""
        yield from self.dims.values()
        yield from self.stored.values()


def analyse_axes(
    model: ir.Model,
    shapes: Mapping[str, Sampled],
    *,
    rules: Rules | None = None,
    resizable_outputs: Collection[str] = (),
    anew: Mapping[ir.Value, int] = MappingProxyType({}),
) -> AxisAnalysis:
    """Relate the dimensions of all tensors of the main graph.

    shapes: tensor name -> sizes in two settings, see `graph.shapes`; a tensor without one is a
        barrier. rules: what operators do; None for `all_rules`. resizable_outputs: graph outputs
        that may get narrower. anew: tensor -> axis whose indices have nothing to do with those
        that it was computed from.
    """
    run = _Run(model, shapes, all_rules() if rules is None else rules, anew)
    for value in model.graph.inputs:
        sampled = shapes.get(value.name or "")
        if sampled is not None:
            reason = f"graph input {value.name}"
            run.result.dims[value] = Dims(fixed(s, reason) for s in sampled.first)
    for node in model.graph:
        run.visit(node)
    run.freeze_captured()
    for value in model.graph.outputs:
        if value.name not in resizable_outputs:
            run.freeze(value, f"graph output {value.name}")
    run.freeze_indispensable_units()
    return run.result


class _Run:
    def __init__(
        self,
        model: ir.Model,
        shapes: Mapping[str, Sampled],
        rules: Rules,
        anew: Mapping[ir.Value, int],
    ) -> None:
        self.rules = rules
        self.anew = anew
        self.opset = int(model.opset_imports.get("", 1))
        self.result = AxisAnalysis(model.graph, self.opset, shapes)
        self.integers = Integers(model.graph, shapes)
        self.places: dict[ir.Value, Factor] = {}
        self.captured: dict[ir.Node, list[ir.Value]] = {}
        for node, values in captures(model.graph):
            self.captured.setdefault(node, []).extend(values)

    def visit(self, node: ir.Node) -> None:
        if node.domain in ("", "ai.onnx") and node.op_type == "Constant":
            self._number(node.outputs[0])
            return
        inputs = [self._operand(node, i) for i in range(len(node.inputs))]
        ctx = Context(
            node, inputs, self.result.shapes, self.integers, self.opset, places=self.places
        )
        rule = self.rules.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
        try:
            if node in self.captured:
                raise BarrierError("has a body that may run any number of times")
            if rule is None:
                raise BarrierError("lwqc has no rule for this operator")
            rule(ctx)
            self._check(ctx)
            ctx.freeze_unread()
        except BarrierError as error:
            self._stop(ctx, str(error))
        self.result.repairs.extend(ctx.repairs)
        for index, dims in ctx.outputs.items():
            output = node.outputs[index]
            if (axis := self.anew.get(output)) is not None:
                dims = Dims(Factor(d.size) if a == axis else d for a, d in enumerate(dims))
            self.result.dims[output] = dims

    def _number(self, value: ir.Value) -> None:
        """A constant given as numbers in an attribute; tensors are looked at by their readers."""
        sampled = self.result.shapes.get(value.name or "")
        if stored_tensor(value) is None and sampled is not None:
            self.result.dims[value] = Dims(fixed(s, "a list of numbers") for s in sampled.first)

    def _operand(self, node: ir.Node, index: int) -> Dims | None:
        value = node.inputs[index]
        if value is None:
            return None
        tensor = stored_tensor(value)
        if tensor is None:
            return self.result.dims.get(value)
        separate = len(value.uses()) > 1 and (tensor.shape.rank() < 2 or not is_float(tensor))
        key = Use(value, node, index) if separate else value
        if key not in self.result.stored:
            sizes = static_shape(tensor)
            self.result.stored[key] = Dims(one() if s == 1 else Factor(s) for s in sizes)
        return self.result.stored[key]

    def _check(self, ctx: Context) -> None:
        """A rule that contradicts the shapes must not decide anything."""
        for index, dims in ctx.outputs.items():
            sampled = self.result.shapes.get(ctx.node.outputs[index].name or "")
            if sampled is not None and tuple(d.size for d in dims) != sampled.first:
                raise BarrierError("its shape is not what the operator should give")

    def _stop(self, ctx: Context, reason: str) -> None:
        ctx.outputs.clear()
        ctx.repairs.clear()
        ctx.barrier(reason)
        for value in self.captured.get(ctx.node, ()):
            self.freeze(value, f"{ctx.where}: read in its body")
        self.result.barriers.append(Refusal(f"{ctx.node.op_type} {ctx.node.name}", reason))

    def freeze(self, value: ir.Value, reason: str) -> None:
        for dim in self.result.dims.get(value, ()):
            freeze(dim, reason)
        for key, dims in self.result.stored.items():
            if key is value or (isinstance(key, Use) and key.value is value):
                for dim in dims:
                    freeze(dim, reason)

    def freeze_captured(self) -> None:
        """Once more at the end: other nodes may read what a body reads."""
        for node, values in self.captured.items():
            for value in values:
                self.freeze(value, f"{node.op_type} {node.name}: read in its body")

    def freeze_indispensable_units(self) -> None:
        """A single index without which some axis would be empty stays."""
        for dims in self.result.all_dims():
            for dim in dims:
                for leaf in set(dim.leaves()):
                    if leaf.size == 1 and not leaf.frozen:
                        gone = Masks({leaf: np.zeros(1, np.bool_)})
                        if not gone.of(dim).any():
                            freeze(leaf, "the only index of an axis")
