"""Keeps rewriting rules away from operators that they would get wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx_ir as ir

from lwqc.model.edit import add_initializer
from lwqc.model.names import nodes_of, unique_name
from lwqc.model.weights import stored_tensor

_DOMAIN = "lwqc.shielded"
_MARK = "lwqc_shielded"
_STATISTICS = (3, 4)  # operands of BatchNormalization
_STATED_SINCE = 14  # opset; before, a BatchNormalization with more than one output is in training


@contextlib.contextmanager
def shielded(model: ir.Model) -> Iterator[None]:
    """Give some nodes another domain for the duration, so that no rule matches them.

    Those in training mode: onnxscript 0.7.2 folds a BatchNormalization into the convolution before
    it with the stored statistics, whatever its mode. Each node is marked, so that no two count as
    equal: a Dropout draws its own numbers. And limits on what is limited already: it makes one Clip
    of two whose ranges have nothing in common, with the wrong one of the two results. And dilated
    convolutions with SAME padding: of that it makes numbers as if they were not dilated.
    """
    graphs = [model.graph, *(f.graph for f in model.functions.values())]
    opset = int(model.opset_imports.get("", 1))
    kept = [
        node
        for graph in graphs
        for node in nodes_of(graph)
        if in_training(node, opset) or _limits_again(node) or _dilated_same(node)
    ]
    for index, node in enumerate(kept):
        node.domain = _DOMAIN
        node.attributes[_MARK] = ir.AttrInt64(_MARK, index)
    if kept:
        for graph in graphs:
            graph.opset_imports[_DOMAIN] = 1
    try:
        yield
    finally:
        graphs = [model.graph, *(f.graph for f in model.functions.values())]
        for graph in graphs:
            for node in nodes_of(graph):
                if node.domain == _DOMAIN:
                    node.domain = ""
                    node.attributes.pop(_MARK)
                    _own_statistics(node)
            if graph.opset_imports.pop(_DOMAIN, None) is not None:
                graph.opset_imports.setdefault("", opset)


def _own_statistics(node: ir.Node) -> None:
    """Stored statistics that no other operand is: onnxruntime 1.31 updates them in their place.

    Equal initializers become one, and in a model that was never trained they are equal to the
    scale and the bias.
    """
    graph = node.graph
    if node.op_type != "BatchNormalization" or not isinstance(graph, ir.Graph):
        return
    for index in _STATISTICS:
        value = node.inputs[index]
        tensor = stored_tensor(value)
        if value is not None and tensor is not None and len(list(value.uses())) > 1:
            name = unique_name(graph, f"{value.name}/own")
            own = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=name)
            node.replace_input_with(index, add_initializer(graph, own))


def _limits_again(node: ir.Node) -> bool:
    """Whether a Clip or Relu reads what one of them gives."""
    before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return _limits(node) and before is not None and _limits(before)


def _dilated_same(node: ir.Node) -> bool:
    """Whether a convolution has SAME padding beside dilations."""
    if node.domain or node.op_type not in ("Conv", "ConvInteger"):
        return False
    padding, steps = node.attributes.get("auto_pad"), node.attributes.get("dilations")
    if padding is None or steps is None or padding.is_ref() or steps.is_ref():
        return False
    return padding.as_string().startswith("SAME") and max(steps.as_ints(), default=1) > 1


def _limits(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in ("Clip", "Relu")


def in_training(node: ir.Node, opset: int) -> bool:
    """Whether a node uses the statistics of its batch, or drops numbers at random.

    opset: version of the default operator set.
    """
    if node.domain != "":
        return False
    if node.op_type == "BatchNormalization":
        if opset < _STATED_SINCE:
            return len([v for v in node.outputs if v.name]) > 1
        mode = node.attributes.get("training_mode")
        return mode is not None and (mode.is_ref() or mode.as_int() != 0)
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        asked = stored_tensor(node.inputs[2])
        return asked is None or bool(asked.numpy().any())
    return False
