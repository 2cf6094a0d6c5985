"""Weights that ordinary arithmetic unpacks, written by lwqc where there is no low-bit kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.folded_codes import Packed, packed_codes, plain_codes, reshaped_end
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import static_shape
from lwqc.passes.constant_codes import scale_type_of, unsigned
from lwqc.passes.stored_codes import StoredCodes
from lwqc.quant.grid import unpack

Array = NDArray[np.generic]
_UNUSUAL = "an unusual form"


@dataclass(frozen=True)
class UnpackedWeight:
    """value: the float weight of `shape`, as its operators read it. stored: where it comes from."""

    value: ir.Value
    shape: tuple[int, ...]
    stored: StoredCodes


def unpacked_weight(node: ir.Node) -> UnpackedWeight | str:
    """The weight that a product unpacks, see `FoldWeights`; "" for others, or what is unusual."""
    plain = plain_codes(node)
    if plain is not None:
        return _plain(node, *plain)
    packed = packed_codes(node)
    return "" if packed is None else _packed(node, packed)


def _plain(
    node: ir.Node, codes: ir.TensorProtocol, scale: ir.TensorProtocol
) -> UnpackedWeight | str:
    """Codes that lie as the weight does, with a scale for each of its first or last channels."""
    shape, sizes = static_shape(codes), static_shape(scale)
    n = math.prod(sizes)
    axis, matrix = 0, None
    if len(shape) == 2 and sizes == (1, shape[1]):
        axis = 1
    elif not any(sizes == (*shape[:i], *(1,) * (len(shape) - i)) for i in range(len(shape))):
        return _UNUSUAL
    elif sizes[:1] != (n,):
        matrix = (n, math.prod(shape) // n)
    stored = StoredCodes(
        8,
        lambda: unsigned(read_array(codes), 128),
        lambda: read_array(scale).astype(np.float32).ravel(),
        None,
        scale_type_of(scale),
        axis,
        None,
        matrix=matrix,
    )
    return UnpackedWeight(node.outputs[0], shape, stored)


def _packed(node: ir.Node, found: Packed) -> UnpackedWeight | str:
    """Codes in bytes, with scales per channel or block of inputs."""
    codes, fields, scale, zero = found
    end, shape = reshaped_end(node)
    n, blocks = static_shape(scale)[:2]
    size = int(np.prod(shape or ()))
    if end is None or shape is None or size % n or (len(shape) == 2 and shape[0] != n):
        return _UNUSUAL
    bits, k = 8 // fields, size // n
    block = static_shape(codes)[1] * fields // blocks

    def unpacked() -> Array:
        return unpack(read_array(codes), bits, blocks * block)[:, :k].reshape(shape)

    def zeros() -> Array:
        assert zero is not None
        return np.asarray(read_array(zero).reshape(n, blocks) + 2 ** (bits - 1), np.uint8)

    whole = blocks == 1
    stored = StoredCodes(
        bits,
        unpacked,
        lambda: read_array(scale).astype(np.float32).reshape(n, blocks),
        zeros if zero is not None else None,
        scale_type_of(scale),
        0 if whole else 1,
        None if whole else block,
        matrix=None if len(shape) == 2 or (whole and shape[0] == n) else (n, k),
    )
    return UnpackedWeight(end, shape, stored)
