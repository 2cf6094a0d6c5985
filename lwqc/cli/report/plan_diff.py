"""How two plans differ, a line for each place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from lwqc.plans.plan import Plan, SiteEntry
from lwqc.plans.wording import channels_by_group, entry_text

_ABSENT = "absent"
_LONG = 60  # characters of a value that a line shows


def plan_diff(before: Plan, after: Plan) -> list[str]:
    """`place: before -> after` for every field, site, branch and group that differs."""
    old, new = dict(_places(before)), dict(_places(after))
    return [
        f"{place}: {_short(old.get(place, _ABSENT))} -> {_short(new.get(place, _ABSENT))}"
        for place in dict.fromkeys((*old, *new))
        if old.get(place) != new.get(place)
    ]


def _places(plan: Plan) -> Iterator[tuple[str, str]]:
    """Everything that a plan says, by place, as text."""
    for name in type(plan).model_fields:
        if name == "prune":
            yield from _pruning(plan)
        else:
            yield from _flat(name, getattr(plan, name))


def _pruning(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.prune is None:
        return
    for group, gone in channels_by_group(plan).items():
        yield f"prune {group}", f"{len(gone)} channels ({', '.join(map(str, gone))})"
    for name in type(plan.prune).model_fields:
        if name != "units":
            yield from _flat(f"prune {name}", getattr(plan.prune, name))


def _flat(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, SiteEntry):
        yield place, entry_text(value)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _flat(f"{place} {name}", getattr(value, name))
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flat(f"{place} {name}", part)
    elif isinstance(value, tuple) and any(isinstance(part, BaseModel) for part in value):
        for part in value:  # steps: the first field of each says what it is done to
            first = next(iter(type(part).model_fields))
            yield from _flat(f"{place} {getattr(part, first)}", part)
    elif isinstance(value, tuple):
        if value:
            yield place, ", ".join(map(str, value))
    elif value is not None:
        yield place, str(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."
