"""Single numbers as 8-bit codes, so that kernels which take codes can take them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from lwqc.graph.integer_flow import absorbed_output, number_beside
from lwqc.model.edit import add_constant, insert_before
from lwqc.model.weights import stored_tensor
from lwqc.quant.activation import ActivationGrid

_CODES = 255


def add_grid(
    graph: ir.Graph, name: str, grid: ActivationGrid, *, signed: bool
) -> tuple[ir.Value, ir.Value]:
    """A stored scale and zero point."""
    scale = add_constant(graph, f"{name}_scale", np.float32(grid.scale))
    return scale, add_constant(graph, f"{name}_zero", grid.stored_zero(signed=signed))


def number_codes(
    graph: ir.Graph, anchor: ir.Node, name: str, number: float, *, signed: bool
) -> ir.Value:
    """A number dequantized in front of a node, exactly but for rounding to float32."""
    step, zero = (abs(number) / _CODES) or 1.0, _CODES if number < 0 else 0
    code = _CODES if number > 0 else 0
    grid = add_grid(graph, name, ActivationGrid(step, zero), signed=signed)
    # The zero point of a grid whose zero is the code is stored as the code is.
    stored = add_constant(graph, name, ActivationGrid(step, code).stored_zero(signed=signed))
    (value,) = insert_before(anchor, "DequantizeLinear", [stored, *grid], [f"{name}_float"])
    return value


def encode_numbers(graph: ir.Graph, quantized: Collection[str], *, signed: bool) -> None:
    """Write as codes the stored numbers in sums and products from a tensor in 8 bits to another.

    quantized: names of the tensors in 8 bits.
    """
    for node in list(graph):
        index = number_beside(node)
        if index is None or absorbed_output(node).name not in quantized:
            continue
        value = node.inputs[1 - index]
        if value is None or value.name not in quantized:
            continue
        tensor = stored_tensor(node.inputs[index])
        assert tensor is not None
        number = float(tensor.numpy().reshape(()))
        name = f"{node.outputs[0].name}/u8_number"
        node.replace_input_with(index, number_codes(graph, node, name, number, signed=signed))
