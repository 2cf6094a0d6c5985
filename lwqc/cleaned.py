"""The same work on a cleaned-up model."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.cleanup import clean_up
from lwqc.plan import CleanUp
from lwqc.workspace import Workspace


def cleaned(work: Workspace, wanted: CleanUp) -> Workspace:
    """The work on a cleaned-up copy; made once. What the original computes stays the reference."""
    return _version(work, wanted)[0]


def cleaning(work: Workspace, wanted: CleanUp) -> tuple[CleanUp, Mapping[str, str]]:
    """The entry of a plan with what changed, and what could not be rewritten with the reason."""
    _, changes, left = _version(work, wanted)
    return wanted.model_copy(update={"changes": changes}), left


def _version(
    work: Workspace, wanted: CleanUp
) -> tuple[Workspace, tuple[str, ...], Mapping[str, str]]:
    key = f"clean {wanted.fuse} {wanted.merge}"
    if key not in work.cleaned:
        found = clean_up(work.model, fuse=wanted.fuse, merge=wanted.merge)
        work.cleaned[key] = (work.derived(found.model), found.changes, found.left)
    return work.cleaned[key]
