"""Commands that take sections of options, which typer sees one by one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import wraps
from types import UnionType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from lwqc.cli.completion import VALUES, Values
from lwqc.cli.options import as_count_or_share, as_real, as_share, as_whole
from lwqc.cli.progress import progress_bars
from lwqc.cli.running import app
from lwqc.plans.bounds import CountOrShare, Share
from lwqc.plans.options import Flag
from lwqc.plans.output_bounds import spread
from lwqc.plans.spelled_out import flag_of, share_of

Command = Callable[..., None]


def command(
    section: type, name: str | None = None, *, works: bool = True
) -> Callable[[Command], Command]:
    """Register a function as a command, by its name if `name` is None.

    works: it takes a while, and a line tells how far it is from before its first import.

    It takes `**options: Unpack[section]`; those that are not given on the command line and have no
    default there are left out.
    """
    hints = get_type_hints(section, include_extras=True)
    flags = {one: flag for one, hint in hints.items() if (flag := flag_of(hint)) is not None}

    def registered(function: Command) -> Command:
        own = inspect.signature(function, eval_str=True).parameters.values()
        first = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]

        @wraps(function)
        def called(**given: Any) -> None:
            with progress_bars() if works else nullcontext():
                options = spread(_read(flags, given), given.get("max_drop"))
                function(**{p.name: given[p.name] for p in first}, **options)

        shown = [
            _parameter(
                flag.spelled or one,
                flag,
                share=share_of(hints[one]),
                values=VALUES.get(f"{name or function.__name__} {one}", VALUES.get(one)),
            )
            for one, flag in flags.items()
        ]
        ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in first]
        called.__dict__["__signature__"] = inspect.Signature([*ordered, *shown])
        app.command(name=name)(called)
        return called

    return registered


def _read(flags: Mapping[str, Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """What Python takes for the options that were given."""
    found = {}
    for name, flag in flags.items():
        value = given[flag.spelled or name]
        if flag.read is not None and value is not None:
            value = flag.read(value)
        if value is not None:
            found[name] = value
    return found


def _parameter(
    name: str, flag: Flag, *, share: Share | None, values: Values | None
) -> inspect.Parameter:
    """The option as typer takes it."""
    plain = next(iter(_kinds(flag.kind)))
    parsers: dict[Any, Callable[[Any], Any]] = {float: as_real, int: as_whole}
    option = typer.Option(
        *(flag.names or (f"--{name.replace('_', '-')}",)),
        help=flag.help,
        parser=parsers.get(plain) if share is None else _SHARES[type(share)],
        callback=flag.callback,
        autocompletion=values,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=flag.default,
        annotation=Annotated[flag.kind, option],
    )


_SHARES = {Share: as_share, CountOrShare: as_count_or_share}


def _kinds(kind: Any) -> Iterator[Any]:
    """The type of a value, without None."""
    parts = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return (one for one in parts if one is not type(None))
