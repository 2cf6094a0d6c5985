"""Normalisations."""

from __future__ import annotations

import onnx_ir as ir
import torch
import torch.nn.functional as F

from lwqc.learn.operation import Call, Operation, Table, Tensor, onnx


def _batch_norm(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """By the stored statistics, whatever the module's mode: that is what the file says."""
    epsilon = call.get("epsilon", 1e-5)
    if mean.requires_grad or variance.requires_grad:
        shape = [1, -1] + [1] * (x.ndim - 2)
        factor = scale * torch.rsqrt(variance + epsilon)
        return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    if not call.get("training_mode", 0):
        return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)
    momentum = call.get("momentum", 0.9)
    axes = [a for a in range(x.ndim) if a != 1]
    now, spread = x.mean(axes), x.var(axes, correction=0)
    made = F.batch_norm(x, None, None, scale, bias, True, eps=epsilon)
    return (
        made,
        mean * momentum + now * (1 - momentum),
        variance * momentum + spread * (1 - momentum),
    )


def _by_batch(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """By the statistics of the batch, which those given move towards in place."""
    share = 1 - call.real("momentum", 0.9)
    return F.batch_norm(x, mean, variance, scale, bias, True, share, call.get("epsilon", 1e-5))


def _why_not_batch_norm(call: Call, node: ir.Node) -> str:
    whole = call.opset < 9 and not call.get("spatial", 1)
    return "statistics of each place (spatial = 0) are not known here" if whole else ""


def _instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """That of a single pixel is the bias, which torch's own function of it does not take."""
    epsilon = call.get("epsilon", 1e-5)
    return torch.instance_norm(x, scale, bias, None, None, True, 0.0, epsilon, False)


def _group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Before opset 21 there was one scale for each group."""
    groups = call.get("num_groups")
    if call.opset < 21:
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return torch.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


def _layer_norm(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    axis = call.get("axis", -1) % x.ndim
    epsilon, sizes = call.get("epsilon", 1e-5), x.shape[axis:]
    if len(call.wanted) == 1:
        if scale.shape == sizes and (bias is None or bias.shape == sizes):
            return F.layer_norm(x, sizes, scale, bias, epsilon)
        made = F.layer_norm(x, sizes, eps=epsilon) * scale
        return made if bias is None else made + bias
    axes = list(range(axis, x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(axes, True)
    inverse = torch.rsqrt((wide - mean).square().mean(axes, True) + epsilon)
    made = (wide - mean) * inverse * scale
    return (made if bias is None else made + bias).to(x.dtype), mean, inverse


def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Without a mean; from the axis on."""
    axes = list(range(call.get("axis", -1) % x.ndim, x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = torch.rsqrt(wide.square().mean(axes, True) + call.get("epsilon", 1e-5))
    return (wide * inverse).to(x.dtype) * scale


def _lp_norm(call: Call, x: Tensor) -> Tensor:
    p, axis = call.get("p", 2), call.get("axis", -1)
    size = torch.linalg.vector_norm(x, p, axis, True)
    return x / torch.where(size == 0, torch.ones_like(size), size)


def _mean_variance(call: Call, x: Tensor) -> Tensor:
    axes = list(call.get("axes") or (0, 2, 3))
    centred = x - x.mean(axes, True)
    return centred / (centred.square().mean(axes, True).sqrt() + 1e-9)


def _local_response(call: Call, x: Tensor) -> Tensor:
    size = int(call.get("size"))
    alpha, beta, bias = call.real("alpha", 1e-4), call.real("beta", 0.75), call.real("bias", 1.0)
    before = (size - 1) // 2
    flat = x.square().reshape(x.shape[0], 1, x.shape[1], -1)
    padded = F.pad(flat, (0, 0, before, size - 1 - before))
    sums = F.avg_pool2d(padded, (size, 1), 1) * size
    return x / (bias + alpha / size * sums.reshape(x.shape)) ** beta


def _skip_layer_norm(
    call: Call,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """com.microsoft: the sum is the fourth output."""
    total = x + skip if bias is None else x + skip + bias
    made = F.layer_norm(total, scale.shape, scale, beta, call.get("epsilon", 1e-12))
    return made, None, None, total


def _skip_rms_norm(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    return rms_norm(call, total, scale), None, None, total


def _embed_layer_norm(
    call: Call,
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    positions: Tensor,
    kinds: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    places: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    length = ids.shape[1]
    where = torch.arange(length, device=ids.device)[None] if places is None else places.long()
    total = words[ids.long()] + positions[where]
    if segments is not None and kinds is not None:
        total = total + kinds[segments.long()]
    made = F.layer_norm(total, gamma.shape, gamma, beta, call.get("epsilon", 1e-12))
    index = None if mask is None else mask.sum(1, dtype=torch.int32)
    return made, index, total


_MS = "com.microsoft"

TABLE: Table = {
    **onnx(
        GroupNormalization=_group_norm,
        InstanceNormalization=_instance_norm,
        LRN=_local_response,
        LayerNormalization=_layer_norm,
        LpNormalization=_lp_norm,
        MeanVarianceNormalization=_mean_variance,
        RMSNormalization=rms_norm,
        # onnxruntime knows these two under ONNX's own domain.
        SimplifiedLayerNormalization=rms_norm,
    ),
    ("", "BatchNormalization"): Operation(
        _batch_norm, fixed=(3, 4), by_batch=_by_batch, refused=_why_not_batch_norm
    ),
    (_MS, "EmbedLayerNormalization"): Operation(_embed_layer_norm),
    (_MS, "SimplifiedLayerNormalization"): Operation(rms_norm),
    (_MS, "SkipLayerNormalization"): Operation(_skip_layer_norm),
    (_MS, "SkipSimplifiedLayerNormalization"): Operation(_skip_rms_norm),
}
