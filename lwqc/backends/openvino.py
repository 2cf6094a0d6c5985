"""OpenVINO's CPU plugin, which reads ONNX files.

The rules were read off the graphs that OpenVINO 2026.4.1 executes on x86-64; where it is installed,
`misplaced` checks them on the model, and all numbers and times are its own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from lwqc.backends.cpu import is_float32
from lwqc.backends.cpu_rules import CpuRules, probed
from lwqc.backends.openvino_lint import lint
from lwqc.backends.provider_options import read_options
from lwqc.backends.target import (
    FloatType,
    Form,
    Lowered,
    entries_of,
    is_reason,
    legal_forms,
    lower_pipeline,
)
from lwqc.errors import InputError, SessionError
from lwqc.graph.integer_flow import IntegerFlow
from lwqc.graph.quantized_inputs import quantized_inputs
from lwqc.graph.sites import BOTH_WAYS, Site
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights, stored_parts
from lwqc.passes.fold_weights import FoldWeights
from lwqc.passes.input_qdq import InputQdq
from lwqc.passes.raise_opset import raise_opset
from lwqc.passes.row_dequantize import RowDequantize
from lwqc.passes.side_branch import SideBranch, side_refusal
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.openvino_session import EXACT, Kernel, OpenvinoSession, missing
from lwqc.runtime.session import Session, SessionSettings

_LINEAR = frozenset({"MatMul", "Gemm"})
_AXES, _BLOCKS = 13, 21  # opsets of DequantizeLinear with an axis, and with blocks or 4 bits
_BITS = (4, 8)
# Kernels that multiply, and operators between codes and their kernel that OpenVINO looks through.
_PRODUCTS = frozenset({"FullyConnected", "Convolution", "MatMul"})
_STEPS = frozenset({"DequantizeLinear", "Cast", "Reshape", "Transpose"})
_FLOATS = frozenset({"f32", "bf16", "f16"})
_MERGED = 4  # operators behind a product that OpenVINO may name its kernel after


class OpenvinoTarget:
    """Forms, lowering and checks for OpenVINO's CPU plugin."""

    name = "openvino"
    read_as_run = False
    floats: FloatType = "float32"
    opset = _AXES  # what formats need beyond that is raised with them
    fuses = True
    rewrites: tuple[str, ...] = ()
    speed: tuple[Literal["none", "dynamic", "static"], ...] = ("static", "dynamic")
    width_multiple = 16
    profiles = False
    sparse = False
    codes_caches = False
    groups_experts = False

    def __init__(self, rules: CpuRules | None = None) -> None:
        """rules: for another processor than this one."""
        self.rules = rules or probed()

    @property
    def integer_bits(self) -> Literal[7, 8]:
        """Bits of weights that meet 8-bit activations; 7 without VNNI, as NNCF chooses them."""
        return self.rules.weight_bits

    def form(self, site: Site, entry: SiteEntry, opset: int) -> Form | str:
        """How the entry runs in OpenVINO, or why it cannot."""
        form = self._form(site, entry)
        return (not is_reason(form) and side_refusal(site, entry, opset)) or form

    def _form(self, site: Site, entry: SiteEntry) -> Form | str:
        fmt = entry.weight
        if fmt.kind == "fp16" and entry.activation == "none":
            return "Folded"
        if fmt.kind != "int":
            return f"{fmt.kind} weights have no kernel in OpenVINO's CPU plugin"
        if fmt.storage_bits not in _BITS:
            return f"OpenVINO reads no codes of {fmt.storage_bits} bits"
        if fmt.block is not None and site.k % fmt.block:
            return f"rows of {site.k} are not a multiple of the block {fmt.block}"
        if entry.activation == "static":
            return self._static(site, fmt)
        if site.ops <= _LINEAR and site.has_kernels and site.n > 1:
            if fmt.block is None and fmt.storage_bits < 8:
                return "4-bit weights of products go in blocks"
            return "DequantizeLinear"
        if entry.activation == "dynamic":
            return f"{'+'.join(sorted(site.ops))} of dynamic activations has no integer kernel"
        return "Folded"

    def _static(self, site: Site, fmt: WeightFormat) -> Form | str:
        if not (site.ops <= _LINEAR or site.ops == {"Conv"}):
            return f"{'+'.join(sorted(site.ops))} has no integer kernel"
        if fmt.bits == 8 and self.rules.weight_bits < 8:
            return "sums of 8-bit products saturate on this processor (no VNNI): 7 bits are needed"
        if fmt.bits not in (7, 8) or fmt.block is not None or not fmt.symmetric:
            return "integer kernels need symmetric 8-bit weights with one scale per channel"
        if site.both_ways:
            return BOTH_WAYS
        if site.in_body:
            return "is read inside the body of an If, Loop or Scan, where no ranges are known"
        if any(not is_float32(use.node.inputs[use.index]) for use in site.uses):
            return "integer kernels need a float32 model"
        return "QuantizeLinear"

    def refuses(self, form: str) -> bool:
        """Whether what `form` returned is a reason rather than a form."""
        return is_reason(form)

    def candidates(self, site: Site, opset: int, *, tiny: bool = False) -> Sequence[SiteEntry]:
        """Weight-only entries, from few bytes to many; tiny changes nothing: 4 bits are the least.

        Products find the ranges of their activations in each run, in 8 bits.
        """
        product = site.ops <= _LINEAR and site.has_kernels
        activation: Literal["none", "dynamic"] = "dynamic" if product else "none"
        formats = dict.fromkeys(
            WeightFormat(bits, block, symmetric, "float16" if block else "float32")
            for bits, blocks in ((4, (128, 64, 32)), (8, (None,)))
            for block in blocks
            for symmetric in ((True, False) if bits < 8 else (True,))
        )
        entries = [SiteEntry(weight=fmt, activation=activation) for fmt in formats]
        return [
            e
            for e in entries
            if e.weight.size_bytes(site.n, site.k) < site.float_bytes
            and not is_reason(self.form(site, e, opset))
        ]

    def flow(self, graph: ir.Graph, sites: Collection[Site]) -> IntegerFlow:
        """Inputs of the sites, and skips of residual additions."""
        found = quantized_inputs(graph, sites)
        return IntegerFlow({name: name for name in found.tensors}, dict(found.refused))

    def lacks_kernel(self, node: ir.Node, dtype: ir.DataType, opset: int) -> str:
        """OpenVINO chooses the type that it computes in itself."""
        return "OpenVINO chooses the type that it computes in itself (INFERENCE_PRECISION_HINT)"

    def lower(self, model: ir.Model, plan: Plan, weights: EncodedWeights) -> Lowered:
        """Execute the plan on a copy. Raises InputError where the plan asks the impossible."""
        lowered = model.clone()
        forms = legal_forms(self, lowered, plan)
        _lift(lowered, plan)
        static = entries_of(plan, forms, "QuantizeLinear")
        stored = entries_of(plan, forms, "DequantizeLinear", "Folded")
        half = {name: entry for name, entry in stored.items() if entry.weight.kind == "fp16"}
        rows = {name: entry for name, entry in stored.items() if name not in half}
        lower_pipeline("openvino", plan).bound(
            {
                "input-qdq": InputQdq(static, plan.ranges, weights, {}, symmetric=False),
                "side-branch": SideBranch(plan.quantize, weights),
                "row-dequantize": RowDequantize(rows, weights),
                "fold-weights": FoldWeights(half, weights),
            }
        ).run(lowered)
        return Lowered(lowered, forms)

    def misplaced(
        self, lowered: Lowered, optimized: onnx.GraphProto | None = None
    ) -> dict[str, str]:
        """Sites whose product OpenVINO computes in floats, where it is installed."""
        quantized = {n for n, form in lowered.forms.items() if form != "Folded"}
        if missing() or not quantized:
            return {}
        session = _loaded(lowered.model, dict(EXACT), "candidate")
        by_name = {name: kernel for kernel in session.kernels() for name in kernel.merged}
        wrong = {}
        for site, node in _products(lowered.model):
            kernel = _kernel(node, by_name) if site in quantized else None
            if kernel is not None and kernel.precision in _FLOATS:
                wrong[site] = f"OpenVINO chose a float kernel ({kernel.kind})"
        return wrong

    def violations(self, model: ir.Model) -> list[str]:
        """Operators and codes that OpenVINO does not read."""
        return lint(model)

    def options(self, model: ir.Model, plan: Plan, stem: str) -> dict[str, str]:
        """The type to compute in; float activations where the plan wants them."""
        products = {site for site, node in _products(model) if node.op_type in _LINEAR}
        found = {entry.activation for name, entry in plan.quantize.items() if name in products}
        exact = "none" in found and "dynamic" not in found
        return dict(EXACT) | ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"} if exact else {})

    def unmeasured(self) -> str:
        """Why speed cannot be measured on this machine, or ""."""
        return missing()

    def settings(self) -> SessionSettings:
        """Where OpenVINO is not used: ONNX Runtime with fusions off, as a reference."""
        return SessionSettings(optimize=False)

    def session(self, model: ir.Model | str | os.PathLike[str], label: str) -> Session:
        """The model in OpenVINO, with the options beside it; else in ONNX Runtime."""
        if missing():
            return Session(model, self.settings(), label=label)
        options = dict(EXACT)
        if not isinstance(model, ir.Model):
            options |= read_options(Path(model), self.name)
        return _loaded(model, options, label)


