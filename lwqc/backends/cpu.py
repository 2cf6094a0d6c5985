"""ONNX Runtime's CPU execution provider.

The rules were read off onnxruntime 1.31.1 on x86-64; `misplaced` checks them on the graph that the
installed runtime really executes.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Literal

import onnx
import onnx_ir as ir

from lwqc.backends.cpu_rules import RULES, CpuRules, is_arm, probed
from lwqc.backends.slow_cells import unpacks_every_run
from lwqc.backends.stored_only import stored_only
from lwqc.backends.target import FloatType, Form, Lowered, illegal, lower_pipeline
from lwqc.errors import InputError
from lwqc.graph.integer_flow import IntegerFlow, integer_flow
from lwqc.graph.sites import BOTH_WAYS, Site, sites_by_name
from lwqc.passes.block_quantize import BlockQuantize
from lwqc.passes.bnb4 import Bnb4
from lwqc.passes.encoded_weights import EncodedWeights, stored_parts
from lwqc.passes.fold_weights import FoldWeights
from lwqc.passes.insert_qdq import InsertQdq
from lwqc.passes.integer_lstm import IntegerLstm, lstm_refusal, paired
from lwqc.passes.integer_matmul import IntegerMatMul
from lwqc.passes.side_branch import SideBranch, side_refusal
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.quant.formats import WeightFormat, codebook_formats
from lwqc.runtime.session import Session, SessionSettings, optimized_graph

_LINEAR = frozenset({"MatMul", "Gemm"})
_BLOCK_OPS = _LINEAR | {"Gather"}
MIN_OPSET = {
    "QLinearConv": 13,
    "MatMulInteger": 11,
    "UnpackedInteger": 11,
    "DynamicQuantizeLSTM": 7,
    "Folded": 11,
}
# Operator types that run a form, and the suffix of the initializer they must read.
_KERNELS: Mapping[Form, frozenset[str]] = {
    "MatMulNBits": frozenset({"MatMulNBits"}),
    "MatMulBnb4": frozenset({"MatMulBnb4"}),
    "GatherBlockQuantized": frozenset({"GatherBlockQuantized"}),
    "MatMulInteger": frozenset({"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}),
    "DynamicQuantizeLSTM": frozenset({"DynamicQuantizeLSTM"}),
    "UnpackedInteger": frozenset({"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}),
    "QLinearConv": frozenset({"QLinearConv"}),
    "Folded": frozenset(),
}


class CpuTarget:
    """Forms, lowering and checks for the CPU."""

    floats: FloatType = "float32"
    opset = max(MIN_OPSET.values())
    fuses = True
    rewrites: tuple[str, ...] = ("residual-sum",)
    speed: tuple[Literal["none", "dynamic", "static"], ...] = ("static", "dynamic", "none")
    width_multiple = 1
    profiles = False
    sparse = False
    codes_caches = True
    groups_experts = True

    def __init__(self, rules: CpuRules | None = None) -> None:
        """rules: for another processor than this one."""
        self.rules = rules or probed()
        self.name = self.rules.name

    @property
    def read_as_run(self) -> bool:
        """Not where the runtime would turn int8 activations into uint8 here, see `_reading`."""
        return not self.rules.signed

    @property
    def integer_bits(self) -> Literal[7, 8]:
        """Bits of weights that meet 8-bit activations."""
        return self.rules.weight_bits

    def form(self, site: Site, entry: SiteEntry, opset: int) -> Form | str:
        """How the entry runs on the CPU, or why it cannot."""
        form = self._form(site, entry)
        if opset < (need := MIN_OPSET.get(form, 0)):
            return f"needs opset {need}, the model has {opset}"
        return (not _refused(form) and side_refusal(site, entry, opset)) or form

    def _form(self, site: Site, entry: SiteEntry) -> Form | str:
        fmt = entry.weight
        if fmt.only_stored:
            return stored_only(site, entry)
        if fmt.grained:
            return _grained_form(site, entry, self.rules)
        if entry.activation != "none" and fmt.block is None:
            return _integer_form(site, entry, self.rules)
        blocks = site.ops <= _BLOCK_OPS and fmt.block is not None and site.has_kernels
        if blocks and not _unpacks(site, entry):
            return _block_form(site, entry)
        if fmt.kind not in ("int", "fp16"):
            return f"{fmt.kind} has no kernel for {'+'.join(sorted(site.ops))}"
        if entry.activation != "none":
            return f"8-bit activations with {fmt} weights have no kernel for {site.op}"
        return "Folded"

    def refuses(self, form: str) -> bool:
        """Whether what `form` returned is a reason rather than a form."""
        return _refused(form)

    def candidates(self, site: Site, opset: int, *, tiny: bool = False) -> Sequence[SiteEntry]:
        """Weight-only entries, from few bytes to many, on the quickest kernel for each.

        Whether that is as fast as the float one depends on the rows multiplied at once: see
        `timing.slow_products`. tiny: with 2 bits, and with codebooks, which are as fast as floats.
        """
        grains: list[tuple[int, tuple[int | None, ...]]]
        grains = [(4, (128, 64, 32, 16)), (8, (128, 32))]
        if not (site.ops <= _BLOCK_OPS and site.has_kernels):
            grains = [(4, (64, 16)), (8, (None,))]
        if tiny:
            grains.insert(0, (2, (128, 64, 32)))
        formats = dict.fromkeys(
            WeightFormat(bits, block, symmetric, "float16" if block else "float32").fitted(
                site.n, site.k
            )
            for bits, blocks in grains
            for block in blocks
            for symmetric in ((True, False) if bits < 8 else (True,))
        )
        entries = [SiteEntry(weight=f, activation=self.beside_blocks(site)) for f in formats]
        if tiny:
            entries += [SiteEntry(weight=f) for f in codebook_formats(site.size)]
        return [
            e
            for e in entries
            if e.weight.size_bytes(site.n, site.k) < site.float_bytes
            and not _refused(self.form(site, e, opset))
        ]

    def beside_blocks(self, site: Site) -> Literal["none", "dynamic"]:
        """Activations of weights in blocks: products compute in int8, embeddings have none."""
        return "dynamic" if site.ops <= _LINEAR and site.has_kernels else "none"

    def flow(self, graph: ir.Graph, sites: Collection[Site]) -> IntegerFlow:
        """Tensors between convolutions; inputs of products."""
        flow = integer_flow(graph, [s for s in sites if s.op == "Conv"])
        for site in sites:
            if site.op == "Conv":
                continue
            if site.in_body:
                flow.refused[site.name] = _IN_BODY
                continue
            for use in site.uses if site.ops <= _LINEAR else ():
                if use.activation is None or not use.activation.name:
                    raise InputError(f"{site.name}: its activation has no name to calibrate")
                flow.tensors.setdefault(use.activation.name, use.activation.name)
        return flow

    def lacks_kernel(self, node: ir.Node, dtype: ir.DataType, opset: int) -> str:
        """The CPU computes in float32."""
        return f"the CPU has no fast {dtype.name.lower()} kernels"

    def violations(self, model: ir.Model) -> list[str]:
        """None: the graph that runs is read back for every site, see `misplaced`."""
        return []

    def options(self, model: ir.Model, plan: Plan, stem: str) -> dict[str, str]:
        """The defaults do."""
        return {}

    def unmeasured(self) -> str:
        """Why speed is not that of the target: int8 activations have slow kernels elsewhere."""
        here = platform.machine()
        if self.rules.signed and not is_arm(here):
            return f"{self.name} has other kernels than this processor ({here or 'unknown'})"
        return ""

    def settings(self) -> SessionSettings:
        """A default session."""
        return SessionSettings()

    def session(self, model: ir.Model | str | PathLike[str], label: str) -> Session:
        """A session with these settings."""
        return Session(model, self.settings(), label=label)

    def lower(self, model: ir.Model, plan: Plan, weights: EncodedWeights) -> Lowered:
        """Execute the plan on a copy. Raises InputError where the plan asks the impossible."""
        lowered = model.clone()
        sites = sites_by_name(lowered)
        opset = lowered.opset_imports.get("", 1)
        forms = {
            name: self._legal(sites, name, entry, opset) for name, entry in plan.quantize.items()
        }
        together, alone = paired(
            sites, {n: e for n, e in plan.quantize.items() if forms[n] == "DynamicQuantizeLSTM"}
        )
        forms |= dict.fromkeys(alone, "Folded")
        by_form = {
            kind: {n: e for n, e in plan.quantize.items() if forms[n] in kinds}
            for kind, kinds in (
                ("block", {"MatMulNBits", "GatherBlockQuantized"}),
                ("float4", {"MatMulBnb4"}),
                ("integer", {"MatMulInteger", "UnpackedInteger"}),
                ("conv", {"QLinearConv"}),
                ("folded", {"Folded"}),
            )
        }
        ranges, signed = plan.ranges, self.rules.signed
        lower_pipeline("cpu", plan).bound(
            {
                "insert-qdq": InsertQdq(by_form["conv"], ranges, weights, signed),
                "side-branch": SideBranch(plan.quantize, weights),  # convolutions have none
                "integer-matmul": IntegerMatMul(by_form["integer"], ranges, weights, signed),
                **({} if by_form["integer"] else {"integer-bias": None}),
                "integer-lstm": IntegerLstm(together, weights),
                "block-quantize": BlockQuantize(by_form["block"], weights),
                "bnb4": Bnb4(by_form["float4"], weights),
                "fold-weights": FoldWeights(by_form["folded"], weights),
            }
        ).run(lowered)
        return Lowered(lowered, forms)

    def _legal(self, sites: Mapping[str, Site], name: str, entry: SiteEntry, opset: int) -> Form:
        site = sites[name]
        form = self.form(site, entry, opset)
        if _refused(form):
            raise illegal(site, form)
        return form  # type: ignore[return-value]

    def _reading(self) -> SessionSettings:
        """How the graph that runs is had: with int8 activations as they are, also on x86."""
        entries = {"session.qdqisint8allowed": "1"} if self.rules.signed else {}
        return SessionSettings(entries=entries)

    def misplaced(
        self, lowered: Lowered, optimized: onnx.GraphProto | None = None
    ) -> dict[str, str]:
        """Sites whose codes are read by another kernel than their form needs."""
        readers = list(_readers(optimized or optimized_graph(lowered.model, self._reading())))
        codes = _codes(lowered.model)
        integers = _integers(lowered)
        wrong: dict[str, str] = {}
        for site, form in lowered.forms.items():
            found = {op for name, op in readers if codes.get(name) == site} - {"Reshape"}
            expected = _KERNELS[form] | (_KERNELS["MatMulNBits"] if form in _TIED else frozenset())
            if form == "UnpackedInteger" and not found:
                found = {op for name, op in readers if integers.get(name) == site}
            elif form in ("Folded", "UnpackedInteger") and found:
                wrong[site] = f"unpacked in every run by {', '.join(sorted(found))}"
                continue
            if form != "Folded" and not (found and found <= expected):
                chosen = ", ".join(sorted(found)) or "a float kernel"
                wrong[site] = (
                    f"expected {' or '.join(sorted(expected))}, the runtime chose {chosen}"
                )
        return wrong


def _codes(model: ir.Model) -> dict[str, str]:
    """Names of values that are codes as stored, reshaped or not, and the site of each."""
    found: dict[str, str] = {}
    for value, part in stored_parts(model):
        if part.codes:
            reshaped = [u.node.outputs[0] for u in value.uses() if u.node.op_type == "Reshape"]
            found |= {v.name or "": part.site for v in (value, *reshaped)}
    return found


def _integers(lowered: Lowered) -> dict[str, str]:
    """Names of integers that are computed at load from codes, and the site of each."""
    found: dict[str, str] = {}
    for value, part in stored_parts(lowered.model):
        waiting = [value] if part.codes and lowered.forms[part.site] == "UnpackedInteger" else []
        while waiting:
            value = waiting.pop()
            for use in value.uses():
                if use.node.op_type in _KERNELS["UnpackedInteger"]:
                    found[value.name or ""] = part.site
                else:
                    waiting += use.node.outputs
    return found


_TIED: frozenset[Form] = frozenset({"GatherBlockQuantized"})


# Ranges are measured, and pairs placed, in the main graph only.
_IN_BODY = "is read inside the body of an If, Loop or Scan, where no ranges are known"


def _refused(form: Form | str) -> bool:
    return form not in _KERNELS


def _integer_form(site: Site, entry: SiteEntry, rules: CpuRules) -> Form | str:
    fmt = entry.weight
    if fmt.kind != "int":
        return f"{fmt.kind} has no kernel on the CPU"
    if not (site.ops <= _LINEAR or site.ops in ({"Conv"}, {"LSTM"})):
        return f"{'+'.join(sorted(site.ops))} has no integer kernel"
    if fmt.bits == 8 and rules.weight_bits < 8:
        return "sums of 8-bit products saturate on this processor (no VNNI): weights need 7 bits"
    if fmt.bits not in (7, 8) or (fmt.symmetric, fmt.scale) != (True, "float32"):
        return "integer kernels need symmetric 8-bit weights with one float32 scale per channel"
    return _product_form(site, entry)


def _grained_form(site: Site, entry: SiteEntry, rules: CpuRules) -> Form | str:
    if not site.ops <= _LINEAR:
        return f"grained weights have no kernel for {'+'.join(sorted(site.ops))}"
    if entry.activation == "none":
        return "grained weights become integers at load: activations have 8 bits"
    if entry.weight.product > rules.weight_bits:
        return "sums of 8-bit products saturate on this processor (no VNNI): dgw7, not dgw8"
    form = _product_form(site, entry)
    return form if _refused(form) else "UnpackedInteger"


def _product_form(site: Site, entry: SiteEntry) -> Form | str:
    if site.both_ways:
        return BOTH_WAYS
    if entry.activation == "static" and site.in_body:
        return _IN_BODY
    if any(not is_float32(use.node.inputs[use.index]) for use in site.uses):
        return "integer kernels need a float32 model"
    if site.ops <= _LINEAR:
        return "MatMulInteger"
    if site.op == "LSTM":
        if entry.activation == "static":
            return "an 8-bit LSTM finds the ranges of its inputs in each step"
        return lstm_refusal(site) or "DynamicQuantizeLSTM"
    if entry.activation == "dynamic":
        return "convolutions with dynamic activations are slower than float (ConvInteger)"
    return "QLinearConv"


def _block_form(site: Site, entry: SiteEntry) -> Form | str:
    fmt = entry.weight
    if fmt.kind != "int":
        return _float4_form(site, entry)
    if entry.activation == "static":
        return "kernels with weights in blocks find activation ranges in each run: dynamic or none"
    if "Gather" not in site.ops:
        return "MatMulNBits"
    if site.k % (fmt.block or 1):
        return f"rows of {site.k} are not a multiple of the block {fmt.block}"
    return "GatherBlockQuantized"


def _unpacks(site: Site, entry: SiteEntry) -> bool:
    """Whether the weight becomes float at load: as the entry says, or rather than in every run."""
    if entry.weight.kind != "int":
        return False
    asked = entry.unpacked and site.ops <= _LINEAR
    multiplies = bool(site.ops & _LINEAR) and entry.activation == "none" and not entry.has_side
    return asked or (multiplies and unpacks_every_run(entry))


def _float4_form(site: Site, entry: SiteEntry) -> Form | str:
    if entry.weight.kind == "fp8":
        return "fp8 has no kernel on the CPU"
    kind, block = entry.weight.kind, entry.weight.block or 1
    if not site.ops <= _LINEAR:
        return f"{kind} has no kernel for {'+'.join(sorted(site.ops))}"
    if entry.activation != "none":
        return f"{kind} has no integer kernel"
    if site.k % block:
        return f"{kind} needs inputs ({site.k}) that are a multiple of the block {block}"
    return "MatMulBnb4"


def is_float32(value: ir.Value | None) -> bool:
    """Whether a value is (or, without a type, is taken to be) float32."""
    return value is None or value.dtype in (None, ir.DataType.FLOAT)


def _readers(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """(input name, operator) pairs of a graph and its subgraphs."""
    for node in graph.node:
        for name in node.input:
            yield name, node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _readers(attribute.g)


# The first one by what this processor can do.
TARGETS = {"cpu": CpuTarget, **{n: partial(CpuTarget, rules) for n, rules in RULES.items()}}
