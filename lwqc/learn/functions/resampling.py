"""Operators that take values between the places of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import torch
import torch.nn.functional as F

from lwqc.errors import InputError
from lwqc.learn.operation import Call, Operation, Table, Tensor, numbers


def _why_not_resize(call: Call, node: ir.Node) -> str:
    if call.get("antialias", 0):
        return "antialias is not known here"
    how = call.get("coordinate_transformation_mode", "half_pixel")
    if how == "half_pixel_symmetric" and call.get("mode", "nearest") == "nearest":
        return "the nearest of half_pixel_symmetric, where ties are common, is not known here"
    kind = call.type_of(0)
    floats = kind is None or kind.is_floating_point()
    return "" if floats else _of_integers(call)


def _of_integers(call: Call) -> str:
    # onnxruntime rounds what it makes of integers in ways of its own.
    between = call.get("mode", "nearest") != "nearest"
    return "values between those of integers are not known here" if between else ""


def _check_floats(call: Call, floats: bool) -> None:
    """For types that the file does not say. Raises InputError."""
    if not floats and _of_integers(call):
        raise InputError(f"{call.label}: {_of_integers(call)}")


def _upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Resize before opset 10."""
    factors = call.get("scales") if scales is None else scales.tolist()
    mode = "linear" if call.get("mode", "nearest") in ("linear", "bilinear") else "nearest"
    _check_floats(call, x.is_floating_point())
    sizes = [math.floor(n * f) for n, f in zip(x.shape, factors, strict=True)]
    for axis, (size, factor) in enumerate(zip(sizes, factors, strict=True)):
        if size != x.shape[axis]:
            places = torch.arange(size, dtype=torch.float32) / factor
            nearest = "ceil" if factor < 1 else "floor"  # as onnxruntime has it
            x = _taken(x, axis, *_neighbours(places, x.shape[axis], mode, nearest, -0.75, False))
    return x


def _resize(
    call: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    if call.opset < 11:
        return _upsample(call, x, roi)  # its second input was the scales
    _check_floats(call, x.is_floating_point())
    axes = [a % x.ndim for a in call.get("axes") or range(x.ndim)]
    factors, wanted = _sizes(call, x, axes, scales, sizes)
    region = None if roi is None or roi.numel() == 0 else roi.tolist()
    how = call.get("coordinate_transformation_mode", "half_pixel")
    mode, nearest = call.get("mode", "nearest"), call.get("nearest_mode", "round_prefer_floor")
    cubic, outside = call.get("cubic_coeff_a", -0.75), bool(call.get("exclude_outside", 0))
    for i, axis in enumerate(axes):
        before = x.shape[axis]
        if wanted[i] == before and factors[i] == 1 and how != "tf_crop_and_resize":
            continue
        ends = (0.0, 1.0) if region is None else (region[i], region[len(axes) + i])
        places = _places(how, wanted[i], before, factors[i], ends)
        found, weights = _neighbours(places, before, mode, nearest, cubic, outside)
        if how == "tf_crop_and_resize":
            gone = ((places < 0) | (places > before - 1)).to(x.device)
            x = _taken(x, axis, found, weights)
            shape = [-1 if a == axis else 1 for a in range(x.ndim)]
            filler = torch.full_like(x, call.get("extrapolation_value", 0.0))
            x = torch.where(gone.reshape(shape), filler, x)
        else:
            x = _taken(x, axis, found, weights)
    return x


def _sizes(
    call: Call, x: Tensor, axes: list[int], scales: Tensor | None, sizes: Tensor | None
) -> tuple[list[float], list[int]]:
    """Factor and new size of each axis that is named."""
    old = [x.shape[a] for a in axes]
    if sizes is None or sizes.numel() == 0:
        if scales is None:
            raise InputError(f"{call.label}: has neither scales nor sizes")
        factors = scales.tolist()
        return factors, [math.floor(n * f) for n, f in zip(old, factors, strict=True)]
    wanted = numbers(sizes) or []
    factors = [w / n for w, n in zip(wanted, old, strict=True)]
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        one = min(factors) if policy == "not_larger" else max(factors)
        factors = [one] * len(old)
        wanted = [math.floor(one * n + 0.5) for n in old]
    return factors, wanted


def _places(
    how: str, after: int, before: int, factor: float, region: tuple[float, float]
) -> Tensor:
    """Where each element of the new axis lies on the old one."""
    # onnxruntime computes them in float32, which decides between neighbours now and then.
    at, scale = torch.arange(after, dtype=torch.float32), torch.tensor(factor)
    if how == "asymmetric":
        return at / scale
    if how == "align_corners":
        return at * ((before - 1) / (after - 1)) if after > 1 else torch.zeros_like(at)
    if how == "tf_crop_and_resize":
        start, end = region
        if after == 1:
            return torch.full_like(at, 0.5 * (start + end) * (before - 1))
        return start * (before - 1) + at * ((end - start) * (before - 1) / (after - 1))
    if how == "tf_half_pixel_for_nn":
        return (at + 0.5) / scale
    if how == "pytorch_half_pixel" and after == 1:
        return torch.zeros_like(at)
    if how == "half_pixel_symmetric":
        offset = before / 2 * (1 - after / (scale * before))
        return offset + (at + 0.5) / scale - 0.5
    return (at + 0.5) / scale - 0.5


_ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round_prefer_floor": lambda p: torch.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: torch.floor(p + 0.5),
}


