"""Stored tensors of ONNX as torch tensors, and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.tensor_bytes import read_array

# Codes of fewer than 8 bits lie in tensors of 8.
TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT2: torch.int8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
}
# Types of which numpy knows nothing, by an integer type of their size.
_BY_BITS = {
    ir.DataType.BFLOAT16: np.int16,
    ir.DataType.FLOAT8E4M3FN: np.int8,
    ir.DataType.FLOAT8E5M2: np.int8,
}


def torch_type(kind: ir.DataType, label: str) -> torch.dtype:
    """The type of torch. Raises InputError where it has none."""
    if kind not in TYPES:
        raise InputError(f"{label}: torch has no type for {kind.name.lower()}")
    return TYPES[kind]


def to_torch_tensor(tensor: ir.TensorProtocol, label: str) -> torch.Tensor:
    """A copy of a stored tensor. Raises InputError for types that torch has not."""
    wanted = torch_type(tensor.dtype, label)
    array = read_array(tensor)
    if tensor.dtype in _BY_BITS:
        return torch.from_numpy(array.view(_BY_BITS[tensor.dtype]).copy()).view(wanted)
    if tensor.dtype.bitwidth < 8:
        array = array.astype(np.uint8 if wanted is torch.uint8 else np.int8)
    return torch.from_numpy(np.array(array))


def to_array(value: torch.Tensor, kind: ir.DataType) -> NDArray[np.generic]:
    """The numbers of a torch tensor in a type of ONNX."""
    value = value.detach().cpu()
    if kind is ir.DataType.BFLOAT16:
        words = value.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
        return words.view(ml_dtypes.bfloat16)
    if value.dtype is torch.bfloat16:
        value = value.float()
    return value.numpy().astype(kind.numpy())
