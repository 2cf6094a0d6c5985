"""Scaled dot-product attention in a graph: two products around a softmax, with its masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from lwqc.graph.sampled import Sampled
from lwqc.model.weights import static_shape, stored_tensor

_HUGE = 1e30  # added to a score, a number of this size leaves nothing of the score
_SCORE_OPS = frozenset({"Add", "Mul", "Div", "Where"})


@dataclass(frozen=True, eq=False)
class Mask:
    """What is added to scores, or where they are kept or dropped.

    value: broadcasts to [batch, heads, queries, keys]; float if `kind` is `add`, else boolean.
    fill: what dropped scores become.
    """

    value: ir.Value
    kind: Literal["add", "keep", "drop"]
    fill: float = 0.0


@dataclass(frozen=True, eq=False)
class AttentionCore:
    """softmax(scale * query @ keys + masks) @ values.

    query: [batch, heads, queries, size]. keys: [batch, heads, size, keys]. values: [batch, heads,
    keys, value size]. product: the MatMul with the values. guarded: rows of NaN become 0.
    """

    softmax: ir.Node
    product: ir.Node
    query: ir.Value
    keys: ir.Value
    values: ir.Value
    scale: float
    masks: tuple[Mask, ...]
    guarded: bool

    @property
    def name(self) -> str:
        """Name of what it computes."""
        return self.product.outputs[0].name or ""


@dataclass(frozen=True, eq=False)
class _Scores:
    product: ir.Node
    scale: float
    masks: tuple[Mask, ...]


def find_attention(
    graph: ir.Graph, shapes: Mapping[str, Sampled]
) -> tuple[list[AttentionCore], dict[str, str]]:
    """Attentions of a graph in order, and those of another form, with the reason, by softmax.

    A softmax is one of attention if two activations are multiplied before or after it.
    """
    cores: list[AttentionCore] = []
    refused: dict[str, str] = {}
    for node in graph:
        if node.domain == "" and node.op_type == "Softmax" and _is_last_axis(node):
            found = _core(node, shapes)
            if isinstance(found, AttentionCore):
                cores.append(found)
            elif found is not None:
                refused[node.outputs[0].name or ""] = found
    return cores, refused


def guarded(value: ir.Value) -> ir.Value | None:
    """Where(IsNaN(value), 0, value), if that and nothing else reads the value."""
    users = {use.node for use in value.uses()}
    if {n.op_type for n in users} != {"IsNaN", "Where"} or len(users) != 2:
        return None
    where = next(n for n in users if n.op_type == "Where")
    condition, zero = where.inputs[0], where.inputs[1]
    test = condition.producer() if condition is not None else None
    is_guard = test in users and where.inputs[2] is value and scalar(zero) == 0.0
    return where.outputs[0] if is_guard else None


def scalar(value: ir.Value | None) -> float | None:
    """The number of a stored tensor that has one element."""
    tensor = stored_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(()))


def permutation(value: ir.Value) -> tuple[int, ...] | None:
    """How a Transpose makes the value; None for others."""
    node = value.producer()
    if node is None or node.domain != "" or node.op_type != "Transpose":
        return None
    attribute = node.attributes.get("perm")
    return tuple(attribute.as_ints()) if attribute is not None else None


def _core(softmax: ir.Node, shapes: Mapping[str, Sampled]) -> AttentionCore | str | None:
    after, is_guarded = _product(softmax.outputs[0])
    assert softmax.inputs[0] is not None
    scores = _scores(softmax.inputs[0])
    if isinstance(after, str):
        return after if isinstance(scores, _Scores) else None
    if isinstance(scores, str):
        return scores
    query, q_scale = _unscaled(scores.product.inputs[0])
    keys, k_scale = _unscaled(scores.product.inputs[1])
    values = after.inputs[1]
    assert values is not None
    core = AttentionCore(
        softmax, after, query, keys, values, scores.scale * q_scale * k_scale, scores.masks,
        is_guarded,
    )  # fmt: skip
    return _misshapen(core, shapes) or core


def _product(value: ir.Value) -> tuple[ir.Node | str, bool]:
    """The MatMul with the values that reads probabilities, and whether NaN is repaired before."""
    repaired = guarded(value)
    value, is_guarded = (value, False) if repaired is None else (repaired, True)
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1:
        return "its probabilities are read by several nodes", is_guarded
    node, index = uses[0].node, uses[0].idx
    if (node.domain, node.op_type, index) != ("", "MatMul", 0):
        return f"its probabilities are read by {node.op_type}", is_guarded
    if stored_tensor(node.inputs[1]) is not None:
        return "its probabilities meet stored values", is_guarded
    return node, is_guarded


def _scores(value: ir.Value) -> _Scores | str:
    """Follow what a softmax reads back to the product of queries and keys."""
    scale, masks, scaled = 1.0, list[Mask](), False
    while True:
        node = value.producer()
        if node is None or node.domain != "":
            return "no product of two activations makes its scores"
        if value.is_graph_output() or len(list(value.uses())) != 1:
            return f"its scores {value.name} are read by several nodes"
        if node.op_type == "MatMul":
            stored = any(stored_tensor(v) is not None for v in node.inputs)
            return "its scores are of stored keys" if stored else _Scores(node, scale, tuple(masks))
        if (factor := _factor(node)) is not None:
            scale, scaled = scale * factor[1], True
            value = factor[0]
            continue
        masked = _masked(node)
        if masked is None:
            return f"its scores pass through {node.op_type}"
        if scaled:
            return "its scores are scaled behind their mask"
        value = masked[0]
        masks.append(masked[1])


def _masked(node: ir.Node) -> tuple[ir.Value, Mask] | None:
    """The scores that a node masks, and with what."""
    if node.op_type == "Add":
        a, b = node.inputs
        leads = [v is not None and _leads_to_scores(v) for v in (a, b)]
        if sum(leads) != 1 or a is None or b is None:
            return None
        return (a, Mask(b, "add")) if leads[0] else (b, Mask(a, "add"))
    if node.op_type == "Where":
        condition, kept, other = node.inputs
        assert condition is not None
        assert kept is not None
        assert other is not None
        if (fill := scalar(other)) is not None and fill <= -_HUGE:
            return kept, Mask(condition, "keep", fill)
        if (fill := scalar(kept)) is not None and fill <= -_HUGE:
            return other, Mask(condition, "drop", fill)
    return None


def _leads_to_scores(value: ir.Value) -> bool:
    """Whether products of two activations come before a value, with score arithmetic between."""
    pending, seen = [value], {value}
    while pending:
        node = pending.pop().producer()
        if node is None or node.domain != "":
            continue
        if node.op_type == "MatMul" and not any(stored_tensor(v) is not None for v in node.inputs):
            return True
        if node.op_type in _SCORE_OPS:
            new = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(new)
            pending.extend(new)
    return False


def _factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """What a node multiplies with one stored number, and the number."""
    if node.op_type not in ("Mul", "Div") or node.domain != "":
        return None
    a, b = node.inputs
    if (number := scalar(b)) is not None and a is not None:
        return (a, number if node.op_type == "Mul" else 1.0 / number) if number else None
    if node.op_type == "Mul" and b is not None and (number := scalar(a)) is not None:
        return b, number
    return None


def _unscaled(value: ir.Value | None) -> tuple[ir.Value, float]:
    """A value before it was multiplied with stored numbers, and their product."""
    assert value is not None
    scale = 1.0
    while (node := value.producer()) is not None and (found := _factor(node)) is not None:
        value, scale = found[0], scale * found[1]
    return value, scale


def _misshapen(core: AttentionCore, shapes: Mapping[str, Sampled]) -> str | None:
    """Why sizes do not fit attention, if they do not."""
    sizes = [shapes.get(v.name or "") for v in (core.query, core.keys, core.values)]
    if any(s is None for s in sizes):
        return "its shapes are not known"
    q, k, v = (s for s in sizes if s is not None)
    if not q.rank == k.rank == v.rank == 4:
        return f"its operands have {q.rank} dimensions, not batch, heads, tokens and size"
    for a, b, c in ((q.first, k.first, v.first), (q.second, k.second, v.second)):
        if not (a[:2] == b[:2] == c[:2] and a[3] == b[2] and b[3] == c[2]):
            return "its keys or values are broadcast"
    if not q.static(1):
        return "its number of heads is not fixed"
    if any(x.dtype not in (None, ir.DataType.FLOAT) for x in (core.query, core.values)):
        return "it is not computed in float32"
    return next((why for mask in core.masks if (why := _unfit(mask, q, k, shapes))), None)


def _unfit(mask: Mask, q: Sampled, k: Sampled, shapes: Mapping[str, Sampled]) -> str | None:
    own = sizes_of(mask.value, shapes)
    if own is None:
        return f"the shape of its mask {mask.value.name} is not known"
    for mine, a, b in ((own.first, q.first, k.first), (own.second, q.second, k.second)):
        pairs = zip(mine[::-1], (*a[:3], b[3])[::-1], strict=False)
        if len(mine) > 4 or any(size not in (1, full) for size, full in pairs):
            return f"its mask {mask.value.name} is not broadcast to its scores"
    return None


def sizes_of(value: ir.Value, shapes: Mapping[str, Sampled]) -> Sampled | None:
    """Sizes of a tensor that is computed or stored."""
    tensor = stored_tensor(value)
    if tensor is None:
        return shapes.get(value.name or "")
    return Sampled(static_shape(tensor), static_shape(tensor))


def _is_last_axis(softmax: ir.Node) -> bool:
    attribute, shape = softmax.attributes.get("axis"), softmax.outputs[0].shape
    axis = -1 if attribute is None else attribute.as_int()
    return axis == -1 or (shape is not None and axis == shape.rank() - 1)
