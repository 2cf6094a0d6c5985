"""Text for a terminal: names come from models, paths and the user's code.

A terminal obeys control characters, a reader believes the order that bidirectional ones pretend,
and a line feed makes two lines of one. All of these are written as escapes.
"""

from __future__ import annotations

import sys


def shown(text: str) -> str:
    """One line without characters that do anything but show themselves."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def put(text: str, *, errors: bool = False) -> None:
    """Text of one or more lines on stdout, or on stderr."""
    for line in text.removesuffix("\n").split("\n"):
        print(shown(line), file=sys.stderr if errors else sys.stdout, flush=errors)


def say(message: str) -> None:
    """A line on stderr, in the name of the command."""
    print(f"lwqc: {shown(' '.join(message.split()))}", file=sys.stderr)
