"""Sizes of dynamic dimensions that engines are built for."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.shapes import dynamic_dimensions, named_sizes
from lwqc.model.numerals import whole
from lwqc.plans.plan import Plan, Profile


def with_profile(work: Version, plan: Plan, asked: Mapping[str, Profile]) -> Plan:
    """The plan with least, usual and largest size of every dynamic dimension.

    Those that were not asked for are taken from the data: from 1 (0 where that was seen) to the
    largest, the first feed's in the middle. Raises InputError for a name that no input has.
    """
    if not work.job.target.profiles:
        return plan
    names = dynamic_dimensions(work.model.graph)
    for name in asked:
        if name not in names:
            known = ", ".join(names) or "none"
            raise InputError(f"profile {name}: the inputs' dynamic dimensions are {known}")
    seen = [
        named_sizes(work.model, {n: array.shape for n, array in feeds.items()})
        for feeds in work.job.data.judge
    ]
    profile = {
        name: asked.get(name)
        or (min(1, *(s[name] for s in seen)), seen[0][name], max(s[name] for s in seen))
        for name in names
        if name in asked or all(name in s for s in seen)
    }
    return plan.model_copy(update={"profile": profile})


def parse_profile(text: str) -> dict[str, Profile]:
    """Sizes from `batch=1:8:64,seq=16:128:512`. Raises InputError."""
    found: dict[str, Profile] = {}
    for part in filter(None, text.split(",")):
        name, _, sizes = part.rpartition("=")
        numbers = sizes.split(":")
        try:
            least, usual, largest = map(whole, numbers)
        except ValueError as error:  # also where they are not three
            raise InputError(
                f"--profile {part[:80]!r}: expected name=least:usual:largest"
            ) from error
        if not name or not 0 <= least <= usual <= largest:
            raise InputError(f"--profile {part[:80]!r}: sizes must not be negative, nor fall")
        found[name] = (least, usual, largest)
    return found
