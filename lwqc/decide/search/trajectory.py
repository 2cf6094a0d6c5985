"""OPTIN's error of a level: what it changes in the features behind it, and at the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.search.search_model import SearchModel
from lwqc.decide.search.trial_model import PART, Array, TrialModel
from lwqc.decide.search.workers import Evaluate
from lwqc.graph.branch_kinds import branch_tree, feature_axis
from lwqc.model import io

Matrix = NDArray[np.float32]
_TOKENS = 768  # that are compared with each other
_LAST = 0.5  # what the last feature counts
_BALANCE = 10.0  # features count that many times as much as the outputs, to the power of ten


class Trajectory:
    """Candidates by the features of all residual sums and by the outputs (OPTIN, 2403.17921).

    The error is sum over the features of |R - R'|² + c · d: R are the cosines of all pairs of up to
    768 tokens, d is the divergence of the outputs that the search goes by (the paper: 16 · KL at a
    temperature of 4), and c, a power of ten, makes a tenth of the features' part of it. Features
    before what a candidate changes are the same and add nothing.
    """

    def __init__(self, found: SearchModel, score: Evaluate) -> None:
        """score: the divergence of the outputs."""
        self._score = score
        branches = branch_tree(found.prunable.model.graph).branches
        self._axes = {b.branch.output.name or "": feature_axis(b.branch) for b in branches}
        model = ir.from_proto(onnx.load_from_string(found.spec.model))
        taken = {output.name for output in model.graph.outputs}
        inner = {v.name: v for node in model.graph for v in node.outputs}
        self.features = [n for n in self._axes if n in inner]
        model.graph.outputs.extend(inner[n] for n in self.features if n not in taken)
        self._trial = TrialModel(dataclasses.replace(found.spec, model=io.to_bytes(model)))
        spec = found.spec
        self._batches = spec.batches[: spec.stages[PART]]
        self._known = [self._cosines(spec.top, feeds) for feeds in self._batches]

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Error of each candidate."""
        inside = np.array([self._distance(candidate) for candidate in candidates])
        outside = np.array(self._score(candidates, PART))
        if not inside.any() or not outside.any():
            return [float(x) for x in inside + outside]
        power = int(np.log10(inside.mean() / outside.mean()) - np.log10(_BALANCE))
        return [float(x) for x in inside + 10.0**power * outside]

    def _distance(self, candidate: Candidate) -> float:
        total = 0.0
        for feeds, known in zip(self._batches, self._known, strict=True):
            found = self._cosines(candidate, feeds)
            for name, cosines in found.items():
                part = float(np.square(cosines - known[name]).mean())
                total += part * (_LAST if name == self.features[-1] else 1.0)
        return total / len(self._batches)

    def _cosines(self, candidate: Candidate, feeds: Mapping[str, Array]) -> dict[str, Matrix]:
        found = self._trial.outputs(candidate, feeds)
        return {name: _cosines(found[name], self._axes[name]) for name in self.features}


def _cosines(feature: Array, axis: int) -> Matrix:
    """Of all pairs of tokens [tokens, tokens]; of many, a sample that is always the same."""
    rows = np.moveaxis(feature, axis, -1)
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float32)
    if len(rows) > _TOKENS:
        rows = rows[np.random.default_rng(0).choice(len(rows), _TOKENS, replace=False)]
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return np.asarray(units @ units.T)
