"""What removing channels of one group costs at the model's outputs, measured.

The weights of the layers that read the group are inputs of one session, so a trial is one run: the
removed channels are zero and the others make up for them in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.linear_operand import Matrix, Operand
from lwqc.model.names import own_values, scopes
from lwqc.model.user_code import running
from lwqc.model.weights import ReadArray, stored_tensor
from lwqc.runtime.counted import counted
from lwqc.runtime.stats.collector import Array, Feeds, RunnerFactory
from lwqc.runtime.stats.divergence import LossesMeter

Replaced = Mapping[Operand, Matrix]
DAMP = 0.01  # of the mean of the Gram's diagonal
Loss = Callable[[Mapping[str, Array], Feeds], float]


class FinalError:
    """Error by channel of the worst output when some layers get other weights."""

    def __init__(
        self,
        model: ir.Model,
        operands: Iterable[Operand],
        data: Iterable[Feeds],
        make_runner: RunnerFactory,
        read: ReadArray,
    ) -> None:
        """Build the session and take the reference outputs. data: few batches, kept in memory."""
        self._names: dict[str, str] = {}
        self._base: dict[str, Array] = {}
        exposed = model.clone()
        for operand in operands:
            name = operand.weight.name
            if name not in self._names:
                self._names[name] = f"{name}/trial"
                self._base[f"{name}/trial"] = np.asarray(read(operand.weight.tensor))
        promote(exposed, self._names)
        self._run = make_runner(exposed)
        self._batches = list(counted(data, "the data that is kept"))
        runs = (self._run({**feeds, **self._base}) for feeds in self._batches)
        self._references = list(counted(runs, "outputs of the original", len(self._batches)))

    def __call__(self, replaced: Replaced) -> float:
        """Error with other matrices [out, features] in some layers."""
        trial = self._trial(replaced)
        known = zip(self._batches, self._references, strict=True)
        runs = ((reference, self._run({**feeds, **trial})) for feeds, reference in known)
        return max((d.error for d in LossesMeter().over(runs).result().values()), default=0.0)

    def loss(self, replaced: Replaced, loss: Loss) -> float:
        """Mean over the batches of a loss(outputs, feeds)."""
        trial = self._trial(replaced)
        found = []
        for feeds in self._batches:
            outputs = self._run({**feeds, **trial})
            with running("--loss: loss(outputs, feeds) failed"):
                found.append(float(loss(outputs, feeds)))
        return float(np.mean(found))

    def _trial(self, replaced: Replaced) -> dict[str, Array]:
        trial = dict(self._base)
        for operand, matrix in replaced.items():
            trial[self._names[operand.weight.name]] = operand.stored(matrix).numpy()
        return trial


def promote(model: ir.Model, names: Mapping[str, str]) -> None:
    """Turn stored tensors into inputs of the graph. names: stored tensor -> input."""
    graph = model.graph
    stored = {v.name: v for _, scope in scopes(graph) for v in own_values(scope)}
    for name, trial in names.items():
        value = stored[name]
        promoted = ir.Value(name=trial, type=value.type, shape=value.shape)
        tensor = stored_tensor(value)
        if promoted.type is None and tensor is not None:
            promoted.type = ir.TensorType(tensor.dtype)
        graph.inputs.append(promoted)
        value.replace_all_uses_with(promoted, replace_graph_outputs=True)


def without(
    weight: Matrix,
    gram: NDArray[np.float64],
    owners: NDArray[np.intp],
    removed: Sequence[int],
    damp: float = DAMP,
) -> Matrix:
    """The weight [out, features] with removed channels at zero and the best others.

    gram [groups, features, features] of its input; owners [groups, features].
    """
    from scipy.linalg import solve

    parts = weight.reshape(len(gram), -1, weight.shape[1]).copy()
    for part, matrix, owner in zip(parts, gram, owners, strict=True):
        gone = np.isin(owner, np.asarray(removed))
        keep = ~gone
        if not gone.any() or not keep.any():
            part[:, gone] = 0
            continue
        kept = matrix[np.ix_(keep, keep)].copy()
        kept.flat[:: len(kept) + 1] += max(damp * float(np.trace(kept)) / len(kept), 1e-12)
        cross = matrix[np.ix_(gone, keep)]
        part[:, keep] += part[:, gone] @ solve(kept, cross.T, assume_a="pos").T
        part[:, gone] = 0
    return parts.reshape(weight.shape)
