"""What a residual branch, or a block of them, does to each token that passes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.runtime.stats.collector import Array, Collector, scalar
from lwqc.runtime.stats.emitter import Emitter

_TINY = 1e-30  # a zero vector has cosine 0 with everything


@dataclass(frozen=True)
class EffectSums:
    """Sums over tokens: `count` of them, their cosines, angles and norm ratios."""

    count: int
    cosines: float
    angles: float
    ratios: float

    def __add__(self, other: EffectSums) -> EffectSums:
        """Sums of both."""
        return EffectSums(
            self.count + other.count,
            self.cosines + other.cosines,
            self.angles + other.angles,
            self.ratios + other.ratios,
        )

    @property
    def cosine(self) -> float:
        """Mean cosine of x and y = x + f(x); LLM-Drop (arXiv 2406.15786) removes the highest."""
        return self.cosines / max(self.count, 1)

    @property
    def lim(self) -> float:
        """Minus the mean cosine (Layer-Wise Quantization, arXiv 2406.17415)."""
        return -self.cosine

    @property
    def angular(self) -> float:
        """Mean angle between x and y over pi (CFSP, arXiv 2409.13199)."""
        return self.angles / max(self.count, 1)

    @property
    def norm_ratio(self) -> float:
        """Mean of |f(x)| / |x| (arXiv 2505.13898)."""
        return self.ratios / max(self.count, 1)


@dataclass(frozen=True)
class BranchEffect(Collector[EffectSums]):
    """Cosine and angle of x and y = x + f(x), and |f(x)| / |x|, token by token.

    stream: x. Either `delta`, f(x), or `output`, y, is given; the other one follows.
    axis: the features of a token.
    """

    stream: str
    delta: str = ""
    output: str = ""
    axis: int = -1

    @property
    def tensors(self) -> tuple[str, ...]:
        """x, and f(x) or y."""
        return (self.stream, self.delta or self.output)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Number of tokens, and sums of cosine, angle and ratio."""
        x, y, f = self.parts(emit, values)
        tiny = emit.constant(np.float32(_TINY))
        norm_x, norm_y, norm_f = (
            emit("Max", emit.reduce("ReduceL2", v, [self.axis], keep=True), tiny) for v in (x, y, f)
        )
        unit_x, unit_y = emit("Div", x, norm_x), emit("Div", y, norm_y)
        cosine = emit.reduce("ReduceSum", emit("Mul", unit_x, unit_y), [self.axis])
        # The chord, as the arc cosine is inaccurate where vectors are nearly parallel.
        chord = emit.reduce("ReduceL2", emit("Sub", unit_x, unit_y), [self.axis])
        half = emit("Mul", chord, emit.constant(np.float32(0.5)))
        angle = emit("Asin", emit("Min", half, emit.constant(np.float32(1))))
        ratio = emit("Div", norm_f, norm_x)
        return [
            emit("Size", cosine),
            *(emit.reduce("ReduceSum", v) for v in (cosine, angle, ratio)),
        ]

    def parts(
        self, emit: Emitter, values: Sequence[ir.Value]
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """X, y and f(x) as float32."""
        x, other = (emit.float32(v) for v in values)
        if self.delta:
            return x, emit("Add", x, other), other
        return x, other, emit("Sub", other, x)

    def read(self, outputs: Sequence[Array]) -> EffectSums:
        """Sums of one run."""
        cosines, angles, ratios = (scalar(o) for o in outputs[1:])
        return EffectSums(int(outputs[0]), cosines, 2 / np.pi * angles, ratios)
