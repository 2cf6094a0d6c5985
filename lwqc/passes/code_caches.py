"""Caches of keys and values as 8-bit codes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.caches import GROUPED, Cache, find_caches
from lwqc.model.coded_caches import KEY, caches_of, entry
from lwqc.model.edit import Rewrite, add_constant, insert_before
from lwqc.model.names import unique_name

_MOST = 127
_ROOM = 1.25  # above what was seen: later tokens go beyond it, and finer steps gain nothing
_FAINT = 1e-6  # of the largest channel
_SINCE = 10  # opset that has QuantizeLinear
Scales = NDArray[np.float32]  # [1, heads, 1, size]


class CodeCaches(Rewrite):
    """Let a decoder keep its keys and values in int8, with a scale for each channel.

    Matches: the caches that have a scale, see `lwqc.graph.caches`.
    Rewrites to: inputs and outputs in int8, of what is -128 to 127 times the scale; beyond it
        saturates. New tokens are coded once and stay as they are. An Attention computes with the
        codes: queries are multiplied by the scales of the keys, results by those of the values. A
        GroupQueryAttention does it itself. Behind a Concat all are decoded.
    Refuses: opsets before 10; 4-D queries of an unknown number of heads.

    scales: by name of the input. Metadata tells `lwqc.runtime.session` of them, so that it takes
    and gives floats.
    """

    def __init__(self, scales: Mapping[str, Scales]) -> None:
        super().__init__()
        self._scales = scales
        self.left: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite all caches that have a scale; `left` has the reasons of the others."""
        told: dict[str, tuple[str, Scales]] = {}
        for cache in find_caches(model.graph)[0]:
            past, present = cache.past.name or "", cache.present.name or ""
            if past not in self._scales:
                continue
            if reason := _refused(model, cache.node):
                self.left[past] = reason
                continue
            told[past] = (present, self._scales[past])
            _code(model.graph, cache, self._scales[past])
        if told:
            earlier = caches_of(model.metadata_props)
            model.metadata_props[KEY] = entry({**earlier.pairs, **told})
        return ir.passes.PassResult(model, bool(told))


def _refused(model: ir.Model, node: ir.Node) -> str:
    if model.opset_imports.get("", 1) < _SINCE:
        return f"codes take opset {_SINCE}"
    if node.op_type == "Attention" and not _flat(node) and _query_heads(node) is None:
        return "the number of heads of the queries is not known"
    return ""


def _flat(attention: ir.Node) -> bool:
    """Whether queries, keys and values are [batch, tokens, heads * size]."""
    return "q_num_heads" in attention.attributes


def _query_heads(attention: ir.Node) -> int | None:
    attribute = attention.attributes.get("q_num_heads")
    if attribute is not None:
        return attribute.as_int()
    queries = attention.inputs[0]
    known = queries.shape[1] if queries is not None and queries.shape is not None else None
    return known if isinstance(known, int) else None


def _code(graph: ir.Graph, cache: Cache, scale: Scales) -> None:
    cache.past.type = ir.TensorType(ir.DataType.INT8)
    if cache.node.op_type == GROUPED:
        _of_grouped(graph, cache, scale)
    elif cache.node.op_type == "Attention":
        _of_attention(graph, cache, scale)
    else:
        _of_concat(graph, cache, scale)


def _of_grouped(graph: ir.Graph, cache: Cache, scale: Scales) -> None:
    node, (slot, letter) = cache.node, ((12, "k"), (13, "v"))[cache.slot - 3]
    node.resize_inputs(max(len(node.inputs), slot + 1))
    node.replace_input_with(slot, add_constant(graph, f"{cache.past.name}/scale", scale))
    node.attributes[f"{letter}_quant_type"] = ir.AttrString(f"{letter}_quant_type", "PER_CHANNEL")
    node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
    cache.present.type = ir.TensorType(ir.DataType.INT8)


