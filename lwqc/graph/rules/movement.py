"""Operators that move data: reshape, concat, slice, gather, pad, resize."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lwqc.graph.axes import Factor, fixed, one, product, split_sum, total, unify
from lwqc.graph.repairs import Bounds, Indices, Pieces, Sizes, SqueezedAxes, sizes
from lwqc.graph.rules.context import Context, Rule
from lwqc.graph.rules.fit import BarrierError, Dims, Fit, exactly, pairs, share
from lwqc.model.weights import stored_tensor

_MOST = 1 << 40  # indices along an axis
_DATA = "its indices are chosen by data"


def transpose(ctx: Context) -> None:
    """Permutes dimensions."""
    dims = ctx.dims()
    perm = ctx.integers_attribute("perm") or list(range(len(dims)))[::-1]
    if sorted(perm) != list(range(len(dims))):
        raise BarrierError("its order is none of its axes")
    ctx.give([dims[p] for p in perm])


def squeeze(ctx: Context) -> None:
    """Drops axes of size 1."""
    dims = ctx.dims()
    axes = ctx.axes(1, len(dims))
    if axes is None:
        axes = [a for a, d in enumerate(dims) if d.size == 1]
        ctx.repairs.append(SqueezedAxes(ctx.node, tuple(axes), tuple(dims)))
    ctx.give([d for a, d in enumerate(dims) if a not in axes])


def unsqueeze(ctx: Context) -> None:
    """Inserts axes of size 1."""
    rank = len(ctx.output_sizes())
    axes = ctx.axes(1, rank) or []
    rest = iter(exactly(ctx.dims(), rank - len(set(axes))))
    ctx.give([one() if a in axes else next(rest) for a in range(rank)])


def reshape(ctx: Context) -> None:
    """Cuts both shapes where their products meet; each part splits or merges products."""
    result = _resegment(ctx)
    operand: int | str = 1 if len(ctx.node.inputs) > 1 else "shape"
    ctx.repairs.append(sizes(ctx.node, operand, result))
    ctx.give(result)


def flatten(ctx: Context) -> None:
    """Two dimensions."""
    ctx.give(_resegment(ctx))


def _resegment(ctx: Context) -> Dims:
    dims = ctx.dims()
    value = ctx.node.inputs[0]
    source = ctx.shapes.get(value.name or "") if value is not None else None
    target = ctx.shapes.get(ctx.node.outputs[0].name or "")
    if source is None or target is None:
        raise BarrierError("the shape of its output is not known")
    if 0 in source.first or 0 in target.first:
        return Dims(ctx.fixed(s, "an axis of a tensor without elements") for s in target.first)
    result = Dims()
    for sizes_in, sizes_out in ((source.first, target.first), (source.second, target.second)):
        if math.prod(sizes_in) != math.prod(sizes_out):
            raise BarrierError("its output has another number of elements than its input")
    for ins, outs in _segments(
        list(zip(source.first, source.second, strict=True)),
        list(zip(target.first, target.second, strict=True)),
    ):
        factors = [dims[i] for i in ins]
        wanted = [target.first[o] for o in outs]
        if len(factors) == 1 and wanted == [factors[0].size]:
            result.extend(factors)
        else:
            result.extend(ctx.regroup(factors, wanted))
    return result


def _segments(
    source: Sequence[tuple[int, int]], target: Sequence[tuple[int, int]]
) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products in both settings."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        ins, outs = list[int](), list[int]()
        left, right = (1, 1), (1, 1)
        while True:
            if left == right and (ins or outs):
                break
            if j >= len(target) or (i < len(source) and left[0] <= right[0]):
                left = (left[0] * source[i][0], left[1] * source[i][1])
                ins.append(i)
                i += 1
            else:
                right = (right[0] * target[j][0], right[1] * target[j][1])
                outs.append(j)
                j += 1
        found.append((ins, outs))
    return found


def expand(ctx: Context) -> None:
    """New indices where a dimension of size 1 (or none) is repeated."""
    result = _spread(ctx, ctx.dims(), ctx.output_sizes())
    ctx.repairs.append(sizes(ctx.node, 1, result))
    ctx.give(result)


def _spread(ctx: Context, dims: Dims, wanted: Sequence[int]) -> Dims:
    padded = [None] * (len(wanted) - len(dims)) + list(dims)
    if len(padded) != len(wanted):
        raise BarrierError("its output has fewer dimensions than its input")
    result = Dims()
    for axis, (dim, size) in enumerate(zip(padded, wanted, strict=True)):
        if dim is not None and dim.size == size:
            result.append(dim)
        elif ctx.dynamic_output(axis):
            result.append(ctx.fixed(size, "its size depends on the input"))
        else:
            result.append(ctx.fresh(size))
    return result


def constant_of_shape(ctx: Context) -> None:
    """Indices of its own on every static axis."""
    result = _spread(ctx, Dims(), ctx.output_sizes())
    ctx.repairs.append(sizes(ctx.node, 0, result))
    ctx.give(result)


def tile(ctx: Context) -> None:
    """The repetitions come first: r·c."""
    dims, repeats = ctx.dims(), ctx.static(1)
    wanted = ctx.output_sizes()
    if repeats is None:
        repeats = np.asarray([w // max(d.size, 1) for w, d in pairs(wanted, dims)])
    result = Dims()
    entries = []
    for axis, (dim, count) in enumerate(pairs(dims, repeats.ravel().tolist())):
        if not 0 <= count <= _MOST:
            raise BarrierError("repeats no possible number of times")
        dynamic = ctx.dynamic_output(axis) and not ctx.dynamic(0, axis)
        times = ctx.fixed(int(count), "repeats by data") if dynamic else ctx.fresh(int(count))
        entries.append((axis, times))
        result.append(dim if count == 1 else product((times, dim)))
    ctx.repairs.append(Sizes(ctx.node, 1, tuple(entries)))
    ctx.give(result)


def concat(ctx: Context) -> None:
    """A sum along one axis; the other dimensions are the same."""
    operands = ctx.every()
    axis = ctx.axis(0, len(operands[0]))
    result = Dims()
    for a in range(len(operands[0])):
        here = [dims[a] for dims in operands]
        if a == axis:
            if ctx.dynamic_output(a):
                ctx.freeze(here, "joined along an axis whose size depends on the input")
            result.append(total(here))
        else:
            for other in here[1:]:
                unify(here[0], other, ctx.where)
            result.append(here[0])
    ctx.give(result)


def split(ctx: Context) -> None:
    """Pieces of a sum."""
    dims = ctx.dims()
    axis = ctx.axis(0)
    if ctx.dynamic(0, axis):
        ctx.freeze([dims[axis]], "cut along an axis whose size depends on the input")
    pieces = Dims()
    rest = dims[axis]
    for index in range(len(ctx.node.outputs)):
        size = ctx.output_sizes(index)[axis]
        if size > rest.size:
            raise BarrierError("its pieces are larger than what it cuts")
        piece, rest = split_sum(rest, size)
        pieces.append(piece)
        ctx.give([*dims[:axis], piece, *dims[axis + 1 :]], index)
    ctx.repairs.append(Pieces(ctx.node, tuple(pieces)))


def slice_(ctx: Context) -> None:
    """A run of indices is a piece of a sum; every n-th index is the inner part of a product."""
    dims = Dims(ctx.dims())
    old = len(ctx.node.inputs) == 1
    starts = _attribute_or(ctx, 1, "starts", old)
    ends = _attribute_or(ctx, 2, "ends", old)
    axes = _slice_axes(ctx, old, None if starts is None else len(starts))
    steps = _steps(ctx, len(axes))
    from_start: list[tuple[int, Factor, int]] = []
    to_end: list[tuple[int, Factor, int]] = []
    wanted = ctx.output_sizes()
    for position, axis in enumerate(axes):
        whole = dims[axis]
        moves = ctx.dynamic(0, axis) or ctx.dynamic_output(axis)
        if starts is None or ends is None or steps is None or moves:
            if wanted[axis] == whole.size and ctx.dynamic(0, axis) and _everything(ctx, position):
                continue
            dims[axis] = _cut_by_data(ctx, whole, wanted[axis])
            continue
        begin, end, step = _clamped(starts[position], ends[position], steps[position], whole.size)
        if (begin, end, step) == (0, whole.size, 1):
            continue
        dims[axis] = _cut(ctx, whole, begin, end, step)
        if step == 1:
            from_start.append((position, whole, begin))
            to_end.append((position, whole, end))
    if from_start:
        ctx.repairs.append(Bounds(ctx.node, "starts" if old else 1, tuple(from_start)))
        ctx.repairs.append(Bounds(ctx.node, "ends" if old else 2, tuple(to_end)))
    ctx.give(dims)


def _steps(ctx: Context, count: int) -> Fit[int] | None:
    if not ctx.has(4):
        return Fit([1] * count)
    found = ctx.static(4)
    if found is not None and not found.all():
        raise BarrierError("has a step of 0")
    return None if found is None else Fit(found.ravel().tolist())


def _everything(ctx: Context, position: int) -> bool:
    starts, ends = ctx.static(1), ctx.static(2)
    if starts is None or ends is None or position >= min(starts.size, ends.size):
        return False
    return int(starts[position]) == 0 and int(ends[position]) >= np.iinfo(np.int32).max


def _attribute_or(ctx: Context, operand: int, name: str, old: bool) -> Fit[int] | None:
    if old:
        return ctx.integers_attribute(name)
    found = ctx.integers.both(ctx.node.inputs[operand])
    if found is None:
        return None
    # An entry that differs between the settings belongs to a dynamic axis, which is fixed anyway.
    return Fit(int(v) for v in found[0].ravel())


def _slice_axes(ctx: Context, old: bool, count: int | None) -> list[int]:
    rank = len(ctx.dims())
    if old:
        listed = ctx.integers_attribute("axes")
    else:
        listed = Fit(ctx.constant(3).ravel().tolist()) if ctx.has(3) else None
    if listed is None:
        if count is None:
            return list(range(rank))
        listed = Fit(range(count))
    return [a % max(rank, 1) for a in listed]


def _clamped(start: int, end: int, step: int, size: int) -> tuple[int, int, int]:
    begin, stop, step = slice(int(start), int(end), int(step)).indices(size)
    return begin, max(begin, stop) if step > 0 else stop, step


def _cut_by_data(ctx: Context, whole: Factor, size: int) -> Factor:
    ctx.freeze([whole], "cut at positions that depend on the input")
    return ctx.fixed(size, "cut at positions that depend on the input")


def _cut(ctx: Context, whole: Factor, begin: int, end: int, step: int) -> Factor:
    if step == 1:
        _, rest = split_sum(whole, begin)
        piece, _ = split_sum(rest, end - begin)
        return _alone(ctx, piece)
    count = len(range(begin, end, step))
    if step > 1 and whole.size % step == 0 and begin < step and count == whole.size // step:
        outer, inner = ctx.regroup([whole], [whole.size // step, step])
        ctx.freeze([inner], "taken with a step")
        return outer
    ctx.freeze([whole], "taken with a step")
    return ctx.fixed(count, "taken with a step")


def _alone(ctx: Context, piece: Factor) -> Factor:
    """A single index that becomes an axis of its own cannot go."""
    if piece.size == 1:
        ctx.freeze([piece], "a single index is taken out")
        return one()
    return piece


def gather(ctx: Context) -> None:
    """Stored indices: runs are pieces of a sum. Computed ones or data: the axis is fixed, unless
    they are places along another axis.
    """
    dims, index = ctx.dims(0), ctx.dims(1)
    axis = ctx.axis(0)
    whole = dims[axis]
    # Only a stored list can be renumbered.
    values = ctx.static(1) if stored_tensor(ctx.node.inputs[1]) is not None else None
    places = ctx.places_of(1)
    if places is not None and axis == 0:
        ctx.unify(whole, places)
        chosen = Dims(index)
    elif values is None or ctx.dynamic(0, axis) or len(index) > 1:
        ctx.freeze([whole], _DATA if values is None else "its indices have no regular order")
        chosen = Dims(index)
        if values is not None and len(index) == 1:
            chosen = Dims(ctx.fixed(d.size, _DATA) for d in index)
    else:
        wrapped = np.where(values < 0, values + whole.size, values)
        if wrapped.size and not (wrapped.min() >= 0 and wrapped.max() < whole.size):
            raise BarrierError("an index of it is out of range")
        chosen = _chosen(ctx, whole, wrapped, index)
        ctx.repairs.append(Indices(ctx.node, 1, whole))
    ctx.give([*dims[:axis], *chosen, *dims[axis + 1 :]])


def _chosen(ctx: Context, whole: Factor, values: np.ndarray, index: Dims) -> Dims:
    if values.ndim == 0 or values.size == 1:
        _, rest = split_sum(whole, int(values.ravel()[0]))
        piece, _ = split_sum(rest, 1)
        ctx.freeze([piece], "a single index is taken out")
        return Dims([one()] * values.ndim)
    breaks = np.flatnonzero(np.diff(values) != 1) + 1
    if len(breaks) >= values.size // 2:
        ctx.freeze([whole], "its indices have no regular order")
        return index
    pieces = Dims()
    for run in np.split(values, breaks):
        _, rest = split_sum(whole, int(run[0]))
        piece, _ = split_sum(rest, run.size)
        pieces.append(piece)
    result = total(pieces)
    unify(result, index[0], ctx.where)
    return Dims([result])


def gather_nd(ctx: Context) -> None:
    """The axes that the indices address are fixed, the others pass."""
    data, index = ctx.dims(0), ctx.dims(1)
    batch = ctx.integer("batch_dims", 0)
    depth = index[-1].size
    ctx.freeze([index[-1]], "coordinates")
    places = ctx.places_of(1)
    if places is not None and (batch, depth) == (0, 1):
        ctx.unify(data[0], places)
    else:
        ctx.freeze(data[batch : batch + depth], _DATA)
    for a in range(batch):
        ctx.unify(data[a], index[a])
    ctx.give([*index[:-1], *data[batch + depth :]])


def gather_elements(ctx: Context) -> None:
    """Picks along one axis, at every position of the others."""
    data, index = ctx.dims(0), ctx.dims(1)
    axis = ctx.axis(0)
    ctx.freeze([data[axis]], _DATA)
    for a, (d, i) in enumerate(pairs(data, index)):
        if a == axis:
            continue
        if d.size == i.size:
            unify(d, i, ctx.where)
        else:
            ctx.freeze([d, i], "indexed partly")
    ctx.give(index)


def scatter_elements(ctx: Context) -> None:
    """Like the data; the axis written to is fixed, as are axes that are written partly."""
    data, index, updates = ctx.dims(0), ctx.dims(1), ctx.dims(2)
    axis = ctx.axis(0)
    ctx.freeze([data[axis], index[axis], updates[axis]], "written at positions chosen by data")
    for a, d in enumerate(data):
        for other in (index[a], updates[a]):
            if a != axis and other.size == d.size:
                unify(d, other, ctx.where)
            elif a != axis:
                ctx.freeze([d, other], "written partly")
    ctx.give(data)


def scatter_nd(ctx: Context) -> None:
    """Addressed axes and the update axes that match the indices are fixed; slices pass."""
    data, index, updates = ctx.dims(0), ctx.dims(1), ctx.dims(2)
    depth = index[-1].size
    rows = len(index) - 1
    reason = "written at positions chosen by data"
    ctx.freeze([*data[:depth], *index, *updates[:rows]], reason)
    for d, u in pairs(data[depth:], updates[rows:]):
        ctx.unify(d, u)
    ctx.give(data)


def pad(ctx: Context) -> None:
    """New indices at the ends are fixed pieces of a sum."""
    dims = ctx.dims()
    pads = ctx.integers_attribute("pads") if len(ctx.node.inputs) == 1 else None
    if pads is None:
        found = ctx.integers.both(ctx.node.inputs[1])
        if found is None:
            raise BarrierError("its padding depends on data")
        pads = Fit(int(p) for p in found[0].ravel())
    axes = ctx.axes(3, len(dims)) if ctx.has(3) else list(range(len(dims)))
    assert axes is not None
    result = list(dims)
    for position, axis in enumerate(axes):
        before, after = pads[position], pads[position + len(axes)]
        if before or after:
            result[axis] = _padded(ctx, dims[axis], before, after, axis)
    ctx.give(result)


def _padded(ctx: Context, dim: Factor, before: int, after: int, axis: int) -> Factor:
    constant = ctx.text("mode", "constant") == "constant"
    if not constant or before < 0 or after < 0 or ctx.dynamic_output(axis):
        ctx.freeze([dim], "padded with its neighbours, cropped, or of dynamic size")
        return ctx.fixed(dim.size + before + after, "padded along this axis")
    ends = [ctx.fixed(n, "padding") if n else total(()) for n in (before, after)]
    return total((ends[0], dim, ends[1]))


def resize(ctx: Context) -> None:
    """Axes that keep their size pass, the others are fixed."""
    dims, wanted = ctx.dims(), ctx.output_sizes()
    reason = "resized along this axis"
    result = Dims()
    for axis, (dim, size) in enumerate(pairs(dims, wanted)):
        same = dim.size == size and ctx.dynamic(0, axis) == ctx.dynamic_output(axis)
        if same:
            result.append(dim)
        else:
            ctx.freeze([dim], reason)
            result.append(ctx.fixed(size, reason))
    if ctx.has(3):
        axes = ctx.integers_attribute("axes") or list(range(len(dims)))
        entries = tuple((p, result[a % max(len(dims), 1)]) for p, a in enumerate(axes))
        ctx.repairs.append(Sizes(ctx.node, 3, entries))
    ctx.give(result)


def depth_to_space(ctx: Context) -> None:
    """DCR: channels are b·b·c, CRD: c·b·b; b goes to the spatial axes."""
    batch, channel, height, width = exactly(ctx.dims(), 4)
    block = ctx.integer("blocksize", 1)
    depth = share(channel.size, block**2)
    if ctx.text("mode", "DCR") == "DCR":
        cells, out = ctx.regroup([channel], [block**2, depth])
    else:
        out, cells = ctx.regroup([channel], [depth, block**2])
    reason = "moved between channels and space"
    ctx.freeze([cells, height, width], reason)
    spatial = [ctx.fixed(d.size * block, reason) for d in (height, width)]
    ctx.give([batch, out, *spatial])


def space_to_depth(ctx: Context) -> None:
    """Channels become b·b·c."""
    batch, channel, height, width = exactly(ctx.dims(), 4)
    block = ctx.integer("blocksize", 1)
    share(height.size, block), share(width.size, block)
    reason = "moved between channels and space"
    ctx.freeze([height, width], reason)
    spatial = [ctx.fixed(d.size // block, reason) for d in (height, width)]
    out = product((fixed(block**2, reason), channel)) if block > 1 else channel
    ctx.give([batch, out, *spatial])


def one_hot(ctx: Context) -> None:
    """A new axis whose indices are values of the data."""
    dims = Dims(ctx.dims(0))
    axis = ctx.axis(-1, len(dims) + 1)
    dims.insert(axis, ctx.fixed(ctx.output_sizes()[axis], "its indices are values of the data"))
    ctx.give(dims)


def range_(ctx: Context) -> None:
    """Numbers in order: removing one would change what they mean."""
    ctx.give([ctx.fixed(ctx.output_sizes()[0], "consecutive numbers")])


def reverse(ctx: Context) -> None:
    """ReverseSequence: two axes are ordered."""
    dims = Dims(ctx.dims())
    ctx.freeze(dims[:2], "reversed in part")
    ctx.give(dims)


RULES: dict[tuple[str, str], Rule] = {
    ("", "Transpose"): transpose,
    ("", "Squeeze"): squeeze,
    ("", "Unsqueeze"): unsqueeze,
    ("", "Reshape"): reshape,
    ("", "Flatten"): flatten,
    ("", "Expand"): expand,
    ("", "ConstantOfShape"): constant_of_shape,
    ("", "Tile"): tile,
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): slice_,
    ("", "Gather"): gather,
    ("", "GatherND"): gather_nd,
    ("", "GatherElements"): gather_elements,
    ("", "ScatterElements"): scatter_elements,
    ("", "ScatterND"): scatter_nd,
    ("", "Pad"): pad,
    ("", "Resize"): resize,
    ("", "Upsample"): resize,
    ("", "DepthToSpace"): depth_to_space,
    ("", "SpaceToDepth"): space_to_depth,
    ("", "OneHot"): one_hot,
    ("", "Range"): range_,
    ("", "ReverseSequence"): reverse,
}
