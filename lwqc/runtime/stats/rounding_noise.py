"""What 8 bits cost an activation: error of a dynamic per-tensor grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.runtime.stats.collector import Array, Collector, scalar
from lwqc.runtime.stats.emitter import Emitter


@dataclass(frozen=True)
class Noise:
    """Sums of squared rounding errors and of squared values."""

    noise: float
    signal: float

    def __add__(self, other: Noise) -> Noise:
        """Sums of both."""
        return Noise(self.noise + other.noise, self.signal + other.signal)

    @property
    def relative(self) -> float:
        """Noise over signal; 0 for a tensor that is always zero."""
        return self.noise / self.signal if self.signal > 0 else 0.0


@dataclass(frozen=True)
class RoundingNoise(Collector[Noise]):
    """Error of one tensor under DynamicQuantizeLinear, as the runtime computes it."""

    tensor: str

    @property
    def tensors(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.tensor,)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Quantize, dequantize, subtract; two scalars."""
        x = emit.float32(values[0])
        node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
        for i, output in enumerate(node.outputs):
            output.name = f"{self.tensor}/noise{i}"
        emit.graph.append(node)
        rounded = emit("DequantizeLinear", *node.outputs)
        return [emit.reduce("ReduceSumSquare", v) for v in (emit("Sub", x, rounded), x)]

    def read(self, outputs: Sequence[Array]) -> Noise:
        """Noise of one run."""
        return Noise(scalar(outputs[0]), scalar(outputs[1]))
