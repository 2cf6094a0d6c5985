"""ONNX Runtime's CUDA execution provider.

It has no integer kernels for Q/DQ graphs. Its fast forms are 16-bit floats, and MatMulNBits for
weights. The rules were read off onnxruntime-gpu 1.31.1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from typing import Literal

import onnx
import onnx_ir as ir

from lwqc.backends.cuda_kernels import missing_kernel
from lwqc.backends.devices import provider_problem
from lwqc.backends.stored_only import stored_only
from lwqc.backends.target import (
    FloatType,
    Form,
    Lowered,
    entries_of,
    is_reason,
    legal_forms,
    lower_pipeline,
)
from lwqc.graph.integer_flow import IntegerFlow
from lwqc.graph.sites import Site
from lwqc.graph.size_arithmetic import on_sizes
from lwqc.model.weights import stored_tensor
from lwqc.passes.block_quantize import BlockQuantize
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.fold_weights import FoldWeights
from lwqc.passes.side_branch import SideBranch, side_refusal
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session, SessionSettings

PROVIDER = "CUDAExecutionProvider"
_LINEAR = frozenset({"MatMul", "Gemm"})
_BLOCKS = (32, 64, 128)
# Outputs that the fused kernel works on at once, by bits (onnxruntime's fpA_intB kernels).
_OUTPUTS = {4: 64, 8: 32}
_FOLDED_OPSET = 11
# Operators that the runtime computes on the CPU on purpose where they make sizes of tensors.
SIZE_OPERATORS = frozenset(
    {
        "Add", "Cast", "Concat", "Div", "Equal", "Gather", "Mul", "Reshape", "Slice", "Squeeze",
        "Sub", "Unsqueeze", "Where",
    }
)  # fmt: skip


class CudaTarget:
    """Forms, lowering and checks for the CUDA provider."""

    name = "cuda"
    device = "CUDA"  # in messages
    read_as_run = True
    integer_bits: Literal[7, 8] = 8
    floats: FloatType = "float16"
    opset = _FOLDED_OPSET
    fuses = True
    rewrites: tuple[str, ...] = ("sizes-on-device",)
    speed: tuple[Literal["none", "dynamic", "static"], ...] = ()
    width_multiple = 64
    profiles = False
    sparse = False
    codes_caches = False
    groups_experts = False

    def form(self, site: Site, entry: SiteEntry, opset: int) -> Form | str:
        """How the entry runs on CUDA, or why it cannot."""
        form = self._form(site, entry)
        if form == "Folded" and opset < _FOLDED_OPSET:
            return f"needs opset {_FOLDED_OPSET}, the model has {opset}"
        return (not is_reason(form) and side_refusal(site, entry, opset)) or form

    def refuses(self, form: str) -> bool:
        """Whether what `form` returned is a reason rather than a form."""
        return is_reason(form)

    def _form(self, site: Site, entry: SiteEntry) -> Form | str:
        fmt = entry.weight
        if fmt.only_stored:
            return stored_only(site, entry)
        if entry.activation != "none":
            return f"{self.device} has no kernels for 8-bit activations"
        if fmt.kind != "int":
            return f"{fmt.kind} weights have no fast kernel on {self.device}; take integers"
        known = site.ops <= _LINEAR | {"Gather"}
        if fmt.block is None or not known or not site.has_kernels:
            return "Folded"
        return self._block_form(site, fmt)

    def _block_form(self, site: Site, fmt: WeightFormat) -> Form | str:
        bits, block = fmt.storage_bits, fmt.block or 1
        if bits not in _OUTPUTS:
            return f"{bits}-bit weights have no fast kernel on {self.device}"
        if block not in _BLOCKS:
            return f"{self.device} takes blocks of {', '.join(map(str, _BLOCKS))}, not {block}"
        if site.k % block:
            return f"rows of {site.k} are not a multiple of the block {block}"
        if "Gather" in site.ops:
            return "GatherBlockQuantized"
        if site.n % _OUTPUTS[bits]:
            return "Folded"  # smaller in the file; the kernel would be slower than float16
        return "MatMulNBits"

    def candidates(self, site: Site, opset: int, *, tiny: bool = False) -> Sequence[SiteEntry]:
        """Weight-only entries, from few bytes to many."""
        grains: list[tuple[int, tuple[int | None, ...]]] = [(4, (128, 64, 32)), (8, (128, 32))]
        if not site.ops <= _LINEAR | {"Gather"}:
            grains = [(4, (64, 16)), (8, (None,))]
        formats = [
            WeightFormat(bits, block, symmetric, "float16" if block else "float32")
            for bits, blocks in grains
            for block in blocks
            for symmetric in ((True, False) if bits < 8 else (True,))
        ]
        entries = [SiteEntry(weight=fmt) for fmt in formats]
        half = site.size * 2  # what float16 takes
        return [
            e
            for e in entries
            if e.weight.size_bytes(site.n, site.k) < half
            and not is_reason(self.form(site, e, opset))
        ]

    def flow(self, graph: ir.Graph, sites: Collection[Site]) -> IntegerFlow:
        """Nothing is quantized statically here."""
        reason = f"{self.device} has no kernels for 8-bit activations"
        return IntegerFlow({}, {site.name: reason for site in sites})

    def lacks_kernel(self, node: ir.Node, dtype: ir.DataType, opset: int) -> str:
        """Why a float32 node cannot be had in another float type, or ""."""
        if missing_kernel(node, opset):
            return ""  # has none in float32 either: reported as a fallback, not as an island
        return missing_kernel(node, opset, dtype)

    def lower(self, model: ir.Model, plan: Plan, weights: EncodedWeights) -> Lowered:
        """Execute the plan on a copy. Raises InputError where the plan asks the impossible."""
        lowered = model.clone()
        forms = legal_forms(self, lowered, plan)
        block = entries_of(plan, forms, "MatMulNBits", "GatherBlockQuantized")
        lower_pipeline("cuda", plan).bound(
            {
                "side-branch": SideBranch(plan.quantize, weights),
                "block-quantize": BlockQuantize(block, weights),
                "fold-weights": FoldWeights(entries_of(plan, forms, "Folded"), weights),
            }
        ).run(lowered)
        return Lowered(lowered, forms)

    def misplaced(
        self, lowered: Lowered, optimized: onnx.GraphProto | None = None
    ) -> dict[str, str]:
        """Nothing here: forms are decided by rules that a build with the runtime confirmed."""
        return {}

    def violations(self, model: ir.Model) -> list[str]:
        """Nodes that would run on the CPU, with copies around them.

        What comes from shapes alone is on the CPU already.
        """
        sizes = {node for graph in model.graphs() for node in on_sizes(graph)}
        return [
            f"{node.op_type} {node.name or node.outputs[0].name}: {reason}"
            for node in model.graph.all_nodes()
            if node.op_type != "Constant"
            and node not in sizes
            and (reason := self.missing(node, model.opset_imports.get(node.domain, 1)))
            and not _folded(node)
        ]

    def missing(self, node: ir.Node, opset: int) -> str:
        """Why a node runs on the CPU, or ""."""
        return missing_kernel(node, opset)

    def options(self, model: ir.Model, plan: Plan, stem: str) -> dict[str, str]:
        """The defaults do."""
        return {}

    def unmeasured(self) -> str:
        """Why speed cannot be measured on this machine, or ""."""
        return provider_problem(PROVIDER)

    def settings(self) -> SessionSettings:
        """The device, or the CPU with fusions off as a reference for numbers."""
        if self.unmeasured():
            return SessionSettings(optimize=False)
        return SessionSettings(provider=PROVIDER)

    def session(self, model: ir.Model | str | PathLike[str], label: str) -> Session:
        """A session with these settings."""
        return Session(model, self.settings(), label=label)


def _folded(node: ir.Node) -> bool:
    """Whether the runtime computes the node while it loads the model."""
    stack, seen = [node], {node}
    while stack:
        for value in stack.pop().inputs:
            if value is None or stored_tensor(value) is not None:
                continue
            producer = value.producer()
            if producer is None:
                return False
            if producer not in seen:
                seen.add(producer)
                stack.append(producer)
    return bool(node.inputs)


TARGETS = {"cuda": CudaTarget}
