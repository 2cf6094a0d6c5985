"""Weight number formats: the closed vocabulary that plans, grids and targets share."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, cast

from lwqc.errors import InputError

Kind = Literal["int", "nf4", "fp4", "fp8", "fp16"]
ScaleType = Literal["float32", "float16"]
BITS = (2, 3, 4, 7, 8)  # of integers
_STORED_IN = {3: 4, 7: 8}
BLOCKS = (16, 32, 64, 128, 256)
SCALE_BYTES: dict[ScaleType, int] = {"float32": 4, "float16": 2}
PATTERN = r"(?:w(\d)|(nf4|fp4|fp8))(?:b(\d+)|c)(a?)(p?)(h?)"  # of a format's name
_NAME = re.compile(PATTERN)
_HALF = "fp16"  # the whole name of a format
# The code of 0 in the float formats; see `codebook`.
_FLOAT_ZERO: dict[Kind, int] = {"nf4": 7, "fp4": 0, "fp8": 0, "fp16": 0}


@dataclass(frozen=True, order=True)
class WeightFormat:
    """How a weight seen as a matrix [N outputs, K inputs] is stored.

    bits: bits per code, one of `BITS`, or 16 of fp16; 7 are for integer kernels that would
        overflow with 8.
    block: consecutive inputs that share a scale (one of `BLOCKS`), or None for one scale per
        output channel. Scales are [N, ceil(K / block)] or [N, 1].
    symmetric: no zero point is stored; code `implicit_zero` means 0.
    scale: type in which scales are stored; they act as float32.
    kind: codes are integers, or they number the values of a 4- or 8-bit float
        (`codebook`), or are the bits of a float16, which has no scale.
    positive: of symmetric integers below 8 bits: scales are positive. Otherwise the extreme value
        of a block takes the extra negative code, and the scale the sign that this needs.
    """

    bits: int
    block: int | None = None
    symmetric: bool = True
    scale: ScaleType = "float32"
    kind: Kind = "int"
    positive: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS and self.kind != "fp16":
            raise InputError(f"format: bits must be one of {BITS}, got {self.bits}")
        if self.block is not None and self.block not in BLOCKS:
            raise InputError(f"format: block must be one of {BLOCKS} or None, got {self.block}")
        if self.bits == 7 and (self.block is not None or not self.symmetric):
            raise InputError("format: 7 bits have one scale per channel and no zero point")
        if self.kind == "fp16":
            if self.bits != 16 or self.block is not None or not self.symmetric:
                raise InputError("format: fp16 has 16 bits, no block and no zero point")
        elif self.kind == "fp8":
            if self.bits != 8 or self.block is not None or not self.symmetric:
                raise InputError("format: fp8 has 8 bits, a scale per channel and no zero point")
        elif self.kind != "int" and (self.bits != 4 or self.block is None or not self.symmetric):
            raise InputError(f"format: {self.kind} has 4 bits, a block and no zero point")

    def __str__(self) -> str:
        if self.kind == "fp16":
            return _HALF
        name = f"w{self.bits}" if self.kind == "int" else self.kind
        grain = "c" if self.block is None else f"b{self.block}"
        asymmetric = "" if self.symmetric else "a"
        positive = "p" if self.positive else ""
        return f"{name}{grain}{asymmetric}{positive}{'h' if self.scale == 'float16' else ''}"

    @property
    def words(self) -> str:
        """For readers, without details: `8 bits per channel`, `nf4 in blocks of 64`."""
        if self.kind == "fp16":
            return "16-bit floats"
        kind = f"{self.bits} bits" if self.kind == "int" else self.kind
        return f"{kind} per channel" if self.block is None else f"{kind} in blocks of {self.block}"

    @classmethod
    def parse(cls, text: str) -> WeightFormat:
        """Read the short name that `str` writes: `w4b32`, `w8c`, `w4b64ah` (asymmetric, half)."""
        if text == _HALF:
            return cls(16, kind="fp16")
        found = _NAME.fullmatch(text)
        if not found:
            raise InputError(
                f"format: {text!r} is not of the form w<bits>(b<block>|c)[a][p][h] "
                "or (nf4|fp4)b<block>[h] or fp8c[h] or fp16"
            )
        bits, floating, block, asymmetric, positive, half = found.groups()
        kind = cast(Kind, floating or "int")
        scale: ScaleType = "float16" if half else "float32"
        grain = int(block) if block else None
        width = int(bits or (8 if floating == "fp8" else 4))
        return cls(width, grain, not asymmetric, scale, kind, bool(positive))

    @property
    def is_plain(self) -> bool:
        """Whether the float weight is one code of whole bytes times the scale of its channel."""
        whole = self.storage_bits == 8 and self.kind == "int" and self.scale == "float32"
        return self.kind == "fp16" or (whole and self.block is None and self.symmetric)

    @property
    def storage_bits(self) -> int:
        """Bits that a code takes: no operator reads codes of 3 or 7 bits; they take 4 and 8."""
        return _STORED_IN.get(self.bits, self.bits)

    @property
    def implicit_zero(self) -> int:
        """The code that means 0 where no zero point is stored."""
        return 2 ** (self.storage_bits - 1) if self.kind == "int" else _FLOAT_ZERO[self.kind]

    def blocks(self, k: int) -> int:
        """Scales per output channel for K inputs."""
        return 1 if self.block is None else -(-k // self.block)

    def fitted(self, n: int, k: int) -> WeightFormat:
        """This format, with smaller blocks where padding of a weight [N, K] costs more."""
        if self.block is None:
            return self
        blocks = sorted((b for b in BLOCKS if b <= self.block), reverse=True)
        choices = [replace(self, block=b) for b in blocks] or [self]
        return min(choices, key=lambda f: f.size_bytes(n, k))

    def size_bytes(self, n: int, k: int) -> int:
        """Bytes of codes, scales and zero points of a weight [N, K], with block padding."""
        if self.kind == "fp16":
            return 2 * n * k
        blocks = self.blocks(k)
        padded = k if self.block is None else blocks * self.block
        codes = n * -(-padded * self.storage_bits // 8)
        zeros = 0 if self.symmetric else n * -(-blocks * self.storage_bits // 8)
        return codes + n * blocks * SCALE_BYTES[self.scale] + zeros
