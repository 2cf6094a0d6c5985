"""The mask of an attention as one tensor that ONNX Attention takes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lwqc.graph.attention_core import AttentionCore, Mask, sizes_of
from lwqc.graph.sampled import Sampled
from lwqc.model.edit import add_constant, insert_before
from lwqc.model.weights import stored_tensor

# onnxruntime 1.31.1 gives rows of float32's minimum 0, not the mean of the values; to a score
# this number does the same as the minimum.
_LOWEST = np.float32(-1e37)

# exp(-103) and less is denormal, and the products with the values then take twice as long. What is
# this far below the others has no weight in float32, unless scores themselves differ by that much.
FINITE = np.float32(-50)
HIDDEN = -1e4

Axis = tuple[ir.Value, int]


class AttentionMasks:
    """Masks made so far: layers share them.

    finite: stored fills of `HIDDEN` and below become `FINITE`. softened: the masks of which that
    is true, after use.
    """

    def __init__(
        self, graph: ir.Graph, shapes: Mapping[str, Sampled], *, finite: bool = False
    ) -> None:
        self._graph = graph
        self._shapes = shapes
        self._finite = finite
        self._made: dict[Hashable, ir.Value] = {}
        self.softened: dict[str, None] = {}

    def broadcasts_tokens(self, core: AttentionCore, lengths: Sequence[Axis]) -> bool:
        """Whether `value` would have to read the numbers of queries and keys."""
        sizes: Sampled | None = None
        for mask in core.masks:
            own = sizes_of(mask.value, self._shapes)
            if own is not None:
                sizes = own if sizes is None else _broadcast(sizes, own)
        return sizes is not None and not _is_full(sizes, self._tokens(lengths))

    def value(
        self, core: AttentionCore, lengths: Sequence[Axis], anchor: ir.Node
    ) -> ir.Value | None:
        """The sum of an attention's masks [..., queries, keys], or None without one.

        lengths: where the numbers of queries and keys can be read.
        """
        total: ir.Value | None = None
        sizes: Sampled | None = None
        for mask in core.masks:
            part, own = self._added(mask, core.guarded, anchor), sizes_of(mask.value, self._shapes)
            assert own is not None  # or it would be no attention
            if total is None or sizes is None:
                total, sizes = part, own
            else:
                total = self._once(("sum", total, part), "Add", [total, part], anchor)
                sizes = _broadcast(sizes, own)
        if total is None or sizes is None:
            return None
        return self._filled(total, sizes, lengths, anchor)

    def _added(self, mask: Mask, guarded: bool, anchor: ir.Node) -> ir.Value:
        """The mask as numbers that are added, none of them float32's minimum."""
        if mask.kind == "add":
            return self._bounded(mask.value, guarded, anchor)
        fill = self._number(float(self._kept(mask.fill, mask.value)))
        zero = self._number(0.0)
        pair = [zero, fill] if mask.kind == "keep" else [fill, zero]
        return self._once((mask.kind, mask.value, mask.fill), "Where", [mask.value, *pair], anchor)

    def _bounded(self, value: ir.Value, guarded: bool, anchor: ir.Node) -> ir.Value:
        tensor, node = stored_tensor(value), value.producer()
        if tensor is not None:
            return self._stored(value, tensor)
        chosen = self._choices(node)
        if node is not None and chosen is not None:
            same = chosen == list(node.inputs[1:])
            inputs = [node.inputs[0], *chosen]
            return value if same else self._once(("bounded", value), "Where", inputs, anchor)
        finite = self._once(("max", value), "Max", [value, self._number(float(_LOWEST))], anchor)
        if not guarded:
            return finite
        # A guard repairs rows of -inf, but not those of the minimum.
        is_inf = self._once(("inf", value), "IsInf", [value], anchor)
        return self._once(("bounded", value), "Where", [is_inf, value, finite], anchor)

    def _choices(self, node: ir.Node | None) -> list[ir.Value] | None:
        """What a Where chooses from, bounded, if both are stored."""
        if node is None or (node.domain, node.op_type) != ("", "Where"):
            return None
        pairs = [(v, stored_tensor(v)) for v in node.inputs[1:]]
        found = [self._stored(v, t) for v, t in pairs if v is not None and t is not None]
        return found if len(found) == len(pairs) else None

    def _stored(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        numbers = tensor.numpy()
        bounded = self._kept(numbers, value)
        if np.array_equal(numbers, bounded):
            return value
        key = ("stored", value)
        if key not in self._made:
            name = f"{value.name}/bounded"
            self._made[key] = add_constant(self._graph, name, bounded)
        return self._made[key]

    def _kept(self, numbers: np.ndarray | float, mask: ir.Value) -> np.ndarray:
        """Numbers that the kernel takes, none of them so low that it makes denormal numbers."""
        bounded = _bounded(numbers)
        hidden = bounded <= HIDDEN
        if self._finite and hidden.any():
            self.softened[mask.name or ""] = None
            return np.where(hidden, FINITE, bounded)
        return bounded

    def _filled(
        self, value: ir.Value, sizes: Sampled, lengths: Sequence[Axis], anchor: ir.Node
    ) -> ir.Value:
        """Broadcast over queries and keys: the runtime's kernel broadcasts only the other axes."""
        full = self._tokens(lengths)
        if _is_full(sizes, full):
            return value
        known = [self._length(v, axis, anchor) for v, axis in lengths]
        shape = self._once(("shape", full), "Concat", known, anchor, {"axis": 0})
        return self._once(("filled", value, full), "Expand", [value, shape], anchor)

    def _tokens(self, lengths: Sequence[Axis]) -> Sampled:
        read = [(self._shapes[v.name or ""], axis) for v, axis in lengths]
        return Sampled(tuple(s.first[i] for s, i in read), tuple(s.second[i] for s, i in read))

    def _length(self, value: ir.Value, axis: int, anchor: ir.Node) -> ir.Value:
        attributes: dict[str, int | float] = {"start": axis, "end": axis + 1}
        return self._once(("length", value, axis), "Shape", [value], anchor, attributes)

    def _number(self, number: float) -> ir.Value:
        return self._constant(number, np.float32(number))

    def _constant(self, key: Hashable, values: np.ndarray | np.generic) -> ir.Value:
        if ("constant", key) not in self._made:
            name = "attention_mask/constant"
            self._made["constant", key] = add_constant(self._graph, name, values)
        return self._made["constant", key]

    def _once(
        self,
        key: Hashable,
        op_type: str,
        inputs: list[ir.Value | None] | list[ir.Value],
        anchor: ir.Node,
        attributes: dict[str, int | float] | None = None,
    ) -> ir.Value:
        """The result of a new node; the same for the same key."""
        if key not in self._made:
            source = next(v for v in inputs if v is not None)
            name = f"{source.name}/{op_type.lower()}"
            (self._made[key],) = insert_before(anchor, op_type, inputs, [name], attributes)
        return self._made[key]


def _bounded(numbers: np.ndarray | float) -> np.ndarray:
    """Numbers, none of which is float32's minimum or close to it; -inf stays."""
    values = np.asarray(numbers, np.float32)
    return np.where(np.isneginf(values), values, np.maximum(values, _LOWEST))


def _is_full(sizes: Sampled, tokens: Sampled) -> bool:
    return sizes.rank > 1 and Sampled(sizes.first[-2:], sizes.second[-2:]) == tokens


def _broadcast(a: Sampled, b: Sampled) -> Sampled:
    return Sampled(
        tuple(np.broadcast_shapes(a.first, b.first)), tuple(np.broadcast_shapes(a.second, b.second))
    )
