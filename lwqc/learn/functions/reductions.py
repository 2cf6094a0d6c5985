"""Operators that reduce axes, run along one, or make distributions of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from lwqc.learn.operation import Call, Function, Operation, Table, Tensor, numbers, onnx

Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduction(reduce: Reduce) -> Function:
    """axes: an attribute before opset 18 (13 for ReduceSum), an input since."""

    def run(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = numbers(call.get("axes") if axes is None else axes)
        if not chosen:
            if call.get("noop_with_empty_axes", 0):
                return x if reduce in _PLAIN else reduce(x.unsqueeze(0), (0,), False)
            chosen = list(range(x.ndim))
        along = tuple(a % x.ndim for a in chosen)
        return reduce(x, along, bool(call.get("keepdims", 1))) if along else x

    return run


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keep, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if not _count(x, axes):
        return _sum(x, axes, keep)
    if x.is_floating_point():
        return x.mean(axes, keep)
    return torch.div(_sum(x, axes, keep), _count(x, axes), rounding_mode="trunc")


def _count(x: Tensor, axes: tuple[int, ...]) -> int:
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return count


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


def _max(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.amax(axes, keep)


def _min(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.amin(axes, keep)


_PLAIN = (_sum, _mean, _prod, _max, _min)


def _l1(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _real(x: Tensor) -> Tensor:
    """Integers as floats."""
    return x if x.is_floating_point() else x.double()


def _l2(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    made: Tensor = torch.linalg.vector_norm(_real(x), 2, axes, keep)
    return made.to(x.dtype)


def _squares(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(_real(x), axes, keep).log().to(x.dtype)


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.logsumexp(_real(x), axes, keep).to(x.dtype)


def _along(function: Callable[[Tensor, int], Tensor]) -> Function:
    """Before opset 13 everything from the axis on was one."""

    def run(call: Call, x: Tensor) -> Tensor:
        axis = call.get("axis", -1)
        if call.opset >= 13:
            return function(x, axis)
        return function(x.flatten(axis % max(x.ndim, 1)), -1).reshape(x.shape)

    return run


def _softmax(x: Tensor, axis: int) -> Tensor:
    return torch.softmax(x, axis)


softmax = _along(_softmax)


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    return torch.log_softmax(x, axis)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    first = x.argmax(axis, True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)


def _cumulative(function: Callable[[Tensor, int], Tensor], start: int) -> Function:
    def run(call: Call, x: Tensor, axis: Tensor) -> Tensor:
        along = int(axis.reshape(-1)[0].item())
        if call.get("reverse", 0):
            x = x.flip(along)
        made = function(x, along).to(x.dtype)
        if call.get("exclusive", 0):
            first = torch.full_like(made.narrow(along, 0, 1), start)
            made = torch.cat([first, made.narrow(along, 0, made.shape[along] - 1)], along)
        return made.flip(along) if call.get("reverse", 0) else made

    return run


def _cross_entropy(
    call: Call, scores: Tensor, labels: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    logs = torch.log_softmax(scores, 1)
    return _likelihood(call, logs, labels, weights), logs


def _likelihood(call: Call, logs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    ignored = call.get("ignore_index")
    return F.nll_loss(
        logs,
        labels.long(),
        weights,
        ignore_index=-100 if ignored is None else ignored,
        reduction=call.get("reduction", "mean"),
    )


_REDUCTIONS: dict[str, Reduce] = {
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _max,
    "ReduceMean": _mean,
    "ReduceMin": _min,
    "ReduceProd": _prod,
    "ReduceSum": _sum,
    "ReduceSumSquare": _squares,
}

TABLE: Table = {
    **{("", n): Operation(_reduction(f), numbers=(1,)) for n, f in _REDUCTIONS.items()},
    **onnx(
        Hardmax=_along(_hardmax),
        LogSoftmax=_along(_log_softmax),
        NegativeLogLikelihoodLoss=_likelihood,
        Softmax=softmax,
        SoftmaxCrossEntropyLoss=_cross_entropy,
    ),
    ("", "CumProd"): Operation(_cumulative(torch.cumprod, 1), numbers=(1,)),
    ("", "CumSum"): Operation(_cumulative(torch.cumsum, 0), numbers=(1,)),
}
