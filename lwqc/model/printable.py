"""Text of strangers made safe to show: names come from models, paths and the user's code.

A terminal obeys control characters, a reader believes the order that bidirectional ones pretend,
and a line feed makes two lines of one. All of these are written as escapes.
"""

from __future__ import annotations


def shown(text: str) -> str:
    """One line without characters that do anything but show themselves."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
