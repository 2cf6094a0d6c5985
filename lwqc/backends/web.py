"""onnxruntime-web: models in a browser, in WebAssembly (`web`) or on its GPU (`webgpu`).

The rules were read off onnxruntime-web 1.30.0 in a headless Chromium (`benchmarks/web.py`); on the
GPU, which was emulated, only numbers were. WebAssembly runs what the CPU provider does, and its
8-bit products are exact sums everywhere.
"""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from lwqc.backends.cpu import CpuTarget
from lwqc.backends.cpu_rules import CpuRules
from lwqc.backends.cuda import CudaTarget
from lwqc.backends.target import FloatType, Form
from lwqc.backends.web_kernels import on_gpu
from lwqc.graph.sites import Site
from lwqc.model import io
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import SessionSettings

_LINEAR = frozenset({"MatMul", "Gemm"})
_IN_BROWSER = "onnxruntime-web runs in a browser (benchmarks/web.py takes times there)"
_LARGEST_FILE = 2_000_000_000  # a file of this many bytes has its weights beside it
_GPU_BITS = (2, 4, 8)


class WebTarget(CpuTarget):
    """WebAssembly in a browser: kernels of the CPU, but none that pays for weights in blocks."""

    def __init__(self) -> None:
        super().__init__(CpuRules("web", 8, False))

    def _form(self, site: Site, entry: SiteEntry) -> Form | str:
        fmt = entry.weight
        if fmt.block is not None and site.ops & _LINEAR and fmt.kind == "int":
            if entry.activation == "none" and not entry.has_side:
                return "Folded"
            return "products with weights in blocks take twice the float time in WebAssembly"
        if fmt.grained:
            return "grained weights were never run in a browser"
        return super()._form(site, entry)

    def beside_blocks(self, site: Site) -> Literal["none", "dynamic"]:
        """Float activations: weights in blocks become float when the model is loaded."""
        return "none"

    def violations(self, model: ir.Model) -> list[str]:
        """Weights that need a file of their own, which a page would have to name."""
        return _own_file(model)

    def unmeasured(self) -> str:
        """Times are those of a browser."""
        return _IN_BROWSER


class WebGpuTarget(CudaTarget):
    """The WebGPU provider: float32, low bits in products and embeddings, no 8-bit activations."""

    name = "webgpu"
    floats: FloatType = "float32"  # float16 only where a device has the feature shader-f16
    fuses = False  # its kernels are those of com.microsoft, which the runtime fuses itself
    rewrites: tuple[str, ...] = ()
    width_multiple = 4
    device = "WebGPU"

    def _block_form(self, site: Site, fmt: WeightFormat) -> Form | str:
        if fmt.storage_bits not in _GPU_BITS:
            return f"{fmt.storage_bits}-bit weights have no kernel on WebGPU"
        if site.k % (fmt.block or 1):
            return f"rows of {site.k} are not a multiple of the block {fmt.block}"
        return "GatherBlockQuantized" if "Gather" in site.ops else "MatMulNBits"

    def lacks_kernel(self, node: ir.Node, dtype: ir.DataType, opset: int) -> str:
        """Everything stays float32."""
        return f"{dtype.name.lower()} needs a device with the feature shader-f16"

    def missing(self, node: ir.Node, opset: int) -> str:
        """Why a node would run in WebAssembly, with copies around it, or ""."""
        if on_gpu(node.domain, node.op_type):
            return ""
        return "WebGPU has no kernel: it would run in WebAssembly, with copies around it"

    def violations(self, model: ir.Model) -> list[str]:
        """Nodes without a kernel on the GPU; weights that need a file of their own."""
        return super().violations(model) + _own_file(model)

    def unmeasured(self) -> str:
        """Times are those of a browser."""
        return _IN_BROWSER

    def settings(self) -> SessionSettings:
        """The CPU with fusions off as a reference for numbers."""
        return SessionSettings(optimize=False)


def _own_file(model: ir.Model) -> list[str]:
    size = io.weight_bytes(model)
    if size < _LARGEST_FILE:
        return []
    return [f"{size} bytes of weights need a file beside the model, which pages have to name"]


TARGETS = {"web": WebTarget, "webgpu": WebGpuTarget}
