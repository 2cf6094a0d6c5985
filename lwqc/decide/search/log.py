"""Scores of candidates in a file that only grows, so that a killed search goes on where it was.

A search is deterministic given its scores: run again with those of the file it takes the same path
without evaluating anything twice, and ends in the same plan.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import Field, TypeAdapter, ValidationError

from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.errors import InputError
from lwqc.model.documents import parse_json, read_text

_VERSION = 1
_HEAD = b'{"lwqc_search"'
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of time, memory or a share


class SearchLog:
    """Known scores, and the file that they are appended to as they come; without a path, none.

    The file is locked, so that two searches do not mix, and never reached through a link.
    """

    def __init__(self, path: Path | None = None, *, resume: bool = False) -> None:
        """Raises InputError when the file cannot be read or written, or is no such file."""
        self._path = path
        self._scores: dict[tuple[str, int, Candidate], float] = {}
        self._facts: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        if path is None:
            return
        self._file = _opened(path, resume)
        try:
            if resume:
                self._load(path)
            else:
                self._file.truncate(0)
                self._append([{"lwqc_search": _VERSION}])
        except BaseException:
            if not resume:  # there is nothing in it
                path.unlink(missing_ok=True)
            self._end()
            raise

    @property
    def known(self) -> int:
        """Number of scores."""
        return len(self._scores)

    def fact(self, name: str, make: Callable[[], Any], kind: Any = Amount) -> Any:
        """What was found out under that name before, or now; JSON data of a type.

        Raises InputError when the file holds something else.
        """
        if name not in self._facts:
            self._facts[name] = make()
            self._append([{"fact": name, "value": self._facts[name]}])
        try:
            return TypeAdapter(kind).validate_python(self._facts[name])
        except ValidationError as error:
            raise InputError(f"{self._path}: {name}: {error.errors()[0]['msg']}") from error

    def must_equal(self, name: str, value: Any) -> None:
        """Raises InputError when an earlier run had another value."""
        if self.fact(name, lambda: value, Any) != value:
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
        if self._path is not None and self._file is not None:
            if remove:
                self._path.unlink(missing_ok=True)
            self._end()

    def _end(self) -> None:
        """Close the file; what it could not write is told already, and fails again then."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None or not records:
            return
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written: {error.strerror}") from error

    def _load(self, path: Path) -> None:
        try:
            text = read_text(path)
        except InputError as error:
            raise InputError(f"{path}: nothing to resume: {error}") from error
        whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
        try:
            records = [parse_json(line, infinite=True) for line in whole.splitlines()]
            if not records or records[0].get("lwqc_search") != _VERSION:
                raise ValueError("not a search file")
            for record in records[1:]:
                self._keep(record)
        except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a search file of this version: {error}") from error
        if whole != text and self._file is not None:
            self._file.truncate(len(whole.encode()))

    def _keep(self, record: Mapping[str, Any]) -> None:
        if "fact" in record:
            self._facts[record["fact"]] = record["value"]
            return
        levels, stage, value = record["c"], record["s"], record["v"]
        if not isinstance(value, (int, float)) or not all(type(n) is int for n in (stage, *levels)):
            raise ValueError("a score is not a number")
        self._scores[record["k"], stage, tuple(levels)] = float(value)


def _opened(path: Path, resume: bool) -> BinaryIO:
    """The file to append to: a regular one, and if it is there already, a search file or empty."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        if path.is_symlink():
            raise InputError(f"{path}: is a link; scores are only written to a file")
        descriptor = os.open(path, flags if resume else flags | os.O_CREAT, 0o666)
    except OSError as error:
        what = "nothing to resume" if resume else "cannot be written"
        raise InputError(f"{path}: {what}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: is not a regular file")
    file = open(descriptor, "r+b")  # noqa: SIM115 - it stays open, and with it the lock
    try:
        _lock(file, path)
        head = file.read(len(_HEAD))
        if head != _HEAD[: len(head)] and not resume:
            raise InputError(
                f"{path}: is not a search file; scores go there: move it or choose another output"
            )
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: BinaryIO, path: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path}: another search is writing it") from error
    except OSError:  # a file system without locks
        return
