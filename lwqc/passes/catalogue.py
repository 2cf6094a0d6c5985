"""What there is to run by name, for people."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass

from lwqc.errors import InputError
from lwqc.model.user_code import package_of
from lwqc.passes.pipeline import PIPELINES
from lwqc.passes.planned import PLANNED
from lwqc.passes.registry import find, from_packages, names, options_of, running, unknown


@dataclass(frozen=True)
class Entry:
    """One name that a pipeline may hold.

    kind: heading. summary: one line. specification: what it matches, rewrites to and refuses, or
    the passes of a pipeline. options: `key: type = default` lines.
    """

    name: str
    kind: str
    summary: str
    specification: str
    options: tuple[str, ...] = ()

    def text(self) -> str:
        """All of it, for a terminal."""
        lines = [f"{self.name} ({self.kind})", "", self.specification]
        if self.options:
            lines += ["", "Options:", *(f"  {option}" for option in self.options)]
        return "\n".join(lines)


def catalogue() -> list[Entry]:
    """Everything that has a name: passes, pipelines, and what only a plan runs.

    A pass of another package that cannot be loaded is listed with the reason.
    """
    return [described(name) for name in [*names(), *PIPELINES, *PLANNED]]


def described(name: str) -> Entry:
    """One of them. Raises InputError for names that are not known."""
    if name in PIPELINES:
        text = PIPELINES[name]
        return Entry(name, "pipelines", text, text.replace(",", ",\n"))
    if name in PLANNED:
        reason = PLANNED[name]
        return Entry(name, "run by a step of a plan", reason, f"It {reason}.")
    if name not in names():
        raise unknown("pass", name, [*names(), *PIPELINES, *PLANNED])
    point = from_packages().get(name)
    kind = "passes" if point is None else f"passes of {package_of(point)}"
    try:
        step = find(name)
        with running(step):
            hints: Mapping[str, object] = typing.get_type_hints(step)
    except InputError as error:
        return Entry(name, kind, str(error), str(error))
    specification = inspect.getdoc(step) or "(no docstring)"
    options = tuple(
        f"{key}: {_type(hints[field.name])}{_default(field.default)}"
        for key, field in options_of(step).items()
    )
    return Entry(name, kind, specification.splitlines()[0], specification, options)


def _type(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _default(value: object) -> str:
    if value is MISSING:
        return ", must be given"
    return "" if value == () else f" = {str(value).lower() if isinstance(value, bool) else value}"
