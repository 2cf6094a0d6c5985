"""What a fit has done so far, in a file, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from lwqc.errors import InputError, LwqcError
from lwqc.model.array_files import Archive
from lwqc.model.durable import write_durably
from lwqc.model.scratch import beside

if TYPE_CHECKING:
    from lwqc.learn.reconstruction import PartDone

Array = NDArray[Any]
_HEAD = "lwqc_recover"  # the array with all that is no array: JSON as bytes
_VERSION = 1
_REST = 10  # times as long as a write took, nothing is written after it


class _Done(BaseModel):
    """Of a part, see `lwqc.learn.distill.Fit`."""

    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")

    start: float
    best: float
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

        lost: why the state is not kept, "" where it is. Raises InputError where there is none to
        resume, or one of another fit, and in any case for a file of something else, which would
        be lost.
        """
        self._path, self._key = path, key
        self._done: list[_Done] = []
        self._arrays: dict[str, Array] = {}  # of parts
        self._whole: dict[str, Array] = {}
        self._due = 0.0
        if resume and not path.exists():
            raise InputError(f"{path}: there is no such file, so nothing to resume")
        self.lost = ""
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
        if os.path.lexists(path):
            found, arrays = self._read(whole=resume)
            if resume:
                self._take(found, arrays)

    def _read(self, *, whole: bool) -> tuple[_Head, dict[str, Array]]:
        """What the file holds, which would be replaced as well. whole: with its arrays."""
        if self._path.is_symlink():
            raise InputError(f"{self._path}: is a link; the state of the fit would take its place")
        try:
            arrays = dict(Archive(self._path).arrays(None if whole else {_HEAD}))
            head = arrays.pop(_HEAD, None)
            if head is None or head.dtype != np.uint8:
                raise ValueError
            found = _Head.model_validate_json(head.tobytes())
        except (ValidationError, ValueError, LwqcError):
            raise InputError(
                f"{self._path}: is no state of a fit that lwqc wrote; remove it, or choose another "
                "output"
            ) from None
        return found, arrays

    def _take(self, found: _Head, arrays: dict[str, Array]) -> None:
        """Go on with it. Raises InputError where it is of another fit."""
        if found.version != _VERSION or found.key != self._key:
            raise InputError(
                f"{self._path}: is of a fit of other models, data or options: leave out --resume"
            )
        self._done, self._arrays = found.parts, arrays
        self._whole = self._under("whole")
        self._arrays = {n: a for n, a in arrays.items() if not n.startswith("whole/")}

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
        folder = f"part{len(self._done)}"  # copies: what a parameter holds is another number soon
        self._arrays |= {f"{folder}/{name}": array.copy() for name, array in done.numbers.items()}
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
        return self._whole or None

    def keep(self, state: Mapping[str, Array]) -> None:
        """Write this one, or leave it: the next one says more."""
        self._write({f"whole/{name}": array for name, array in state.items()})

    def unlike(self, reason: str) -> InputError:
        """What to raise for a file whose arrays are not those of the fit."""
        return InputError(f"{self._path}: is not of this fit: {reason}; leave out --resume")

    def _under(self, folder: str) -> dict[str, Array]:
        start = f"{folder}/"
        return {n[len(start) :]: a for n, a in self._arrays.items() if n.startswith(start)}

    def _write(self, whole: Mapping[str, Array] | None = None) -> None:
        begin = time.monotonic()
        if begin < self._due:
            return
        head = _Head(version=_VERSION, key=self._key, parts=self._done).model_dump_json()
        arrays = {_HEAD: np.frombuffer(head.encode(), np.uint8), **self._arrays, **(whole or {})}
        try:
            scratch = beside(self._path)
            try:
                draft = scratch.path / "state.npz"
                write_durably(draft, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
                os.replace(draft, self._path)
            finally:
                scratch.close()
        except OSError as error:  # the fit itself needs no such file
            self.lost = f"the state of the fit was not kept in {self._path}: {error.strerror}"
            self._due = math.inf
            return
        now = time.monotonic()
        self._due = now + _REST * (now - begin)


def key_of(digests: Iterable[str], options: Mapping[str, object]) -> str:
    """What a fit depends on: digests of models and data, and its options."""
    told = {name: repr(value) for name, value in sorted(options.items())}
    text = json.dumps([list(digests), told])
    return hashlib.sha256(text.encode()).hexdigest()
