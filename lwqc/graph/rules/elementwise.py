"""Operators that work index by index."""

from __future__ import annotations

from lwqc.graph.rules.context import Context, Rule
from lwqc.graph.rules.fit import BarrierError, Dims

_ONE_TENSOR = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Bernoulli",
]
_BROADCAST = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]
_CONTRIB_ONE_TENSOR = ["QuickGelu"]
_CONTRIB_BROADCAST = ["BiasGelu", "FastGelu", "BiasAdd"]


def one_tensor(ctx: Context) -> None:
    """Same dimensions; scalar operands say nothing."""
    ctx.give(Dims(ctx.dims()))


def broadcast(ctx: Context) -> None:
    """All dimensions that are not 1 are the same."""
    ctx.give(ctx.broadcast(*ctx.every()))


def clip(ctx: Context) -> None:
    """Like one tensor; the limits are scalars."""
    ctx.give(Dims(ctx.dims()))


def dropout(ctx: Context) -> None:
    """Data and mask."""
    ctx.give(Dims(ctx.dims()))
    ctx.give(Dims(ctx.dims()), 1)


def cast_like(ctx: Context) -> None:
    """The second operand gives its type only, and may be any activation."""
    ctx.dims(1)
    ctx.give(Dims(ctx.dims()))


def cumulative(ctx: Context) -> None:
    """CumSum, CumProd: every index depends on those before it."""
    axis = ctx.static(1)
    if axis is None:
        raise BarrierError("its axis is not constant")
    dims = Dims(ctx.dims())
    if axis.size != 1:
        raise BarrierError("its axis is no single number")
    ctx.freeze([dims[int(axis.ravel()[0]) % max(len(dims), 1)]], "accumulates along this axis")
    ctx.give(dims)


def triangle(ctx: Context) -> None:
    """Trilu looks at the positions along the last two axes."""
    dims = Dims(ctx.dims())
    ctx.freeze(dims[-2:], "keeps a triangle of this axis")
    ctx.give(dims)


RULES: dict[tuple[str, str], Rule] = {
    **{("", op): one_tensor for op in _ONE_TENSOR},
    **{("", op): broadcast for op in _BROADCAST},
    **{("com.microsoft", op): one_tensor for op in _CONTRIB_ONE_TENSOR},
    **{("com.microsoft", op): broadcast for op in _CONTRIB_BROADCAST},
    ("com.microsoft", "Gelu"): one_tensor,
    ("", "Clip"): clip,
    ("", "Dropout"): dropout,
    ("", "CastLike"): cast_like,
    ("", "CumSum"): cumulative,
    ("", "CumProd"): cumulative,
    ("", "Trilu"): triangle,
}
