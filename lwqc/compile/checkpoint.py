"""What a fit has done so far, in a file, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, ValidationError

from lwqc.errors import InputError
from lwqc.model.array_files import Archive
from lwqc.model.scratch import beside, unwritable

if TYPE_CHECKING:
    from lwqc.learn.reconstruction import PartDone

Array = NDArray[Any]
_HEAD = "lwqc_recover"  # the array with all that is no array: JSON as bytes
_VERSION = 1
_REST = 10  # times as long as a write took, nothing is written after it


class _Done(BaseModel):
    """Of a part, see `lwqc.learn.distill.Fit`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    start: FiniteFloat
    best: FiniteFloat
    steps: NonNegativeInt
    unchanged: str
    ended: str


class _Head(BaseModel):
    """key: of the models, the data and the options that it was made with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int
    key: str
    parts: list[_Done]


class Checkpoint:
    """Parts that are fitted and the state of the fit of the whole, in one `.npz` file.

    A write replaces the file, so that it is never half written. Writing takes at most a tenth of
    the time: what comes sooner is written with what comes later.
    """

    def __init__(self, path: Path, key: str, *, resume: bool) -> None:
        """key: see `key_of`. resume: go on with what is in the file.

        Raises InputError where there is none to resume, or one of another fit, and in any case for
        a file of something else, which would be lost.
        """
        self._path, self._key = path, key
        self._done: list[_Done] = []
        self._arrays: dict[str, Array] = {}
        self._due = 0.0
        if resume and not path.exists():
            raise InputError(f"{path}: there is no such file, so nothing to resume")
        if os.path.lexists(path):
            found, arrays = self._read()
            if resume:
                self._take(found, arrays)

    def _read(self) -> tuple[_Head, dict[str, Array]]:
        """What the file holds, which would be replaced as well."""
        if self._path.is_symlink():
            raise InputError(f"{self._path}: is a link; the state of the fit would take its place")
        arrays = dict(Archive(self._path).arrays())
        head = arrays.pop(_HEAD, None)
        try:
            if head is None or head.dtype != np.uint8:
                raise ValueError
            found = _Head.model_validate_json(head.tobytes())
        except (ValidationError, ValueError):
            raise InputError(f"{self._path}: is no state of a fit that lwqc wrote") from None
        return found, arrays

    def _take(self, found: _Head, arrays: dict[str, Array]) -> None:
        """Go on with it. Raises InputError where it is of another fit."""
        if found.version != _VERSION or found.key != self._key:
            raise InputError(
                f"{self._path}: is of a fit of other models, data or options: leave out --resume"
            )
        self._done, self._arrays = found.parts, arrays

    def parts(self) -> Sequence[PartDone]:
        """Those that are done."""
        from lwqc.learn.distill import Fit
        from lwqc.learn.reconstruction import PartDone

        return [
            PartDone(Fit(**one.model_dump()), self._under(f"part{i}"))
            for i, one in enumerate(self._done)
        ]

    def keep_part(self, done: PartDone) -> None:
        """Keep the next one."""
        fit = done.fit
        self._store(f"part{len(self._done)}", done.numbers)
        self._done.append(
            _Done(
                start=fit.start,
                best=fit.best,
                steps=fit.steps,
                unchanged=fit.unchanged,
                ended=fit.ended,
            )
        )
        self._write()

    def state(self) -> Mapping[str, Array] | None:
        """That of the fit of the whole."""
        return self._under("whole") or None

    def keep(self, state: Mapping[str, Array]) -> None:
        """Keep this one from now on."""
        self._store("whole", state)
        self._write()

    def unlike(self, reason: str) -> InputError:
        """What to raise for a file whose arrays are not those of the fit."""
        return InputError(f"{self._path}: is not of this fit: {reason}; leave out --resume")

    def _under(self, folder: str) -> dict[str, Array]:
        start = f"{folder}/"
        return {n[len(start) :]: a for n, a in self._arrays.items() if n.startswith(start)}

    def _store(self, folder: str, arrays: Mapping[str, Array]) -> None:
        """Copies: what a parameter holds is another number soon."""
        self._arrays.update({f"{folder}/{name}": array.copy() for name, array in arrays.items()})

    def _write(self) -> None:
        begin = time.monotonic()
        if begin < self._due:
            return
        head = _Head(version=_VERSION, key=self._key, parts=self._done).model_dump_json()
        arrays = {_HEAD: np.frombuffer(head.encode(), np.uint8), **self._arrays}
        try:
            scratch = beside(self._path)
            try:
                draft = scratch.path / "state.npz"
                np.savez(draft, **arrays)  # type: ignore[arg-type]
                os.replace(draft, self._path)
            finally:
                scratch.close()
        except OSError as error:
            raise unwritable(error) from error
        now = time.monotonic()
        self._due = now + _REST * (now - begin)


def key_of(digests: Iterable[str], options: Mapping[str, object]) -> str:
    """What a fit depends on: digests of models and data, and its options."""
    told = {name: repr(value) for name, value in sorted(options.items())}
    text = json.dumps([list(digests), told])
    return hashlib.sha256(text.encode()).hexdigest()
