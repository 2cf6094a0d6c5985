"""Matrix products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lwqc.learn.operation import Call, Operation, Table, Tensor, onnx


def _matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return torch.matmul(a, b)
    return torch.matmul(a.long(), b.long()).to(a.dtype)


def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """C is one number, a row or a matrix."""
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    left = a.T if call.get("transA", 0) else a
    if alpha == beta == 1 and c is not None and c.ndim == 1 and len(c) > 1:
        return F.linear(left, b if call.get("transB", 0) else b.T, c)
    made = torch.matmul(left, b.T if call.get("transB", 0) else b)
    made = made if alpha == 1 else made * alpha
    if c is None:
        return made
    return made + (c if beta == 1 else c * beta)


def _einsum(call: Call, *values: Tensor) -> Tensor:
    return torch.einsum(call.get("equation").replace(" ", ""), *values)


def _fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """com.microsoft.FusedMatMul and TransposeMatMul."""
    for side in ("A", "B"):
        x = a if side == "A" else b
        if call.get(f"transBatch{side}", 0):
            x = x.movedim(0, -2)
        if call.get(f"trans{side}", 0) and x.ndim > 1:
            x = x.mT
        a, b = (x, b) if side == "A" else (a, x)
    return torch.matmul(a, b) * call.real("alpha", 1.0)


_ACTIVATIONS: dict[str, Any] = {
    "": lambda call, x: x,
    "Clip": lambda call, x: x.clamp(*call.get("activation_params")),
    "HardSigmoid": lambda call, x: (
        x * call.get("activation_params")[0] + call.get("activation_params")[1]
    ).clamp(0, 1),
    "LeakyRelu": lambda call, x: F.leaky_relu(
        x, call.get("activation_alpha") or (call.get("activation_params") or [0.01])[0]
    ),
    "Relu": lambda call, x: torch.relu(x),
    "Sigmoid": lambda call, x: torch.sigmoid(x),
    "Tanh": lambda call, x: torch.tanh(x),
}


def activated(call: Call, x: Tensor) -> Tensor:
    """What a fused operator of com.microsoft does in the end."""
    function = _ACTIVATIONS[call.get("activation", "")]
    made: Tensor = function(call, x)
    return made


def _fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    return activated(call, gemm(call, a, b, c))


_MS = "com.microsoft"

TABLE: Table = {
    **onnx(Einsum=_einsum, Gemm=gemm, MatMul=_matmul),
    (_MS, "FusedGemm"): Operation(_fused_gemm),
    (_MS, "FusedMatMul"): Operation(_fused_matmul),
    (_MS, "TransposeMatMul"): Operation(_fused_matmul),
}
