"""What differs between releases of TensorRT; every fact with its source.

opset 9 to 22: the list of operators of onnx-tensorrt for 10.x. opset 9 to 25: TensorRT 11's "ONNX
Opset Guide". Types written in the graph only, flags for precisions removed: "Migrating from
TensorRT 10.x to 11.x". NVFP4 in blocks of 16, MXFP8 in blocks of 32 with E8M0 scales: "Quantization
Schemes" and the operator DynamicQuantize of TensorRT 11. RTX: "Working with Quantized Types" of
TensorRT-RTX (float8 in products only), options as onnxruntime's provider names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TensorrtRules:
    """One release.

    name: of the target. release: in messages. opsets: oldest and newest that its parser reads.
    float8_convolutions: whether they may be float8. small_floats: whether its parser reads float4
    (NVFP4) and float8 in blocks (MXFP8). options: whose names the options beside a model have.
    elsewhere: why no session of onnxruntime runs it, or "".
    """

    name: str
    release: str
    opsets: tuple[int, int]
    float8_convolutions: bool = True
    small_floats: bool = False
    options: Literal["provider", "trtexec", "rtx"] = "provider"
    elsewhere: str = ""


TEN = TensorrtRules("tensorrt-10", "TensorRT 10", (9, 22))
ELEVEN = TensorrtRules(
    "tensorrt-11",
    "TensorRT 11",
    (9, 25),
    small_floats=True,
    options="trtexec",
    elsewhere="onnxruntime's provider links TensorRT 10; trtexec builds engines of TensorRT 11",
)
RTX = TensorrtRules(
    "tensorrt-rtx",
    "TensorRT RTX",
    (9, 22),
    float8_convolutions=False,
    options="rtx",
    elsewhere="the provider of TensorRT RTX is a plugin that lwqc does not load",
)
