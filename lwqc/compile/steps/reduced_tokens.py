"""The step that goes on with fewer tokens behind some layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from lwqc.compile.steps.step import Made, Step
from lwqc.compile.version import Version
from lwqc.model.names import gather_names
from lwqc.model.unused import RemoveUnused
from lwqc.passes.reduce_tokens import reduce_tokens
from lwqc.plans.plan import Plan, ReducedTokens
from lwqc.plans.wording import amount_text, names_text


def reduced_planned(model: ir.Model, tokens: Sequence[ReducedTokens]) -> ir.Model:
    """A copy with fewer tokens behind the branches named, from layer to layer. Raises InputError.

    See `reduce_tokens`.
    """
    copy = model.clone()
    gather_names(copy)
    for entry in tokens:
        reduce_tokens(copy, entry.branch, entry.keep, entry.importance, merge=entry.merge)
    RemoveUnused()(copy)
    return copy


def reduced(version: Version, tokens: Sequence[ReducedTokens]) -> Version:
    """The version with fewer tokens; made once."""
    entries = tuple(tokens)
    return version.once("tokens", entries, lambda: reduced_planned(version.model, entries))


def _run(made: Made) -> Made:
    return made.on(reduced(made.version, made.plan.tokens))


def _text(plan: Plan) -> Iterator[str]:
    cuts = (f"{e.keep}{f' of {e.of}' if e.of else ''} behind {e.branch}" for e in plan.tokens)
    merged = " (the last is the mean of those that go)" if any(e.merge for e in plan.tokens) else ""
    yield f"tokens that stay{merged}: {names_text(cuts)}"


STEP = Step(
    "tokens",
    _run,
    _text,
    short=lambda plan: amount_text(len(plan.tokens), "times fewer tokens"),
)
