"""A page as HTML: one file with its style and its script, both of which alone may run in it."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from lwqc.cli.report.html.axes import plot
from lwqc.cli.report.html.page import Page
from lwqc.model.printable import shown


def render(page: Page) -> str:
    """The page. Every text in it is text, whatever it holds: names come from models of others."""
    style, script = _file("page.css"), _file("page.js")
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(_file("page.html")).render(
        page=page,
        plot=plot,
        style=style,
        script=script,
        style_hash=_digest(style),
        script_hash=_digest(script),
    )


def _plain(value: Any) -> Any:
    """Text in which no character changes how others are read, line by line."""
    if type(value) is not str:
        return value
    return "\n".join(map(shown, value.split("\n")))


@cache
def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")


def _digest(text: str) -> str:
    """How a Content-Security-Policy names the one text that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
