"""Folders for files in the making; what a killed process leaves of them, the next one removes.

A folder is locked for as long as its process lives, however that ends. So one that is not locked
was left over: numbers of processes tell nothing, as in a container they always begin at 1.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from lwqc.errors import InputError
from lwqc.model.interrupts import before_the_end, held

_TRIES = 3
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_live: set[Path] = set()
Last = Callable[[Path], None]


class Scratch:
    """A folder that goes with `close`, with this object, or with the process."""

    def __init__(
        self, folder: Path, prefix: str, *, sweep: bool = True, last: Last = lambda _: None
    ) -> None:
        """A new folder PREFIXlwqc-PID-XXXX.tmp. sweep: leftovers of that prefix go first.

        last: is shown each of them while it is still there. Raises OSError.
        """
        if sweep:
            remove_stale(folder, prefix, last)
        with held():  # from its first moment the folder goes with this object
            self.path, lock = _locked_folder(folder, prefix)
            self._end = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        self._end()


def beside(target: Path, *, sweep: bool = True, last: Last = lambda _: None) -> Scratch:
    """A folder in which a file can be written and then be renamed to `target`; see `Scratch`."""
    return Scratch(target.parent, f".{target.name}.", sweep=sweep, last=last)


def temporary() -> Scratch:
    """A folder among the system's temporary files. Raises InputError where there can be none."""
    try:
        folder = Path(tempfile.gettempdir())
        _swept(folder)
        return Scratch(folder, "", sweep=False)
    except OSError as error:
        raise unwritable(error) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """The same for a block. Raises InputError, also where it runs out of room in the block."""
    made = temporary()
    try:
        yield made.path
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise unwritable(error) from error
    finally:
        made.close()


def unwritable(error: OSError | None = None) -> InputError:
    """The error for temporary files that cannot be written."""
    folder = tempfile.tempdir or "no folder"
    reason = (error.strerror if error is not None else "") or "is the disk full?"
    return InputError(f"{folder}: temporary files cannot be written there: {reason}")


def remove_stale(folder: Path, prefix: str, last: Last = lambda _: None) -> None:
    """Remove what killed processes of this user left in a folder under a prefix."""
    ours = re.compile(re.escape(f"{prefix}lwqc-") + r"\d+-[0-9a-f]{8}(\.data)?\.tmp")
    with suppress(OSError):
        found = [entry for entry in os.scandir(folder) if ours.fullmatch(entry.name)]
        for entry in found:
            _remove_if_stale(Path(entry.path), last)


@cache
def _swept(folder: Path) -> None:
    """Once for a process: there may be many files, and folders are made often."""
    remove_stale(folder, "")


def _locked_folder(folder: Path, prefix: str) -> tuple[Path, int | None]:
    for _ in range(_TRIES):
        path = folder / f"{prefix}lwqc-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
        path.mkdir(mode=0o700)
        lock = _lock(path, wait=True)
        if path.is_dir():  # or it was taken for a leftover before it was locked
            _live.add(path)
            return path, lock
        _unlock(lock)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _remove(path: Path, lock: int | None) -> None:
    with held():
        shutil.rmtree(path, ignore_errors=True)
        _live.discard(path)
        _unlock(lock)


def _remove_if_stale(path: Path, last: Last) -> None:
    try:
        if path.is_symlink() or not _own(path):
            return
        lock = _lock(path, wait=False)
    except OSError:  # it is locked, or gone
        return
    if lock is None:
        return
    try:
        last(path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        _unlock(lock)


def lock_folder(path: Path) -> int | None:
    """A lock on a folder until `unlock_folder` or the end of the process.

    None where another process has it. -1 where the system knows no locks.
    """
    try:
        lock = _lock(path, wait=False)
    except BlockingIOError:
        return None
    return -1 if lock is None else lock


def unlock_folder(lock: int) -> None:
    """Give a lock back."""
    _unlock(None if lock < 0 else lock)


def _own(path: Path) -> bool:
    return sys.platform != "win32" and path.lstat().st_uid == os.geteuid()


def _lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock; None where there are no locks. Raises BlockingIOError."""
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _remove_live() -> None:
    for path in tuple(_live):
        shutil.rmtree(path, ignore_errors=True)


before_the_end(_remove_live)
