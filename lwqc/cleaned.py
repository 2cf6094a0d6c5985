"""The same work on a cleaned-up model."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.cleanup import Cleaned, clean_up
from lwqc.plan import CleanUp
from lwqc.workspace import Workspace


def cleaned(work: Workspace, wanted: CleanUp) -> Workspace:
    """The work on a cleaned-up copy; made once. What the original computes stays the reference."""
    return _version(work, wanted)[0]


def cleaning(work: Workspace, wanted: CleanUp) -> tuple[CleanUp, Mapping[str, str]]:
    """The entry of a plan with what changed, and what could not be rewritten with the reason."""
    done = _version(work, wanted)[1]
    return wanted.model_copy(update={"changes": done.changes, "relaxed": done.relaxed}), done.left


def _version(work: Workspace, wanted: CleanUp) -> tuple[Workspace, Cleaned]:
    key = f"{wanted.fuse} {wanted.merge} {wanted.copies} {' '.join(wanted.accept)}"
    if key not in work.cleaned:
        done = clean_up(
            work.model,
            fuse=wanted.fuse,
            merge=wanted.merge,
            copies=wanted.copies,
            accept=wanted.accept,
        )
        work.cleaned[key] = (work.derived(done.model), done)
    return work.cleaned[key]