def _of_attention(graph: ir.Graph, cache: Cache, scale: Scales) -> None:
    node, name, keys = cache.node, cache.past.name, cache.slot == 4
    flat, index = _flat(node), 1 if keys else 2
    new = node.inputs[index]
    codes = _codes(graph, node, new, scale.reshape(-1) if flat else scale, f"{name}/new")
    (numbers,) = insert_before(node, "Cast", [codes], [f"{name}/new"], {"to": ir.DataType.FLOAT})
    (past,) = insert_before(
        node, "Cast", [cache.past], [f"{name}/codes"], {"to": ir.DataType.FLOAT}
    )
    node.replace_input_with(index, numbers)
    node.replace_input_with(cache.slot, past)
    if flat:
        whole = add_constant(graph, f"{name}/heads", np.array([0, 0, cache.heads, cache.size]))
        (apart,) = insert_before(node, "Reshape", [codes, whole], [f"{name}/new/heads"])
        (codes,) = insert_before(
            node, "Transpose", [apart], [f"{name}/new/turned"], {"perm": [0, 2, 1, 3]}
        )
    _join(graph, cache, codes)
    count = _query_heads(node)
    assert count is not None  # refused before
    repeated = np.repeat(scale, count // cache.heads, axis=1)
    factors = add_constant(graph, f"{name}/scale", repeated.reshape(-1) if flat else repeated)
    if keys:
        queries = node.inputs[0]
        assert queries is not None
        (scaled,) = insert_before(node, "Mul", [queries, factors], [f"{name}/queries"])
        scaled.shape, scaled.type = queries.shape, queries.type
        node.replace_input_with(0, scaled)
        return
    _scale_result(graph, node, factors, f"{name}/result")


def _scale_result(graph: ir.Graph, node: ir.Node, factors: ir.Value, name: str) -> None:
    """Let a product take the place and the name of what the node gives."""
    made = node.outputs[0]
    value = ir.Value(name=unique_name(graph, name), shape=made.shape, type=made.type)
    result = ir.node("Mul", [made, factors], outputs=[value], name=f"{value.name}/Mul")
    made.replace_all_uses_with(value, replace_graph_outputs=True)
    result.replace_input_with(0, made)
    graph.insert_after(node, result)
    made.name, value.name = unique_name(graph, f"{name}/coded"), made.name


def _of_concat(graph: ir.Graph, cache: Cache, scale: Scales) -> None:
    node, name, joined = cache.node, cache.past.name, cache.present
    codes = _codes(graph, node, node.inputs[1], scale, f"{name}/new")
    node.replace_input_with(1, codes)
    floats, joined.type = joined.type, ir.TensorType(ir.DataType.INT8)
    readers = [use for use in joined.uses() if use.node.op_type not in ("Shape", "Size")]
    if not readers:
        return
    value = ir.Value(name=unique_name(graph, f"{name}/numbers"))
    cast = ir.node(
        "Cast", [joined], {"to": ir.DataType.FLOAT}, outputs=[value], name=f"{value.name}/Cast"
    )
    factors = add_constant(graph, f"{name}/scale", scale)
    decoded = ir.Value(name=unique_name(graph, f"{name}/decoded"), shape=joined.shape, type=floats)
    product = ir.node("Mul", [value, factors], outputs=[decoded], name=f"{decoded.name}/Mul")
    graph.insert_after(node, [cast, product])
    for use in readers:
        use.node.replace_input_with(use.idx, decoded)


def _codes(
    graph: ir.Graph, before: ir.Node, value: ir.Value | None, scale: Scales, name: str
) -> ir.Value:
    """int8 codes of new keys or values.

    Scales along an axis are a slow loop in onnxruntime 1.31; a product and one scale are not.
    """
    parts = add_constant(graph, f"{name}/parts", 1 / scale)
    one = add_constant(graph, f"{name}/one", np.float32(1))
    zero = add_constant(graph, f"{name}/zero", np.int8(0))
    (scaled,) = insert_before(before, "Mul", [value, parts], [f"{name}/scaled"])
    (codes,) = insert_before(before, "QuantizeLinear", [scaled, one, zero], [f"{name}/codes"])
    codes.type = ir.TensorType(ir.DataType.INT8)
    return codes


def _join(graph: ir.Graph, cache: Cache, codes: ir.Value) -> None:
    """Let the output be the past's codes with the new ones behind, not what the attention joins."""
    present, name = cache.present, cache.present.name
    value = ir.Value(name=unique_name(graph, f"{name}/codes"), shape=present.shape)
    joined = ir.node(
        "Concat", [cache.past, codes], {"axis": 2}, outputs=[value], name=f"{value.name}/Concat"
    )
    graph.insert_before(cache.node, joined)
    present.replace_all_uses_with(value, replace_graph_outputs=True)
    present.name, value.name = unique_name(graph, f"{name}/floats"), name
    value.type = ir.TensorType(ir.DataType.INT8)


def channel_scales(most: NDArray[np.float32]) -> Scales:
    """Scales of channels from the largest magnitude seen in each, [1, heads, 1, size].

    A quarter more than that has a code. A channel in which nothing was seen gets the largest scale,
    one in which next to nothing was a millionth of that.
    """
    largest = float(most.max(initial=0)) or 1.0
    known = np.where(most > 0, np.maximum(most, _FAINT * largest), largest)
    return (_ROOM / _MOST * known).astype(np.float32)
