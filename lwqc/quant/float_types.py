"""16-bit float types: what fits into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class FloatFormat:
    """limit: largest finite number. smallest: half the smallest positive one; what is below becomes
    0. exact: whole numbers up to it are exact. digits: bits of the significand.
    """

    name: str
    dtype: ir.DataType
    limit: float
    smallest: float
    exact: int
    digits: int


FLOAT_TYPES: Mapping[str, FloatFormat] = {
    "float16": FloatFormat("float16", ir.DataType.FLOAT16, 65504.0, 2.0**-25, 2048, 11),
    "bfloat16": FloatFormat("bfloat16", ir.DataType.BFLOAT16, 3.3895e38, 2.0**-134, 256, 8),
}
