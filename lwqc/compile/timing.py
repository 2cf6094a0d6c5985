"""How long the forms of sites take on this machine, timed in small sessions of one site each.

What counts is the time of the kernels. A session of one site has work around it that a graph does
not have at each site: runs begin and end, and convolutions bring channels in an order of their own
and back, in 8 bits and in float; there, only where the one meets the other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.activation_facts import tensor_shapes
from lwqc.compile.version import Version
from lwqc.graph.sites import Site
from lwqc.model import io
from lwqc.model.limits import beyond, limits
from lwqc.model.unused import RemoveUnused
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import ActivationRange, Plan, SiteEntry, Source
from lwqc.runtime.profile import kernel_seconds
from lwqc.runtime.served import Served, overall
from lwqc.runtime.session import Session
from lwqc.runtime.settling import ratios_known
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.shapes import Shapes
from lwqc.runtime.timer import time_runs
from lwqc.runtime.timing_cache import Pair, TimingCache

_SECONDS = 0.06  # per form and class of sites
_PACKED_BITS = (2, 4, 8)
_SLOW_PRODUCTS = "slow products"
_CLEARLY = 1.1  # times as long: timings of the same differ by less
_KNOWN = 1.04  # a ratio known this closely is closer than two timings of the same are
_CHANNELS = ("Conv", "ConvTranspose")
# What brings channels in the order of a kernel, and back.
_ORDER = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
_CONVERSION = "conversion of an element"
_PICTURE = (1, 64, 56, 56)
_CONVERTING = """
    <ir_version: 9, opset_import: ["" : 17]>
    conversion (float[1,64,56,56] x) => (uint8[1,56,56,64] y) {
        scale = Constant <value_float = 0.02> ()
        zero = Constant <value = uint8 {128}> ()
        codes = QuantizeLinear (x, scale, zero)
        y = Transpose <perm = [0, 2, 3, 1]> (codes)
    }
"""
_RANGE = ActivationRange(low=-4, high=4)


def site_times(work: Version, plan: Plan) -> dict[str, tuple[Pair, ...]]:
    """Seconds of the float operator and of the plan's form, at each shape served.

    Sites of equal operator, shapes, attributes and entry are timed once, and on the same machine
    with the same runtime never again. Gather is not timed: its cost is the memory it reads. Folded
    weights run the float kernel and are not timed either.
    """
    timed = timed_sites(work, plan)
    shapes = [activation_shapes(work, one) for one in work.job.data.serve]
    report = work.job.report("timing sites")
    found: dict[str, tuple[Pair, ...]] = {}
    with TimingCache.opened(work.job.timings) as cache:
        for done, site in enumerate(timed):
            entry = plan.quantize[site.name]
            at = [known[site.name] for known in shapes if site.name in known]
            if len(at) == len(shapes):
                found[site.name] = tuple(_cached(work, cache, site, entry, shape) for shape in at)
            report(done + 1, len(timed))
    return found


def timed_sites(work: Version, plan: Plan) -> list[Site]:
    """Sites that the plan gives another kernel than the float one."""
    return [
        s
        for s in work.analysis.sites
        if s.name in plan.quantize and s.op != "Gather" and _runs_low(work, s, plan)
    ]


def _cached(
    work: Version, cache: TimingCache, site: Site, entry: SiteEntry, shape: tuple[int, ...]
) -> Pair:
    what = (work.job.target.name, *operator_class(site), entry.model_dump_json(), shape)
    key = " ".join(map(str, what))
    if key not in cache.known:
        cache.add(key, form_seconds(work, site, entry, shape))
    return cache.known[key]


def relative_time(pairs: Sequence[Pair]) -> float:
    """Time of the form over that of the float operator, over all shapes."""
    return overall([after / before for before, after in pairs])


def slow_sites(
    work: Version, plan: Plan, times: Mapping[str, Sequence[Pair]] | None = None
) -> dict[str, str]:
    """Sites of the plan whose form takes longer than float, with the times as the reason."""
    if times is None:
        times = site_times(work, plan)
    slow = {}
    for name, pairs in times.items():
        if relative_time(pairs) <= 1:
            continue
        entry = plan.quantize[name]
        each = ", ".join(
            f"{after * 1e3:.3f} ms at {one.label}, float {before * 1e3:.3f} ms"
            for one, (before, after) in zip(work.job.data.serve, pairs, strict=True)
        )
        slow[name] = f"{entry.weight} with {entry.activation} activations takes {each}"
    return slow


def slow_products(work: Version) -> Mapping[int, frozenset[str]]:
    """By bits of the weights, sites whose low-bit product takes clearly longer than the float one.

    Many rows at once are multiplied faster in float; few rows wait for the weights. Empty where
    single sites cannot be timed, and for large models, whose memory counts more.
    """
    if not (work.job.timed and work.job.runs_here) or work.is_large:
        return {}
    return work.facts.get(_SLOW_PRODUCTS, lambda: _slow_products(work))


def take_slow_products(work: Version, found: Mapping[int, frozenset[str]]) -> None:
    """Take what `slow_products` found in an earlier run."""
    work.facts.put(_SLOW_PRODUCTS, found)


def _slow_products(work: Version) -> dict[int, frozenset[str]]:
    entries: dict[int, dict[str, SiteEntry]] = {bits: {} for bits in _PACKED_BITS}
    for site in work.analysis.sites:
        for entry in work.job.target.candidates(site, work.opset, tiny=True):
            if entry.activation == "dynamic" and entry.weight.bits in entries:
                entries[entry.weight.bits].setdefault(site.name, entry)
    found = {}
    for bits, quantize in entries.items():
        times = site_times(work, Plan(source=Source(digest=""), quantize=quantize))
        slow = (n for n, pairs in times.items() if relative_time(pairs) > _CLEARLY)
        found[bits] = frozenset(slow)
    return found


def _runs_low(work: Version, site: Site, plan: Plan) -> bool:
    return work.job.target.form(site, plan.quantize[site.name], work.opset) != "Folded"


def activation_shapes(work: Version, served: Served) -> Mapping[str, tuple[int, ...]]:
    """Shape of each site's activation on these inputs; sites in subgraphs are left out."""
    main = {v.name for node in work.model.graph for v in node.outputs}
    main |= {v.name for v in work.model.graph.inputs}
    activations = {s.name: s.uses[0].activation for s in work.analysis.sites}
    names = {
        site: value.name
        for site, value in activations.items()
        if value is not None and value.name and value.name in main
    }
    known = shapes_at(work, served, names.values())
    return {site: known[name] for site, name in names.items()}


