"""Where a command may write: nothing that it reads, and no file twice."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from lwqc.errors import InputError
from lwqc.model.paths import link_free
from lwqc.model.scratch import beside

Name = str | os.PathLike[str]


def check_output(path: Name, inputs: Iterable[Name]) -> None:
    """Refuse, before any work, an output that cannot be written or that is one of the inputs.

    An input counts as the output through symbolic and hard links too. Raises InputError.
    """
    target = link_free(Path(path))
    try:
        _check_place(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    _check_foreign(target, inputs)


def check_outputs(
    outputs: Sequence[Name], inputs: Iterable[Name], maybe: Sequence[Name] = ()
) -> None:
    """The same for all outputs of a command, which also have to differ from each other.

    maybe: what is perhaps written.
    """
    read = list(inputs)
    for output in outputs:
        check_output(output, read)
    for output in maybe:
        _check_foreign(Path(output), read)
    for first, second in combinations([*outputs, *maybe], 2):
        if _one_place(Path(first), Path(second)):
            raise InputError(f"{second}: is already the place of another output; choose two names")


def _check_foreign(target: Path, inputs: Iterable[Name]) -> None:
    if any(_same(target, Path(other)) for other in inputs):
        raise InputError(f"{target}: is read as an input; choose another output")


def _check_place(target: Path) -> None:
    if target.is_dir():
        raise InputError(f"{target}: is a folder; expected a file name for the output")
    folder = target.parent
    if not folder.is_dir():
        raise InputError(f"{target}: the folder {folder} does not exist; create it first")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise InputError(f"{target}: is not a regular file; choose another output")
    try:
        beside(target, sweep=False).close()
    except OSError as error:
        raise InputError(
            f"{target}: the folder {folder} is not writable: {error.strerror}"
        ) from error


def _same(first: Path, second: Path) -> bool:
    """Whether two names stand for one file that is there."""
    try:
        return first.samefile(second)
    except OSError:
        return False


def _one_place(first: Path, second: Path) -> bool:
    """Whether two names stand for one place, where there may be no file yet."""
    if _same(first, second):
        return True
    one, other = link_free(first), link_free(second)
    return one.name == other.name and _same(one.parent, other.parent)
