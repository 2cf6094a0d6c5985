"""Functions that take a section of options, with each option in the signature that readers see."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from lwqc.errors import InputError
from lwqc.model.extensions import expected
from lwqc.plans.bounds import Bound, Number, Share
from lwqc.plans.options import Flag
from lwqc.plans.output_bounds import spread

Section = TypeVar("Section")
Function = TypeVar("Function", bound=Callable[..., Any])


def part(section: type[Section], options: Mapping[str, object]) -> Section:
    """Those of the options that belong to a section, which is a TypedDict."""
    known = section.__annotations__
    return cast(Section, {name: value for name, value in options.items() if name in known})


def flag_of(annotation: Any) -> Flag | None:
    """How the command line takes an option; None where it does not."""
    return next((one for one in _said(annotation) if isinstance(one, Flag)), None)


def bounds_of(section: type) -> dict[str, Bound | Number]:
    """Options of a section that are bounds, and how they are written."""
    hints = get_type_hints(section, include_extras=True)
    return {
        name: one
        for name, hint in hints.items()
        for one in _said(hint)
        if isinstance(one, Bound | Number)
    }


def share_of(annotation: Any) -> Share | None:
    """How an option that may be in percent is read; None for others."""
    return next((one for one in _said(annotation) if isinstance(one, Share)), None)


def _said(annotation: Any) -> tuple[Any, ...]:
    """What an option says of itself beside its type."""
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def spelled_out(section: type) -> Callable[[Function], Function]:
    """For a function that takes `**options: Unpack[section]`: its signature names each option.

    It gets shares as numbers. Raises InputError for an option that it does not have.
    """
    shown = get_type_hints(section, include_extras=True)
    shares = {name: share for name, hint in shown.items() if (share := share_of(hint))}

    def spelled(function: Function) -> Function:
        own = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]

        @wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            known = [p.name for p in own] + list(shown)
            for name in options.keys() - set(known):
                raise InputError(
                    f"{name}: {function.__name__} has no such option; {expected(name, known[1:])}"
                )
            for name in options.keys() & shares.keys():
                if options[name] is not None:
                    options[name] = shares[name].read(options[name])
            return function(*args, **spread(options, options.get("max_drop")))

        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=hint)
            for name, hint in shown.items()
        ]
        checked.__dict__["__signature__"] = inspect.Signature([*own, *keywords])
        return cast(Function, checked)

    return spelled
