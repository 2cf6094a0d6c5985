"""The same work on a cleaned-up model."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.compile.activation_facts import activation_ranges, tensor_shapes
from lwqc.compile.version import Version
from lwqc.passes.cleanup import Cleaned, clean_up, merged_layers
from lwqc.plans.plan import CleanUp


def cleaned(work: Version, wanted: CleanUp) -> Version:
    """The work on a cleaned-up copy; made once. What the original computes stays the reference."""
    return _version(work, wanted)[0]


def cleaning(work: Version, wanted: CleanUp) -> tuple[CleanUp, Mapping[str, str]]:
    """The entry of a plan with what changed, and what could not be rewritten with the reason."""
    done = _version(work, wanted)[1]
    return wanted.model_copy(update={"changes": done.changes, "relaxed": done.relaxed}), done.left


def _version(work: Version, wanted: CleanUp) -> tuple[Version, Cleaned]:
    key = ("cleaned", wanted.fuse, wanted.merge, wanted.copies, wanted.accept)
    make = _merged if wanted.merge else _plain
    return work.facts.get(key, lambda: make(work, wanted))


def _plain(work: Version, wanted: CleanUp) -> tuple[Version, Cleaned]:
    done = clean_up(
        work.model,
        fuse=wanted.fuse,
        merge=False,
        copies=wanted.copies,
        accept=wanted.accept,
        whole=work.known.names if work.known is not None else (),
    )
    return work.derived(done.model), done


def _merged(work: Version, wanted: CleanUp) -> tuple[Version, Cleaned]:
    """Starts from the same without merging, which is often there already, and from its facts."""
    plain, base = _version(work, wanted.model_copy(update={"merge": False}))
    done = merged_layers(base)
    made = work.derived(done.model)
    now = {old: name for name, old in done.same.items()}
    measured = activation_ranges(plain).items()
    activation_ranges(made).update({(m, now[old]): r for (m, old), r in measured if old in now})
    for label, shapes in tensor_shapes(plain).items():
        tensor_shapes(made)[label] = {now[n]: s for n, s in shapes.items() if n in now}
    return made, done
