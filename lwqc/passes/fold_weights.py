"""Store weights in low bits where no low-bit kernel exists; the runtime unpacks them at load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import Site
from lwqc.model.edit import add_initializer, float_type
from lwqc.passes.base import Pass
from lwqc.passes.codebook_weights import from_codebook, stored_planes
from lwqc.passes.context import Context
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.unpack_builder import UnpackBuilder
from lwqc.plans.plan import SiteEntry
from lwqc.quant.grid import Encoded, pack


@dataclass(frozen=True, eq=False)
class FoldWeights(Pass):
    """Shrink the file and keep the float kernel and its speed.

    Matches: sites of any operator with an entry.
    Rewrites to: the codes and scales as initializers and ordinary arithmetic that ONNX Runtime
    folds into a float constant while it loads the model: one Cast for float16, Cast and Mul for 8
    bits with a scale per channel; else shift, cast, subtract, multiply, reshape. Indices into
    codebooks are found in tables by the bytes that they lie in, and added up where they lie in
    several planes; then the vectors are gathered.
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
        build = UnpackBuilder(model.graph)
        for site in ctx.sites.sites:
            entry = self.entries.get(site.name)
            if entry is None:
                continue
            # Names add up where every weight is a few nodes and few bytes.
            build.name("u" if entry.weight.only_stored else site.name)
            operands = self._unpacked(model.graph, build, site, entry)
            for use in site.uses:
                use.node.replace_input_with(use.index, operands[use.transposed])
            changes += 1
        return changes

    def _unpacked(
        self, graph: ir.Graph, build: UnpackBuilder, site: Site, entry: SiteEntry
    ) -> Mapping[bool, ir.Value]:
        """The weight as its uses see it (by `Use.transposed`), computed from stored codes."""
        ways = {use.transposed for use in site.uses}
        turned = ways == {True} and len(site.shape) == 2 and entry.weight.is_plain
        if entry.weight.kind == "vq":
            turned = True in ways and len(site.shape) == 2
            value = from_codebook(graph, build, site, entry, self.weights)
            if not turned:
                value = build.op("Transpose", [value])
            if len(site.shape) != 2:
                value = build.reshape(value, site.shape)
        elif entry.weight.is_plain:
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
        self, graph: ir.Graph, build: UnpackBuilder, site: Site, entry: SiteEntry, turned: bool
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
        self, graph: ir.Graph, build: UnpackBuilder, site: Site, entry: SiteEntry
    ) -> ir.Value:
        """The float weight [N, K], or in the shape of its operator, from packed codes."""
        fmt = entry.weight
        block, blocks = fmt.block or site.k, fmt.blocks(site.k)
        shape = (site.n, blocks, block)
        if fmt.dense:
            planes = stored_planes(graph, site, entry, self.weights, math.prod(shape))
            value = build.minus_zero(build.from_planes(planes, shape), entry)
        else:
            centred = build.centred(self._codes(graph, site, entry), shape, entry)
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
            value = build.cut(build.reshape(value, (site.n, blocks * block)), site.k, axis=1)
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


def _leading(site: Site) -> tuple[int, ...]:
    """The first sizes of the weight in its operator's shape: those of its N outputs."""
    shape = (site.n, site.k) if len(site.shape) == 2 else site.shape
    return next(shape[:i] for i in range(len(shape)) if math.prod(shape[:i]) == site.n)
