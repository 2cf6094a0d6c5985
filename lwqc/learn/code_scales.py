"""Which scales of weights' codes are fitted together with them: those that nothing else reads.

As LSQ does (arXiv 1902.08153): codes are numbers of their own here, so that the slope of a scale is
what it multiplies. What is fitted is the share of what it was, which stays above 0.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import torch

from lwqc.learn.building import operation_of
from lwqc.learn.weights import FLOATS, Uses, behind, moves, unmoved
from lwqc.model.weights import stored_tensor

_LEAST = 0.1  # of what a scale was


def code_scales(
    uses: Uses, codes: Collection[ir.Value], units: Collection[ir.Value] = ()
) -> set[ir.Value]:
    """Stored scales that only decode the given codes.

    Not those that a bias of 32 bits is in units of, together with those of activations, but where
    its own scale is among `units`, which follow: integer kernels read that bias as it is.
    """
    found = set[ir.Value]()
    for table in codes:
        for node, index in uses.readers.get(table, ()):
            operation = operation_of(node)
            if operation is None or operation.scale is None or index not in operation.codes:
                continue
            scale = unmoved(node.inputs[operation.scale])
            tensor = stored_tensor(scale)
            if scale is None or tensor is None or tensor.dtype not in FLOATS:
                continue
            readers = [(n, i) for n, i in behind(scale, uses) if not moves(n, i)]
            if all(_decodes(n, i, codes) and not in_units(n, uses, units) for n, i in readers):
                found.add(scale)
    return found


def _decodes(node: ir.Node, index: int, codes: Collection[ir.Value]) -> bool:
    """Whether it reads a scale for some of the codes."""
    operation = operation_of(node)
    if operation is None or operation.scale != index:
        return False
    return any(node.inputs[i] in codes for i in operation.codes)


def in_units(node: ir.Node, uses: Uses, units: Collection[ir.Value]) -> bool:
    """Whether what it decodes meets another input that is decoded from 32 bits, at other scales."""
    for reader, _ in behind(node.outputs[0], uses):
        for value in reader.inputs:
            made = None if value is None else value.producer()
            if made is not None and made is not node and made.op_type == "DequantizeLinear":
                codes = made.inputs[0]
                whole = codes is not None and codes.dtype is ir.DataType.INT32
                if whole and made.inputs[1] not in units:
                    return True
    return False


def scaled(base: torch.Tensor, *shares: torch.Tensor) -> torch.Tensor:
    """The scales, as operators read them and as they are stored: what they were by all shares."""
    made = base.to(shares[0].dtype)
    for share in shares:
        made = made * share.clamp(min=_LEAST)
    return made.reshape(base.shape).to(base.dtype)
