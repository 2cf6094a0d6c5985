"""A graph that computes the same in fewer and faster operators, still in float."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from lwqc.graph.attention_core import find_attention
from lwqc.graph.shapes import MOST_NAMES, declared_shapes, dynamic_dimensions
from lwqc.passes.constant_reshape import ConstantReshape
from lwqc.passes.drop_nan_guards import DropNanGuards
from lwqc.passes.flat_transpose import FlatTranspose
from lwqc.passes.fold_constants import FoldConstants
from lwqc.passes.fuse_attention import OPSET, FuseAttention
from lwqc.passes.fuse_rms_norm import FuseRmsNorm, find_rms_norms
from lwqc.passes.fuse_rotary import FuseRotary
from lwqc.passes.global_pool import GlobalPool
from lwqc.passes.identity_gather import IdentityGather
from lwqc.passes.join_equal import JoinEqual
from lwqc.passes.late_broadcast import LateBroadcast
from lwqc.passes.merge_parallel import MergeParallel
from lwqc.passes.one_view import distinguish
from lwqc.passes.raise_opset import RaiseOpset
from lwqc.plans.plan import Relaxation

_MERGED = frozenset({"MatMul", "Gemm"})


@dataclass(frozen=True)
class Cleaned:
    """A cleaned copy, and what was done.

    changes: names of the passes that changed something, in order. relaxed: places at which the
    caller accepted another result, see `clean_up`. left: value -> why it could not be rewritten.
    same: of merged layers, value -> the one of the graph without them that computes the same.
    """

    model: ir.Model
    changes: tuple[str, ...]
    relaxed: tuple[str, ...]
    left: Mapping[str, str]
    same: Mapping[str, str] = field(default_factory=dict)


def clean_up(
    model: ir.Model,
    *,
    fuse: bool = True,
    merge: bool = True,
    copies: bool = True,
    accept: Collection[Relaxation] = (),
) -> Cleaned:
    """A copy of the model with fewer and faster operators; outputs agree to rounding.

    fuse: attention becomes one operator. merge: so do linear layers that read the same value.
    copies: weights that are read in two ways may be stored in both.
    accept: what is not exact for every input; check it on data. `nan-guards` drops repairs of NaN
        which fully masked rows need, `finite-masks` lowers hidden scores by 50, not infinity.
    """
    steps = _Steps(model.clone(), copies=copies)
    steps.simplify()
    if fuse:
        steps.fuse(finite_masks="finite-masks" in accept)
    guards = DropNanGuards(accept="nan-guards" in accept)
    steps.run("nan-guards", guards)
    steps.left |= guards.left
    steps.fold()
    TopologicalSortPass()(steps.model)
    distinguish(steps.model)  # folding names what it makes without a look at other bodies
    steps.relaxed += [f"nan-guards: {name}" for name in guards.accepted]
    done = steps.done()
    return merged_layers(done) if merge else done


def merged_layers(done: Cleaned) -> Cleaned:
    """A copy of what was cleaned up, in which linear layers that read the same value are one."""
    steps = _Steps(done.model.clone(), done)
    before = _values(done.model.graph)
    origin = dict(zip(_values(steps.model.graph), (v.name for v in before), strict=True))
    layers = {n for n in steps.model.graph if n.op_type in _MERGED}
    steps.run("merge-parallel", MergeParallel(layers))
    steps.fold()
    TopologicalSortPass()(steps.model)
    # A value that is still there is computed as before, or from what computes the same.
    after = [v for v in _values(steps.model.graph) if v in origin]
    same = {v.name: name for v in after if v.name and (name := origin[v])}
    return replace(steps.done(), same=same)


def _values(graph: ir.Graph) -> list[ir.Value]:
    """What is fed and computed in a graph, in order."""
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


class _Steps:
    """The passes that ran so far. changes: names of those that changed something, each once."""

    def __init__(
        self, model: ir.Model, before: Cleaned | None = None, *, copies: bool = True
    ) -> None:
        """before: what led to the model."""
        self.model = model
        self._copies = copies
        self.changes: dict[str, None] = dict.fromkeys(before.changes if before else ())
        self.left: dict[str, str] = dict(before.left if before else {})
        self.relaxed: list[str] = list(before.relaxed if before else ())
        self._folded = before is not None  # and nothing changed since

    def done(self) -> Cleaned:
        """The result so far."""
        return Cleaned(self.model, tuple(self.changes), tuple(self.relaxed), self.left)

    def run(self, name: str, step: ir.passes.InPlacePass) -> None:
        """One pass in place."""
        if step(self.model).modified:
            self.changes[name] = None
            self._folded = False

    def fold(self) -> None:
        """Fold constants, unless nothing changed since that was done: it takes longest of all."""
        if not self._folded:
            self.run("fold-constants", FoldConstants(copies=self._copies))
            self._folded = True

    def simplify(self) -> None:
        """Fewer nodes; masks and shapes computed once and no larger than needed."""
        TopologicalSortPass()(self.model)
        self.fold()
        self.run("global-pool", GlobalPool())
        if not self._sizes_are_told():
            return
        self.run("constant-reshape", ConstantReshape())
        self.run("flat-transpose", FlatTranspose())
        self.run("identity-gather", IdentityGather())
        self.run("late-broadcast", LateBroadcast())
        self.fold()
        self.run("join-equal", JoinEqual())

    def fuse(self, *, finite_masks: bool) -> None:
        """Attention as one operator, in an opset that has it."""
        if not self._sizes_are_told():
            return
        cores, refused = find_attention(self.model.graph, declared_shapes(self.model)[0])
        self.left |= {name: f"attention: {reason}" for name, reason in refused.items()}
        if not cores and not find_rms_norms(self.model.graph):
            return
        lift = RaiseOpset(OPSET)
        self.run("raise-opset", lift)
        self.run("fuse-rms-norm", FuseRmsNorm())
        self.run("fuse-rotary", FuseRotary())
        fusion = FuseAttention(finite_masks=finite_masks)
        self.run("fuse-attention", fusion)
        self.relaxed += [f"finite-masks: {name}" for name in fusion.softened]
        reasons = {n: lift.refused or reason for n, reason in fusion.left.items()}
        self.left |= {name: f"attention: {reason}" for name, reason in reasons.items()}

    def _sizes_are_told(self) -> bool:
        """Whether no two dynamic dimensions count as the same size."""
        graph = self.model.graph
        count = len(dynamic_dimensions(graph))
        if count > MOST_NAMES:
            inputs = ", ".join(v.name or "" for v in graph.inputs)
            self.left[inputs] = f"shapes: {count} dynamic dimensions, more than {MOST_NAMES}"
        return count <= MOST_NAMES
