"""Writes attention as the operator that runs it fastest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from lwqc.graph.attention_core import AttentionCore, find_attention, permutation
from lwqc.graph.key_values import Stem, stem
from lwqc.graph.operands import only_reader
from lwqc.graph.sampled import Sampled
from lwqc.graph.shapes import declared_shapes
from lwqc.model.edit import Rewrite, add_constant, insert_before, replace_node
from lwqc.model.names import unique_name
from lwqc.model.unused import RemoveUnused
from lwqc.passes.attention_mask import AttentionMasks

OPSET = 23  # the first with Attention
_PAST = 4  # index of the past keys among the operator's inputs
_HEADS_FIRST = (0, 2, 1, 3)  # [batch, tokens, heads, size] to [batch, heads, tokens, size]


class FuseAttention(Rewrite):
    """Write attention as ONNX Attention.

    onnxruntime 1.31.1 needs 1.1 ms for 8x128 tokens and 12 heads of 32 there, 2.5 in
    MultiHeadAttention and 1.8 in single operators.

    Matches: two products around a softmax, see `lwqc.graph.attention_core`. Queries, keys and
        scores may be multiplied with stored numbers; masks are added or chosen, in any shape that
        broadcasts to the scores; NaN of rows that are masked completely may be repaired.
    Rewrites to: Attention. Where queries, keys and values are [batch, tokens, heads * size] before
        their heads are split, and heads are joined afterwards, it reads and writes that form and
        the reshapes and transposes go. It also repeats the heads of keys and values for groups of
        queries, and puts a past in front of them. Rows that are masked completely with -inf give
        0, with and without a repair of their NaN.
    finite_masks: hidden scores are lowered by 50 instead of by infinity, which is faster. Not
        exact for rows in which everything is hidden, nor where scores differ by more than 30;
        `softened` has the masks after a call.
    Refuses: opsets without Attention; scores or probabilities that have other readers, are not
        float32 or have no four known dimensions; masks inside the scale. `left` has the reasons by
        the softmax's output after a call, `fused` the names of what was fused.
    """

    def __init__(self, *, finite_masks: bool = False) -> None:
        super().__init__()
        self._finite = finite_masks
        self.left: dict[str, str] = {}
        self.fused: list[str] = []
        self.softened: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse all attentions of the main graph."""
        shapes, _ = declared_shapes(model)
        cores, self.left = find_attention(model.graph, shapes)
        self.fused = []
        if model.opset_imports.get("", 1) < OPSET:
            reason = f"Attention needs opset {OPSET}"
            self.left |= {core.softmax.outputs[0].name or "": reason for core in cores}
            return ir.passes.PassResult(model, False)
        masks = AttentionMasks(model.graph, shapes, finite=self._finite)
        for core in cores:
            self.fused.append(core.name)
            _fuse(model.graph, core, shapes, masks)
        self.softened = tuple(masks.softened)
        RemoveUnused()(model)
        if cores:
            TopologicalSortPass()(model)  # all keys and values are made later than before
        return ir.passes.PassResult(model, bool(cores))


@dataclass(frozen=True, eq=False)
class _Joined:
    """A tensor whose heads are not split yet.

    value: [batch, tokens, heads, size], or [batch, tokens, heads * size] if `flat`.
    """

    value: ir.Value
    flat: bool


def _fuse(
    graph: ir.Graph, core: AttentionCore, shapes: Mapping[str, Sampled], masks: AttentionMasks
) -> None:
    anchor = core.product
    sizes = shapes[core.query.name or ""].first
    heads, size = sizes[1], shapes[core.values.name or ""].first[3]
    attributes: dict[str, int | float] = {"scale": core.scale}
    lengths = [(core.query, 2), _key_axis(core.keys)]
    stems = _stems(core, shapes)
    cached = _takes_cache(core, stems, masks.broadcasts_tokens(core, lengths))
    keys, values = (s.new if cached else s.whole for s in stems) if stems else (None, core.values)
    end = _end(core, shapes, heads * size)
    operands = [(core.query, _HEADS_FIRST), _keys(core, keys), (values, _HEADS_FIRST)]
    joined = [_joined(v, perm, shapes) for v, perm in operands if v is not None]
    split = [j for j in joined if j is not None]
    past: list[ir.Value | None] = [s.past for s in stems] if cached else []
    is_flat = end is not None and len(split) == len(operands)
    if is_flat and not cached:
        lengths = [(j.value, 1) for j in split[:2]]
    mask = masks.value(core, lengths, anchor)
    if end is None or not is_flat:
        upright = keys if keys is not None else _upright(core.keys, anchor)
        inputs = [core.query, upright, values, mask, *past]
        found = _attention(graph, anchor, inputs, attributes)
        replace_node(core.product, found[0])
    else:
        attributes |= {"q_num_heads": heads, "kv_num_heads": stems[0].heads if stems else heads}
        flat = [_flattened(graph, j, anchor) for j in split]
        found = _attention(graph, anchor, [*flat, mask, *past], attributes)
        value = found[0]
        if not end.flat:
            value = _reshaped(graph, value, (0, 0, heads, size), anchor)
        producer = end.value.producer()
        assert producer is not None
        replace_node(producer, value)
    for one, present in zip(stems, found[1:], strict=False):
        assert one.joined is not None
        replace_node(one.joined, present)


