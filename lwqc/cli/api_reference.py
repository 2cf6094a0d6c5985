"""What `import lwqc` offers as a page, from signatures and docstrings.

python -m lwqc.cli.api_reference > docs/api.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, get_origin

from lwqc.plans.spelled_out import flag_of

_HEAD = """# Python API

What `import lwqc` offers; this page is made of the code by `python -m lwqc.cli.api_reference`.
Options mean what those of the commands do. Every error is a `lwqc.LwqcError` of one line.
"""
_LONGEST = 48  # characters of a default that are shown


def api_reference(public: ModuleType) -> str:
    """The page of a package whose `__all__` is what it offers."""
    found = {name: getattr(public, name) for name in public.__all__}
    functions = {n: f for n, f in found.items() if inspect.isfunction(f)}
    parts = [_HEAD, "## Functions\n"]
    for name, function in functions.items():
        parts += _of_function(f"lwqc.{name}", function)
    parts.append("## Classes\n")
    for name, cls in found.items():
        if name not in functions:
            parts += _of_class(name, cls)
    return "\n".join(parts).rstrip() + "\n"


def _of_function(name: str, function: Any) -> Iterator[str]:
    parameters = inspect.signature(function).parameters.values()
    yield f"### {name}\n"
    shown = list(_written(parameters))
    if any(one.default is ... for one in parameters):
        shown.append("**options")
    yield f"```python\n{name}({', '.join(shown)})\n```\n"
    yield f"{_text(function)}\n"
    rows = list(_options(function))
    if rows:
        yield "| option | meaning |\n| --- | --- |"
        yield "\n".join(rows) + "\n"


def _written(parameters: Any) -> Iterator[str]:
    """Parameters as a call writes them; options without a default of their own are in the table."""
    starred = False
    for one in (p for p in parameters if p.default is not ...):
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        mark = "*" if one.kind is inspect.Parameter.VAR_POSITIONAL else ""
        starred = starred or bool(mark)
        default = "" if one.default is inspect.Parameter.empty else f"={_short(one.default)}"
        yield f"{mark}{one.name}{default}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST and " at 0x" not in text else "..."


def _options(function: Any) -> Iterator[str]:
    for one in inspect.signature(function).parameters.values():
        hint = one.annotation
        flag = flag_of(hint) if get_origin(hint) is Annotated else None
        if flag is not None:
            told = flag.help.replace("|", "\\|").replace("<", "\\<")
            yield f"| `{one.name}` | {told} |"


def _of_class(name: str, cls: Any) -> Iterator[str]:
    yield f"### lwqc.{name}\n"
    yield f"{_text(cls)}\n"
    for member, value in vars(cls).items():
        if member.startswith("_"):
            continue
        if inspect.isfunction(value):
            arguments = list(_written(list(inspect.signature(value).parameters.values())[1:]))
            yield f"- `{member}({', '.join(arguments)})`: {_first(value)}"
        elif isinstance(value, property):
            yield f"- `{member}`: {_first(value)}"
    yield ""


def _text(what: Any) -> str:
    """A docstring as markdown: what is indented in it is no code."""
    lines = (inspect.getdoc(what) or "").splitlines()
    return "\n".join(line.strip() for line in lines).replace("<", "\\<")


def _first(what: Any) -> str:
    return (inspect.getdoc(what) or "").partition("\n")[0].replace("<", "\\<")


if __name__ == "__main__":
    print(api_reference(import_module("lwqc")), end="")
