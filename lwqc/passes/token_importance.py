"""Computes in a graph how much the tokens of a layer are read by its attention."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.graph.attention_scores import AttentionScores
from lwqc.passes.writer import Writer
from lwqc.plans.plan import Importance

_STEPS = 3  # of the ranking; later ones change no order that matters


def importance(scores: AttentionScores, kind: Importance, always: int, write: Writer) -> ir.Value:
    """How much each token is read, [batch, tokens], as nodes of a writer.

    kind: `class` by the first `always` tokens, `received` by all of them, `rank` by all of them in
    proportion to how much they are read themselves (the weighted ranking of Zero-TPrune,
    2305.17328). It is the mean over heads and reading tokens. The whole attention is not computed
    for `class`.
    """
    query = _query(write, scores, always if kind == "class" else 0)
    keys = _keys(write, scores)
    scaled = write("Mul", query, write.number(scores.scale))
    compared = write("MatMul", scaled, keys)
    read = write("Softmax", compared, axis=-1)
    if kind == "class" and always == 1:
        return write.mean(read, (1, 2))
    weights = write.mean(read, (2,), keep=True)  # [batch, heads, 1, tokens]
    for _ in range(_STEPS if kind == "rank" else 0):
        weights = write("MatMul", weights, read)
    return write.mean(weights, (1, 2))


def _query(write: Writer, scores: AttentionScores, first: int) -> ir.Value:
    """[batch, heads, queries, size]; of the first tokens alone unless that is 0."""
    value, axis = scores.query_tokens
    if first:
        value = write.cut(value, axis, 0, first)
    return _split(write, value, scores, (0, 2, 1, 3)) if scores.flat else value


def _keys(write: Writer, scores: AttentionScores) -> ir.Value:
    """[batch, heads, size, keys]."""
    if scores.flat:
        return _split(write, scores.keys, scores, (0, 2, 3, 1))
    if scores.upright:
        return write("Transpose", scores.keys, perm=(0, 1, 3, 2))
    return scores.keys


def _split(
    write: Writer, value: ir.Value, scores: AttentionScores, order: tuple[int, int, int, int]
) -> ir.Value:
    """[batch, tokens, heads * size] with heads of their own, in that order of axes."""
    heads = write("Reshape", value, write.integers("heads", 0, 0, scores.heads, -1))
    return write("Transpose", heads, perm=order)