def _neighbours(
    places: Tensor, size: int, mode: str, nearest: str, a: float, outside: bool
) -> tuple[Tensor, Tensor]:
    """Indices [k, new size] of what each new element is made of, and their weights."""
    if mode == "nearest":
        whole = _ROUNDED[nearest](places).long()
        return whole.clamp(0, size - 1)[None], torch.ones(1, len(places))
    if mode == "linear":
        places = places.clamp(0, size - 1)
        low = torch.floor(places)
        share = places - low
        found = torch.stack([low, low + 1]).long()
        weights = torch.stack([1 - share, share])
    else:
        low = torch.floor(places)
        distances = torch.stack([places - low + 1 - i for i in range(4)]).abs()
        found = torch.stack([low - 1 + i for i in range(4)]).long()
        near = ((a + 2) * distances - (a + 3)) * distances**2 + 1
        far = ((a * distances - 5 * a) * distances + 8 * a) * distances - 4 * a
        weights = torch.where(distances <= 1, near, far)
        if outside:
            weights = torch.where((found < 0) | (found >= size), 0.0, weights)
            weights = weights / weights.sum(0)
    return found.clamp(0, size - 1), weights


def _taken(x: Tensor, axis: int, found: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of elements along an axis."""
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    found = found.to(x.device)
    if len(found) == 1:
        return x.index_select(axis, found[0])
    weights = weights.to(x.device, x.dtype)
    parts = [
        x.index_select(axis, index) * weight.reshape(shape)
        for index, weight in zip(found, weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    mode = call.get("mode", "linear")
    return F.grid_sample(
        x,
        grid,
        _GRID_MODES.get(mode, mode),
        call.get("padding_mode", "zeros"),
        bool(call.get("align_corners", 0)),
    )


def _affine_grid(call: Call, theta: Tensor, size: Tensor) -> Tensor:
    return F.affine_grid(theta, numbers(size) or [], bool(call.get("align_corners", 0)))


def _roi_align(call: Call, x: Tensor, rois: Tensor, batches: Tensor) -> Tensor:
    """Means of bilinear samples in each cell of each region [x1, y1, x2, y2]."""
    high, wide = call.get("output_height", 1), call.get("output_width", 1)
    scale, samples = call.get("spatial_scale", 1.0), call.get("sampling_ratio", 0)
    half = call.opset >= 16 and call.get("coordinate_transformation_mode") == "half_pixel"
    made = []
    for region, batch in zip(rois, batches.tolist(), strict=True):
        left, top, right, bottom = (region * scale - (0.5 if half else 0.0)).unbind()
        width, height = right - left, bottom - top
        if not half:
            width, height = width.clamp(min=1), height.clamp(min=1)
        rows = samples or math.ceil(float(height) / high)
        columns = samples or math.ceil(float(width) / wide)
        ys = top + (torch.arange(high * rows, device=x.device) + 0.5) * height / (high * rows)
        xs = left + (torch.arange(wide * columns, device=x.device) + 0.5) * width / (wide * columns)
        found = _bilinear(x[int(batch)], ys, xs).reshape(-1, high, rows, wide, columns)
        made.append(found.mean((2, 4)))
    return torch.stack(made)


def _why_not_roi_align(call: Call, node: ir.Node) -> str:
    # onnxruntime takes the largest weighted neighbour, the standard the largest sample.
    return "the mode max is not known here" if call.get("mode", "avg") == "max" else ""


def _bilinear(x: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Samples [C, ys, xs] of a map [C, H, W]; zero where they are off it by more than a pixel."""
    parts = []
    for places, axis in ((ys, 1), (xs, 2)):
        size = x.shape[axis]
        inside = (places >= -1) & (places <= size)
        places = places.clamp(0, size - 1)
        low = places.floor().long()
        high = (low + 1).clamp(max=size - 1)
        parts.append((low, high, places - low, inside))
    (y0, y1, dy, iny), (x0, x1, dx, inx) = parts
    rows = x[:, y0] * (1 - dy)[:, None] + x[:, y1] * dy[:, None]
    made = rows[:, :, x0] * (1 - dx) + rows[:, :, x1] * dx
    return made * (iny[:, None] & inx)


TABLE: Table = {
    ("", "AffineGrid"): Operation(_affine_grid, numbers=(1,)),
    ("", "GridSample"): Operation(_grid_sample),
    ("", "Resize"): Operation(_resize, numbers=(1, 2, 3), refused=_why_not_resize),
    ("", "RoiAlign"): Operation(_roi_align, fixed=(1,), refused=_why_not_roi_align),
    ("", "Upsample"): Operation(_upsample, numbers=(1,), refused=_why_not_resize),
}
