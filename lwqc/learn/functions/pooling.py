"""Poolings over windows and over whole maps."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from lwqc.learn.functions.windows import Windows, windows
from lwqc.learn.operation import Call, Operation, Table, Tensor, onnx

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _windows(call: Call, x: Tensor) -> Windows:
    return windows(call, list(x.shape[2:]), list(call.get("kernel_shape")))


def _why_not_pool(call: Call, node: ir.Node) -> str:
    # onnxruntime gives fewer windows than the standard says.
    same = call.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    wide = any(d != 1 for d in call.get("dilations") or ())
    return "auto_pad of dilated windows is not known here" if same and wide else ""


def _max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    place = _windows(call, x)
    padding: list[int] = place.before
    indices = len(call.wanted) > 1 and call.wanted[1]
    dtype = x.dtype
    if not x.is_floating_point():
        x = x.float()
    wide = any(2 * p > k for p, k in zip(padding, place.kernel, strict=True))
    if indices or wide or not place.symmetric:
        sizes = x.shape
        x = F.pad(F.pad(x, place.flat, value=-math.inf), place.flat_beyond, value=-math.inf)
        padding = [0] * len(padding)
    run = _MAX[x.ndim - 2]
    made: Any = run(
        x, place.kernel, place.strides, padding, place.dilations, return_indices=indices
    )
    if not indices:
        only: Tensor = made.to(dtype)
        return only
    values, places = made
    return values.to(dtype), _unpadded(call, places, list(x.shape), list(sizes), place.before)


def _unpadded(
    call: Call, places: Tensor, padded: list[int], sizes: list[int], before: list[int]
) -> Tensor:
    """Places in the whole tensor of what was found in one padded channel of it."""
    rest: Tensor = places
    coordinates: list[Tensor] = []
    for size in reversed(padded[2:]):
        coordinates.insert(0, rest % size)
        rest = torch.div(rest, size, rounding_mode="floor")
    axes = list(range(len(before)))
    order = reversed(axes) if call.get("storage_order", 0) else axes
    flat = torch.zeros_like(places)
    for i in order:
        flat = flat * sizes[2 + i] + (coordinates[i] - before[i])
    channel = torch.arange(sizes[0] * sizes[1], device=places.device)
    return flat + channel.reshape(sizes[0], sizes[1], *[1] * len(before)) * math.prod(sizes[2:])


def _average_pool(call: Call, x: Tensor) -> Tensor:
    place = _windows(call, x)
    counted = bool(call.get("count_include_pad", 0))
    plain = all(d == 1 for d in place.dilations)
    narrow = all(2 * p <= k for p, k in zip(place.before, place.kernel, strict=True))
    if place.symmetric and plain and narrow:
        run = _AVERAGE[x.ndim - 2]
        made: Tensor = run(x, place.kernel, place.strides, place.before, False, counted)
        return made
    ones = torch.ones_like(x[:1, :1])
    ones = F.pad(ones, place.flat, value=1.0 if counted else 0.0)
    sums = _sums(F.pad(F.pad(x, place.flat), place.flat_beyond), place)
    return sums / _sums(F.pad(ones, place.flat_beyond), place)


def _sums(x: Tensor, place: Windows) -> Tensor:
    """Over each window, padding being there already."""
    n, c = x.shape[:2]
    kernel = torch.ones(1, 1, *place.kernel, dtype=x.dtype, device=x.device)
    flat = x.reshape(n * c, 1, *x.shape[2:])
    made = _CONV[x.ndim - 2](flat, kernel, None, place.strides, 0, place.dilations)
    return made.reshape(n, c, *made.shape[2:])


def _lp_pool(call: Call, x: Tensor) -> Tensor:
    place, p = _windows(call, x), call.real("p", 2)
    padded = F.pad(F.pad(x.abs() ** p, place.flat), place.flat_beyond)
    return _sums(padded, place) ** (1 / p)


def _max_unpool(call: Call, x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    strides = call.get("strides") or [1] * rank
    pads = call.get("pads") or [0] * (2 * rank)
    kernel = call.get("kernel_shape")
    usual = [
        (x.shape[2 + i] - 1) * strides[i] - pads[i] - pads[rank + i] + kernel[i]
        for i in range(rank)
    ]
    sizes = [*x.shape[:2], *usual] if shape is None else [int(n) for n in shape.tolist()]
    flat = torch.zeros(math.prod(sizes), dtype=x.dtype, device=x.device)
    return flat.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(sizes)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _global_average(call: Call, x: Tensor) -> Tensor:
    return x.mean(_spatial(x), True)


def _global_max(call: Call, x: Tensor) -> Tensor:
    return x.amax(_spatial(x), True)


def _global_lp(call: Call, x: Tensor) -> Tensor:
    made: Tensor = torch.linalg.vector_norm(x, call.get("p", 2), _spatial(x), True)
    return made


def _max_roi_pool(call: Call, x: Tensor, rois: Tensor) -> Tensor:
    """Of regions [batch, x1, y1, x2, y2] that are rounded to whole pixels."""
    high, wide = call.get("pooled_shape")
    scale = call.get("spatial_scale", 1.0)
    made = []
    corners = (rois[:, 1:] * scale).tolist()  # in float32, which decides between pixels
    for batch, row in zip(rois[:, 0].long().tolist(), corners, strict=True):
        left, top, right, bottom = (math.floor(v + 0.5) for v in row)
        h, w = max(bottom - top + 1, 1), max(right - left + 1, 1)
        cells = []
        for i in range(high):
            for j in range(wide):
                y0, y1 = math.floor(i * h / high), math.ceil((i + 1) * h / high)
                x0, x1 = math.floor(j * w / wide), math.ceil((j + 1) * w / wide)
                ys = slice(max(y0 + top, 0), min(max(y1 + top, 0), x.shape[2]))
                xs = slice(max(x0 + left, 0), min(max(x1 + left, 0), x.shape[3]))
                cell = x[batch, :, ys, xs]
                empty = cell.numel() == 0
                cells.append(x.new_zeros(x.shape[1]) if empty else cell.amax((1, 2)))
        made.append(torch.stack(cells, 1).reshape(x.shape[1], high, wide))
    return torch.stack(made)


TABLE: Table = {
    **onnx(
        GlobalAveragePool=_global_average,
        GlobalLpPool=_global_lp,
        GlobalMaxPool=_global_max,
        MaxRoiPool=_max_roi_pool,
        MaxUnpool=_max_unpool,
    ),
    ("", "AveragePool"): Operation(_average_pool, refused=_why_not_pool),
    ("", "LpPool"): Operation(_lp_pool, refused=_why_not_pool),
    ("", "MaxPool"): Operation(_max_pool, refused=_why_not_pool),
}
