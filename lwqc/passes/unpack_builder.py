"""Nodes that make a float weight of stored codes, which the runtime computes once, at load."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.edit import add_constant
from lwqc.model.names import unique_name
from lwqc.plans.plan import SiteEntry
from lwqc.quant.planes import byte_table

_NAMED = 8  # numbers that the name of a constant tells


class UnpackBuilder:
    """Appends constant arithmetic in front of the graph's first node."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._anchor = graph, graph[0]
        self._prefix = ""
        self._counts: Counter[str] = Counter()
        self._shared: dict[bytes, ir.Value] = {}
        self._tables: dict[tuple[int, int], ir.Value] = {}

    def name(self, prefix: str) -> None:
        """Let the names of what comes next begin with that."""
        self._prefix = prefix

    def op(self, op_type: str, inputs: Sequence[ir.Value], **attributes: int | str) -> ir.Value:
        """The result of one more node."""
        self._counts[self._prefix] += 1
        node = ir.node(op_type, inputs, attributes)
        name = f"{self._prefix}/{self._counts[self._prefix]}"
        node.outputs[0].name = unique_name(self._graph, name)
        self._graph.insert_before(self._anchor, node)
        return node.outputs[0]

    def constant(self, values: Sequence[int]) -> ir.Value:
        """A small list of whole numbers."""
        return self.stored(np.array(values, np.int64))

    def stored(self, values: NDArray[np.generic]) -> ir.Value:
        """A small constant, one for all that have its type, shape and numbers."""
        key = f"{values.dtype}{values.shape}".encode() + values.tobytes()
        if key not in self._shared:
            numbers = "_".join(map(str, values.ravel()[:_NAMED].tolist()))
            self._shared[key] = add_constant(self._graph, f"u/{numbers}", values)
        return self._shared[key]

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """The value in another shape."""
        return self.op("Reshape", [value, self.constant(shape)])

    def centred(self, packed: ir.Value, shape: tuple[int, ...], entry: SiteEntry) -> ir.Value:
        """Float codes minus the implicit zero in `shape`, from packed bytes."""
        return self.minus_zero(self.unpacked(packed, shape, entry), entry)

    def unpacked(self, packed: ir.Value, shape: tuple[int, ...], entry: SiteEntry) -> ir.Value:
        """Codes in `shape`, from packed bytes."""
        bits = entry.weight.storage_bits
        fields = [packed] if bits == 8 else [self._field(packed, bits, i) for i in range(8 // bits)]
        if len(fields) > 1:
            rows = shape[0]
            columns = [self.reshape(f, (rows, -1, 1)) for f in fields]
            codes = self.op("Concat", columns, axis=2)
            width = shape[1] * shape[2]
            if width * bits % 8:
                codes = self.cut(self.reshape(codes, (rows, -1)), width, axis=1)
        else:
            codes = fields[0]
        return self.reshape(codes, shape)

    def minus_zero(self, codes: ir.Value, entry: SiteEntry) -> ir.Value:
        """Codes as floats, less the implicit zero."""
        value = self.op("Cast", [codes], to=int(ir.DataType.FLOAT))
        half = self.stored(np.array(entry.weight.implicit_zero, np.float32))
        return self.op("Sub", [value, half])

    def cut(self, value: ir.Value, size: int, axis: int) -> ir.Value:
        """The first numbers along an axis."""
        bounds = [self.constant([0]), self.constant([size]), self.constant([axis])]
        return self.op("Slice", [value, *bounds])

    def from_planes(
        self, planes: Mapping[tuple[int, int], ir.Value], shape: tuple[int, ...]
    ) -> ir.Value:
        """Codes as int32 in `shape`, from the bytes of their planes (by width and bits below)."""
        parts = []
        for (width, below), packed in planes.items():
            table = self._table(width, below)
            parts.append(self.op("Gather", [table, self.number(packed)]))
        codes = parts[0]
        for part in parts[1:]:
            codes = self.op("Add", [codes, part])
        count = math.prod(shape)
        if count % 8:
            codes = self.cut(self.reshape(codes, (-1,)), count, axis=0)
        return self.reshape(codes, shape)

    def number(self, value: ir.Value) -> ir.Value:
        """Bytes as numbers that Gather takes."""
        return self.op("Cast", [value], to=int(ir.DataType.INT32))

    def _table(self, width: int, below: int) -> ir.Value:
        """What each byte of a plane adds to its codes, see `planes.byte_table`; one for all."""
        if (width, below) not in self._tables:
            numbers = np.arange(8 // width) * width
            every = self.stored(np.arange(256, dtype=np.uint8)[:, None])
            left = self.stored((8 - width - numbers).astype(np.uint8))
            value = self.op("BitShift", [every, left], direction="LEFT")
            value = self.op("BitShift", [value, self._shift(8 - width)], direction="RIGHT")
            if below:
                value = self.op("BitShift", [value, self._shift(below)], direction="LEFT")
            shape = byte_table(width, below).shape
            self._tables[width, below] = self.reshape(self.number(value), shape)
        return self._tables[width, below]

    def _field(self, packed: ir.Value, bits: int, i: int) -> ir.Value:
        """Code number i of each byte: shift the bits above it out, then down to the bottom."""
        left, right = 8 - bits * (i + 1), 8 - bits
        value = packed
        if left:
            value = self.op("BitShift", [value, self._shift(left)], direction="LEFT")
        return self.op("BitShift", [value, self._shift(right)], direction="RIGHT")

    def _shift(self, by: int) -> ir.Value:
        return self.stored(np.array([by], np.uint8))
