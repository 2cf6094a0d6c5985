"""Targets by name."""

from __future__ import annotations

from lwqc.backends.target import Target
from lwqc.errors import InputError
from lwqc.model import extensions


def make_target(name: str) -> Target:
    """The target of that name. Raises InputError for an unknown one."""
    known = extensions.TARGETS
    make = known.find(name)
    with known.running(name):
        made: Target = make()
    if name not in known.built_in and made.name != name:
        raise InputError(f"target {name}: calls itself {made.name}, which plans would not find")
    return made
