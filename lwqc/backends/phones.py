"""Providers of onnxruntime for phones and their laptops: Apple's CoreML, Qualcomm's QNN (HTP).

Rules from documentation, checked by forms and lint only; nothing was run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from lwqc.backends.cpu import CpuTarget
from lwqc.backends.cpu_rules import CpuRules
from lwqc.backends.cuda import CudaTarget
from lwqc.backends.phone_operators import COREML, QNN
from lwqc.backends.target import FloatType, Form, Lowered
from lwqc.graph.sites import Site
from lwqc.plans.plan import SiteEntry
from lwqc.runtime.session import SessionSettings

_BODIES = frozenset({"If", "Loop", "Scan"})


class CoremlTarget(CudaTarget):
    """CoreML as ML Program: float kernels; weights in low bits are unpacked at load."""

    name = "coreml"
    device = "CoreML"
    floats: FloatType = "float32"  # on its neural engine CoreML computes in float16 by itself
    fuses = False
    rewrites: tuple[str, ...] = ()
    width_multiple = 16

    def _form(self, site: Site, entry: SiteEntry) -> Form | str:
        form = super()._form(site, entry)
        if form in ("MatMulNBits", "GatherBlockQuantized"):
            return "Folded"
        return form

    def lacks_kernel(self, node: ir.Node, dtype: ir.DataType, opset: int) -> str:
        """Everything stays float32."""
        return "CoreML chooses the type that it computes in itself"

    def missing(self, node: ir.Node, opset: int) -> str:
        """Why a node would run on the CPU, or ""."""
        return _missing(node, COREML, "CoreML")

    def unmeasured(self) -> str:
        """No such device is here."""
        return "CoreML is on Apple's devices only"

    def settings(self) -> SessionSettings:
        """The CPU with fusions off as a reference for numbers."""
        return SessionSettings(optimize=False)


class QnnTarget(CpuTarget):
    """QNN's HTP: convolutions in 8 bits with quantized outputs, the rest in its float16."""

    fuses = False
    rewrites: tuple[str, ...] = ()
    speed = ("static",)
    width_multiple = 32
    codes_caches = False
    groups_experts = False
    read_as_run = False

    def __init__(self) -> None:
        super().__init__(CpuRules("qnn", 8, False))

    def _form(self, site: Site, entry: SiteEntry) -> Form | str:
        fmt = entry.weight
        if site.both_ways or site.is_double or entry.has_side:
            return "QNN takes weights of one orientation in float32, without branches beside them"
        if entry.activation == "dynamic":
            return "QNN has no dynamic ranges"
        if entry.activation == "static" and site.ops != {"Conv"}:
            return (
                f"{'+'.join(sorted(site.ops))} stays in float16: its output would be quantized too"
            )
        if entry.activation == "none" and fmt.kind in ("int", "fp16"):
            return "Folded"
        return super()._form(site, entry)

    def misplaced(
        self, lowered: Lowered, optimized: onnx.GraphProto | None = None
    ) -> dict[str, str]:
        """Which kernels run is known on such a device only."""
        return {}

    def violations(self, model: ir.Model) -> list[str]:
        """Operators that it does not take, bodies, sizes that are not fixed."""
        found = [
            f"{value.name} has sizes that are not fixed; QNN takes fixed ones only"
            for value in model.graph.inputs
            if not value.is_initializer() and (value.shape is None or value.shape.is_dynamic())
        ]
        for node in model.graph.all_nodes():
            if reason := _missing(node, QNN, "QNN"):
                found.append(f"{node.op_type} {node.name or node.outputs[0].name}: {reason}")
        return found

    def unmeasured(self) -> str:
        """No such device is here."""
        return "QNN is on Qualcomm's devices only"

    def settings(self) -> SessionSettings:
        """The CPU with fusions off as a reference for numbers."""
        return SessionSettings(optimize=False)


def _missing(node: ir.Node, table: Mapping[str, frozenset[str]], device: str) -> str:
    known = table.get("" if node.domain == "ai.onnx" else node.domain, frozenset())
    if node.op_type in _BODIES:
        return f"{device} takes no bodies: it would run on the CPU"
    return "" if node.op_type in known else f"{device} has none: it would run on the CPU"


TARGETS = {"coreml": CoremlTarget, "qnn": QnnTarget}