def _loaded(
    model: ir.Model | str | os.PathLike[str], options: dict[str, str], label: str
) -> OpenvinoSession:
    try:
        return OpenvinoSession(model, options, label=label)
    except SessionError as error:
        known = lint(model if isinstance(model, ir.Model) else io.load(model))
        raise SessionError(f"{label}: {known[0]}" if known else str(error)) from error


def _lift(model: ir.Model, plan: Plan) -> None:
    """Raise the opset to what the formats need. Raises InputError where that is not possible."""
    formats = [e.weight for e in plan.quantize.values() if e.weight.kind == "int"]
    if not formats:
        return
    blocks = any(f.block is not None or f.storage_bits < 8 or f.scale != "float32" for f in formats)
    needed = _BLOCKS if blocks else _AXES
    if refused := raise_opset(model, needed):
        raise InputError(f"OpenVINO's form of these weights needs opset {needed}: {refused}")


def _products(model: ir.Model) -> list[tuple[str, ir.Node]]:
    """Sites and the nodes that read their codes, behind what only moves or unpacks them."""
    found = []
    for value, part in stored_parts(model):
        level = [use.node for use in value.uses()] if part.codes else []
        while level:
            node = level.pop()
            if node.op_type in _STEPS:
                level += [use.node for output in node.outputs for use in output.uses()]
            else:
                found.append((part.site, node))
    return found


def _kernel(node: ir.Node, by_name: Mapping[str, Kernel]) -> Kernel | None:
    """The kernel of a product, which may be named after an operator merged behind it."""
    for _ in range(_MERGED):
        kernel = by_name.get(node.name or "") or by_name.get(node.outputs[0].name or "")
        if kernel is not None:
            return kernel if kernel.kind in _PRODUCTS else None
        readers = [use.node for use in node.outputs[0].uses()]
        if len(readers) != 1:
            return None
        node = readers[0]
    return None


TARGETS: Mapping[str, type[OpenvinoTarget]] = {"openvino": OpenvinoTarget}
