"""Operators that compute on 8-bit codes, as float operators between pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.model.edit import add_constant, insert_before, replace_node
from lwqc.model.names import unique_name
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

MICROSOFT = "com.microsoft"
_OWN_ATTRIBUTES = frozenset({"channels_last", "opset"})  # of the integer forms alone


@dataclass(frozen=True)
class IntegerForm:
    """How an operator on codes lists its operands.

    op_type: of the float operator. operands: positions of codes; scale and zero point follow.
    result: position of the output's scale. plain: float or boolean operands as they are. bias:
    position of one in int32.
    """

    op_type: str
    operands: tuple[int, ...]
    result: int
    plain: tuple[int, ...] = ()
    bias: int | None = None


_UNARY = ("Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool", "Softmax")
FORMS: Mapping[tuple[str, str], IntegerForm] = {
    ("", "QLinearConv"): IntegerForm("Conv", (0, 3), 6, bias=8),
    ("", "QLinearMatMul"): IntegerForm("MatMul", (0, 3), 6),
    (MICROSOFT, "QGemm"): IntegerForm("Gemm", (0, 3), 7, bias=6),
    (MICROSOFT, "QLinearAdd"): IntegerForm("Add", (0, 3), 6),
    (MICROSOFT, "QLinearMul"): IntegerForm("Mul", (0, 3), 6),
    (MICROSOFT, "QLinearWhere"): IntegerForm("Where", (1, 4), 7, plain=(0,)),
    **{(MICROSOFT, f"QLinear{op}"): IntegerForm(op, (0,), 3) for op in _UNARY},
}
_CONCAT = (MICROSOFT, "QLinearConcat")


class ExpandIntegers(Pass):
    """Write operators on 8-bit codes with DequantizeLinear and QuantizeLinear.

    Matches: QLinearConv, QLinearMatMul, and QGemm and QLinear operators of com.microsoft.
    Rewrites to: the float operator on dequantized operands, and the quantization of its result.
    Refuses: pools of channels-last tensors, biases with scales that are not stored.
    """

    exact = False

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match, those in bodies too."""
        changes = 0
        for node in list(model.graph.all_nodes()):
            form, graph = _form(node), node.graph
            if form is None or not isinstance(graph, ir.Graph):
                continue
            reason = _refusal(node, form)
            if reason:
                ctx.refuse(node.outputs[0].name or "", f"{node.op_type}: {reason}")
                continue
            _expand(graph, node, form)
            changes += 1
        return changes


def is_integer_operator(node: ir.Node) -> bool:
    """Whether `ExpandIntegers` looks at the node."""
    return _form(node) is not None


def _form(node: ir.Node) -> IntegerForm | None:
    if (node.domain, node.op_type) == _CONCAT:
        return IntegerForm("Concat", tuple(range(2, len(node.inputs), 3)), 0)
    return FORMS.get((node.domain, node.op_type))


def _refusal(node: ir.Node, form: IntegerForm) -> str:
    last = node.attributes.get("channels_last")
    if last is not None and last.as_int():
        return "its channels come last"
    if _at(node, form.bias) is not None:
        scales = [stored_tensor(_at(node, i + 1)) for i in form.operands]
        if any(s is None for s in scales):
            return "the scale of its bias is not stored"
    return ""


def _at(node: ir.Node, index: int | None) -> ir.Value | None:
    return node.inputs[index] if index is not None and index < len(node.inputs) else None


def _expand(graph: ir.Graph, node: ir.Node, form: IntegerForm) -> None:
    name = node.outputs[0].name or ""
    operands: list[ir.Value | None] = [node.inputs[i] for i in form.plain]
    for place, index in enumerate(form.operands):
        axis = _axis(node, form, place)
        operands.append(_dequantized(node, index, f"{name}/{place}", axis))
    if (bias := _at(node, form.bias)) is not None:
        operands.append(_bias(graph, node, form, bias, name))
    kept = [a for n, a in node.attributes.items() if n not in _OWN_ATTRIBUTES]
    made = ir.Node("", form.op_type, operands, kept)
    made.name = made.outputs[0].name = unique_name(graph, f"{name}/{form.op_type}")
    made.outputs[0].shape = node.outputs[0].shape
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(node, made)
    scale = _at(node, form.result)
    if scale is None:  # QGemm with a float result
        replace_node(node, made.outputs[0])
        return
    zero = _at(node, form.result + 1)
    pair = [made.outputs[0], scale, *([zero] if zero is not None else [])]
    (codes,) = insert_before(node, "QuantizeLinear", pair, [f"{name}/codes"])
    replace_node(node, codes)


def _axis(node: ir.Node, form: IntegerForm, place: int) -> int:
    """The axis of scales per channel, which only weights have."""
    if form.op_type == "Conv" or place == 0:
        return 0
    transposed = node.attributes.get("transB")
    if transposed is not None and transposed.as_int():
        return 0
    codes = node.inputs[form.operands[place]]
    return len(codes.shape) - 1 if codes is not None and codes.shape is not None else 1


def _dequantized(node: ir.Node, index: int, name: str, axis: int) -> ir.Value:
    codes, zero = node.inputs[index], _at(node, index + 2)
    inputs = [codes, node.inputs[index + 1], *([zero] if zero is not None else [])]
    (value,) = insert_before(node, "DequantizeLinear", inputs, [name], {"axis": axis})
    value.shape = codes.shape if codes is not None else None
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return value


def _bias(graph: ir.Graph, node: ir.Node, form: IntegerForm, bias: ir.Value, name: str) -> ir.Value:
    """The bias in float: its step is that of the products."""
    step = _product([node.inputs[i + 1] for i in form.operands])
    alpha = node.attributes.get("alpha")
    if alpha is not None:
        step = step * np.float32(alpha.as_float())
    scale = add_constant(graph, f"{name}/bias_scale", step)
    tensor = stored_tensor(bias)
    rank = len(static_shape(tensor)) if tensor is not None else 1
    (value,) = insert_before(
        node, "DequantizeLinear", [bias, scale], [f"{name}/bias"], {"axis": max(rank - 1, 0)}
    )
    value.shape, value.type = bias.shape, ir.TensorType(ir.DataType.FLOAT)
    return value


def _product(
    scales: Sequence[ir.Value | None],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    step = np.ones((), np.float32)
    for scale in scales:
        tensor = stored_tensor(scale)
        assert tensor is not None
        array = read_array(tensor).astype(np.float32)
        step = step * (array.reshape(()) if array.size == 1 else array)
    return np.asarray(step, np.float32)
