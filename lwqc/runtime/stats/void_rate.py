"""How often layers do next to nothing to a token, compared with the layers before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.runtime.stats.branch_effect import BranchEffect
from lwqc.runtime.stats.collector import Array, Collector
from lwqc.runtime.stats.emitter import Emitter

_ALPHA = 0.8


@dataclass(frozen=True)
class VoidCounts:
    """count: tokens; voids: of each layer, how many it was void for."""

    count: int
    voids: tuple[int, ...]

    def __add__(self, other: VoidCounts) -> VoidCounts:
        """Counts of both."""
        pairs = zip(self.voids, other.voids, strict=True)
        return VoidCounts(self.count + other.count, tuple(a + b for a, b in pairs))

    @property
    def rates(self) -> tuple[float, ...]:
        """Share of tokens that each layer was void for."""
        return tuple(v / max(self.count, 1) for v in self.voids)


@dataclass(frozen=True)
class VoidRate(Collector[VoidCounts]):
    """Layers one after the other, on streams of the same tokens.

    With d_l = |y| - |x| of a token, layer l is void for it if d_l < alpha * (max - min of d over
    the layers before it). The first layer has none before it and counts as never void.
    Source: Void in Language Models, arXiv 2505.14467.
    """

    layers: tuple[BranchEffect, ...]
    alpha: float = _ALPHA

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of all layers."""
        return tuple(name for layer in self.layers for name in layer.tensors)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Number of tokens, and one count per layer but the first."""
        growth = [
            self._growth(emit, layer, values[2 * i : 2 * i + 2])
            for i, layer in enumerate(self.layers)
        ]
        high = low = growth[0]
        alpha = emit.constant(np.float32(self.alpha))
        outputs = [emit("Size", growth[0])]
        for change in growth[1:]:
            limit = emit("Mul", alpha, emit("Sub", high, low))
            void = emit("Cast", emit("Less", change, limit), to=int(ir.DataType.FLOAT))
            outputs.append(emit.reduce("ReduceSum", void))
            high, low = emit("Max", high, change), emit("Min", low, change)
        return outputs

    def _growth(self, emit: Emitter, layer: BranchEffect, values: Sequence[ir.Value]) -> ir.Value:
        x, y, _ = layer.parts(emit, values)
        before, after = (emit.reduce("ReduceL2", v, [layer.axis]) for v in (x, y))
        return emit("Sub", after, before)

    def read(self, outputs: Sequence[Array]) -> VoidCounts:
        """Counts of one run."""
        return VoidCounts(int(outputs[0]), (0, *(round(float(o)) for o in outputs[1:])))
