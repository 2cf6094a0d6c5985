"""Quantized weights with a scale per block: decoding, bit packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.formats import WeightFormat
from lwqc.quant.unit_grid import unit_values

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]

_PIECE = 1 << 15  # numbers that stay in the first-level cache, or near it, while codes are packed


@dataclass(frozen=True)
class Encoded:
    """A quantized weight [N, K]: value = (code - zero) * scale, or codebook[code] * scale.

    codes: uint8 [N, blocks, block], padded along K with the code of zero; of fp16 two
        bytes for each.
    scale: float32 [N, blocks], already rounded to the stored type; may be negative.
    zero: uint8 [N, blocks], the codes of zero.
    k: inputs before padding.
    channel: of grained formats: float32 [N], of which the scales are whole multiples.
    books: of vq: float32 [codebooks, 2^bits, dim], as float16 holds them; codes are then
        [K, ceil(N / dim)], indices of vectors of outputs, those of a codebook together.
    """

    format: WeightFormat
    codes: Codes
    scale: Float
    zero: Codes
    k: int
    books: Float | None = None
    channel: Float | None = None

    def decode(self) -> Float:
        """Return the float32 weight [N, K] that the codes stand for."""
        if self.books is not None:
            return np.ascontiguousarray(self._from_books(self.books).T)
        values = unit_values(self.codes, self.zero[..., None], self.format)
        values *= self.scale[..., None]
        return np.ascontiguousarray(values.reshape(len(values), -1)[:, : self.k])

    @property
    def entropy(self) -> float:
        """Bits per weight that the best code without memory takes for the codes."""
        counts = np.bincount(self.codes.ravel())
        share = counts[counts > 0] / self.codes.size
        return float(-(share * np.log2(share)).sum()) / self.format.dim

    def _from_books(self, books: Float) -> Float:
        """The weight [K, N] from its codebooks."""
        book = np.arange(self.codes.shape[1]) * len(books) // self.codes.shape[1]
        values: Float = books[book, self.codes].reshape(self.k, -1)[:, : len(self.scale)]
        return values


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Rows of a weight that were encoded apart; no codebooks."""
    first = parts[0]
    if len(parts) == 1:
        return first
    channels = [part.channel for part in parts if part.channel is not None]
    return Encoded(
        first.format,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.zero for part in parts]),
        first.k,
        channel=np.concatenate(channels) if channels else None,
    )


def pack(codes: Codes, bits: int) -> Codes:
    """Pack codes along the last axis into bytes, lowest bits first.

    codes: uint8 [..., n] -> [..., ceil(n * bits / 8)]; missing codes of the last byte are 0.
    """
    per_byte = 8 // bits
    if per_byte == 1:
        return codes
    if rest := -codes.shape[-1] % per_byte:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], rest), np.uint8)], axis=-1)
    # Codes of one byte as a number of that many bytes: contiguous, which strided reads are not.
    together = np.ascontiguousarray(codes).view(f"<u{per_byte}")
    packed = np.empty(together.shape, np.uint8)
    numbers, bytes_ = together.reshape(-1), packed.reshape(-1)
    for start in range(0, len(numbers), _PIECE):
        piece = numbers[start : start + _PIECE]
        gathered = piece.copy()
        for i in range(1, per_byte):
            gathered |= piece >> ((8 - bits) * i)
        bytes_[start : start + _PIECE] = gathered  # the lowest byte of each
    return packed


def unpack(packed: Codes, bits: int, n: int) -> Codes:
    """Inverse of `pack`: [..., ceil(n * bits / 8)] -> uint8 [..., n]."""
    per_byte = 8 // bits
    mask = np.uint8(2**bits - 1)
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    codes = (packed[..., None] >> shifts) & mask
    return codes.reshape(*packed.shape[:-1], -1)[..., :n]
