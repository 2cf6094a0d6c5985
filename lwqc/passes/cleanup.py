"""A graph that computes the same in fewer and faster operators, still in float."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from lwqc.passes.context import Context
from lwqc.passes.drop_nan_guards import DropNanGuards
from lwqc.passes.fold_affine import FoldAffine
from lwqc.passes.fold_constants import FOLDING, FoldConstants
from lwqc.passes.fuse_attention import FuseAttention
from lwqc.passes.grouped_experts import GroupedExperts
from lwqc.passes.one_hot_gather import OneHotGather
from lwqc.passes.pipeline import Pipeline
from lwqc.plans.plan import Relaxation


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


def clean_pipeline(
    *,
    fuse: bool = True,
    copies: bool = True,
    experts: bool = True,
    folding: int = FOLDING,
    accept: Collection[Relaxation] = (),
    whole: Collection[str] = (),
) -> Pipeline:
    """The passes of `clean_up`, before linear layers are merged."""
    text = "clean" if fuse else "simplify,grouped-experts,nan-guards,fold-constants"
    return Pipeline.parse(text).bound(
        {
            "fold-affine": FoldAffine(whole=tuple(whole)),
            "fold-constants": FoldConstants(folding, copies=copies, whole=tuple(whole)),
            "fuse-attention": FuseAttention(finite_masks="finite-masks" in accept),
            "nan-guards": DropNanGuards(accept="nan-guards" in accept),
            "grouped-experts": GroupedExperts(whole=tuple(whole)) if experts else None,
            "one-hot-gather": OneHotGather(whole=tuple(whole)),
        }
    )


def merge_pipeline(folding: int = FOLDING) -> Pipeline:
    """The passes that make one of linear layers that read the same value."""
    return Pipeline.parse("merge").bound({"fold-constants": FoldConstants(folding)})


def clean_up(
    model: ir.Model,
    *,
    fuse: bool = True,
    merge: bool = True,
    copies: bool = True,
    experts: bool = True,
    folding: int = FOLDING,
    accept: Collection[Relaxation] = (),
    whole: Collection[str] = (),
) -> Cleaned:
    """A copy of the model with fewer and faster operators; outputs agree to rounding.

    fuse: attention becomes one operator. merge: so do linear layers that read the same value.
    copies: weights that are read in two ways may be stored in both. experts: each expert of a
    mixture gets a weight of its own.
    folding: numbers in the largest tensor that is computed beforehand.
    whole: names of stored weights that stay as they are, see `FoldConstants`.
    accept: what is not exact for every input; check it on data. `nan-guards` drops repairs of NaN
        which fully masked rows need, `finite-masks` lowers hidden scores by 50, not infinity.
    """
    copy = model.clone()
    copy.graph.sort()
    ctx = Context(copy)
    passes = clean_pipeline(
        fuse=fuse, copies=copies, experts=experts, folding=folding, accept=accept, whole=whole
    )
    changes = passes.run(copy, ctx)
    left = {refusal.name: refusal.reason for refusal in ctx.refused.values()}
    done = Cleaned(copy, changes, tuple(ctx.relaxed), left)
    return _merged(done, copy, folding) if merge else done


def merged_layers(done: Cleaned, folding: int = FOLDING) -> Cleaned:
    """A copy of what was cleaned up, in which linear layers that read the same value are one."""
    return _merged(done, done.model.clone(), folding)


def _merged(done: Cleaned, model: ir.Model, folding: int) -> Cleaned:
    """The same in place. model: what was cleaned up, or a clone of it."""
    origin = {value: value.name for value in _values(model.graph)}
    changes = merge_pipeline(folding).run(model, settled=[FoldConstants(folding)])
    # A value that is still there is computed as before, or from what computes the same.
    after = [v for v in _values(model.graph) if v in origin]
    same = {v.name: name for v in after if v.name and (name := origin[v])}
    return replace(
        done, model=model, changes=tuple(dict.fromkeys((*done.changes, *changes))), same=same
    )


def _values(graph: ir.Graph) -> list[ir.Value]:
    """What is fed and computed in a graph, in order."""
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
