"""What an operator's rule sees of one node, and what it can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from lwqc.graph.axes import STATISTICS, Factor, fixed, freeze, mark, one, regroup, unify
from lwqc.graph.integers import Integers, Ints
from lwqc.graph.moved_numbers import origin
from lwqc.graph.repairs import Repair
from lwqc.graph.rules.fit import BarrierError, Dims, Fit
from lwqc.graph.sampled import Sampled

Rule = Callable[["Context"], None]
Rules = Mapping[tuple[str, str], Rule]
_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


@dataclass
class Context:
    """One node while its rule runs.

    inputs: dimensions per operand, None for an operand that is left out. outputs: dimensions per
    output, filled by `give`. repairs: what must be rewritten when channels go. places: tensors that
    hold places along a dimension, of all nodes before.
    """

    node: ir.Node
    inputs: Sequence[Sequence[Factor] | None]
    shapes: Mapping[str, Sampled]
    integers: Integers
    opset: int
    outputs: dict[int, Dims] = field(default_factory=dict)
    repairs: list[Repair] = field(default_factory=list)
    places: dict[ir.Value, Factor] = field(default_factory=dict)
    _read: set[int] = field(default_factory=set)

    def places_of(self, index: int) -> Factor | None:
        """The dimension whose places the numbers of an operand are; None for other numbers."""
        found = origin(self.node.inputs[index]) if index < len(self.node.inputs) else None
        return None if found is None else self.places.get(found)

    @property
    def where(self) -> str:
        """The node in words."""
        return f"{self.node.op_type} {self.node.name or self.node.outputs[0].name}"

    def has(self, index: int) -> bool:
        """Whether the operand is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def dims(self, index: int = 0) -> Dims:
        """Dimensions of an operand."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise BarrierError(f"operand {index} is missing or its shape is not known")
        self._read.add(index)
        return Dims(found)

    def every(self) -> list[Dims]:
        """Dimensions of all operands that are there."""
        return [self.dims(i) for i, value in enumerate(self.node.inputs) if value is not None]

    def freeze_unread(self) -> None:
        """Operands whose dimensions the rule did not look at are settings, not channels."""
        for index, dims in enumerate(self.inputs):
            if index not in self._read:
                self.freeze(dims or (), f"operand {index} is a setting of the operator")

    def static(self, index: int) -> Ints | None:
        """Integer values of an operand, where they are fixed."""
        return self.integers.static(self.node.inputs[index]) if self.has(index) else None

    def constant(self, index: int) -> Ints:
        """Integer values of an operand that the rule needs."""
        values = self.static(index)
        if values is None:
            raise BarrierError(f"operand {index} is not constant")
        return values

    def dynamic(self, index: int, axis: int) -> bool:
        """Whether an operand's axis changes its size from run to run."""
        return self._dynamic(self.node.inputs[index], axis)

    def dynamic_output(self, axis: int, index: int = 0) -> bool:
        """Whether an output's axis changes its size from run to run."""
        return self._dynamic(self.node.outputs[index], axis)

    def _dynamic(self, value: ir.Value | None, axis: int) -> bool:
        sampled = self.shapes.get(value.name or "") if value is not None else None
        if sampled is None:
            return False
        if not -sampled.rank <= axis < sampled.rank:
            raise BarrierError(f"has {sampled.rank} dimensions, none of them number {axis}")
        return not sampled.static(axis)

    def output_sizes(self, index: int = 0) -> Fit[int]:
        """Sizes of an output in the first setting."""
        known = index < len(self.node.outputs)
        sampled = self.shapes.get(self.node.outputs[index].name or "") if known else None
        if sampled is None:
            raise BarrierError("the shape of its output is not known")
        return Fit(sampled.first)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self._attribute(name, ir.AttributeType.INT)
        return attribute.as_int() if attribute is not None else default

    def integers_attribute(self, name: str) -> Fit[int] | None:
        """A list attribute."""
        attribute = self._attribute(name, ir.AttributeType.INTS)
        return Fit(attribute.as_ints()) if attribute is not None else None

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self._attribute(name, ir.AttributeType.STRING)
        return attribute.as_string() if attribute is not None else default

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        attribute = self._attribute(name, ir.AttributeType.FLOAT)
        return attribute.as_float() if attribute is not None else default

    def _attribute(self, name: str, kind: ir.AttributeType) -> ir.Attr | None:
        """An attribute; only those of operators that ONNX knows were checked at the gate."""
        attribute = self.node.attributes.get(name)
        if attribute is not None and (attribute.type is not kind or attribute.is_ref()):
            raise BarrierError(f"attribute {name} is of another type")
        return attribute

    def axis(self, default: int, rank: int | None = None, name: str = "axis") -> int:
        """An axis attribute, made positive."""
        rank = len(self.dims()) if rank is None else rank
        return self.integer(name, default) % max(rank, 1)

    def axes(self, operand: int, rank: int) -> list[int] | None:
        """Axes from an operand or, in older opsets, the attribute; made positive."""
        if self.has(operand):
            return [int(a) % max(rank, 1) for a in self.constant(operand).ravel()]
        listed = self.integers_attribute("axes")
        return None if listed is None else [a % max(rank, 1) for a in listed]

    def give(self, dims: Sequence[Factor], index: int = 0) -> None:
        """Dimensions of an output; one that the node leaves out is passed over."""
        if index < len(self.node.outputs):
            self.outputs[index] = Dims(dims)

    def unify(self, a: Factor, b: Factor) -> None:
        """Two dimensions have the same indices; a size of 1 broadcasts and says nothing."""
        if (a.size != 1 and b.size != 1) or a.size == b.size == 1:
            unify(a, b, self.where)

    def broadcast(self, *operands: Sequence[Factor]) -> Dims:
        """Dimensions of an elementwise result; all that are not 1 are unified."""
        rank = max(map(len, operands))
        result = Dims()
        for axis in range(rank):
            here = [dims[axis - rank] for dims in operands if axis - rank >= -len(dims)]
            wide = [d for d in here if d.size != 1] or here[:1]
            for other in wide[1:]:
                unify(wide[0], other, self.where)
            result.append(wide[0])
        return result

    def statistics(self, factors: Sequence[Factor]) -> None:
        """Removing an index of these changes what the node computes for the others."""
        for factor in factors:
            mark(factor, STATISTICS)

    def freeze(self, factors: Sequence[Factor], reason: str) -> None:
        """No index of these may go."""
        for factor in factors:
            freeze(factor, f"{self.where}: {reason}")

    def fixed(self, size: int, reason: str) -> Factor:
        """A new dimension that stays whole."""
        return one() if size == 1 else fixed(size, f"{self.where}: {reason}")

    def fresh(self, size: int) -> Factor:
        """A new dimension with indices of its own."""
        return one() if size == 1 else Factor(size)

    def regroup(self, factors: Sequence[Factor], sizes: Sequence[int]) -> Dims:
        """The same elements, row-major, in other dimensions."""
        return Dims(regroup(factors, sizes, self.where))

    def barrier(self, reason: str) -> None:
        """Freeze everything the node touches."""
        for dims in self.inputs:
            self.freeze(dims or (), reason)
        for index, output in enumerate(self.node.outputs):
            sampled = self.shapes.get(output.name or "")
            if sampled is not None:
                self.give([self.fixed(size, reason) for size in sampled.first], index)
