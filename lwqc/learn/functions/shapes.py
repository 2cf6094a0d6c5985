"""Operators that make, read and change shapes, and join and cut tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from lwqc.learn.operation import Call, Operation, Table, Tensor, numbers, onnx


def _shape(call: Call, x: Tensor) -> Tensor:
    """Stays where Python reads it, on the CPU."""
    sizes = list(x.shape)[slice(call.get("start"), call.get("end"))]
    return torch.tensor(sizes, dtype=torch.int64)


def _size(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    wanted = numbers(shape) or []
    if not call.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    if x.numel() == 0 and -1 in wanted:  # torch does not say how many of nothing there are
        rest = math.prod(n for n in wanted if n != -1)
        wanted = [0 if n == -1 and rest else n for n in wanted]
    return x.reshape(wanted)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return (
        x.reshape(math.prod(x.shape[:axis]), -1)
        if x.numel()
        else x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    )


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm") or tuple(reversed(range(x.ndim))))


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """No axes are all of them, as onnxruntime has it."""
    chosen = numbers(call.get("axes") if axes is None else axes)
    return x.squeeze(tuple(chosen)) if chosen else x.squeeze()


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = numbers(call.get("axes") if axes is None else axes) or []
    rank = x.ndim + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


def _concat(call: Call, *values: Tensor) -> Tensor:
    return torch.cat(values, call.get("axis", 1))


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, count = call.get("axis", 0), len(call.wanted)
    given = numbers(call.get("split") if sizes is None else sizes)
    if given is None:
        each = -(-x.shape[axis] // count)
        given = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    return torch.split(x, given, axis)


def _slice(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first = numbers(call.get("starts") if starts is None else starts) or []
    last = numbers(call.get("ends") if ends is None else ends) or []
    chosen = numbers(call.get("axes") if axes is None else axes) or list(range(len(first)))
    strides = numbers(steps) or [1] * len(first)
    for axis, start, end, step in zip(chosen, first, last, strides, strict=True):
        size = x.shape[axis]
        if step > 0:
            # Ends beyond the axis are cut off, as Python does for slices of lists.
            start, end, step = slice(start, end, step).indices(size)
            index = [slice(None)] * (axis % x.ndim) + [slice(start, max(start, end), step)]
            x = x[tuple(index)]
        else:
            start = max(start, -size)  # the first element, where Python takes none
            taken = list(range(*slice(start, None if end < -size else end, step).indices(size)))
            x = x.index_select(axis, torch.tensor(taken, dtype=torch.int64, device=x.device))
    return x


def _expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    wanted = numbers(shape) or []
    rank = max(x.ndim, len(wanted))
    given = [1] * (rank - len(wanted)) + wanted
    own = [1] * (rank - x.ndim) + list(x.shape)
    return x.expand([o if g == 1 else g for g, o in zip(given, own, strict=True)])


def _tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(numbers(repeats) or [])


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    sizes = numbers(shape) or []
    if value is None:
        return torch.zeros(sizes)
    return torch.full(sizes, value.item(), dtype=value.dtype)


def _range(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = start.item(), limit.item(), delta.item()
    count = max(math.ceil((last - first) / step), 0)
    steps = torch.arange(count, dtype=start.dtype, device=start.device)
    return first + steps * step


def _eye_like(call: Call, x: Tensor) -> Tensor:
    rows, columns = x.shape
    made = torch.zeros(rows, columns, dtype=call.get("dtype", x.dtype), device=x.device)
    made.diagonal(call.get("k", 0)).fill_(1)
    return made


def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def _pad(
    call: Call,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    given = numbers(call.get("pads") if pads is None else pads) or []
    chosen = [a % x.ndim for a in numbers(axes) or range(x.ndim)]
    half = len(given) // 2
    sides = {a: (given[i], given[half + i]) for i, a in enumerate(chosen)}
    mode = call.get("mode", "constant")
    if mode == "constant":
        filler = call.get("value", 0.0) if value is None else value.item()
        flat = [n for a in reversed(range(x.ndim)) for n in sides.get(a, (0, 0))]
        return F.pad(x, flat, value=filler)
    for axis, (before, after) in sides.items():
        if mode == "wrap":  # of what is left where elements are cut off
            x = x.narrow(axis, max(-before, 0), x.shape[axis] + min(before, 0) + min(after, 0))
            before, after = max(before, 0), max(after, 0)
        if before or after:
            x = x.index_select(axis, _padded(x.shape[axis], before, after, mode).to(x.device))
    return x


def _padded(size: int, before: int, after: int, mode: str) -> Tensor:
    """Where each element of a padded axis comes from."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * size - 2, 1)
    places = places % period
    return torch.where(places >= size, period - places, places)


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b * b, h // b, w // b)


def _reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    rows = []
    for row, length in zip(x.unbind(batch), numbers(lengths) or [], strict=True):
        axis = time - (batch < time)
        head, tail = torch.split(row, [length, row.shape[axis] - length], axis)
        rows.append(torch.cat([head.flip(axis), tail], axis))
    return torch.stack(rows, batch)


def _center_crop_pad(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    sizes = numbers(shape) or []
    for axis, size in zip(call.get("axes") or range(x.ndim), sizes, strict=True):
        more = size - x.shape[axis]
        if more < 0:
            x = x.narrow(axis, -more // 2, size)
        elif more:
            flat = [0] * (2 * (x.ndim - 1 - axis % x.ndim)) + [more // 2, more - more // 2]
            x = F.pad(x, flat)
    return x


TABLE: Table = {
    **onnx(
        Concat=_concat,
        DepthToSpace=_depth_to_space,
        EyeLike=_eye_like,
        Flatten=_flatten,
        Shape=_shape,
        Size=_size,
        SpaceToDepth=_space_to_depth,
        Transpose=_transpose,
    ),
    ("", "CenterCropPad"): Operation(_center_crop_pad, numbers=(1,)),
    ("", "ConstantOfShape"): Operation(_constant_of_shape, numbers=(0,)),
    ("", "Expand"): Operation(_expand, numbers=(1,)),
    ("", "Pad"): Operation(_pad, numbers=(1, 2, 3)),
    ("", "Range"): Operation(_range, numbers=(0, 1, 2)),
    ("", "Reshape"): Operation(_reshape, numbers=(1,)),
    ("", "ReverseSequence"): Operation(_reverse_sequence, numbers=(1,)),
    ("", "Slice"): Operation(_slice, numbers=(1, 2, 3, 4)),
    ("", "Split"): Operation(_split, numbers=(1,)),
    ("", "Squeeze"): Operation(_squeeze, numbers=(1,)),
    ("", "Tile"): Operation(_tile, numbers=(1,)),
    ("", "Trilu"): Operation(_trilu, numbers=(1,)),
    ("", "Unsqueeze"): Operation(_unsqueeze, numbers=(1,)),
}
