"""Assertions about one pass on one model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.passes.base import apply, name_of
from lwqc.passes.context import Context
from lwqc.passes.instruments import UNREPORTED
from lwqc.passes.snapshot import Snapshot
from lwqc.passes.soundness import faults
from lwqc.testing.outputs import TOLERANCE, assert_same_outputs
from lwqc.testing.text import model_of, to_text

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Applied:
    """What a pass did. changes: places. refused: place -> reason. relaxed: `kind: place`."""

    model: ir.Model
    changes: int
    refused: Mapping[str, str]
    relaxed: tuple[str, ...]


def applied(step: ir.passes.PassBase, model: ir.Model | str) -> Applied:
    """Run a pass on a copy of a model, as a pipeline does.

    Raises AssertionError for a pass that changes the graph and reports no change.
    """
    copy = model_of(model) if isinstance(model, str) else model.clone()
    ctx, before = Context(copy), Snapshot(copy)
    changes = apply(step, ctx)
    assert changes or not before.differs(copy), f"{name_of(step)} {UNREPORTED}"
    refused = {refusal.what: refusal.reason for refusal in ctx.refused.values()}
    return Applied(copy, changes, refused, tuple(ctx.relaxed))


def assert_rewrites(
    step: ir.passes.PassBase,
    before: ir.Model | str,
    after: ir.Model | str,
    *,
    feeds: Feeds | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Assert that a pass makes one graph of another, and does it well.

    That is: the result is the graph `after`, but for names of values inside and the order of nodes;
    it is valid; a second run changes nothing; the outputs are the same, if the pass is `exact`.

    feeds: what the outputs are compared on; made up by default. tolerance: of an output's largest
    number. Raises AssertionError that shows the difference.
    """
    source = model_of(before) if isinstance(before, str) else before
    wanted = model_of(after) if isinstance(after, str) else after
    done = applied(step, source)
    assert done.changes, f"{name_of(step)} changed nothing in\n{to_text(source)}"
    _assert_equal(to_text(done.model), to_text(wanted))
    new = [fault for fault in faults(done.model) if fault not in faults(source)]
    assert not new, f"{name_of(step)} made an invalid model: {new[0]}"
    again = applied(step, done.model)
    assert not again.changes, f"{name_of(step)} changed its own result:\n{to_text(again.model)}"
    if getattr(step, "exact", False):
        assert_same_outputs(source, done.model, feeds, tolerance=tolerance)


def assert_untouched(
    step: ir.passes.PassBase, model: ir.Model | str, reason: str | None = None
) -> None:
    """Assert that a pass leaves a model as it is.

    reason: one that the pass must give, in full; None where it need not tell. Raises
    AssertionError.
    """
    source = model_of(model) if isinstance(model, str) else model
    done = applied(step, source)
    assert not done.changes, f"{name_of(step)} reported {done.changes} changes"
    _assert_equal(to_text(done.model), to_text(source))
    if reason is not None:
        told = list(done.refused.values())
        assert reason in told, f"{name_of(step)} gave {told or 'no reason'}, expected {reason!r}"


def _assert_equal(found: str, wanted: str) -> None:
    if found != wanted:
        lines = difflib.unified_diff(
            wanted.splitlines(), found.splitlines(), "expected", "found", lineterm="", n=100
        )
        raise AssertionError("another graph:\n" + "\n".join(lines))
