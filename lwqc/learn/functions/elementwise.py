"""Operators that compute each element from those at its place."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F

from lwqc.learn.operation import Call, Function, Operation, Table, Tensor, onnx, unary


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda call, a, b: function(a, b)


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda call, *values: reduce(function, values)


def _mean(call: Call, *values: Tensor) -> Tensor:
    return reduce(torch.add, values) / len(values)


def _div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers are cut towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def _pow(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The result has the type of the base."""
    if not a.is_floating_point() and b.is_floating_point():
        return torch.pow(a.double(), b.double()).to(a.dtype)
    if b.numel() == 1 and not b.requires_grad and b.ndim <= a.ndim:
        return torch.pow(a, b.item())  # the gradient at zero is finite then
    return torch.pow(a, b.to(a.dtype))


def _shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    left = call.get("direction") == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """The gradient at a bound goes through, as that of a ReLU does not at zero."""
    least = call.get("min") if low is None else low.to(x.dtype)
    most = call.get("max") if high is None else high.to(x.dtype)
    if least is not None:
        x = torch.maximum(x, least) if torch.is_tensor(least) else x.clamp(min=least)
    if most is not None:
        x = torch.minimum(x, most) if torch.is_tensor(most) else x.clamp(max=most)
    return x


def _gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _shrink(call: Call, x: Tensor) -> Tensor:
    bias, lambd = call.get("bias", 0.0), call.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def _is_inf(call: Call, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if call.get("detect_negative", 1):
        found |= torch.isneginf(x)
    if call.get("detect_positive", 1):
        found |= torch.isposinf(x)
    return found


def _celu(call: Call, x: Tensor) -> Tensor:
    return F.celu(x, call.get("alpha", 1.0))


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.real("alpha", 0.0), call.real("gamma", 0.0)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


def _elu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, call.get("alpha", 1.0) * torch.expm1(torch.clamp(x, max=0)))


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


def _swish(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def _thresholded(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


def _softplus(call: Call, x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _leaky(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.get("alpha", 0.01))


def _quick_gelu(call: Call, x: Tensor) -> Tensor:
    """com.microsoft.QuickGelu."""
    return x * torch.sigmoid(call.real("alpha", 1.702) * x)


def _bias_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    """com.microsoft.BiasGelu."""
    return F.gelu(x + bias)


def _fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """com.microsoft.FastGelu: by tanh."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _bias_split_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    """com.microsoft.BiasSplitGelu: one half times the Gelu of the other."""
    left, right = torch.chunk(x + bias, 2, dim=-1)
    return left * F.gelu(right)


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.linalg.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
_MANY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}
_MS = "com.microsoft"

TABLE: Table = {
    **onnx(**{name: unary(function) for name, function in _UNARY.items()}),
    **onnx(**{name: _binary(function) for name, function in _BINARY.items()}),
    **onnx(**{name: _many(function) for name, function in _MANY.items()}),
    **onnx(
        BitShift=_shift,
        Celu=_celu,
        Div=_div,
        Elu=_elu,
        Gelu=_gelu,
        HardSigmoid=_hard_sigmoid,
        IsInf=_is_inf,
        LeakyRelu=_leaky,
        Mean=_mean,
        Mod=_mod,
        PRelu=_prelu,
        Pow=_pow,
        Selu=_selu,
        Shrink=_shrink,
        Softplus=_softplus,
        Swish=_swish,
        ThresholdedRelu=_thresholded,
        Where=lambda call, condition, a, b: torch.where(condition, a, b),
    ),
    ("", "Clip"): Operation(_clip, fixed=(1, 2)),
    (_MS, "BiasGelu"): Operation(_bias_gelu),
    (_MS, "BiasSplitGelu"): Operation(_bias_split_gelu),
    (_MS, "FastGelu"): Operation(_fast_gelu),
    (_MS, "Gelu"): Operation(unary(F.gelu)),
    (_MS, "QuickGelu"): Operation(_quick_gelu),
}
