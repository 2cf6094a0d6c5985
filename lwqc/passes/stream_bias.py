"""Moves what a norm's bias gives behind a linear layer into the layer's own bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.linear_operand import Operand
from lwqc.graph.stream import Affine, Reading
from lwqc.model.edit import (
    add_constant,
    add_initializer,
    float_type,
    lazy_like,
    replace_stored,
)
from lwqc.model.names import unique_name
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.node_chain import like

Vector = NDArray[np.float64]


def composed(affine: Sequence[Affine], vectors: Mapping[Affine, Vector]) -> tuple[Vector, Vector]:
    """One gain and one bias [D] for several in a row."""
    gain = np.ones(len(vectors[affine[0]]))
    bias = np.zeros(len(gain))
    for item in affine:
        if item.kind == "gain":
            gain, bias = gain * vectors[item], bias * vectors[item]
        else:
            bias = bias + vectors[item]
    return gain, bias


def fold_bias(graph: ir.Graph, reading: Reading) -> ir.Value | None:
    """Add what a norm's bias gives behind a linear layer to the layer's own bias.

    Returns the bias if it is a new one. Both are in the coordinates of before any change of basis.
    """
    vectors = {a: a.vector() for a in reading.affine}
    operand, weight = reading.operand, reading.operand.weight.tensor
    _, bias = composed(reading.affine, vectors)
    if not bias.any():
        return None

    def shift() -> Vector:
        return operand.matrix(lambda _: weight.numpy()) @ bias

    slot = _bias_operand(operand)
    if slot is None:
        new = _add_bias(graph, operand)
        _add_to_stored(new, shift)
        return new
    node, index = slot
    value = node.inputs[index]
    assert value is not None
    if len(value.uses()) > 1 or value.is_graph_output():
        value = own_copy(graph, node, index)
    _add_to_stored(value, shift)
    return None


def _add_to_stored(value: ir.Value, shift: Callable[[], Vector]) -> None:
    """Add as many numbers as a stored tensor has."""
    tensor = stored_tensor(value)
    assert tensor is not None
    old = tensor
    replace_stored(
        value, lazy_like(old, old.name, lambda: old.numpy() + shift().reshape(old.numpy().shape))
    )


def _bias_operand(operand: Operand) -> tuple[ir.Node, int] | None:
    """The stored vector that is added to every output of a layer."""
    node = operand.node
    if len(node.inputs) > 2:
        return (node, 2) if _is_vector(node.inputs[2], operand.out) else None
    uses = list(node.outputs[0].uses())
    if node.op_type == "MatMul" and len(uses) == 1 and uses[0].node.op_type == "Add":
        add, index = uses[0].node, 1 - uses[0].idx
        if uses[0].node.domain == "" and _is_vector(add.inputs[index], operand.out):
            return add, index
    return None


def _is_vector(value: ir.Value | None, size: int) -> bool:
    """Whether it is stored, one number per channel; one of rank 2 must have no other reader."""
    tensor = stored_tensor(value)
    if tensor is None or value is None:
        return False
    shape = static_shape(tensor)
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    return tensor.size == size and bool(shape) and shape[-1] == size and (alone or len(shape) == 1)


def _add_bias(graph: ir.Graph, operand: Operand) -> ir.Value:
    """A new bias of zeros."""
    node, output = operand.node, operand.node.outputs[0]
    dtype = float_type(node.inputs[0])
    bias = add_constant(graph, f"{operand.weight.name}/bias", np.zeros(operand.out, dtype.numpy()))
    if node.op_type == "Gemm" and (len(node.inputs) < 3 or node.inputs[2] is None):
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
        return bias
    readers = list(output.uses())
    outputs = output.is_graph_output()
    add = ir.node("Add", [output, bias], name=f"{node.outputs[0].name}/bias")
    graph.insert_after(node, add)
    value = add.outputs[0]
    like(value, output)
    for use in readers:
        use.node.replace_input_with(use.idx, value)
    if outputs:
        for index, given in enumerate(graph.outputs):
            if given is output:
                graph.outputs[index] = value
        value.name, output.name = output.name, unique_name(graph, f"{output.name}/unbiased")
    else:
        value.name = unique_name(graph, f"{output.name}/biased")
    return bias


def own_copy(graph: ir.Graph, node: ir.Node, index: int) -> ir.Value:
    """Give one reader its own copy of a stored tensor."""
    value = node.inputs[index]
    tensor = stored_tensor(value)
    assert tensor is not None
    assert value is not None
    copy = lazy_like(tensor, f"{value.name}/{node.name or node.outputs[0].name}", tensor.numpy)
    new = add_initializer(graph, copy)
    node.replace_input_with(index, new)
    return new
