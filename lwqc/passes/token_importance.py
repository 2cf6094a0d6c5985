"""Computes in a graph how much the tokens of a layer are read by its attention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lwqc.graph.attention_scores import AttentionScores
from lwqc.model.edit import add_constant, insert_before
from lwqc.plans.plan import Importance

_STEPS = 3  # of the ranking; later ones change no order that matters
_AXES_OPERAND_FROM = 18  # opset in which the axes of ReduceMean became an operand


def importance(scores: AttentionScores, kind: Importance, always: int, write: Writer) -> ir.Value:
    """How much each token is read, [batch, tokens], as nodes of a writer.

    kind: `class` by the first `always` tokens, `received` by all of them, `rank` by all of them in
    proportion to how much they are read themselves (the weighted ranking of Zero-TPrune,
    2305.17328). It is the mean over heads and reading tokens. The whole attention is not computed
    for `class`.
    """
    query = write.query(scores, always if kind == "class" else 0)
    keys = write.keys(scores)
    scaled = write("Mul", query, write.number(scores.scale))
    compared = write("MatMul", scaled, keys)
    read = write("Softmax", compared, axis=-1)
    if kind == "class" and always == 1:
        return write.mean(read, (1, 2))
    weights = write.mean(read, (2,), keep=True)  # [batch, heads, 1, tokens]
    for _ in range(_STEPS if kind == "rank" else 0):
        weights = write("MatMul", weights, read)
    return write.mean(weights, (1, 2))


class Writer:
    """Adds nodes in front of one. name: what theirs begin with."""

    def __init__(self, anchor: ir.Node, name: str, opset: int) -> None:
        assert isinstance(anchor.graph, ir.Graph)
        self.graph, self.anchor, self.name, self.opset = anchor.graph, anchor, name, opset

    def __call__(
        self, op_type: str, *inputs: ir.Value, **attributes: int | tuple[int, ...]
    ) -> ir.Value:
        """A node; its one output."""
        name = f"{self.name}/{op_type.lower()}"
        (value,) = insert_before(self.anchor, op_type, inputs, [name], attributes)
        return value

    def constant(self, name: str, values: np.ndarray | np.generic) -> ir.Value:
        """A stored tensor."""
        return add_constant(self.graph, f"{self.name}/{name}", values)

    def number(self, value: float) -> ir.Value:
        """A stored float."""
        return self.constant("number", np.float32(value))

    def integers(self, name: str, *values: int) -> ir.Value:
        """A stored list of whole numbers."""
        return self.constant(name, np.asarray(values, np.int64))

    def query(self, scores: AttentionScores, first: int) -> ir.Value:
        """[batch, heads, queries, size]; of the first tokens alone unless that is 0."""
        value, axis = scores.query_tokens
        if first:
            value = self.cut(value, axis, 0, first)
        return self.split(value, scores, (0, 2, 1, 3)) if scores.flat else value

    def keys(self, scores: AttentionScores) -> ir.Value:
        """[batch, heads, size, keys]."""
        if scores.flat:
            return self.split(scores.keys, scores, (0, 2, 3, 1))
        if scores.upright:
            return self("Transpose", scores.keys, perm=(0, 1, 3, 2))
        return scores.keys

    def split(
        self, value: ir.Value, scores: AttentionScores, order: tuple[int, int, int, int]
    ) -> ir.Value:
        """[batch, tokens, heads * size] with heads of their own, in that order of axes."""
        heads = self("Reshape", value, self.integers("heads", 0, 0, scores.heads, -1))
        return self("Transpose", heads, perm=order)

    def cut(self, value: ir.Value, axis: int, start: int, end: int) -> ir.Value:
        """From one place of an axis to another."""
        bounds = (("start", start), ("end", end), ("axis", axis))
        return self("Slice", value, *(self.integers(name, n) for name, n in bounds))

    def largest(self, value: ir.Value, count: int) -> tuple[ir.Value, ir.Value]:
        """So many numbers of the last axis, the largest first, and their places."""
        names = [f"{self.name}/most", f"{self.name}/places"]
        inputs = [value, self.integers("count", count)]
        most, places = insert_before(self.anchor, "TopK", inputs, names, {"axis": -1})
        return most, places

    def mean(self, value: ir.Value, axes: tuple[int, ...], keep: bool = False) -> ir.Value:
        """Over some axes, which stay as axes of one where `keep` says so."""
        if self.opset < _AXES_OPERAND_FROM:
            return self("ReduceMean", value, axes=axes, keepdims=int(keep))
        return self("ReduceMean", value, self.integers("axes", *axes), keepdims=int(keep))
