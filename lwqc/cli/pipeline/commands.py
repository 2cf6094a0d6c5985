"""The commands that a step may run, with the options that they have on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import typer

from lwqc.cli.hosting import Host, OptionsAreSound, hosted
from lwqc.cli.pipeline.spelling import check_known
from lwqc.errors import InputError, LwqcError

LEFT_OUT = frozenset(
    {"run", "recipes", "inspect", "demo", "passes", "extensions"}
)  # they make nothing
# What the build says itself, what has no use in it, and what writes several models.
_GIVEN = frozenset(
    {"output", "original", "as_json", "debug", "details", "resume", "pareto", "help", "version"}
    | {"quiet", "verbose", "dry_run"}
)
_MODELS = ("model", "candidate", "original", "models")  # places of models on a command line
_USAGE: Any = typer.BadParameter.__bases__[0]  # typer brings click along, under one name or another


@dataclass(frozen=True)
class Command:
    """A command of lwqc. click: its parser."""

    name: str
    click: Any

    @property
    def options(self) -> dict[str, Any]:
        """What a step may say, by key: `max_size` for `--max-size`, `source` for an argument."""
        found = {}
        for parameter in self.click.params:
            if parameter.name not in _GIVEN and parameter.name not in _MODELS:
                found[_key(parameter)] = parameter
        return found

    @property
    def places(self) -> tuple[str, ...]:
        """Arguments that are models."""
        return tuple(p.name for p in self.click.params if p.name in _MODELS and not _is_option(p))

    @property
    def converts(self) -> bool:
        """Whether it makes the first model of a build out of something else."""
        return not self.places and self.has("source") and self.has("output")

    def has(self, name: str) -> bool:
        """Whether there is an option or argument of this name in Python."""
        return any(p.name == name for p in self.click.params)

    def arguments(
        self, options: Mapping[str, Any], models: Mapping[str, Sequence[str]], where: str
    ) -> list[str]:
        """The command line without the command. Raises InputError for a value of a wrong type.

        options: by key. models: paths by the name of their argument. where: starts the message.
        """
        known = self.options
        line: list[str] = []
        behind: list[str] = []
        for key, value in options.items():
            parameter = known[key]
            if _is_option(parameter):
                line += _written(parameter, value, f"{where}: {key}")
        for parameter in self.click.params:
            if not _is_option(parameter):
                own = options.get(_key(parameter))
                behind += models.get(parameter.name, [] if own is None else [str(own)])
        return [*behind, *line]

    def parsed(self, arguments: Sequence[str], where: str) -> Any:
        """The parsed command line. Raises InputError for what the command does not take."""
        try:
            return self.click.make_context(self.name, list(arguments))
        except _USAGE as error:
            raise InputError(f"{where}: {error.format_message()}") from error

    def check(self, arguments: Sequence[str], where: str) -> None:
        """Look at all options as the command itself does, and do nothing. Raises InputError."""
        with hosted(Host(check_only=True)):
            context = self.parsed(arguments, where)
            with named(where), suppress(OptionsAreSound), context:
                self.click.invoke(context)

    def call(self, arguments: Sequence[str], where: str) -> tuple[int, Any]:
        """Run it: the exit code, and what it found. Raises LwqcError with `where` in front."""
        with hosted(Host(line=[self.name, *arguments])) as host:
            context = self.parsed(arguments, where)
            try:
                with named(where), context:
                    self.click.invoke(context)
            except typer.Exit as end:
                return int(end.exit_code), host.answer
        return 0, host.answer


@contextmanager
def named(where: str) -> Iterator[None]:
    """Errors that arise inside say where; what kind they are, and so the exit code, stays."""
    try:
        yield
    except LwqcError as error:
        kind = InputError if isinstance(error, InputError) else type(error)
        raise kind(f"{where}: {error}") from error


def commands(app: typer.Typer) -> dict[str, Command]:
    """Every command that a step may run, by name."""
    group: Any = typer.main.get_command(app)
    found = {n: Command(n, c) for n, c in group.commands.items() if n not in LEFT_OUT}
    return {name: one for name, one in found.items() if one.places or one.converts}


def find_command(name: str, known: Mapping[str, Command], where: str) -> Command:
    """The command of that name. Raises InputError with the nearest one."""
    check_known(name, known, where, "command")
    return known[name]


def _is_option(parameter: Any) -> bool:
    return any(text.startswith("-") for text in parameter.opts)


def _key(parameter: Any) -> str:
    long = next((text for text in parameter.opts if text.startswith("--")), parameter.opts[0])
    return str(long).removeprefix("--").replace("-", "_")


def _written(parameter: Any, value: Any, where: str) -> list[str]:
    """One option as on a command line."""
    flag = _long(parameter.opts)
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{where}: is {value!r}; expected true or false")
        off = [_long(parameter.secondary_opts)] if parameter.secondary_opts else []
        return [flag] if value else off
    many = isinstance(value, list)
    if many and not parameter.multiple:
        raise InputError(f"{where}: is a list; expected one value")
    values = value if many else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (str, int, float)):
            raise InputError(f"{where}: is {one!r}; expected a text or a number")
    return [f"{flag}={one}" for one in values]


def _long(texts: Sequence[str]) -> str:
    return next(text for text in texts if text.startswith("--"))
