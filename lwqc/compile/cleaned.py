"""The same work on a cleaned-up model."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.compile.activation_facts import activation_ranges, tensor_shapes
from lwqc.compile.version import Version
from lwqc.model.limits import beyond, limits
from lwqc.passes.cleanup import Cleaned, clean_up, merged_layers
from lwqc.plans.plan import CleanUp, Relaxation


def cleanup_for(
    work: Version, *, merge: bool, copies: bool = True, accept: tuple[Relaxation, ...] = ()
) -> CleanUp:
    """What is asked of a clean-up for the target of the work, within the limits."""
    folding = limits().folded_numbers
    return CleanUp(
        fuse=work.job.target.fuses, merge=merge, copies=copies, folding=folding, accept=accept
    )


def cleaned(work: Version, wanted: CleanUp) -> Version:
    """The work on a cleaned-up copy; made once. What the original computes stays the reference.

    Raises LimitError where more is to be folded than may be.
    """
    if wanted.folding > limits().folded_numbers:
        raise beyond("the largest tensor to fold", "folding", 4 * wanted.folding)
    return _version(work, wanted)[0]


def cleaning(work: Version, wanted: CleanUp) -> tuple[CleanUp, Mapping[str, str]]:
    """The entry of a plan with what changed, and what could not be rewritten with the reason."""
    done = _version(work, wanted)[1]
    return wanted.model_copy(update={"changes": done.changes, "relaxed": done.relaxed}), done.left


def _version(work: Version, wanted: CleanUp) -> tuple[Version, Cleaned]:
    key = ("cleaned", wanted.fuse, wanted.merge, wanted.copies, wanted.folding, wanted.accept)
    make = _merged if wanted.merge else _plain
    return work.facts.get(key, lambda: make(work, wanted))


def _plain(work: Version, wanted: CleanUp) -> tuple[Version, Cleaned]:
    done = clean_up(
        work.model,
        fuse=wanted.fuse,
        merge=False,
        copies=wanted.copies,
        folding=wanted.folding,
        accept=wanted.accept,
        whole=work.known.names if work.known is not None else (),
    )
    return work.derived(done.model), done


def _merged(work: Version, wanted: CleanUp) -> tuple[Version, Cleaned]:
    """Starts from the same without merging, which is often there already, and from its facts."""
    plain, base = _version(work, wanted.model_copy(update={"merge": False}))
    done = merged_layers(base, wanted.folding)
    made = work.derived(done.model)
    now = {old: name for name, old in done.same.items()}
    measured = activation_ranges(plain).items()
    activation_ranges(made).update({(m, now[old]): r for (m, old), r in measured if old in now})
    for label, shapes in tensor_shapes(plain).items():
        tensor_shapes(made)[label] = {now[n]: s for n, s in shapes.items() if n in now}
    return made, done
