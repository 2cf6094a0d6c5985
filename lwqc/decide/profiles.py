"""Sizes of dynamic dimensions that engines are built for."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.compile.workspace import Workspace
from lwqc.errors import InputError
from lwqc.graph.shapes import dynamic_dimensions, named_sizes
from lwqc.plans.plan import Plan, Profile


def with_profile(work: Workspace, plan: Plan, asked: Mapping[str, Profile]) -> Plan:
    """The plan with least, usual and largest size of every dynamic dimension.

    Those that were not asked for are taken from the data: from 1 (0 where that was seen) to the
    largest, the first feed's in the middle. Raises InputError for a name that no input has.
    """
    if not work.target.profiles:
        return plan
    names = dynamic_dimensions(work.model.graph)
    for name in asked:
        if name not in names:
            known = ", ".join(names) or "none"
            raise InputError(f"profile {name}: the inputs' dynamic dimensions are {known}")
    seen = [
        named_sizes(work.model, {n: array.shape for n, array in feeds.items()})
        for feeds in work.search_batches
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
        if not name or len(numbers) != 3 or not all(n.isdecimal() for n in numbers):
            raise InputError(f"--profile {part!r}: expected name=least:usual:largest")
        least, usual, largest = map(int, numbers)
        if not least <= usual <= largest:
            raise InputError(f"--profile {part!r}: sizes must not fall")
        found[name] = (least, usual, largest)
    return found