def _stems(core: AttentionCore, shapes: Mapping[str, Sampled]) -> tuple[Stem, ...]:
    """Of keys and values; none where keys are not upright at any point, or numbers differ."""
    if permutation(core.keys) != (0, 1, 3, 2):
        return ()
    sources = (_source(core.keys), core.values)
    if any(shapes.get(v.name or "") is None for v in sources):
        return ()
    keys, values = (stem(v, shapes) for v in sources)
    return (keys, values) if keys.heads == values.heads else ()


def _takes_cache(core: AttentionCore, stems: tuple[Stem, ...], counts_tokens: bool) -> bool:
    """Whether the operator can put the past in front itself.

    It then makes all keys and values, so that nothing it reads may depend on them.
    """
    if not stems or any(s.joined is None for s in stems) or counts_tokens:
        return False
    joined = {s.joined for s in stems}
    pending = [core.query, *(s.new for s in stems), *(m.value for m in core.masks)]
    seen = set[ir.Value]()
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None and value not in seen else None
        if node is None or value is None:
            continue
        if node in joined:
            return False
        seen.add(value)
        pending.extend(node.inputs)
    return True


def _attention(
    graph: ir.Graph,
    anchor: ir.Node,
    inputs: list[ir.Value | None],
    attributes: dict[str, int | float],
) -> tuple[ir.Value, ...]:
    """What the operator makes, with a past also all keys and values."""
    name = f"{anchor.outputs[0].name}/attention"
    outputs = [name, f"{name}/keys", f"{name}/values"] if len(inputs) > _PAST else [name]
    while inputs[-1] is None:
        inputs = inputs[:-1]
    return insert_before(anchor, "Attention", inputs, outputs, attributes)


def _keys(core: AttentionCore, known: ir.Value | None) -> tuple[ir.Value, tuple[int, ...]]:
    """The keys with the transposition that would bring their heads to the front."""
    return (core.keys, (0, 2, 3, 1)) if known is None else (known, _HEADS_FIRST)


def _joined(
    value: ir.Value, perm: tuple[int, ...], shapes: Mapping[str, Sampled]
) -> _Joined | None:
    """The value before its heads were split and brought to the front."""
    if permutation(value) != perm:
        return None
    tokens = _source(value)
    node = tokens.producer()
    if node is not None and (node.domain, node.op_type) == ("", "Reshape"):
        whole = node.inputs[0]
        assert whole is not None
        if _is_flat(shapes.get(whole.name or ""), shapes.get(tokens.name or "")):
            return _Joined(whole, True)
    return _Joined(tokens, False)


def _end(core: AttentionCore, shapes: Mapping[str, Sampled], width: int) -> _Joined | None:
    """Where the heads are behind the tokens again; None if they never are."""
    after = only_reader(core.product.outputs[0])
    if after is None or permutation(after.outputs[0]) != _HEADS_FIRST:
        return None
    tokens = after.outputs[0]
    last = only_reader(tokens)
    if last is not None and (last.domain, last.op_type) == ("", "Reshape"):
        whole = last.outputs[0]
        if _is_flat(shapes.get(whole.name or ""), shapes.get(tokens.name or "")):
            return _Joined(whole, True)
    return _Joined(tokens, False)


def _is_flat(whole: Sampled | None, split: Sampled | None) -> bool:
    """Whether [batch, tokens, heads * size] is the other with heads and sizes in one."""
    if whole is None or split is None or whole.rank != 3 or split.rank != 4:
        return False
    pairs = ((whole.first, split.first), (whole.second, split.second))
    return all(a == (*b[:2], b[2] * b[3]) for a, b in pairs)


def _source(value: ir.Value) -> ir.Value:
    """What the value's producer reads first."""
    producer = value.producer()
    assert producer is not None
    source = producer.inputs[0]
    assert source is not None
    return source


def _flattened(graph: ir.Graph, joined: _Joined, anchor: ir.Node) -> ir.Value:
    if joined.flat:
        return joined.value
    return _reshaped(graph, joined.value, (0, 0, -1), anchor)


def _reshaped(
    graph: ir.Graph, value: ir.Value, shape: tuple[int, ...], anchor: ir.Node
) -> ir.Value:
    name = f"{value.name}/heads"
    target = add_constant(graph, f"{name}/shape", np.asarray(shape, np.int64))
    (result,) = insert_before(anchor, "Reshape", [value, target], [name])
    return result


def _key_axis(keys: ir.Value) -> tuple[ir.Value, int]:
    """Where the number of keys can be read without the transposed keys, if there is a place."""
    perm = permutation(keys)
    return (keys, 3) if perm is None else (_source(keys), perm[3])


def _upright(keys: ir.Value, anchor: ir.Node) -> ir.Value:
    """[batch, heads, size, keys] as [batch, heads, keys, size]."""
    perm, graph = permutation(keys), anchor.graph
    source, (a, b, c, d) = (keys, (0, 1, 2, 3)) if perm is None else (_source(keys), perm)
    if (a, b, d, c) == (0, 1, 2, 3):
        return source
    assert isinstance(graph, ir.Graph)
    value = ir.Value(name=unique_name(graph, f"{keys.name}/upright"))
    attributes = {"perm": [a, b, d, c]}
    node = ir.node("Transpose", [source], attributes, outputs=[value], name=value.name)
    graph.insert_before(anchor, node)
    return value
