"""What a pass is: a named rewrite with options, and what runs one on a model."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lwqc.model.unused import RemoveUnused
from lwqc.passes.context import Context


@dataclass(frozen=True)
class Pass(ir.passes.InPlacePass):
    """A rewrite of one model in place; its options are the fields of a frozen dataclass.

    A subclass writes `rewrite`, and a docstring that says what it matches, what it rewrites to and
    what it refuses. What nothing reads any more goes afterwards, and nodes are sorted, without the
    pass doing anything for it.

    name: as pipelines write it, by default that of the class in kebab case. exact: outputs stay but
    for rounding. planned: a step of a plan brings it, no text does. needs_sizes: it does not run
    where dynamic dimensions cannot be told from each other. keeps_sizes: `ctx.shapes` holds for
    what it leaves; values that it adds have names of their own, or take the place of another.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    planned: ClassVar[bool] = False
    needs_sizes: ClassVar[bool] = False
    keeps_sizes: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Name the pass after its class."""
        if "name" not in cls.__dict__:
            cls.name = kebab(cls.__name__)

    @abstractmethod
    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite what matches; returns how many places changed.

        ctx: facts about the model (`shapes`, `integers`, `sites`), which hold until this returns,
        and where to say what was left alone (`refuse`).
        """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """The pass alone, outside any pipeline."""
        return ir.passes.PassResult(model, apply(self, Context(model)) > 0)


def kebab(name: str) -> str:
    """`fuse-attention` of `FuseAttention` or `fuse_attention`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).replace("_", "-").lower()


def name_of(step: ir.passes.PassBase) -> str:
    """The name of any pass of onnx_ir: what it says itself, else that of its class."""
    named: object = getattr(step, "name", None)
    return named if isinstance(named, str) else kebab(type(step).__name__.removesuffix("Pass"))


def apply(step: ir.passes.PassBase, ctx: Context) -> int:
    """Run one pass on the context's model and tidy up behind it; returns how many places changed.

    Takes any pass of onnx_ir. The result of one that returns a new model moves into this one.
    """
    ctx.step = name_of(step)
    if isinstance(step, Pass):
        changes = _rewritten(step, ctx)
    else:
        result = step(ctx.model)
        changes = int(result.modified)
        if result.model is not ctx.model and changes:
            adopt(ctx.model, result.model)
    if changes:
        RemoveUnused()(ctx.model)
        ctx.model.graph.sort()
        ctx.changed(keeps_sizes=isinstance(step, Pass) and step.keeps_sizes)
    return changes


def _rewritten(step: Pass, ctx: Context) -> int:
    if step.needs_sizes and (reason := ctx.untold_sizes()):
        ctx.refuse(", ".join(v.name or "" for v in ctx.model.graph.inputs), reason)
        return 0
    ctx.claim_names()
    return step.rewrite(ctx.model, ctx)


def adopt(model: ir.Model, other: ir.Model) -> None:
    """Let a model hold what another one does."""
    model.graph = other.graph
    model.functions.clear()
    model.functions.update(other.functions)
    model.ir_version = other.ir_version
    _replace(model.metadata_props, other.metadata_props)


def _replace(mine: dict[str, str], theirs: Mapping[str, str]) -> None:
    kept = dict(theirs)
    mine.clear()
    mine.update(kept)
