"""The text of pipelines: `fold-constants,fuse-attention{finite-masks=true}`.

A pass is a name, and its options in braces: `key=value`, apart by spaces; the items of a list by
commas. What holds spaces, commas, quotes, braces or equals signs is written as a JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lwqc.errors import InputError

_TOKEN = re.compile(r'\s*(?:(?P<mark>[,{}=])|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<plain>[^\s,{}="]+))')
_PLAIN = re.compile(r'[^\s,{}="]+')
Option = str | tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One pass of a text. options: by key; a tuple where the text has other than one item."""

    name: str
    options: Mapping[str, Option] = field(default_factory=dict)

    def __str__(self) -> str:
        """The text that `parsed` reads as this."""
        if not self.options:
            return self.name
        pairs = (f"{key}={_written(value)}" for key, value in self.options.items())
        return f"{self.name}{{{' '.join(pairs)}}}"


def _written(value: Option) -> str:
    items = (value,) if isinstance(value, str) else value
    return ",".join(i if _PLAIN.fullmatch(i) else json.dumps(i, ensure_ascii=False) for i in items)


def parsed(text: str) -> list[Item]:
    """The passes that a text names. Raises InputError for what is no pipeline."""
    tokens = _Tokens(text)
    items = []
    while tokens.left:
        items.append(_item(tokens))
        if tokens.left:
            tokens.take(",")
            if not tokens.left:
                raise tokens.error("a pass after the comma")
    return items


def _item(tokens: _Tokens) -> Item:
    name = tokens.word("the name of a pass")
    options: dict[str, Option] = {}
    if tokens.at("{"):
        tokens.take("{")
        while not tokens.at("}"):
            key = tokens.word("an option or }")
            if key in options:
                raise tokens.error(f"{key} once")
            tokens.take("=")
            options[key] = _value(tokens)
        tokens.take("}")
    return Item(name, options)


def _value(tokens: _Tokens) -> Option:
    """What stands behind an equals sign: nothing where the next is a brace or another option."""
    if tokens.at("}") or tokens.at("=", 1):
        return ()
    items = [tokens.word("a value")]
    while tokens.at(","):
        tokens.take(",")
        items.append(tokens.word("a value"))
    return items[0] if len(items) == 1 else tuple(items)


class _Tokens:
    """A text, read mark by mark."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: Sequence[tuple[str, str, int]] = list(_tokens(text))
        self._next = 0

    @property
    def left(self) -> bool:
        return self._next < len(self._tokens)

    def at(self, mark: str, ahead: int = 0) -> bool:
        place = self._next + ahead
        return place < len(self._tokens) and self._tokens[place][:2] == ("mark", mark)

    def take(self, mark: str) -> None:
        if not self.at(mark):
            raise self.error(mark)
        self._next += 1

    def word(self, wanted: str) -> str:
        if not self.left or self._tokens[self._next][0] == "mark":
            raise self.error(wanted)
        self._next += 1
        return self._tokens[self._next - 1][1]

    def error(self, wanted: str) -> InputError:
        place = self._tokens[self._next][2] if self.left else len(self._text)
        found = repr(self._text[place:][:20]) if self.left else "its end"
        return InputError(f"pipeline {self._text!r}: expected {wanted}, found {found}")


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    place = 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise InputError(f"pipeline {text!r}: a quotation mark that is not closed")
        kind, found = match.lastgroup, match[match.lastgroup]
        yield kind, _unquoted(text, found) if kind == "quoted" else found, match.start(kind)
        place = match.end()


def _unquoted(text: str, quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except json.JSONDecodeError as error:
        raise InputError(f"pipeline {text!r}: {quoted} is no JSON string: {error.msg}") from error
