"""Scores of candidates in a file that only grows, so that a killed search goes on where it was.

A search is deterministic given its scores: run again with those of the file it takes the same path
without evaluating anything twice, and ends in the same plan.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.errors import InputError

_VERSION = 1


class SearchLog:
    """Known scores, and the file that they are appended to as they come; without a path, none."""

    def __init__(self, path: Path | None = None, *, resume: bool = False) -> None:
        """Raises InputError when the file cannot be read or written, or is no such file."""
        self._path = path
        self._scores: dict[tuple[str, int, Candidate], float] = {}
        self._facts: dict[str, Any] = {}
        if path is None:
            return
        if resume:
            self._load(path)
        else:
            try:
                path.write_text("")
            except OSError as error:
                raise InputError(f"{path}: cannot be written: {error.strerror}") from error
            self._append([{"lwqc_search": _VERSION}])

    @property
    def known(self) -> int:
        """Number of scores."""
        return len(self._scores)

    def fact(self, name: str, make: Callable[[], Any]) -> Any:
        """What was found out under that name before, or now; plain JSON data."""
        if name not in self._facts:
            self._facts[name] = make()
            self._append([{"fact": name, "value": self._facts[name]}])
        return self._facts[name]

    def must_equal(self, name: str, value: Any) -> None:
        """Raises InputError when an earlier run had another value."""
        if self.fact(name, lambda: value) != value:
            raise InputError(
                f"{self._path}: was written for another {name}: run with the same model, data "
                "and options, or without --resume"
            )

    def get(self, key: str, stage: int, candidate: Candidate) -> float | None:
        """A known score."""
        return self._scores.get((key, stage, candidate))

    def add(self, key: str, stage: int, scores: Mapping[Candidate, float]) -> None:
        """Store scores; when this returns they are on disk."""
        self._scores |= {(key, stage, c): s for c, s in scores.items()}
        self._append([{"k": key, "s": stage, "c": list(c), "v": v} for c, v in scores.items()])

    def close(self, *, remove: bool) -> None:
        """A finished search needs its file no more."""
        if self._path is not None and remove:
            self._path.unlink(missing_ok=True)

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self._path is None or not records:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())

    def _load(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: nothing to resume: {error}") from error
        whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
        try:
            records = [json.loads(line) for line in whole.splitlines()]
            if not records or records[0].get("lwqc_search") != _VERSION:
                raise ValueError("not a search file")
            for record in records[1:]:
                if "fact" in record:
                    self._facts[record["fact"]] = record["value"]
                else:
                    where = (record["k"], record["s"], tuple(record["c"]))
                    self._scores[where] = float(record["v"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a search file of this version: {error}") from error
        if whole != text:
            with path.open("r+b") as file:
                file.truncate(len(whole.encode()))
