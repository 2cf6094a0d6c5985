"""What was found out about one version of a model, kept until the version goes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

Found = TypeVar("Found")


class Facts:
    """Answers by question."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def get(self, question: Hashable, make: Callable[[], Found]) -> Found:
        """The answer to a question, made when it is first asked for."""
        if question not in self._known:
            self._known[question] = make()
        return cast(Found, self._known[question])

    def put(self, question: Hashable, answer: object) -> None:
        """Take an answer that was found before."""
        self._known[question] = answer

    def pop(self, question: Hashable, otherwise: Found) -> Found:
        """Give an answer away."""
        return cast(Found, self._known.pop(question, otherwise))

    def has(self, question: Hashable) -> bool:
        """Whether a question was answered."""
        return question in self._known
