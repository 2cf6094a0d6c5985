"""Rotates residual streams: outliers spread over all channels, the outputs stay."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lwqc.graph.groups import Groups, find_groups
from lwqc.graph.rotatable import find_streams
from lwqc.graph.shapes import declared_shapes
from lwqc.model.edit import Rewrite
from lwqc.model.unused import RemoveUnused
from lwqc.passes.change_basis import change_basis, named_streams
from lwqc.quant.rotation import Rotation


class RotateStream(Rewrite):
    """Replace a residual stream x by xQ, Q a randomised Hadamard matrix.

    seeds: name of the stream's group -> seed of its rotation.
    Matches: streams that `graph.rotatable` finds.
    Rewrites to: the stream in the new coordinates, see `change_basis`.
    Refuses: with InputError and the reason, an unknown group or a stream that cannot be rotated.
    """

    def __init__(self, seeds: Mapping[str, int]) -> None:
        super().__init__()
        self._seeds = dict(seeds)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Analyse the model as it is (see `prepare_pruning`) and rewrite it."""
        if not self._seeds:
            return ir.passes.PassResult(model, False)
        groups = find_groups(model, declared_shapes(model)[0])
        rotate_streams(groups, self._seeds)
        RemoveUnused()(model)
        return ir.passes.PassResult(model, True)


def rotate_streams(groups: Groups, seeds: Mapping[str, int]) -> None:
    """Rotate streams of the model that the groups were found in, in place; see `RotateStream`."""
    streams = named_streams(find_streams(groups), seeds)
    rotations = zip(streams, seeds.values(), strict=True)
    change_basis(groups.analysis, {s: Rotation(s.group.size, seed) for s, seed in rotations})
