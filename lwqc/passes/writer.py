"""Writes nodes one behind the other, in front of one that is there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lwqc.model.edit import add_constant, insert_before

_AXES_OPERAND_FROM = 18  # opset in which the axes of ReduceMean became an operand


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
