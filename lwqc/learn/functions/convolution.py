"""Convolutions."""

from __future__ import annotations

import torch.nn.functional as F

from lwqc.learn.functions.products import activated
from lwqc.learn.functions.windows import windows
from lwqc.learn.operation import Call, Operation, Table, Tensor, onnx

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(call: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: [N, C, ...]; w: [out, C / group, ...]."""
    place = windows(call, list(x.shape[2:]), list(w.shape[2:]))
    padding = place.before
    if not place.symmetric:
        x, padding = F.pad(x, place.flat), [0] * len(padding)
    run = _CONV[w.ndim - 2]
    return run(x, w, bias, place.strides, padding, place.dilations, call.get("group", 1))


def _conv_transpose(call: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """The whole result, of which the padding is cut off."""
    rank, sizes, kernel = w.ndim - 2, x.shape[2:], w.shape[2:]
    strides = list(call.get("strides") or [1] * rank)
    dilations = list(call.get("dilations") or [1] * rank)
    extra = list(call.get("output_padding") or [0] * rank)
    pads = list(call.get("pads") or [0] * (2 * rank))
    before, after = pads[:rank], pads[rank:]
    whole = [
        (sizes[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + extra[i]
        for i in range(rank)
    ]
    wanted, auto = call.get("output_shape"), call.get("auto_pad", "NOTSET")
    short = [max(n - w, 0) for n, w in zip(list(wanted or whole)[-rank:], whole, strict=True)]
    if auto in ("SAME_UPPER", "SAME_LOWER") and wanted is None:
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if wanted is not None:
        # Where the whole is smaller than a size by auto_pad, onnxruntime gives the whole.
        total = [max(whole[i] - list(wanted)[-rank:][i], 0) for i in range(rank)]
        before = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
        after = [t - b - s for t, b, s in zip(total, before, short, strict=True)]
    group = call.get("group", 1)
    made = _TRANSPOSED[rank](x, w, None, strides, 0, 0, group, dilations)
    # Padding of the output is more of it at the end, which nothing reaches.
    flat = [n for i in reversed(range(rank)) for n in (-before[i], extra[i] - after[i])]
    made = F.pad(made, flat)
    return made if bias is None else made + bias.reshape(-1, *[1] * rank)


def _fused_conv(
    call: Call, x: Tensor, w: Tensor, bias: Tensor | None = None, added: Tensor | None = None
) -> Tensor:
    """com.microsoft.FusedConv."""
    made = conv(call, x, w, bias)
    return activated(call, made if added is None else made + added)


def _col2im(call: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    sizes, kernel = image.tolist(), tuple(block.tolist())
    pads = list(call.get("pads") or [0] * 4)
    padded = (sizes[0] + pads[0] + pads[2], sizes[1] + pads[1] + pads[3])
    made = F.fold(
        x,
        padded,
        kernel,
        dilation=call.get("dilations") or 1,
        stride=call.get("strides") or 1,
    )
    return made[..., pads[0] : pads[0] + sizes[0], pads[1] : pads[1] + sizes[1]]


TABLE: Table = {
    **onnx(Conv=conv, ConvTranspose=_conv_transpose),
    ("", "Col2Im"): Operation(_col2im, numbers=(1, 2)),
    ("com.microsoft", "FusedConv"): Operation(_fused_conv),
}
