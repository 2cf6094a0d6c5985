"""What differs between processors for 8-bit kernels."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import onnx_ir as ir

from lwqc.runtime.session import Session

_ROWS = (1, 4)  # kernels for one row and for several differ
_PRODUCTS = 64


@dataclass(frozen=True)
class CpuRules:
    """How integers are stored for one kind of processor.

    weight_bits: of weights that meet 8-bit activations. signed: static activations are int8,
    otherwise uint8; those whose range is found in each run are always uint8.
    """

    name: str
    weight_bits: Literal[7, 8]
    signed: bool


# Products of uint8 and int8 are summed in pairs of 16 bits without VNNI, which saturate unless
# weights have 7 bits (onnxruntime's quantize_static says the same). ARM multiplies int8 by int8.
VNNI = CpuRules("cpu-vnni", 8, False)
AVX2 = CpuRules("cpu-avx2", 7, False)
ARM = CpuRules("cpu-arm", 8, True)
RULES = {rules.name: rules for rules in (VNNI, AVX2, ARM)}


def probed(machine: str = "", saturates: Callable[[], bool] | None = None) -> CpuRules:
    """The rules for this processor, told by what its kernels compute.

    machine: as `platform.machine` gives it. saturates: asked on x86 only; see `sums_saturate`.
    """
    if is_arm(machine or platform.machine()):
        return ARM
    return AVX2 if (saturates or sums_saturate)() else VNNI


def is_arm(machine: str) -> bool:
    """Whether a processor is an ARM. machine: as `platform.machine` gives it."""
    return machine.lower().startswith(("arm", "aarch"))


@cache
def sums_saturate() -> bool:
    """Whether the runtime's kernels here add pairs of uint8 x int8 products in 16 bits.

    Told by running one, not by names of instruction sets: it is the runtime that chooses.
    """
    weight = np.full((_PRODUCTS, 16), 127, np.int8)
    value = ir.Value(
        name="x", shape=ir.Shape(["rows", _PRODUCTS]), type=ir.TensorType(ir.DataType.UINT8)
    )
    stored = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    node = ir.node("MatMulInteger", [value, stored])
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    graph = ir.Graph(
        [value], node.outputs, nodes=[node], initializers=[stored], opset_imports={"": 17},
        name="pairs",
    )  # fmt: skip
    session = Session(ir.Model(graph, ir_version=8), label="a product of integers")
    exact = 255 * 127 * _PRODUCTS
    return any(
        bool((session({"x": np.full((rows, _PRODUCTS), 255, np.uint8)})["y"] != exact).any())
        for rows in _ROWS
    )
