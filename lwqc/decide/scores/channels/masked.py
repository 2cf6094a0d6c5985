"""One session for every choice of channels that go: the weights that read them are its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from lwqc.compile.gated_model import keep_results
from lwqc.decide.scores.channels.final_error import promote
from lwqc.graph.groups import Group
from lwqc.graph.linear_operand import Operand
from lwqc.graph.readers import Reader
from lwqc.model.weights import ReadArray
from lwqc.runtime.stats.collector import Array, Feeds, Runner, RunnerFactory


class MaskedModel:
    """A model without some channels run by run: they are zero in the layers that read them."""

    def __init__(
        self,
        model: ir.Model,
        readers: Iterable[Reader],
        make_runner: RunnerFactory,
        read: ReadArray,
        *,
        every_output: bool = False,
    ) -> None:
        """readers: all layers that may read a channel that goes. every_output: see `GatedModel`."""
        self._readers, self._read = list(readers), read
        names = {r.operand.weight.name: f"{r.operand.weight.name}/masked" for r in self._readers}
        self._inputs = {
            names[r.operand.weight.name]: np.asarray(read(r.operand.weight.tensor))
            for r in self._readers
        }
        self._names = names
        masked = model.clone()
        if not every_output:
            keep_results(masked)
        promote(masked, names)
        self._run = make_runner(masked)

    def without(self, removed: Mapping[Group, Iterable[int]]) -> Runner:
        """The model without those channels of some groups."""
        changed = dict(self._inputs)
        for operand, readers in self._by_operand().items():
            matrix = np.array(operand.matrix(self._read))
            found = False
            for reader in readers:
                for group, indices in removed.items():
                    owners = reader.owners(group)
                    parts = matrix.reshape(len(owners), -1, matrix.shape[1])
                    gone = np.isin(owners, list(indices))
                    found = found or bool(gone.any())
                    parts *= ~gone[:, None, :]
            if found:
                changed[self._names[operand.weight.name]] = operand.stored(matrix).numpy()

        def run(feeds: Feeds, /) -> dict[str, Array]:
            return self._run({**feeds, **changed})

        return run

    def _by_operand(self) -> dict[Operand, list[Reader]]:
        found: dict[Operand, list[Reader]] = {}
        for reader in self._readers:
            found.setdefault(reader.operand, []).append(reader)
        return found
