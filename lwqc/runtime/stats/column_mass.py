"""How much attention reads each token: weights for a Gram matrix, computed in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.runtime.stats.emitter import Emitter

_TINY = 1e-30  # where all columns weigh the same, the range is zero
_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ColumnMass:
    """Weights r_t of rows: sum over heads and queries of A[q, t], scaled per sequence.

    map: probabilities [batch, heads, queries, keys] or [batch * heads, queries, keys].
    tokens: a tensor [batch, tokens, ...]; of a longer map the last columns are its tokens.
    The sums of a sequence are moved to [smallest, 1], then divided by their mean.

    Source: RSQ, arXiv 2503.01820.
    """

    map: str
    tokens: str
    smallest: float = 0.005

    @property
    def tensors(self) -> tuple[str, ...]:
        """Map and tokens."""
        return (self.map, self.tokens)

    def emit(self, emit: Emitter, values: Sequence[ir.Value]) -> ir.Value:
        """Append nodes; the result is [batch * tokens]."""
        probabilities, tokens = values
        mass = _per_token(emit, emit.float32(probabilities), tokens)
        low, high = (emit.reduce(f"Reduce{w}", mass, [1], keep=True) for w in ("Min", "Max"))
        width = emit("Max", emit("Sub", high, low), emit.constant(np.float32(_TINY)))
        share = emit("Div", emit("Sub", mass, low), width)
        scaled = emit("Mul", share, emit.constant(np.float32(1 - self.smallest)))
        scaled = emit("Add", scaled, emit.constant(np.float32(self.smallest)))
        weights = emit("Div", scaled, emit.reduce("ReduceMean", scaled, [1], keep=True))
        return emit("Reshape", weights, emit.constant(np.array([-1])))


def _per_token(emit: Emitter, probabilities: ir.Value, tokens: ir.Value) -> ir.Value:
    """Column sums [batch, tokens]."""
    shape = emit("Shape", tokens)
    batch, count = (emit("Gather", shape, emit.constant(np.array([i]))) for i in (0, 1))
    keys = emit("Gather", emit("Shape", probabilities), emit.constant(np.array([-1])))
    columns = emit.reduce("ReduceSum", probabilities, [-2])
    by_head = emit("Concat", batch, emit.constant(np.array([-1])), keys, axis=0)
    mass = emit.reduce("ReduceSum", emit("Reshape", columns, by_head), [1])
    end, axis = (emit.constant(np.array([i])) for i in (_END, 1))
    return emit("Slice", mass, emit("Neg", count), end, axis)
