"""Weight number formats: the closed vocabulary that plans, grids and targets share."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, cast

from lwqc.errors import InputError

Kind = Literal["int", "nf4", "fp4", "fp8", "fp16", "vq", "dg", "e2m1"]
ScaleType = Literal["float32", "float16"]
BITS = (2, 3, 4, 7, 8)  # of integers
DIMS = (1, 2, 4)  # weights that share an index into a codebook
_STORED_IN = {3: 4, 7: 8}
BLOCKS = (16, 32, 64, 128, 256)
SCALE_BYTES: dict[ScaleType, int] = {"float32": 4, "float16": 2}
_SCALED = r"(?:w(\d)|(nf4|fp4|fp8))(?:b(\d+)|c)(a?)(p?)(h?)(d?)"
_CODEBOOK = r"vq(\d)x(\d)"
_GRAINED = r"(dg|e2m1)w([78])b(\d+)"
PATTERN = f"{_SCALED}|{_GRAINED}|{_CODEBOOK}|fp16"  # of a format's name
_HALF = "fp16"  # the whole name of a format
# The code of 0 in the float formats; see `codebook`.
_FLOAT_ZERO: dict[Kind, int] = {"nf4": 7, "fp4": 0, "fp8": 0, "fp16": 0, "vq": 0, "e2m1": 0}
_MOST = {"dg": 8, "e2m1": 12}  # largest magnitude that a code of a grained format stands for
_LARGE = 1 << 19  # numbers of a weight
_BOOKS_SHARE = 256  # least bytes of indices for one of codebooks, where there are several


@dataclass(frozen=True, order=True)
class WeightFormat:
    """How a weight seen as a matrix [N outputs, K inputs] is stored.

    bits: bits per code, one of `BITS`, 16 of fp16, 1 to 8 of vq; 7 are for integer kernels that
        would overflow with 8.
    block: consecutive inputs that share a scale (one of `BLOCKS`), or None for one scale per
        output channel. Scales are [N, ceil(K / block)] or [N, 1].
    symmetric: no zero point is stored; code `implicit_zero` means 0.
    scale: type in which scales are stored; they act as float32.
    kind: codes are integers, or they number the values of a 4- or 8-bit float
        (`codebook`), are the bits of a float16, which has no scale, or indices into codebooks of
        float16 vectors that were fitted to the weight (`fitted_codebook`).
    positive: of symmetric integers below 8 bits: scales are positive. Otherwise the extreme value
        of a block takes the extra negative code, and the scale the sign that this needs.
    dense: codes of 3 bits take 3 bits in the file, not 4: they only become floats at load.
    dim: of vq: consecutive outputs of one input that share an index.
    product: of grained formats (dg, e2m1), which have 4 bits: bits of what meets activations. The
        scales of blocks are whole multiples of one scale per channel, and codes times multiples
        are integers of that many bits, which a kernel for 8 bits multiplies; see `dual_grained`.
        Codes of dg are integers, those of e2m1 floats of 4 bits, times two.
    """

    bits: int
    block: int | None = None
    symmetric: bool = True
    scale: ScaleType = "float32"
    kind: Kind = "int"
    positive: bool = False
    dense: bool = False
    dim: int = 1
    product: int = 0

    def __post_init__(self) -> None:
        if self.dense and (self.bits != 3 or self.kind != "int"):
            raise InputError("format: integers of 3 bits can be dense, the others are")
        if self.kind == "vq":
            self._check_codebook()
            return
        if self.dim != 1:
            raise InputError("format: only codebooks have vectors")
        if self.grained != (self.product in (7, 8)):
            raise InputError("format: dg and e2m1, and they alone, become integers of 7 or 8 bits")
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

    def _check_codebook(self) -> None:
        if not 1 <= self.bits <= 8 or self.dim not in DIMS:
            raise InputError(
                f"format: a codebook has 1 to 8 bits for vectors of one of {DIMS}, got "
                f"{self.bits} for {self.dim}"
            )
        if self.block is not None or not self.symmetric or self.positive:
            raise InputError("format: a codebook has no scales and no zero point")

    def __str__(self) -> str:
        if self.kind == "fp16":
            return _HALF
        if self.kind == "vq":
            return f"vq{self.bits}x{self.dim}"
        if self.grained:
            return f"{self.kind}w{self.product}b{self.block}"
        name = f"w{self.bits}" if self.kind == "int" else self.kind
        grain = "c" if self.block is None else f"b{self.block}"
        asymmetric = "" if self.symmetric else "a"
        positive = "p" if self.positive else ""
        half = "h" if self.scale == "float16" else ""
        return f"{name}{grain}{asymmetric}{positive}{half}{'d' if self.dense else ''}"

    @property
    def words(self) -> str:
        """For readers, without details: `8 bits per channel`, `nf4 in blocks of 64`."""
        if self.kind == "fp16":
            return "16-bit floats"
        if self.kind == "vq":
            return f"{2**self.bits} codes for {self.dim} weights each"
        kind = f"{self.bits} bits" if self.kind == "int" else self.kind
        return f"{kind} per channel" if self.block is None else f"{kind} in blocks of {self.block}"

    @classmethod
    def parse(cls, text: str) -> WeightFormat:
        """Read the short name that `str` writes.

        `w4b32`, `w8c`, `w4b64ah` (asymmetric, half), `w3b32hd` (dense), `vq5x2` (codebooks of 32
        pairs), `dgw8b32` (dual-grained: 4 bits that become 8).
        """
        if text == _HALF:
            return cls(16, kind="fp16")
        codebook = re.fullmatch(_CODEBOOK, text)
        if codebook:
            return cls(int(codebook[1]), scale="float16", kind="vq", dim=int(codebook[2]))
        grained = re.fullmatch(_GRAINED, text)
        if grained:
            kind, product, block = grained.groups()
            return cls(4, int(block), kind=cast(Kind, kind), product=int(product))
        found = re.fullmatch(_SCALED, text)
        if not found:
            raise InputError(
                f"format: {text!r} is not of the form w<bits>(b<block>|c)[a][p][h][d] "
                "or (nf4|fp4)b<block>[h] or fp8c[h] or fp16 or vq<bits>x<weights> "
                "or (dg|e2m1)w<7|8>b<block>"
            )
        bits, floating, block, asymmetric, positive, half, dense = found.groups()
        kind = cast(Kind, floating or "int")
        scale: ScaleType = "float16" if half else "float32"
        grain = int(block) if block else None
        width = int(bits or (8 if floating == "fp8" else 4))
        flags = bool(positive), bool(dense)
        return cls(width, grain, not asymmetric, scale, kind, *flags)

    @property
    def is_plain(self) -> bool:
        """Whether the float weight is one code of whole bytes times the scale of its channel."""
        whole = self.storage_bits == 8 and self.kind == "int" and self.scale == "float32"
        return self.kind == "fp16" or (whole and self.block is None and self.symmetric)

    @property
    def storage_bits(self) -> int:
        """Bits that a code takes: no operator reads codes of 3 or 7 bits; they take 4 and 8.

        Unless they are dense, or indices.
        """
        alone = self.dense or self.kind == "vq"
        return self.bits if alone else _STORED_IN.get(self.bits, self.bits)

    @property
    def whole(self) -> bool:
        """Whether codes are integers."""
        return self.kind in ("int", "dg")

    @property
    def grained(self) -> bool:
        """Whether scales of blocks are whole multiples of those of channels."""
        return self.kind in _MOST

    @property
    def largest_multiple(self) -> int:
        """Of a grained format: the largest scale of a block, in scales of its channel."""
        return int((2 ** (self.product - 1) - 1) // _MOST[self.kind])

    @property
    def only_stored(self) -> bool:
        """Whether no kernel reads such codes: they become floats when a model is loaded."""
        return self.dense or self.kind == "vq"

    @property
    def implicit_zero(self) -> int:
        """The code that means 0 where no zero point is stored."""
        return 2 ** (self.storage_bits - 1) if self.whole else _FLOAT_ZERO[self.kind]

    def blocks(self, k: int) -> int:
        """Scales per output channel for K inputs."""
        return 1 if self.block is None else -(-k // self.block)

    def codebooks(self, n: int, k: int) -> int:
        """Codebooks of a weight [N, K], for as many bands of outputs: few enough to cost little."""
        one, most = self._book_bytes, len(range(0, n, self.dim))
        count = 1
        while most % (2 * count) == 0 and 2 * count * one * _BOOKS_SHARE <= self._index_bytes(n, k):
            count *= 2
        return count

    @property
    def _book_bytes(self) -> int:
        return (2 << self.bits) * self.dim

    def _index_bytes(self, n: int, k: int) -> int:
        return packed_bytes(-(-n // self.dim) * k, self.bits)

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
        if self.kind == "vq":
            return self._index_bytes(n, k) + self.codebooks(n, k) * self._book_bytes
        blocks = self.blocks(k)
        padded = k if self.block is None else blocks * self.block
        codes = n * -(-padded * self.storage_bits // 8)
        if self.dense:
            codes = packed_bytes(n * padded, self.bits)
        bits = 8 if self.dense else self.storage_bits
        if self.grained:  # a byte for each multiple
            return codes + n * blocks + n * SCALE_BYTES[self.scale]
        zeros = 0 if self.symmetric else n * -(-blocks * bits // 8)
        return codes + n * blocks * SCALE_BYTES[self.scale] + zeros


def packed_bytes(codes: int, bits: int) -> int:
    """Bytes of codes that lie in planes of bits, see `quant.planes`: eight take `bits` bytes."""
    return -(-codes // 8) * bits


def codebook_formats(size: int) -> list[WeightFormat]:
    """Codebooks worth trying for a weight of that many numbers, from few bits to many.

    Vectors of 4 have a codebook of 2 KB, which takes a large weight.
    """
    shapes = [(4, 2), (5, 2), (6, 2), (7, 2)]
    if size >= _LARGE:
        shapes.insert(0, (8, 4))
    return [WeightFormat(bits, scale="float16", kind="vq", dim=dim) for bits, dim in shapes]
