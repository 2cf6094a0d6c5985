"""Goes on with the tokens that attention reads most, the others left out or merged into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.axes import Masks
from lwqc.graph.token_cuts import TOKENS, TokenCut, find_token_cut
from lwqc.passes.prune_channels import update_shapes
from lwqc.passes.repair import repair
from lwqc.passes.token_importance import importance
from lwqc.passes.writer import Writer
from lwqc.plans.plan import Importance

OPSET = 12  # the first in which GatherND has a batch
_FIRST = 2.0  # more than any probability: what always stays comes first
_LEAST = 1e-30  # added to probabilities, which may all be 0


def reduce_tokens(
    model: ir.Model, name: str, keep: int, kind: Importance, *, merge: bool = False
) -> None:
    """Let everything behind a branch see `keep` of its tokens, in place.

    name: of a branch of self-attention. keep: those that always stay included; where it is no more
    than these, only they are left. kind: see `token_importance`; `class` needs tokens that always
    stay. merge: the last of them is the mean of all that go, each as much as it is read, as in EViT
    (2202.07800), which takes their sum. The number is fixed; which tokens stay is chosen for each
    sample, and their order is that of their importance.

    Raises InputError for what is no such branch, with the reason, and for a number that does not
    fit.
    """
    cut = find_token_cut(model, name)
    if isinstance(cut, str):
        raise InputError(f"{name}: tokens cannot go: {cut}")
    opset = int(model.opset_imports.get("", 1))
    if opset < OPSET:
        raise InputError(f"{name}: tokens cannot go: that needs operator set {OPSET}, not {opset}")
    if not max(cut.always, 1) <= keep < cut.tokens:
        raise InputError(
            f"{name}: has {cut.tokens} tokens of which {cut.always} stay, cannot keep {keep}"
        )
    if kind == "class" and not cut.always:
        raise InputError(f"{name}: no token always stays, so that none can judge the others")
    kept = _Kept(cut, keep, kind, merge and keep > cut.always, opset)
    _rewrite(model.graph, kept)


def _rewrite(graph: ir.Graph, kept: _Kept) -> None:
    cut, keep = kept.cut, kept.keep
    stream, shape = cut.stream, cut.stream.shape
    readers = list(stream.uses())
    left = np.arange(cut.free.size) < keep - cut.always
    masks = Masks({cut.free: left})
    for item in cut.analysis.repairs:
        repair(item, cut.analysis, masks)
    update_shapes(cut.analysis, masks)
    stream.shape = shape
    producer = stream.producer()
    assert producer is not None
    anchor = _next(graph, producer)
    value = kept.before(anchor)
    value.type = stream.type
    if shape is not None:
        value.shape = ir.Shape(keep if a == TOKENS else size for a, size in enumerate(shape))
    for use in readers:
        use.node.replace_input_with(use.idx, value)


@dataclass(frozen=True)
class _Kept:
    """What stands for a stream of tokens from a cut on."""

    cut: TokenCut
    keep: int
    kind: Importance
    merge: bool
    opset: int

    def before(self, anchor: ir.Node) -> ir.Value:
        """It, computed in front of a node."""
        write = Writer(anchor, f"{self.cut.stream.name}/kept", self.opset)
        if self.keep == self.cut.always:
            return write.cut(self.cut.stream, TOKENS, 0, self.keep)
        told = self._importance(write)
        if not self.merge:
            _, places = write.largest(told, self.keep)
            return self._tokens(write, places, self.keep)
        alone, tokens = self.keep - 1, self.cut.tokens
        values, places = write.largest(told, tokens)
        first, rest = (write.cut(places, -1, *part) for part in ((0, alone), (alone, tokens)))
        merged = self._mean(write, write.cut(values, -1, alone, tokens), rest)
        return write("Concat", self._tokens(write, first, alone), merged, axis=TOKENS)

    def _importance(self, write: Writer) -> ir.Value:
        """How much each token is read; those that always stay come first."""
        always, tokens = self.cut.always, self.cut.tokens
        told = importance(self.cut.scores, self.kind, always, write)
        if not always:
            return told
        first = np.zeros(tokens, np.float32)
        first[:always] = _FIRST + np.arange(always)[::-1]
        return write("Add", told, write.constant("first", first))

    def _tokens(self, write: Writer, places: ir.Value, count: int) -> ir.Value:
        """Those of the stream at so many places of each sample."""
        column = write("Reshape", places, write.integers("column", 0, count, 1))
        return write("GatherND", self.cut.stream, column, batch_dims=1)

    def _mean(self, write: Writer, weights: ir.Value, places: ir.Value) -> ir.Value:
        """Of tokens by weights, [batch, 1, size]; all alike where nothing reads any of them."""
        count = self.cut.tokens - self.keep + 1
        some = write("Add", weights, write.number(_LEAST))
        total = write("Mul", write.mean(some, (-1,), keep=True), write.number(count))
        shares = write("Div", some, total)
        kind = self.cut.stream.dtype
        if kind not in (None, ir.DataType.FLOAT):
            shares = write("Cast", shares, to=int(kind))
        row = write("Reshape", shares, write.integers("row", 0, 1, count))
        return write("MatMul", row, self._tokens(write, places, count))


def _next(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """The node behind one, which reads nothing that comes later."""
    order = list(graph)
    return order[order.index(node) + 1]
