"""Operators that take elements by their places, put them there, or sort them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lwqc.learn.operation import Call, Operation, Table, Tensor, numbers, onnx


def wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices from the end, which are negative, from the start."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    if indices.ndim == 0:
        return x.select(axis, int(indices.item()))
    places = wrapped(indices, x.shape[axis])
    if axis == 0 and x.ndim == 2:
        return F.embedding(places, x)
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    places = wrapped(indices, x.shape[axis])
    # torch cuts the other axes of `x` to those of the indices, as ONNX does.
    return torch.gather(x, axis, places)


def _gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    batch = call.get("batch_dims", 0)
    depth = indices.shape[-1]
    places = [wrapped(indices[..., i], x.shape[batch + i]) for i in range(depth)]
    outer = []
    for axis in range(batch):
        sizes = [1] * (indices.ndim - 1)
        sizes[axis] = x.shape[axis]
        outer.append(torch.arange(x.shape[axis], device=x.device).reshape(sizes))
    return x[(*outer, *places)]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, how = call.get("axis", 0), call.get("reduction", "none")
    places = wrapped(indices, x.shape[axis])
    if how == "none":
        return x.scatter(axis, places, updates)
    if how == "add":
        return x.scatter_add(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[how])


def _scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    depth, how = indices.shape[-1], call.get("reduction", "none")
    if how in ("none", "add"):
        places = tuple(wrapped(indices[..., i], x.shape[i]) for i in range(depth))
        return x.index_put(places, updates, accumulate=how == "add")
    strides = [1] * depth
    for i in reversed(range(depth - 1)):
        strides[i] = strides[i + 1] * x.shape[i + 1]
    rows = sum(wrapped(indices[..., i], x.shape[i]) * strides[i] for i in range(depth))
    assert torch.is_tensor(rows)
    rest = x.shape[depth:]
    flat = x.reshape(-1, *rest)
    new = updates.reshape(-1, *rest)
    spread = rows.reshape(-1, *[1] * len(rest)).expand(new.shape)
    made = flat.scatter_reduce(0, spread, new, _REDUCTIONS[how])
    return made.reshape(x.shape)


def _one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size, axis = int(depth.reshape(-1)[0].item()), call.get("axis", -1)
    places = indices if indices.is_floating_point() else indices.long()
    places = torch.where(places < 0, places + size, places)
    axis = axis if axis >= 0 else axis + indices.ndim + 1
    hot = places.unsqueeze(axis) == torch.arange(size, device=places.device).reshape(
        [-1 if i == axis else 1 for i in range(indices.ndim + 1)]
    )
    return torch.where(hot, values[1], values[0])


def _top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Equal values in the order of their places, as onnxruntime does."""
    count = call.get("k") if k is None else int(k.reshape(-1)[0].item())
    axis, largest = call.get("axis", -1), bool(call.get("largest", 1))
    values, places = torch.sort(x, stable=True, dim=axis, descending=largest)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def _arg(call: Call, x: Tensor, *, largest: bool) -> Tensor:
    axis = call.get("axis", 0)
    keep = bool(call.get("keepdims", 1))
    if call.get("select_last_index", 0):
        x = x.flip(axis)
    found = torch.argmax(x, axis, keep) if largest else torch.argmin(x, axis, keep)
    return x.shape[axis] - 1 - found if call.get("select_last_index", 0) else found


def _arg_max(call: Call, x: Tensor) -> Tensor:
    return _arg(call, x, largest=True)


def _arg_min(call: Call, x: Tensor) -> Tensor:
    return _arg(call, x, largest=False)


def _non_zero(call: Call, x: Tensor) -> Tensor:
    return torch.nonzero(x).T.contiguous() if x.ndim else torch.nonzero(x.reshape(1)).T


def _compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    axis = call.get("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


def _unique(call: Call, x: Tensor) -> tuple[Tensor, ...]:
    axis = call.get("axis")
    flat = x.reshape(-1) if axis is None else x
    along = 0 if axis is None else axis
    values, inverse, counts = torch.unique(
        flat, sorted=True, return_inverse=True, return_counts=True, dim=along
    )
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full((len(counts),), inverse.numel(), device=x.device)
    first = first.scatter_reduce(0, inverse, places, "amin")
    if not call.get("sorted", 1):
        order = torch.argsort(first)
        rank = torch.argsort(order)
        values = values.index_select(along, order)
        first, inverse, counts = first[order], rank[inverse], counts[order]
    return values, first, inverse, counts


def _tensor_scatter(
    call: Call, past: Tensor, update: Tensor, places: Tensor | None = None
) -> Tensor:
    axis = call.get("axis", -2) % past.ndim
    starts = numbers(places) or [0] * past.shape[0]
    size, length = past.shape[axis], update.shape[axis]
    rows = []
    for row, new, start in zip(past.unbind(0), update.unbind(0), starts, strict=True):
        taken = torch.arange(start, start + length, device=past.device)
        taken = taken % size if call.get("mode", "linear") == "circular" else taken
        rows.append(row.index_copy(axis - 1, taken, new))
    return torch.stack(rows)


TABLE: Table = {
    **onnx(
        ArgMax=_arg_max,
        ArgMin=_arg_min,
        Compress=_compress,
        Gather=_gather,
        GatherElements=_gather_elements,
        GatherND=_gather_nd,
        NonZero=_non_zero,
        Scatter=_scatter,
        ScatterElements=_scatter,
        ScatterND=_scatter_nd,
        Unique=_unique,
    ),
    ("", "OneHot"): Operation(_one_hot, numbers=(1,), fixed=(2,)),
    ("", "TensorScatter"): Operation(_tensor_scatter, numbers=(2,)),
    ("", "TopK"): Operation(_top_k, numbers=(1,)),
}
