"""The same work on the model in a newer operator set, which some formats need."""

from __future__ import annotations

from lwqc.compile.losses import worst_error
from lwqc.compile.version import Version
from lwqc.errors import InputError, SessionError
from lwqc.passes.raise_opset import raise_opset
from lwqc.runtime.stats.divergence import LossesMeter

_SAME = 1e-10  # squared error over the variance of a channel; rounding makes less


def lifted(work: Version) -> tuple[Version, tuple[str, ...]]:
    """The work in the operator set that its target's formats need, and what the user should know.

    The work itself where the model has that operator set, or cannot be converted exactly.
    """
    needed = work.job.target.opset
    if work.opset >= needed:
        return work, ()
    try:
        name = work.job.target.name
        note = f"opset {work.opset} became {needed}, which formats of target {name} need"
        return raised(work, needed), (note,)
    except InputError as error:
        return work, (f"the model stays in opset {work.opset}: {error}",)


def raised(work: Version, version: int) -> Version:
    """The work on a copy in another operator set; made once.

    What the original computes stays the reference. Raises InputError where no converter can lift
    the model, or where what comes of it does not run or computes something else.
    """
    return work.facts.get(("opset", version), lambda: _raised(work, version))


def _raised(work: Version, version: int) -> Version:
    model = work.model.clone()
    model.meta.update(work.model.meta)
    if reason := raise_opset(model, version):
        raise InputError(reason)
    made = work.derived(model, raised=version)
    if work.job.checked_whole:
        _check(work, made)
    return made


def _check(work: Version, made: Version) -> None:
    """Raises InputError unless both models compute the same on a few feeds."""
    try:
        before = work.job.load(work.model, label=work.name)
        after = made.job.load(made.model, label=f"in opset {made.raised}")
        runs = ((before(feeds), after(feeds)) for feeds in work.job.data.judge)
        found = LossesMeter().over(runs).result()
    except SessionError as failure:
        raise InputError(str(failure)) from failure
    error = worst_error(found)
    if not error <= _SAME:
        raise InputError(
            f"in opset {made.raised} its outputs would move by {error**0.5:.2g} of their size"
        )