def shapes_at(work: Version, served: Served, names: Iterable[str]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of tensors of the main graph on these inputs, of those named and maybe others."""
    known = tensor_shapes(work).setdefault(served.label, {})
    wanted = {name: Shapes(name) for name in names if name not in known}
    if wanted:
        found = collect(
            work.model, wanted.values(), [served.feeds], lambda m: Session(m, label="shapes")
        )
        known |= {name: found[shape].last for name, shape in wanted.items()}
    return known


def conversion_seconds(work: Version) -> float:
    """Of one element that becomes 8-bit and, as convolutions want it, channels last; about."""
    with TimingCache.opened(work.job.timings) as cache:
        if _CONVERSION not in cache.known:
            session = Session(ir.from_onnx_text(_CONVERTING), label="conversion")
            feeds = {"x": np.zeros(_PICTURE, np.float32)}
            (times,) = time_runs([session], feeds, seconds=_SECONDS)
            seconds = _usual(times) / math.prod(_PICTURE)
            cache.add(_CONVERSION, (seconds, seconds))
        return cache.known[_CONVERSION][0]


def operator_class(site: Site) -> tuple[str, str, tuple[int, ...]]:
    """Sites of one class take the same time for the same activation."""
    node = site.uses[0].node
    attributes = repr(sorted((k, str(v)) for k, v in node.attributes.items()))
    return node.op_type, attributes, site.shape


def halved(site: Site, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Shapes of a site's weight and activation with half of the inputs and half of the outputs.

    shape: of the activation. None where a half of them is not what a narrower layer would have:
    of grouped convolutions, of stacks of matrices, of odd or single channels.
    """
    weight, conv = site.shape, site.op == "Conv"
    axis = 1 if conv else len(shape) - 1
    plain = conv or (site.op in ("MatMul", "Gemm") and len(weight) == 2)
    read = weight[1:2] if conv else weight
    if not plain or shape[axis] not in read or any(n % 2 for n in (shape[axis], *weight[:2])):
        return None
    narrow = tuple(n // 2 if i == axis else n for i, n in enumerate(shape))
    return (weight[0] // 2, weight[1] // 2, *weight[2:]), narrow


def form_seconds(
    work: Version,
    site: Site,
    entry: SiteEntry,
    shape: tuple[int, ...],
    weight: tuple[int, ...] | None = None,
) -> tuple[float, float]:
    """Seconds of the float operator and of the entry's form.

    shape: of the activation. weight: shape of the stored tensor, if not the site's own.
    """
    model = _alone(site, shape, weight)
    name = "weight"
    plan = Plan(
        source=Source(digest=""),
        quantize={name: entry},
        activations={"x": _RANGE, "y": _RANGE},
    )
    lowered = work.job.target.lower(model, plan, EncodedWeights(model, io.read_array)).model
    floats = _drawn(site, shape)
    feeds: dict[str, NDArray[Any]] = {"x": floats}
    if site.op == "Conv" and entry.activation == "static":
        codes = _expose_codes(lowered).numpy()
        range_ = np.iinfo(codes)
        middle = (range_.min + range_.max + 1) // 2
        feeds["x/codes"] = np.clip(floats * 32 + middle, range_.min, range_.max).astype(codes)
    before, after = _alone_seconds(site, [model, lowered], feeds)
    return before, after


def _alone_seconds(
    site: Site, models: Sequence[ir.Model], feeds: Mapping[str, NDArray[Any]]
) -> list[float]:
    """What the kernels of models of one site take, without what the runtime puts around them."""
    found = kernel_seconds(
        models, feeds, seconds=_SECONDS, settled=ratios_known(_KNOWN), label=site.name,
        without=_ORDER if site.op in _CHANNELS else (),
    )  # fmt: skip
    return [_usual(times) for times in found]


def _drawn(site: Site, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Numbers to time a site on. Raises LimitError: shapes may be those that a file declares."""
    needed = 8 * math.prod(shape)
    if needed > limits().traces:
        raise beyond(f"{site.name}: timing it on {list(shape)}", "traces", needed)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def float_seconds(
    site: Site, shape: tuple[int, ...], weight: tuple[int, ...] | None = None
) -> float:
    """Seconds of the float operator alone, see `form_seconds`."""
    feeds = {"x": _drawn(site, shape)}
    (seconds,) = _alone_seconds(site, [_alone(site, shape, weight)], feeds)
    return seconds


def _usual(times: Sequence[float]) -> float:
    """Mean of the faster half: other work on the machine only ever adds time.

    Not one of them: the runtime notes kernels in whole microseconds. At least a tenth of one.
    """
    return max(statistics.fmean(sorted(times)[: len(times) // 2 or 1]), 1e-7)


def _alone(site: Site, shape: tuple[int, ...], stored: tuple[int, ...] | None = None) -> ir.Model:
    """A model of one operator like the site's first use, with random weights."""
    node = site.uses[0].node
    rng = np.random.default_rng(1)
    stored = site.shape if stored is None else stored
    values = rng.standard_normal(stored).astype(np.float32) * np.float32(0.05)
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(
        name="weight",
        shape=ir.Shape(stored),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(values, name="weight"),
    )
    copy = ir.Node("", node.op_type, [x, weight], list(node.attributes.values()))
    copy.outputs[0].name = "y"
    # Keeps the output of the operator from being a graph output, which would block its kernel.
    last = ir.node("Identity", [copy.outputs[0]])
    last.outputs[0].name = "z"
    last.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x],
        [last.outputs[0]],
        nodes=[copy, last],
        initializers=[weight],
        opset_imports={"": 17},
        name="site",
    )
    return ir.Model(graph, ir_version=9)


def _expose_codes(model: ir.Model) -> ir.DataType:
    """Feed and fetch 8-bit codes, as between the convolutions of a quantized network; their type.

    It is that of the zero point: int8 on ARM, uint8 elsewhere.
    """
    graph = model.graph
    quantize = next(
        n for n in graph if n.op_type == "QuantizeLinear" and n.inputs[0] is graph.inputs[0]
    )
    zero = quantize.inputs[2]
    dtype = ir.DataType.UINT8 if zero is None or zero.dtype is None else zero.dtype
    codes = ir.Value(name="x/codes", shape=graph.inputs[0].shape, type=ir.TensorType(dtype))
    quantize.outputs[0].name = "x/unused"
    quantize.outputs[0].replace_all_uses_with(codes)
    last = next(n for n in graph if n.op_type == "QuantizeLinear" and n is not quantize)
    graph.outputs[0] = last.outputs[0]
    last.outputs[0].type = ir.TensorType(dtype)
    graph.inputs[0] = codes
    graph.remove(quantize, safe=True)
    RemoveUnused()(model)  # the runtime would run them
    return dtype
