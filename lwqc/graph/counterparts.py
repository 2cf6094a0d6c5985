"""What a model and its compressed self both compute, and which part of one became which.

Tensors belong together by name. A *step* leads from some of them to the next one; its nodes are
the original's. Where the compressed model fuses or prunes what lies between, a step is longer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.graph.captures import captures
from lwqc.model.weights import ReadArray, static_shape, stored_tensor

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, None}


@dataclass(frozen=True, eq=False)
class Step:
    """The original's way from comparable tensors to the next one.

    nodes: in graph order; the last one gives `output`. inputs: comparable tensors that they read;
    graph inputs and constants are not listed. weights: stored tensors that they read. changed:
    whether the compressed model computes it otherwise. operator: its last node in both models.
    barrier: why the nodes cannot be run on other inputs, or "".
    """

    output: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    changed: bool
    operator: str
    barrier: str


class Counterparts:
    """The pairs of tensors of two models, and the steps between them."""

    def __init__(self, original: ir.Model, compressed: ir.Model, read: ReadArray) -> None:
        """Both models have the same inputs; `read` gives a stored tensor's values."""
        self._read = read
        self._original, self._compressed = original, compressed
        self._mine, self._other = _Side(original), _Side(compressed)

    @property
    def names(self) -> list[str]:
        """Float tensors that both main graphs compute from their inputs, in the original's order.

        Whether their shapes agree is for a run to say.
        """
        return [
            name
            for name, value in self._mine.computed.items()
            if value.dtype in FLOATS and name in self._other.computed
        ]

    def steps(self, comparable: Collection[str]) -> list[Step]:
        """One step per comparable tensor, in the original's order."""
        same = _Same(self._mine, self._other, frozenset(comparable), self._read)
        return [
            self._step(self._mine.computed[name], same)
            for name in self._mine.computed
            if name in same.comparable
        ]

    def _step(self, value: ir.Value, same: _Same) -> Step:
        nodes: set[ir.Node] = set()
        inputs: dict[str, None] = {}
        weights: dict[str, None] = {}
        pending = [value]
        while pending:
            node = pending.pop().producer()
            assert node is not None
            if node in nodes:
                continue
            nodes.add(node)
            for read in self._mine.reads(node):
                name = read.name or ""
                if read in self._mine.constant:
                    weights.update(dict.fromkeys(self._mine.stored(read)))
                elif name in same.comparable:
                    inputs[name] = None
                elif read.producer() is not None:
                    pending.append(read)
        ordered = tuple(sorted(nodes, key=self._mine.position.__getitem__))
        bodies = any(node in self._mine.captured for node in nodes)
        other = self._other.computed[value.name or ""]
        return Step(
            output=value.name or "",
            nodes=ordered,
            inputs=tuple(inputs),
            weights=tuple(weights),
            changed=not same.step(value, other),
            operator=_operator(value, other, len(nodes)),
            barrier="contains an If, Loop or Scan" if bodies else "",
        )


def _operator(mine: ir.Value, other: ir.Value, count: int) -> str:
    before, after = (v.producer() for v in (mine, other))
    assert before is not None
    assert after is not None
    text = before.op_type if count == 1 else f"{before.op_type} and {count - 1} before it"
    return text if after.op_type == before.op_type else f"{text} -> {after.op_type}"


class _Side:
    """One model: positions of its nodes, values that depend on inputs, values that do not."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.position = {node: i for i, node in enumerate(self.graph)}
        self.captured = {node: tuple(values) for node, values in captures(self.graph)}
        self.constant: set[ir.Value] = {
            v for v in self.graph.initializers.values() if stored_tensor(v) is not None
        }
        self.computed: dict[str, ir.Value] = {}
        for node in self.graph:
            is_constant = all(v in self.constant for v in self.reads(node))
            if is_constant and not node.op_type.startswith("Random"):
                self.constant.update(node.outputs)
            else:
                self.computed.update((v.name, v) for v in node.outputs if v.name)

    def reads(self, node: ir.Node) -> list[ir.Value]:
        """Inputs, and what the bodies of If, Loop and Scan read."""
        return [*(v for v in node.inputs if v is not None), *self.captured.get(node, ())]

    def stored(self, value: ir.Value) -> list[str]:
        """Names of the stored tensors that a constant is computed from."""
        node = value.producer()
        if stored_tensor(value) is not None or node is None:
            return [value.name or ""]
        return [name for read in self.reads(node) for name in self.stored(read)]


class _Same:
    """Whether two values are computed alike from comparable tensors, inputs and constants.

    Only equal structure counts: what is computed alike in another way is a change of size zero.
    """

    def __init__(
        self, mine: _Side, other: _Side, comparable: frozenset[str], read: ReadArray
    ) -> None:
        self._mine, self._other = mine, other
        self.comparable = comparable
        self._read = read
        self._known: dict[tuple[ir.Value, ir.Value], bool] = {}
        for name, value in mine.computed.items():  # in graph order, so that recursion stays flat
            if name in other.computed:
                self._value(value, other.computed[name])

    def step(self, mine: ir.Value, other: ir.Value) -> bool:
        """Whether the nodes that give two comparable tensors do the same."""
        a, b = mine.producer(), other.producer()
        if a is None or b is None or mine.index() != other.index():
            return False
        if (a.domain, a.op_type, a.overload) != (b.domain, b.op_type, b.overload):
            return False
        return self._attributes(a, b) and self._reads(a, b)

    def _value(self, mine: ir.Value | None, other: ir.Value | None) -> bool:
        if mine is None or other is None:
            return mine is other
        key = (mine, other)
        if key not in self._known:
            self._known[key] = False  # a value cannot depend on itself
            self._known[key] = self._compare(mine, other)
        return self._known[key]

    def _compare(self, mine: ir.Value, other: ir.Value) -> bool:
        if mine.name in self.comparable or other.name in self.comparable:
            return mine.name == other.name
        if (mine in self._mine.constant) != (other in self._other.constant):
            return False
        a, b = stored_tensor(mine), stored_tensor(other)
        if a is not None or b is not None:
            return a is not None and b is not None and self._equal(a, b)
        if mine.producer() is None or other.producer() is None:
            return mine.name == other.name and mine.producer() is other.producer()
        return self.step(mine, other)

    def _reads(self, a: ir.Node, b: ir.Node) -> bool:
        mine = (*a.inputs, *self._mine.captured.get(a, ()))
        other = (*b.inputs, *self._other.captured.get(b, ()))
        return len(mine) == len(other) and all(map(self._value, mine, other))

    def _equal(self, a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
        if a is b:
            return True
        if a.dtype != b.dtype or static_shape(a) != static_shape(b):
            return False
        mine, other = self._read(a), self._read(b)
        return mine.tobytes() == other.tobytes() or bool(np.array_equal(mine, other))

    def _attributes(self, a: ir.Node, b: ir.Node) -> bool:
        return a.attributes.keys() == b.attributes.keys() and all(
            _bytes(a.attributes[name]) == _bytes(b.attributes[name]) for name in a.attributes
        )


def _bytes(attribute: ir.Attr) -> bytes:
    return ir.serde.serialize_attribute(attribute).SerializeToString(deterministic=True)
