"""The same work on a cleaned-up model."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.compile.workspace import Workspace
from lwqc.model.limits import beyond, limits
from lwqc.passes.cleanup import Cleaned, clean_up, merged_layers
from lwqc.plans.plan import CleanUp, Relaxation


def cleanup_for(
    work: Workspace, *, merge: bool, copies: bool = True, accept: tuple[Relaxation, ...] = ()
) -> CleanUp:
    """What is asked of a clean-up for the target of the work, within the limits."""
    folding = limits().folded_numbers
    return CleanUp(
        fuse=work.target.fuses, merge=merge, copies=copies, folding=folding, accept=accept
    )


def cleaned(work: Workspace, wanted: CleanUp) -> Workspace:
    """The work on a cleaned-up copy; made once. What the original computes stays the reference.

    Raises LimitError where more is to be folded than may be.
    """
    if wanted.folding > limits().folded_numbers:
        raise beyond("the largest tensor to fold", "folding", 4 * wanted.folding)
    return _version(work, wanted)[0]


def cleaning(work: Workspace, wanted: CleanUp) -> tuple[CleanUp, Mapping[str, str]]:
    """The entry of a plan with what changed, and what could not be rewritten with the reason."""
    done = _version(work, wanted)[1]
    return wanted.model_copy(update={"changes": done.changes, "relaxed": done.relaxed}), done.left


def _version(work: Workspace, wanted: CleanUp) -> tuple[Workspace, Cleaned]:
    key = f"{wanted.fuse} {wanted.merge} {wanted.copies} {wanted.folding} {wanted.accept}"
    if key not in work.cleaned:
        if wanted.merge:  # starts from the same without, which is often there already
            plain, base = _version(work, wanted.model_copy(update={"merge": False}))
            done = merged_layers(base, wanted.folding)
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
                folding=wanted.folding,
                accept=wanted.accept,
                whole=work.known.names if work.known is not None else (),
            )
            made = work.derived(done.model)
        work.cleaned[key] = (made, done)
    return work.cleaned[key]
