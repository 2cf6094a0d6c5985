"""The same work on a cleaned-up model."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.compile.workspace import Workspace
from lwqc.passes.cleanup import Cleaned, clean_up, merged_layers
from lwqc.plans.plan import CleanUp


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
        if wanted.merge:  # starts from the same without, which is often there already
            plain, base = _version(work, wanted.model_copy(update={"merge": False}))
            done = merged_layers(base)
            made = work.derived(done.model)
            measured = plain.ranges.items()
            now = {old: name for name, old in done.same.items()}
            made.ranges |= {(m, now[old]): r for (m, old), r in measured if old in now}
            for label, shapes in plain.tensor_shapes.items():
                made.tensor_shapes[label] = {now[n]: s for n, s in shapes.items() if n in now}
        else:
            done = clean_up(
                work.model,
                fuse=wanted.fuse,
                merge=False,
                copies=wanted.copies,
                accept=wanted.accept,
                whole=work.known.names if work.known is not None else (),
            )
            made = work.derived(done.model)
        work.cleaned[key] = (made, done)
    return work.cleaned[key]
