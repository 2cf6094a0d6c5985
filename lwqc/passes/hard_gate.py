"""Hard sigmoids on 8-bit codes, which no runtime has a kernel for, of kernels that exist."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from lwqc.graph.operands import made_by, only_reader
from lwqc.model.edit import add_constant, insert_before, replace_node
from lwqc.model.names import unique_name
from lwqc.model.weights import stored_tensor
from lwqc.passes.number_codes import add_grid, number_codes
from lwqc.quant.activation import ActivationGrid

_CODES = 255
UNIT = ActivationGrid(float(np.float32(1 / _CODES)), 0)  # from 0 to 1, where codes saturate
_SWISH = {"alpha": 1 / 6, "beta": 0.5}  # as ONNX defines it


def find_hard_gates(graph: ir.Graph, quantized: Collection[str]) -> list[ir.Node]:
    """The HardSigmoids between tensors in 8 bits; a HardSwish between such becomes one and a Mul.

    quantized: names of the tensors in 8 bits.
    """
    found = []
    for node in list(graph):
        if node.domain != "" or node.op_type not in ("HardSigmoid", "HardSwish"):
            continue
        value = node.inputs[0]
        if value is None or not {value.name, node.outputs[0].name} <= set(quantized):
            continue
        if _number(node, "alpha", 0.2) <= 0 or not 0 < _number(node, "beta", 0.5) <= 1:
            continue
        if node.op_type == "HardSwish":
            name = node.outputs[0].name
            (gate,) = insert_before(node, "HardSigmoid", [value], [f"{name}/gate"], {**_SWISH})
            gate.shape, gate.type = value.shape, value.type
            (product,) = insert_before(node, "Mul", [value, gate], [f"{name}/gated"])
            replace_node(node, product)
            node = gate.producer() or node
        found.append(node)
    return found


def least_useful(gate: ir.Node) -> float | None:
    """The value below which a gate's input makes no difference to anything; None if all does.

    So it is where only the gate and products with what it gives read the input: both are 0 there.
    """
    value, result = gate.inputs[0], gate.outputs[0]
    assert value is not None
    products = (n for n in result.consumers() if n.op_type == "Mul" and value in n.inputs)
    if not set(value.consumers()) <= {gate, *products} or value.is_graph_output():
        return None
    return -_number(gate, "beta", 0.5) / _number(gate, "alpha", 0.2)


def lower_hard_gate(graph: ir.Graph, node: ir.Node, *, signed: bool) -> None:
    """Let codes of a grid from 0 to 1 stand for the result of a HardSigmoid of dequantized codes.

    Codes that a convolution writes for it alone are written so that they are the result: at zero
    and slope of the hard sigmoid, where they saturate. They are off by at most half a step more
    than rounding. Other codes are read at the slope's part of their scale, and an addition of the
    value at 0 saturates: onnxruntime has QLinearAdd and no kernel for HardSigmoid.
    """
    value = node.inputs[0]
    reader = made_by(value, "DequantizeLinear")
    assert value is not None
    assert reader is not None
    slope, middle = _number(node, "alpha", 0.2), _number(node, "beta", 0.5)
    name = f"{node.outputs[0].name}/u8"

    def grid(part: str, grid: ActivationGrid) -> tuple[ir.Value, ir.Value]:
        return add_grid(graph, f"{name}_{part}", grid, signed=signed)

    writer = _own_writer(value, reader)
    if writer is not None:
        zero = round(_CODES * middle)
        for target, numbers in (
            (writer, grid("in", ActivationGrid(1 / (_CODES * slope), zero))),
            (reader, grid("out", UNIT)),
        ):
            target.replace_input_with(1, numbers[0])
            target.replace_input_with(2, numbers[1])
        replace_node(node, value)
        return
    codes, scale, zero_point = reader.inputs
    stored = stored_tensor(scale)
    assert stored is not None
    part = add_constant(graph, f"{name}_part_scale", stored.numpy() * np.float32(slope))
    (read,) = insert_before(node, "DequantizeLinear", [codes, part, zero_point], [f"{name}_part"])
    added = number_codes(graph, node, f"{name}_middle", middle, signed=signed)
    (total,) = insert_before(node, "Add", [read, added], [f"{name}_sum"])
    unit = grid("out", UNIT)
    (result,) = insert_before(node, "QuantizeLinear", [total, *unit], [name])
    result.type = unit[1].type
    (back,) = insert_before(node, "DequantizeLinear", [result, *unit], [unique_name(graph, name)])
    replace_node(node, back)


def _own_writer(value: ir.Value, reader: ir.Node) -> ir.Node | None:
    """The QuantizeLinear of a convolution's result that only the one reader reads."""
    codes = reader.inputs[0]
    writer = made_by(codes, "QuantizeLinear")
    if writer is None or codes is None or only_reader(codes) is None or only_reader(value) is None:
        return None
    source = writer.inputs[0]
    made = made_by(source, "Conv")
    return writer if made is not None and source is not None and only_reader(source) else None


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()
