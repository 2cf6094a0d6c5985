"""ONNX Runtime's TensorRT execution provider, with explicit quantization.

The rules come from the sources of TensorRT's ONNX parser and of NVIDIA's own quantizer; nothing
here was measured. onnxruntime's provider links TensorRT 10, which is the target `tensorrt`; the
others differ as `tensorrt_versions` says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from lwqc.backends.devices import provider_problem
from lwqc.backends.provider_options import profile_options, tensorrt_options
from lwqc.backends.target import (
    FloatType,
    Form,
    Lowered,
    entries_of,
    is_reason,
    legal_forms,
    lower_pipeline,
)
from lwqc.backends.tensorrt_lint import lint
from lwqc.backends.tensorrt_versions import ELEVEN, RTX, TEN, TensorrtRules
from lwqc.errors import InputError
from lwqc.graph.integer_flow import IntegerFlow
from lwqc.graph.quantized_inputs import LEAST_CHANNELS, quantized_inputs
from lwqc.graph.shapes import declared_shapes
from lwqc.graph.sites import BOTH_WAYS, Site
from lwqc.graph.value_types import infer_types
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor
from lwqc.passes.block_dequantize import BlockDequantize
from lwqc.passes.encoded_weights import EncodedWeights, PartOfSite
from lwqc.passes.input_qdq import InputQdq
from lwqc.passes.raise_opset import raise_opset
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session, SessionSettings

PROVIDER = "TensorrtExecutionProvider"
_LINEAR = frozenset({"MatMul", "Gemm"})
_BLOCKS = (64, 128)
_HALF_SCALES = 19  # from here on Q/DQ take float16
_INT4 = 21
_LEAST_NORMAL = 2.0**-14
_QUANTIZED = frozenset({"Conv", "MatMul", "Gemm"})
_FP8_AREA = 32  # positions of the largest kernel
# Names of the options for the least, usual and largest shapes.
_PROFILES: Mapping[str, tuple[str, str, str]] = {
    "trtexec": ("minShapes", "optShapes", "maxShapes"),
    "rtx": ("nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes"),
}


TENSORRT = replace(TEN, name="tensorrt")


class TensorrtTarget:
    """Forms, lowering and checks for TensorRT."""

    read_as_run = True
    integer_bits: Literal[7, 8] = 8
    floats: FloatType = "float16"
    opset = TEN.opsets[0]  # what formats need beyond that is raised with them
    fuses = False  # Attention came to ONNX after the last opset that TensorRT 10 reads
    rewrites: tuple[str, ...] = ()
    speed: tuple[Literal["none", "dynamic", "static"], ...] = ("static",)
    width_multiple = 32
    profiles = True
    sparse = True
    codes_caches = False
    groups_experts = False

    def __init__(self, rules: TensorrtRules = TENSORRT) -> None:
        """rules: of another release than the one that onnxruntime runs."""
        self.rules = rules
        self.name = rules.name

    def form(self, site: Site, entry: SiteEntry, opset: int) -> Form | str:
        """How the entry runs in TensorRT, or why it cannot."""
        fmt = entry.weight
        if site.is_double:
            return "TensorRT does not compute in float64"
        if site.both_ways:
            return BOTH_WAYS
        if entry.has_side:
            return "branches beside a quantized weight are not made for TensorRT"
        if not fmt.symmetric or fmt.kind not in ("int", "fp8"):
            return "TensorRT takes symmetric integers, or float8"
        if fmt.kind == "fp8" and entry.activation != "static":
            return "float8 weights go with static float8 activations"
        if entry.activation == "dynamic":
            return "TensorRT has no dynamic ranges"
        if entry.activation == "static":
            return self._static(site, fmt)
        return self._weight_only(site, fmt)

    def _static(self, site: Site, fmt: WeightFormat) -> Form | str:
        if fmt.bits != 8 or fmt.block is not None:
            return "8-bit activations go with 8-bit weights, one scale per channel"
        if not site.ops <= _LINEAR | {"Conv"}:
            return f"{'+'.join(sorted(site.ops))} stays in floats"
        inputs = site.k if site.ops <= _LINEAR else site.shape[1] * site.groups
        if site.n < LEAST_CHANNELS or inputs < LEAST_CHANNELS:
            return f"{inputs} inputs and {site.n} outputs: integers pay from {LEAST_CHANNELS} on"
        if fmt.kind == "fp8" and site.op == "Conv" and not self.rules.float8_convolutions:
            return f"{self.rules.release} has float8 in products only"
        if fmt.kind == "fp8" and site.op == "Conv" and math.prod(site.shape[2:]) > _FP8_AREA:
            return f"float8 kernels cover {_FP8_AREA} positions, this one {site.shape[2:]}"
        return "QuantizeLinear"

    def _weight_only(self, site: Site, fmt: WeightFormat) -> Form | str:
        if not site.ops <= _LINEAR:
            return f"TensorRT has no weight-only form of {'+'.join(sorted(site.ops))}"
        if fmt.storage_bits != 4 or fmt.block not in _BLOCKS:
            return "weight-only products take 4 bits in blocks of 64 or 128"
        if not fmt.positive:
            return "TensorRT takes positive scales"
        if site.k % fmt.block:
            return f"rows of {site.k} are not a multiple of the block {fmt.block}"
        if site.n % 2 or site.n < LEAST_CHANNELS:
            return f"{site.n} outputs: int4 rows need an even number, 16 at least"
        return "DequantizeLinear"

    def refuses(self, form: str) -> bool:
        """Whether what `form` returned is a reason rather than a form."""
        return is_reason(form)

    def candidates(self, site: Site, opset: int, *, tiny: bool = False) -> Sequence[SiteEntry]:
        """Weight-only entries, from few bytes to many."""
        formats = [WeightFormat(4, b, True, "float16", "int", True) for b in (128, 64)]
        entries = [SiteEntry(weight=fmt) for fmt in formats]
        return [e for e in entries if not is_reason(self.form(site, e, opset))]

    def flow(self, graph: ir.Graph, sites: Collection[Site]) -> IntegerFlow:
        """Inputs of the sites, skips of residual additions, operands of short attentions."""
        model = ir.Model(graph, ir_version=10)
        found = quantized_inputs(graph, sites, _static_sizes(model))
        return IntegerFlow({name: name for name in found.tensors}, dict(found.refused))

    def lacks_kernel(self, node: ir.Node, dtype: ir.DataType, opset: int) -> str:
        """Nothing is known to lack one."""
        return ""

    def lower(self, model: ir.Model, plan: Plan, weights: EncodedWeights) -> Lowered:
        """Execute the plan on a copy. Raises InputError where the plan asks the impossible."""
        lowered = model.clone()
        forms = legal_forms(self, lowered, plan)
        fp8 = any(e.weight.kind == "fp8" for e in plan.quantize.values())
        self._lift(lowered, forms.values(), half=plan.floats is not None, fp8=fp8)
        static = entries_of(plan, forms, "QuantizeLinear")
        packed = entries_of(plan, forms, "DequantizeLinear")
        sizes = _static_sizes(lowered) if static else {}
        lower_pipeline("tensorrt", plan).bound(
            {
                "input-qdq": InputQdq(static, plan.ranges, weights, sizes),
                "block-dequantize": BlockDequantize(packed, weights),
            }
        ).run(lowered)
        infer_types(lowered)  # the provider wants types and shapes on every tensor
        return Lowered(lowered, forms)

    def _lift(self, model: ir.Model, forms: Collection[Form], *, half: bool, fp8: bool) -> None:
        """Raise the opset to what the forms need. Raises InputError where that is not possible."""
        needed = 0
        if "QuantizeLinear" in forms:
            needed = _HALF_SCALES if half or fp8 else 13
        if "DequantizeLinear" in forms:
            needed = _INT4
        opset = model.opset_imports.get("", 1)
        oldest, newest = self.rules.opsets
        if opset > newest:
            raise InputError(
                f"{self.rules.release} reads opsets {oldest} to {newest}, the model has {opset}; "
                "export it for an older one"
            )
        refused = raise_opset(model, max(needed, oldest))
        if refused:
            raise InputError(f"TensorRT's quantized form needs opset {needed}: {refused}")

    def misplaced(
        self, lowered: Lowered, optimized: onnx.GraphProto | None = None
    ) -> dict[str, str]:
        """Sites whose scales float16 holds with few digits or not at all.

        Which kernels run is only known on a GPU.
        """
        wrong: dict[str, str] = {}
        for node in lowered.model.graph:
            weight = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] else None
            if node.op_type not in _QUANTIZED or weight is None or weight.inputs[0] is None:
                continue
            part = weight.inputs[0].const_value
            site = part.site if isinstance(part, PartOfSite) else ""
            if lowered.forms.get(site) != "QuantizeLinear":
                continue
            source = node.inputs[0].producer() if node.inputs[0] is not None else None
            for pair in (weight, source):
                if pair is not None and pair.op_type == "DequantizeLinear":
                    smallest = _smallest_half(pair.inputs[1])
                    if smallest is not None:
                        wrong[site] = f"float16 holds its scale {smallest:.2g} with few digits"
        return wrong

    def violations(self, model: ir.Model) -> list[str]:
        """Rules of the parser and of placement that the model breaks."""
        return lint(model, self.rules)

    def options(self, model: ir.Model, plan: Plan, stem: str) -> dict[str, str]:
        """Types, caches, profiles, sparsity; of releases that the provider lacks profiles only."""
        if self.rules.options == "provider":
            return tensorrt_options(model, plan, stem)
        return profile_options(model, plan, _PROFILES[self.rules.options])

    def unmeasured(self) -> str:
        """Why speed cannot be measured on this machine, or ""."""
        return self.rules.elsewhere or provider_problem(PROVIDER)

    def settings(self) -> SessionSettings:
        """The device, or the CPU with fusions off as a reference for numbers."""
        if self.unmeasured():
            return SessionSettings(optimize=False)
        options = {"trt_fp16_enable": "1", "trt_int8_enable": "1"}
        return SessionSettings(provider=PROVIDER, provider_options=options)

    def session(self, model: ir.Model | str | PathLike[str], label: str) -> Session:
        """A session with these settings."""
        return Session(model, self.settings(), label=label)


def _smallest_half(scale: ir.Value | None) -> float | None:
    """The smallest float16 scale, if it is below the normal numbers."""
    tensor = stored_tensor(scale)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT16:
        return None
    smallest = float(np.abs(read_array(tensor)).min())
    return smallest if smallest < _LEAST_NORMAL else None


def _static_sizes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Last two sizes of every tensor for which they do not depend on the inputs' sizes."""
    shapes, _ = declared_shapes(model)
    found = {}
    for name, sampled in shapes.items():
        first, second = sampled.first, sampled.second
        if len(first) >= 2 and first[-2:] == second[-2:]:
            found[name] = tuple(first[-2:])
    return found


TARGETS = {
    "tensorrt": TensorrtTarget,
    **{rules.name: partial(TensorrtTarget, rules) for rules in (TEN, ELEVEN, RTX)},
}
