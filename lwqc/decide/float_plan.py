"""Which operators can compute in 16-bit floats, told by the graph and by ranges on the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from lwqc.backends.target import FloatType
from lwqc.compile.version import Version
from lwqc.graph.computed_filters import enlarging
from lwqc.graph.float_slots import float_slots, is_float32
from lwqc.graph.pass_through import pass_through
from lwqc.graph.sites import MIN_WEIGHTS
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor
from lwqc.passes.convert_floats import clamp_inputs, clamp_stored
from lwqc.plans.plan import Floats, Plan
from lwqc.quant.float_types import FLOAT_TYPES, FloatFormat
from lwqc.runtime.session import Session
from lwqc.runtime.stats.min_max import Extent, MinMax

_MARGIN = 2.0  # other data may reach further than the calibration data
_SAME = 1e-5  # relative difference of outputs that computing with other fillings may make
_SMALL = 1 << 20
_CLIP_OPSET = 11  # from here on its bounds are operands
_FILLING = {"float16": 3e4, "bfloat16": 3e38}  # of masks; sums of two are finite
_PHASES = frozenset({"Sin", "Cos", "Tan"})
_WEIGHTED = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"})


def with_floats(work: Version, plan: Plan, dtype: FloatType | None = None) -> Plan:
    """The plan with the float type of its target, or the one asked for.

    work: on the model that the plan's formats are for.
    """
    wanted = dtype or work.job.target.floats
    if wanted == "float32" or plan.floats is not None:
        return plan
    return plan.model_copy(update={"floats": _chosen(work, wanted)})


def with_float_type(work: Version) -> Version:
    """The version with the float type of its target decided, which formats are compared with."""
    wanted = work.job.target.floats
    return work if wanted == "float32" else replace(work, floats=_chosen(work, wanted))


def _chosen(work: Version, dtype: Literal["float16", "bfloat16"]) -> Floats:
    return work.facts.get(("floats", dtype), lambda: choose_floats(work, dtype))


def choose_floats(work: Version, dtype: Literal["float16", "bfloat16"]) -> Floats:
    """Nodes that stay in float32 in a conversion, with the reason.

    Kept are operators without a kernel for the type, angles of sines, whole numbers that the type
    cannot hold, constants that would become 0, whatever reaches the type's limit on the data (with
    a margin of 2), together with its readers, and what makes a weight of a few stored numbers.
    Numbers that fill masks are first clamped; that is undone if it changes the outputs.
    """
    fmt = FLOAT_TYPES[dtype]
    model = work.model.clone()
    clamp: float | None = None
    inputs = _large_inputs(work, fmt)
    if clamp_stored(model, _FILLING[dtype]) or inputs:
        clamp = _FILLING[dtype]
        clamp_inputs(model, inputs, clamp)
    if clamp is not None and work.job.checked_whole and not _agrees(work, model):
        model, clamp, inputs = work.model.clone(), None, ()
    extents = {} if work.job.skip_checks else _extents(work, model)
    islands = _Islands(model, fmt, extents)
    islands.mark(work)
    # The Clip of an input has to see it as it comes.
    keep = {f"{name}/clamped": "clips large numbers of an input" for name in inputs}
    return Floats(dtype=dtype, keep=keep | islands.keep, clamp=clamp, clamped=inputs)


def _large_inputs(work: Version, fmt: FloatFormat) -> tuple[str, ...]:
    """Graph inputs with finite numbers beyond the type on the data: masks, most of the time."""
    if work.opset < _CLIP_OPSET or work.job.skip_checks:
        return ()
    found: dict[str, None] = {}
    for feeds in work.job.data.judge:
        for value in work.model.graph.inputs:
            array = feeds.get(value.name or "") if is_float32(value) else None
            if array is not None and (np.abs(array[np.isfinite(array)]) > fmt.limit).any():
                found[value.name or ""] = None
    return tuple(found)


def _agrees(work: Version, model: ir.Model) -> bool:
    feeds = work.job.data.judge[0]
    before, after = Session(work.model)(feeds), Session(model)(feeds)
    for name, value in before.items():
        size = float(np.abs(value.astype(np.float64)).max(initial=0))
        if np.abs(after[name].astype(np.float64) - value).max(initial=0) > _SAME * size:
            return False
    return True


def _extents(work: Version, model: ir.Model) -> dict[str, Extent]:
    """Extremes of all float32 tensors of the main graph."""
    values = [v for node in model.graph for v in node.outputs if is_float32(v) and v.name]
    values += [v for v in model.graph.inputs if is_float32(v)]
    names = [v.name for v in values if v.name and stored_tensor(v) is None]
    found = work.collect(model, [MinMax(name) for name in names])
    return {name: found[MinMax(name)] for name in names}


@dataclass
class _Islands:
    """keep: node, by the name of its first output -> why it stays in float32."""

    model: ir.Model
    fmt: FloatFormat
    extents: dict[str, Extent]
    keep: dict[str, str] = field(default_factory=dict)

    def mark(self, work: Version) -> None:
        dtype = self.fmt.dtype
        nodes = []
        for node in pass_through(self.model.graph):
            self._keep(node, "hands numbers on to an output as they are")
        for node in enlarging(self.model.graph):
            self._keep(node, "made of fewer stored numbers, once, when the model is loaded")
        for node in self.model.graph.all_nodes():
            if self._could(node):
                nodes.append(node)
            elif any(map(is_float32, node.inputs)) and any(map(is_float32, node.outputs)):
                self._keep(node, f"{node.op_type} has no {self.fmt.name} form")
        for node in nodes:
            for reason in self._reasons(node):
                self._keep(node, reason)
                break
            else:
                reason = work.job.target.lacks_kernel(node, dtype, self._opset(node))
                if reason:
                    self._keep(node, reason)
        self._close(reversed(nodes))

    def _opset(self, node: ir.Node) -> int:
        return int(self.model.opset_imports.get(node.domain, 1))

    def _could(self, node: ir.Node) -> bool:
        slots = float_slots(node, self.fmt.dtype, self._opset(node))
        casts = node.op_type == "Cast" and is_float32(node.outputs[0])
        return bool(slots.inputs) or casts

    def _reasons(self, node: ir.Node) -> Iterator[str]:
        fmt = self.fmt
        if node.op_type in _PHASES:
            yield f"angles of {node.op_type} need more than {fmt.digits} bits"
        clips = node.op_type == "Clip"  # its result is what counts
        for value in node.outputs if clips else (*node.inputs, *node.outputs):
            peak = self._peak(value)
            if peak > fmt.limit / _MARGIN:
                yield f"{_name(value)} reaches {peak:.4g}, {fmt.name} ends at {fmt.limit:.4g}"
        if node.op_type == "Cast" and not _is_float(node.inputs[0]):
            peak = self._peak(node.outputs[0])
            if peak > fmt.exact:
                yield f"whole numbers to {peak:.4g}, {fmt.name} is exact to {fmt.exact}"
        for value in node.inputs:
            lost = self._vanishing(value)
            if lost:
                yield f"its constant {lost:.3g} would become 0 in {fmt.name}"

    def _peak(self, value: ir.Value | None) -> float:
        """Largest finite magnitude on the data, or of a stored tensor; 0 where nothing is known."""
        if value is None or not is_float32(value):
            return 0.0
        tensor = stored_tensor(value)
        if tensor is not None:
            if tensor.size > _SMALL:
                return 0.0
            array = np.abs(read_array(tensor))
            return float(array[np.isfinite(array)].max(initial=0))
        extent = self.extents.get(value.name or "")
        ends = (extent.low, extent.high) if extent is not None else ()
        return max((abs(e) for e in ends if np.isfinite(e)), default=0.0)

    def _vanishing(self, value: ir.Value | None) -> float:
        tensor = stored_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size != 1:
            return 0.0
        number = float(np.abs(read_array(tensor)).max())
        return number if 0 < number < self.fmt.smallest else 0.0

    def _close(self, nodes: Iterable[ir.Node]) -> None:
        """Keep what only kept nodes read, back to the next weighted layer."""
        for node in nodes:
            if node.op_type in _WEIGHTED and any(
                stored_tensor(v) is not None and stored_tensor(v).size >= MIN_WEIGHTS  # type: ignore[union-attr]
                for v in node.inputs
            ):
                continue
            readers = [use.node for v in node.outputs for use in v.uses()]
            if not readers or any(v.is_graph_output() for v in node.outputs):
                continue
            if all(r.outputs[0].name in self.keep for r in readers):
                self._keep(node, f"only read by {readers[0].op_type} in float32")

    def _keep(self, node: ir.Node, reason: str) -> None:
        self.keep.setdefault(node.outputs[0].name or "", reason)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or "a tensor"
