"""Gemm without factors: alpha in the weight, beta in the bias."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.edit import Rewrite, add_initializer, lazy_like, replace_stored
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import is_float, stored_tensor


class PlainGemm(Rewrite):
    """Give Gemm a form that low-bit kernels have.

    Matches: Gemm with alpha or beta, in the main graph and in bodies.
    Rewrites to: Gemm with alpha multiplied into its stored weight and beta into its stored bias;
        without a bias where beta is 0, and without beta where there is no bias. Exact but for the
        rounding of the multiplied tensors.
    Leaves alone: factors of operands that are not stored in floats.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every match."""
        modified = False
        for node in model.graph.all_nodes():
            if (node.domain, node.op_type) == ("", "Gemm"):
                modified |= _without_beta(model.graph, node)
                modified |= _scaled(model.graph, node, "alpha", 1)
        return ir.passes.PassResult(model, modified)


def _without_beta(graph: ir.Graph, node: ir.Node) -> bool:
    biased = len(node.inputs) > 2 and node.inputs[2] is not None
    if biased and _factor(node, "beta") != 0:
        return _scaled(graph, node, "beta", 2)
    if not biased and _factor(node, "beta") == 1:
        return False
    if len(node.inputs) > 2:
        node.resize_inputs(2)
    node.attributes.pop("beta", None)
    return True


def _scaled(graph: ir.Graph, node: ir.Node, name: str, index: int) -> bool:
    """Multiply the factor into a stored operand, its own copy where others read it too."""
    factor, value = _factor(node, name), node.inputs[index]
    tensor = stored_tensor(value)
    if factor == 1 or value is None or tensor is None or not is_float(tensor):
        return False
    scaled = lazy_like(tensor, value.name, _product(tensor, factor))
    if len(value.uses()) == 1 and not value.is_graph_output():
        replace_stored(value, scaled)
    else:
        scaled.name = f"{value.name}/{name}"
        node.replace_input_with(index, add_initializer(graph, scaled))
    del node.attributes[name]
    return True


def _factor(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return attribute.as_float() if attribute is not None else 1.0


def _product(tensor: ir.TensorProtocol, factor: float) -> Callable[[], NDArray[np.generic]]:
    return lambda: np.asarray(read_array(tensor)).astype(np.float64) * factor
