"""Layer-wise relevance propagation, written as slopes.

Every operator computes what it does; its slopes are others, so that a value times the slope at it
is the relevance of that value, and a weight times the slope along it what goes through that weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import onnx_ir as ir
import torch

from lwqc.graph.linear_operand import Operand, linear_operand
from lwqc.learn.operation import Call, Function, Operation, Tensor
from lwqc.model.weights import stored_tensor

Rule = Literal["epsilon", "alpha-beta", "z-plus"]
RULES: tuple[Rule, ...] = get_args(Rule)
_EPSILON, _SMALL = 1e-6, 1e-9
_ALPHA, _BETA = 2.0, 1.0
# What comes out of these is as relevant as what goes in, place by place.
_IDENTITIES = {
    "BatchNormalization", "BiasGelu", "Celu", "Clip", "Elu", "FastGelu", "Gelu",
    "GroupNormalization", "HardSigmoid", "HardSwish", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "LpNormalization", "Mish", "PRelu", "QuickGelu",
    "RMSNormalization", "Relu", "Selu", "Sigmoid", "SimplifiedLayerNormalization", "Softplus",
    "Softsign", "Swish", "Tanh", "ThresholdedRelu",
}  # fmt: skip
_PRODUCTS = {"MatMul", "Mul"}


def relevant(node: ir.Node, operation: Operation, rule: Rule) -> Function:
    """The function of a node by a rule; its own where slopes are relevance already, as of sums.

    Layers with a stored weight go by the rule: `epsilon` by shares of the result, with a small
    number that keeps it from 0; `z-plus` by shares of what is positive in it; `alpha-beta` by
    twice those less shares of what is negative. Products of two activations share equally; a
    softmax, and operators that are not known here, by slopes (arXiv 1912.08881, 2402.05602).
    """
    if isinstance(linear_operand(node), Operand):
        return _LAYERS[rule](operation.run)
    if node.op_type in _IDENTITIES:
        return _identity(operation.run)
    stored = any(stored_tensor(value) is not None for value in node.inputs)
    if node.op_type in _PRODUCTS and node.domain == "" and not stored:
        return _shared(operation.run)
    return operation.run


def _by_epsilon(run: Function) -> Function:
    def layer(call: Call, x: Tensor, w: Tensor, *bias: Tensor | None) -> Tensor:
        made = run(call, x, w, *bias)
        return _with_slopes(made, made * _ratio(made, made, _EPSILON))

    return layer


def _by_z_plus(run: Function) -> Function:
    def layer(call: Call, x: Tensor, w: Tensor, *bias: Tensor | None) -> Tensor:
        made = run(call, x, w, *bias)
        positive = _part(run, call, x, w, 1)
        return _with_slopes(made, positive * _ratio(made, positive, _SMALL))

    return layer


def _by_alpha_beta(run: Function) -> Function:
    def layer(call: Call, x: Tensor, w: Tensor, *bias: Tensor | None) -> Tensor:
        made = run(call, x, w, *bias)
        positive, negative = _part(run, call, x, w, 1), _part(run, call, x, w, -1)
        gained = positive * _ratio(made, positive, _SMALL) * _ALPHA
        return _with_slopes(made, gained - negative * _ratio(made, negative, _SMALL) * _BETA)

    return layer


_LAYERS: dict[Rule, Callable[[Function], Function]] = {
    "epsilon": _by_epsilon,
    "alpha-beta": _by_alpha_beta,
    "z-plus": _by_z_plus,
}


def _part(run: Function, call: Call, x: Tensor, w: Tensor, sign: int) -> Tensor:
    """The sum of those products of an input and a weight that have a sign; without a bias."""
    above: Tensor = run(call, x.clamp(min=0), (w * sign).clamp(min=0) * sign)
    below: Tensor = run(call, x.clamp(max=0), (w * sign).clamp(max=0) * sign)
    return above + below


def _identity(run: Function) -> Function:
    def same(call: Call, x: Tensor, *others: Tensor | None) -> Any:
        made = run(call, x, *others)
        first = made[0] if isinstance(made, tuple) else made
        first = _with_slopes(first, x * _ratio(first, x, 0.0))
        return (first, *made[1:]) if isinstance(made, tuple) else first

    return same


def _shared(run: Function) -> Function:
    def product(call: Call, a: Tensor, b: Tensor) -> Tensor:
        made: Tensor = (run(call, a, b.detach()) + run(call, a.detach(), b)) / 2
        return made

    return product


def _with_slopes(value: Tensor, of: Tensor) -> Tensor:
    """A value with the slopes of another tensor."""
    return value.detach() + (of - of.detach())


def _ratio(value: Tensor, to: Tensor, least: float) -> Tensor:
    """A fixed ratio, 0 where what it is to is 0."""
    moved = (to + torch.copysign(torch.full_like(to, least), to)).detach()
    there = to.detach() != 0
    return torch.where(there, value.detach() / torch.where(there, moved, 1.0), 0.0)
