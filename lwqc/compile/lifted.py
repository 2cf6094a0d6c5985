"""The same work on the model in a newer operator set, which some formats need."""

from __future__ import annotations

from lwqc.compile.workspace import Workspace, worst_error
from lwqc.errors import InputError, SessionError
from lwqc.passes.raise_opset import raise_opset
from lwqc.runtime.stats.divergence import LossesMeter

_SAME = 1e-10  # squared error over the variance of a channel; rounding makes less


def lifted(work: Workspace) -> tuple[Workspace, tuple[str, ...]]:
    """The work in the operator set that its target's formats need, and what the user should know.

    The work itself where the model has that operator set, or cannot be converted exactly.
    """
    needed = work.target.opset
    if work.opset >= needed:
        return work, ()
    try:
        return raised(work, needed), (
            f"opset {work.opset} became {needed}, which formats of target {work.target.name} need",
        )
    except InputError as error:
        return work, (f"the model stays in opset {work.opset}: {error}",)


def raised(work: Workspace, version: int) -> Workspace:
    """The work on a copy in another operator set; made once.

    What the original computes stays the reference. Raises InputError where no converter can lift
    the model, or where what comes of it does not run or computes something else.
    """
    key = f"opset {version}"
    if key not in work.versions:
        model = work.model.clone()
        model.meta.update(work.model.meta)
        if reason := raise_opset(model, version):
            raise InputError(reason)
        made = work.derived(model, raised=version)
        if not work.skip_checks:
            _check(work, made)
        work.versions[key] = made
    return work.versions[key]


def _check(work: Workspace, made: Workspace) -> None:
    """Raises InputError unless both models compute the same on a few feeds."""
    try:
        before = work.load(work.model, label=work.name)
        after = made.load(made.model, label=f"in opset {made.raised}")
        runs = ((before(feeds), after(feeds)) for feeds in work.search_batches)
        found = LossesMeter().over(runs).result()
    except SessionError as failure:
        raise InputError(str(failure)) from failure
    error = worst_error(found)
    if not error <= _SAME:
        raise InputError(
            f"in opset {made.raised} its outputs would move by {error**0.5:.2g} of their size"
        )
