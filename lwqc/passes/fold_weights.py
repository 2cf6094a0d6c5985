"""Store weights in low bits where no low-bit kernel exists; the runtime unpacks them at load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import Site
from lwqc.model.edit import add_constant, add_initializer, float_type
from lwqc.model.names import unique_name
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import SiteEntry
from lwqc.quant.grid import Encoded, pack


@dataclass(frozen=True, eq=False)
class FoldWeights(Pass):
    """Shrink the file and keep the float kernel and its speed.

    Matches: sites of any operator with an entry.
    Rewrites to: the codes and scales as initializers and ordinary arithmetic that ONNX Runtime
    folds into a float constant while it loads the model: one Cast for float16, Cast and Mul for 8
    bits with a scale per channel; else shift, cast, subtract, multiply, reshape.
    DequantizeLinear would not do: the runtime exempts it from folding and would unpack the
    weight in every run. Works at any opset from 11 on. Memory while running stays that of float.
    """

    exact: ClassVar[bool] = False
    planned: ClassVar[bool] = True
    entries: Mapping[str, SiteEntry]
    weights: EncodedWeights

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every site that has an entry."""
        if not self.entries:
            return 0
        changes = 0
        shared: dict[bytes, ir.Value] = {}
        for site in ctx.sites.sites:
            entry = self.entries.get(site.name)
            if entry is None:
                continue
            build = _Builder(model.graph, _first_node(model.graph), site.name, shared)
            operands = self._unpacked(model.graph, build, site, entry)
            for use in site.uses:
                use.node.replace_input_with(use.index, operands[use.transposed])
            changes += 1
        return changes

    def _unpacked(
        self, graph: ir.Graph, build: _Builder, site: Site, entry: SiteEntry
    ) -> Mapping[bool, ir.Value]:
        """The weight as its uses see it (by `Use.transposed`), computed from stored codes."""
        ways = {use.transposed for use in site.uses}
        turned = ways == {True} and len(site.shape) == 2 and entry.weight.is_plain
        if entry.weight.is_plain:
            value = self._plain(graph, build, site, entry, turned)
        else:
            value = self._in_blocks(graph, build, site, entry)
        wanted = float_type(site.uses[0].node.inputs[site.uses[0].index])
        if wanted != ir.DataType.FLOAT:
            value = build.op("Cast", [value], to=int(wanted))
        operands = {turned: value}
        if ways - {turned}:
            operands[not turned] = build.op("Transpose", [value])
        return operands

    def _plain(
        self, graph: ir.Graph, build: _Builder, site: Site, entry: SiteEntry, turned: bool
    ) -> ir.Value:
        """The float weight from codes that lie as it does, without zero points or blocks."""
        half, matrix = entry.weight.kind == "fp16", (site.n, site.k)
        channels = _leading(site)
        scales = (1, site.n) if turned else (*channels, *(1,) * (len(site.shape) - len(channels)))

        def codes(encoded: Encoded) -> NDArray[np.generic]:
            flat = encoded.codes.reshape(site.n, -1)
            if half:
                values: NDArray[np.generic] = flat.view(np.float16)
            else:
                middle = np.int16(encoded.format.implicit_zero)
                values = (flat.astype(np.int16) - middle).astype(np.int8)
            return values.T if turned else values.reshape(shape)

        shape = matrix[::-1] if turned else matrix if len(site.shape) == 2 else site.shape
        stored = self.weights.lazy(
            site.name,
            entry,
            codes,
            name=f"{site.name}_{'half' if half else 'q8'}",
            codes=True,
            dtype=ir.DataType.FLOAT16 if half else ir.DataType.INT8,
            shape=shape,
        )
        value = build.op("Cast", [add_initializer(graph, stored)], to=int(ir.DataType.FLOAT))
        if half:
            return value
        scale = self.weights.lazy(
            site.name,
            entry,
            lambda e: e.scale.reshape(scales),
            name=f"{site.name}_scale",
            dtype=ir.DataType.FLOAT,
            shape=scales,
        )
        return build.op("Mul", [value, add_initializer(graph, scale)])

    def _in_blocks(
        self, graph: ir.Graph, build: _Builder, site: Site, entry: SiteEntry
    ) -> ir.Value:
        """The float weight [N, K], or in the shape of its operator, from packed codes."""
        fmt = entry.weight
        block, blocks = fmt.block or site.k, fmt.blocks(site.k)
        centred = build.centred(self._codes(graph, site, entry), (site.n, blocks, block), entry)
        value = build.op("Cast", [centred], to=int(ir.DataType.FLOAT))
        scale = add_initializer(
            graph,
            self.weights.lazy(
                site.name,
                entry,
                lambda e: e.scale[..., None].astype(
                    np.float16 if fmt.scale == "float16" else np.float32
                ),
                name=f"{site.name}_scale",
                dtype=ir.DataType.FLOAT16 if fmt.scale == "float16" else ir.DataType.FLOAT,
                shape=(site.n, blocks, 1),
            ),
        )
        if fmt.scale == "float16":
            scale = build.op("Cast", [scale], to=int(ir.DataType.FLOAT))
        if not fmt.symmetric:
            zero = build.op("Cast", [self._zero(graph, site, entry)], to=int(ir.DataType.FLOAT))
            value = build.op("Sub", [value, zero])
        value = build.op("Mul", [value, scale])
        if blocks * block != site.k:
            value = build.reshape(value, (site.n, blocks * block))
            bounds = [build.constant([0]), build.constant([site.k]), build.constant([1])]
            value = build.op("Slice", [value, *bounds])
        matrix = len(site.shape) == 2
        return build.reshape(value, (site.n, site.k) if matrix else site.shape)

    def _codes(self, graph: ir.Graph, site: Site, entry: SiteEntry) -> ir.Value:
        fmt = entry.weight
        width = fmt.blocks(site.k) * (fmt.block or site.k)
        return add_initializer(
            graph,
            self.weights.lazy(
                site.name,
                entry,
                lambda e: pack(e.codes.reshape(len(e.codes), -1), e.format.storage_bits),
                name=f"{site.name}_q{fmt.storage_bits}",
                codes=True,
                dtype=ir.DataType.UINT8,
                shape=(site.n, -(-width * fmt.storage_bits // 8)),
            ),
        )

    def _zero(self, graph: ir.Graph, site: Site, entry: SiteEntry) -> ir.Value:
        half = entry.weight.implicit_zero
        return add_initializer(
            graph,
            self.weights.lazy(
                site.name,
                entry,
                lambda e: (e.zero[..., None].astype(np.int16) - half).astype(np.int8),
                name=f"{site.name}_zero",
                dtype=ir.DataType.INT8,
                shape=(site.n, entry.weight.blocks(site.k), 1),
            ),
        )


class _Builder:
    """Appends constant arithmetic in front of the graph's first node."""

    def __init__(
        self, graph: ir.Graph, anchor: ir.Node, prefix: str, shared: dict[bytes, ir.Value]
    ) -> None:
        """shared: small constants by type and numbers, for all weights of the model."""
        self._graph, self._anchor, self._prefix = graph, anchor, prefix
        self._shared = shared
        self._count = 0

    def op(self, op_type: str, inputs: Sequence[ir.Value], **attributes: int | str) -> ir.Value:
        self._count += 1
        node = ir.node(op_type, inputs, attributes)
        node.outputs[0].name = unique_name(self._graph, f"{self._prefix}/{self._count}")
        self._graph.insert_before(self._anchor, node)
        return node.outputs[0]

    def constant(self, values: Sequence[int]) -> ir.Value:
        return self._stored(np.array(values, np.int64))

    def _stored(self, values: NDArray[np.generic]) -> ir.Value:
        key = f"{values.dtype}{values.shape}".encode() + values.tobytes()
        if key not in self._shared:
            numbers = "_".join(map(str, values.ravel().tolist()))
            self._shared[key] = add_constant(self._graph, f"unpack/{numbers}", values)
        return self._shared[key]

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.op("Reshape", [value, self.constant(shape)])

    def centred(self, packed: ir.Value, shape: tuple[int, ...], entry: SiteEntry) -> ir.Value:
        """Float codes minus the implicit zero in `shape`, from packed bytes."""
        bits = entry.weight.storage_bits
        fields = [packed] if bits == 8 else [self._field(packed, bits, i) for i in range(8 // bits)]
        if len(fields) > 1:
            rows = shape[0]
            columns = [self.reshape(f, (rows, -1, 1)) for f in fields]
            codes = self.op("Concat", columns, axis=2)
            width = shape[1] * shape[2]
            if width * bits % 8:
                codes = self.reshape(codes, (rows, -1))
                bounds = [self.constant([0]), self.constant([width]), self.constant([1])]
                codes = self.op("Slice", [codes, *bounds])
        else:
            codes = fields[0]
        value = self.op("Cast", [self.reshape(codes, shape)], to=int(ir.DataType.FLOAT))
        half = self._stored(np.array(entry.weight.implicit_zero, np.float32))
        return self.op("Sub", [value, half])

    def _field(self, packed: ir.Value, bits: int, i: int) -> ir.Value:
        """Code number i of each byte: shift the bits above it out, then down to the bottom."""
        left, right = 8 - bits * (i + 1), 8 - bits
        value = packed
        if left:
            value = self.op("BitShift", [value, self._shift(left)], direction="LEFT")
        return self.op("BitShift", [value, self._shift(right)], direction="RIGHT")

    def _shift(self, by: int) -> ir.Value:
        return self._stored(np.array([by], np.uint8))


def _leading(site: Site) -> tuple[int, ...]:
    """The first sizes of the weight in its operator's shape: those of its N outputs."""
    shape = (site.n, site.k) if len(site.shape) == 2 else site.shape
    return next(shape[:i] for i in range(len(shape)) if math.prod(shape[:i]) == site.n)


def _first_node(graph: ir.Graph) -> ir.Node:
    return graph[0]
