"""Writes activation functions in the fewest operators, whatever exporters made of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lwqc.graph.activations import SAMPLES, Activation, named
from lwqc.graph.cones import Cone, along_last, is_elementwise, largest
from lwqc.model.edit import add_constant, insert_before, replace_node
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_OPSET = 11  # Clip takes its ends as inputs from here on
# What a cone may consist of. Of nodes and of what they count where that is more than one: Swish has
# no kernel in onnxruntime 1.31.1, Max and Min none in 8 bits and none that fuses.
_OPERATORS = frozenset(
    {
        *("Abs", "Add", "Clip", "Div", "Exp", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"),
        *("Log", "Max", "Min", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Sigmoid"),
        *("Softplus", "Sqrt", "Sub", "Sum", "Swish", "Tanh"),
    }
)
_COSTS = {"Swish": 4, "Max": 2, "Min": 2}


class FuseActivations(Pass):
    """Write a function of one value in the fewest operators that runtimes have kernels for.

    Matches: float32 operators that compute, from one value and stored single numbers, what the
        identity, Relu, LeakyRelu, Clip, Sigmoid, HardSigmoid, x * Sigmoid(a * x) or
        x * HardSigmoid(x) computes. That is told by evaluating them on numbers, so every spelling
        is found: Add, Clip, Mul and Div of a hard swish, x / (1 + exp(-x)), Swish.
    Rewrites to: those operators, where they are fewer. Equal to rounding for finite numbers.
    Refuses: results that are read in between, vectors of numbers, other types, opsets below 11.
    """

    keeps_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph, from the last node to the first."""
        opset = model.opset_imports.get("", 1)
        if opset < _OPSET:
            return 0
        known: dict[tuple[object, ...], Activation | None] = {}
        done = 0
        for cone, activation in largest(model.graph, _takes, lambda c: _told(c, opset, known)):
            _write(model.graph, cone, activation)
            done += 1
        return done


def _told(
    cone: Cone, opset: int, known: dict[tuple[object, ...], Activation | None]
) -> Activation | None:
    """What a cone computes, if that can be written in fewer operators."""
    # Fewer than one operator is only the identity, which folding knows.
    if cone.source.dtype != ir.DataType.FLOAT or _cost(cone) < 2:
        return None
    key = cone.key()
    if key not in known:
        x = along_last(SAMPLES, len(cone.source.shape or ()))
        known[key] = named(cone.compute(x, opset).ravel())
    found = known[key]
    return found if found is not None and _saves(cone, found) else None


def _cost(cone: Cone) -> int:
    return sum(_COSTS.get(node.op_type, 1) for node in cone.nodes)


def _saves(cone: Cone, activation: Activation) -> bool:
    operators = 0 if activation.kind == "identity" else 1 + activation.gated
    if activation.kind == "sigmoid" and activation.a != 1:
        operators += 1
    identity = operators == 0 and cone.out.is_graph_output()
    return not identity and operators < _cost(cone)


def _takes(node: ir.Node) -> bool:
    return is_elementwise(node, _OPERATORS)


def _write(graph: ir.Graph, cone: Cone, activation: Activation) -> None:
    end, x, name = cone.nodes[-1], cone.source, cone.out.name
    if activation.kind == "identity":
        cone.out.replace_all_uses_with(x)
        return
    value = _kernel(graph, cone, activation)
    if activation.gated:
        value.shape, value.type = x.shape, x.type
        (value,) = insert_before(end, "Mul", [x, value], [f"{name}/gated"])
    replace_node(end, value)


def _kernel(graph: ir.Graph, cone: Cone, activation: Activation) -> ir.Value:
    """The operator without its gate."""
    end, x, name = cone.nodes[-1], cone.source, cone.out.name
    kind, a, b = activation.kind, activation.a, activation.b

    def put(
        op_type: str, *inputs: ir.Value, attributes: dict[str, int | float] | None = None
    ) -> ir.Value:
        (value,) = insert_before(end, op_type, inputs, [f"{name}/{op_type}"], attributes)
        value.shape, value.type = x.shape, x.type
        return value

    def stored(number: float) -> ir.Value:
        return add_constant(graph, f"{name}/number", np.float32(number))

    match kind:
        case "relu":
            return put("Relu", x)
        case "leaky":
            return put("LeakyRelu", x, attributes={"alpha": a})
        case "clip":
            return put("Clip", x, stored(a), stored(b))
        case "hard-sigmoid":
            return put("HardSigmoid", x, attributes={"alpha": a, "beta": b})
    return put("Sigmoid", x if a == 1 else put("Mul", x, stored(a)))
