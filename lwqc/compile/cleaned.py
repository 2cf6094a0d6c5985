"""The same work on a cleaned-up model."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.compile.activation_facts import activation_ranges, tensor_shapes
from lwqc.compile.version import Version
from lwqc.graph.computed_filters import at_run_time
from lwqc.model.io import serialized_bytes
from lwqc.model.limits import beyond, limits
from lwqc.passes.cleanup import Cleaned, clean_up, merged_layers
from lwqc.plans.plan import CleanUp, Relaxation

_GROWTH = 1.02  # times the bytes of a file that are about as many
_SHAPES = 64  # numbers in what tells of sizes and axes, which other passes want to know


def cleanup_for(
    work: Version, *, merge: bool, copies: bool = True, accept: tuple[Relaxation, ...] = ()
) -> CleanUp:
    """What is asked of a clean-up for the target of the work, within the limits."""
    target = work.job.target
    return CleanUp(
        fuse=target.fuses,
        merge=merge,
        copies=copies,
        experts=target.groups_experts,
        folding=limits().folded_numbers,
        accept=accept,
    )


def cleaned(work: Version, wanted: CleanUp) -> Version:
    """The work on a cleaned-up copy; made once. What the original computes stays the reference.

    Raises LimitError where more is to be folded than may be.
    """
    if wanted.folding > limits().folded_numbers:
        raise beyond("the largest tensor to fold", "folding", 4 * wanted.folding)
    return _version(work, wanted)[0]


def cleaning(work: Version, wanted: CleanUp) -> tuple[CleanUp, Mapping[str, str]]:
    """The entry of a plan with what changed, and what could not be rewritten with the reason.

    Tables that are computed of few numbers stay so where they would make the file larger: the
    runtime computes them when it loads the model.
    """
    wanted = wanted.model_copy(update={"folding": _folding(work, wanted)})
    done = _version(work, wanted)[1]
    return wanted.model_copy(update={"changes": done.changes, "relaxed": done.relaxed}), done.left


def _folding(work: Version, wanted: CleanUp) -> int:
    """Numbers to fold at most: less where that keeps the file small, and leaves the same to run."""
    plain = wanted.model_copy(update={"merge": False})
    less = plain.model_copy(update={"folding": min(plain.folding, _SHAPES)})
    single = plain.model_copy(update={"copies": False})
    allowed = _GROWTH * serialized_bytes(work.model)
    if _bytes(work, plain) <= allowed or _bytes(work, single) <= allowed:
        return plain.folding
    ours, theirs = (at_run_time(_version(work, one)[0].model.graph) for one in (less, plain))
    smaller = _bytes(work, less) < _bytes(work, plain)
    return less.folding if ours == theirs and smaller else plain.folding


def _bytes(work: Version, wanted: CleanUp) -> int:
    return serialized_bytes(_version(work, wanted)[0].model)


def _version(work: Version, wanted: CleanUp) -> tuple[Version, Cleaned]:
    key = ("cleaned", wanted.model_copy(update={"changes": (), "relaxed": ()}).model_dump_json())
    make = _merged if wanted.merge else _plain
    return work.facts.get(key, lambda: make(work, wanted))


def _plain(work: Version, wanted: CleanUp) -> tuple[Version, Cleaned]:
    done = clean_up(
        work.model,
        fuse=wanted.fuse,
        merge=False,
        copies=wanted.copies,
        experts=wanted.experts,
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
