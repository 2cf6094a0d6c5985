"""What differs between processors for 8-bit kernels."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_EXACT = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})


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


def probed(machine: str = "", flags: frozenset[str] | None = None) -> CpuRules:
    """The rules for this processor; those for VNNI where nothing can be told.

    machine, flags: as `platform.machine` and /proc/cpuinfo give them, for other processors.
    """
    machine = machine or platform.machine()
    if machine.lower().startswith(("arm", "aarch")):
        return ARM
    flags = _flags() if flags is None else flags
    return AVX2 if flags and not flags & _EXACT else VNNI


def _flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((ln for ln in lines if ln.startswith("flags")), "").split()[2:])
