"""Linear models of scikit-learn's kind as the matrix product that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.edit import add_constant, add_initializer, insert_before, replace_node
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

DOMAIN = "ai.onnx.ml"
# What makes scores of sums; others are None.
_TRANSFORMS = {"NONE": "", "LOGISTIC": "Sigmoid", "SOFTMAX": "Softmax"}


@dataclass(frozen=True)
class _Linear:
    """scores = transform(x @ weight + bias). weight: [features, targets]. bias: [targets].

    labels: of the targets, for a classifier.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    transform: str
    labels: ir.TensorProtocol | None = None


class PlainLinear(Pass):
    """Give linear models of `ai.onnx.ml` a form that low-bit kernels have.

    Matches: LinearClassifier and LinearRegressor, as scikit-learn's converter writes them.
    Rewrites to: Gemm, with Sigmoid or Softmax behind, and the label of the largest sum by ArgMax
        and Gather. Exact but for the order of sums.
    Refuses: classifiers of one row of coefficients, transforms by probit or of zeros, regressors
        with any transform, and coefficients that make no matrix.
    """

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match."""
        changes = 0
        for node in [node for node in model.graph.all_nodes() if is_linear(node)]:
            found = _read(node)
            if isinstance(found, str):
                ctx.refuse(next((v.name for v in node.outputs if v.name), ""), found)
                continue
            _rewrite(model.graph, node, found)
            changes += 1
        return changes


def is_linear(node: ir.Node) -> bool:
    """Whether a node is a linear model with all of its numbers in attributes."""
    return node.domain == DOMAIN and node.op_type in ("LinearClassifier", "LinearRegressor")


def _read(node: ir.Node) -> _Linear | str:
    """What a node computes, or why that has no other form."""
    classifier = node.op_type == "LinearClassifier"
    transform = _attribute(node, "post_transform", "NONE")
    if transform not in (_TRANSFORMS if classifier else ("NONE",)):
        return f"its transform of scores is {transform}"
    coefficients = np.array(_attribute(node, "coefficients", ()), np.float32)
    bias = np.array(_attribute(node, "intercepts", ()), np.float32)
    targets = len(bias) if classifier else int(_attribute(node, "targets", 1))
    if classifier and targets < 2:
        return "it has one row of coefficients for two classes"
    if not len(bias) or (not classifier and len(bias) != targets):  # then the runtime adds none
        bias = np.zeros(targets, np.float32)
    if not len(coefficients) or len(coefficients) % targets or len(bias) != targets:
        return f"{len(coefficients)} coefficients are no matrix of {targets} rows"
    weight = coefficients.reshape(targets, -1).T
    if not classifier:
        return _Linear(weight, bias, "")
    labels = _labels(node)
    if len(labels.shape) != 1 or labels.shape[0] != targets:
        return f"it has {labels.size} labels for {targets} rows of coefficients"
    return _Linear(weight, bias, _TRANSFORMS[transform], labels)


def _attribute(node: ir.Node, name: str, usual: Any) -> Any:
    found = node.attributes.get(name)
    return usual if found is None else found.value


def _labels(node: ir.Node) -> ir.TensorProtocol:
    name = f"{node.name or node.op_type}/labels"
    texts: Sequence[str] = _attribute(node, "classlabels_strings", ())
    if texts:
        return ir.StringTensor([t.encode() for t in texts], shape=ir.Shape([len(texts)]), name=name)
    return ir.tensor(np.array(_attribute(node, "classlabels_ints", ()), np.int64), name=name)


def _rewrite(graph: ir.Graph, node: ir.Node, linear: _Linear) -> None:
    name = node.name or node.op_type
    x = node.inputs[0]
    assert x is not None
    features = linear.weight.shape[0]
    is_matrix = x.shape is not None and len(x.shape) == 2
    if x.dtype != ir.DataType.FLOAT:
        (x,) = insert_before(node, "Cast", [x], [f"{name}/x"], {"to": ir.DataType.FLOAT})
        x.type = ir.TensorType(ir.DataType.FLOAT)
    if not is_matrix:  # a vector is one row
        rows = add_constant(graph, f"{name}/rows/shape", np.array([-1, features]))
        (x,) = insert_before(node, "Reshape", [x, rows], [f"{name}/rows"])
        x.type = ir.TensorType(ir.DataType.FLOAT)
    weight = add_constant(graph, f"{name}/weight", np.ascontiguousarray(linear.weight))
    bias = add_constant(graph, f"{name}/bias", linear.bias)
    (sums,) = insert_before(node, "Gemm", [x, weight, bias], [f"{name}/sums"])
    sums.type = ir.TensorType(ir.DataType.FLOAT)
    scores = sums
    if linear.transform:
        axis = {"axis": 1} if linear.transform == "Softmax" else {}
        (scores,) = insert_before(node, linear.transform, [sums], [f"{name}/scores"], axis)
    if linear.labels is None:
        replace_node(node, scores)
        return
    (index,) = insert_before(node, "ArgMax", [sums], [f"{name}/index"], {"axis": 1, "keepdims": 0})
    index.type = ir.TensorType(ir.DataType.INT64)
    held = add_initializer(graph, linear.labels)
    (label,) = insert_before(node, "Gather", [held, index], [f"{name}/label"], {"axis": 0})
    replace_node(node, label, scores)
