"""The commands and their options as a page, from what typer knows of them.

python -m lwqc.cli.reference > docs/commands.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_HEAD = """# Commands

Every command and option, as `lwqc COMMAND --help` prints them; this page is made of the code by
`python -m lwqc.cli.reference`. Shares may be in percent. The [guides](guides/detector.md) show what
to use when.
"""


def reference() -> str:
    """The page."""
    import typer

    from lwqc.cli import app

    root: Any = typer.main.get_command(app)
    parts = [_HEAD, "## lwqc\n", *_table(root.params)]
    for name, command in sorted(root.commands.items()):
        parts += [f"## lwqc {name}\n", f"{command.help}\n", *_table(command.params)]
    return "\n".join(parts).rstrip() + "\n"


def _table(params: list[Any]) -> Iterator[str]:
    rows = [_row(one) for one in params if not getattr(one, "hidden", False)]
    if rows:
        yield "| option | meaning | default |\n| --- | --- | --- |"
        yield "\n".join(rows) + "\n"


def _row(param: Any) -> str:
    if param.param_type_name == "argument":
        name = f"`{param.metavar or param.name.upper()}`"
    else:
        names = ", ".join(f"`{one}`" for one in sorted(param.opts, key=len, reverse=True))
        others = ", ".join(f"`{one}`" for one in param.secondary_opts)
        name = f"{names}, {others}" if others else names
    told = (getattr(param, "help", "") or "").replace("|", "\\|").replace("<", "\\<")
    return f"| {name} | {told} | {_default(param)} |"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    value = param.default
    if value is None or value is False or value in ("", ()):
        return ""
    if value is True:
        return f"`{max(param.opts, key=len)}`" if param.secondary_opts else ""
    return f"`{value}`"


if __name__ == "__main__":
    print(reference(), end="")
