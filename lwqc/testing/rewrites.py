"""Assertions about one pass on one model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.passes.base import apply, name_of
from lwqc.passes.context import Context
from lwqc.passes.instruments import UNREPORTED
from lwqc.passes.snapshot import Snapshot
from lwqc.passes.soundness import faults
from lwqc.testing.outputs import TOLERANCE, Feeds, assert_same_outputs
from lwqc.testing.text import AnyModel, as_model, to_text


@dataclass(frozen=True)
class Applied:
    """What a pass did. changes: places. refused: place -> reason. relaxed: `kind: place`."""

    model: ir.Model
    changes: int
    refused: Mapping[str, str]
    relaxed: tuple[str, ...]


def applied(step: ir.passes.PassBase, model: AnyModel) -> Applied:
    """Run a pass on a copy of a model, as a pipeline does.

    Raises AssertionError for a pass that changes the graph and reports no change.
    """
    copy = as_model(model)
    copy = copy.clone() if copy is model else copy
    ctx, before = Context(copy), Snapshot(copy)
    changes = apply(step, ctx)
    assert changes or not before.differs(copy), f"{name_of(step)} {UNREPORTED}"
    refused = {refusal.name: refusal.reason for refusal in ctx.refused.values()}
    return Applied(copy, changes, refused, tuple(ctx.relaxed))


def assert_rewrites(
    step: ir.passes.PassBase,
    before: AnyModel,
    after: AnyModel,
    *,
    feeds: Feeds | Iterable[Feeds] | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Assert that a pass makes one graph of another, and does it well.

    That is: the result is the graph `after`, but for names of values inside and the order of nodes;
    it is valid; a second run changes nothing; the outputs are the same, if the pass is `exact`.

    feeds: what the outputs are compared on; made up by default. tolerance: of an output's largest
    number. Raises AssertionError that shows the difference.
    """
    source = as_model(before)
    wanted = as_model(after)
    done = applied(step, source)
    assert done.changes, f"{name_of(step)} changed nothing in\n{to_text(source)}"
    _assert_equal(to_text(done.model), to_text(wanted))
    new = [fault for fault in faults(done.model) if fault not in faults(source)]
    assert not new, f"{name_of(step)} made an invalid model: {new[0]}"
    again = applied(step, done.model)
    assert not again.changes, f"{name_of(step)} changed its own result:\n{to_text(again.model)}"
    if getattr(step, "exact", False):
        assert_same_outputs(source, done.model, feeds, tolerance=tolerance)


def assert_untouched(step: ir.passes.PassBase, model: AnyModel, reason: str | None = None) -> None:
    """Assert that a pass leaves a model as it is.

    reason: one that the pass must give, in full; None or "" where it need not tell. Raises
    AssertionError.
    """
    source = as_model(model)
    done = applied(step, source)
    assert not done.changes, f"{name_of(step)} reported {done.changes} changes"
    _assert_equal(to_text(done.model), to_text(source))
    if reason:
        told = list(done.refused.values())
        assert reason in told, f"{name_of(step)} gave {told or 'no reason'}, expected {reason!r}"


def _assert_equal(found: str, wanted: str) -> None:
    if found != wanted:
        lines = difflib.unified_diff(
            wanted.splitlines(), found.splitlines(), "expected", "found", lineterm="", n=100
        )
        raise AssertionError("another graph:\n" + "\n".join(lines))
