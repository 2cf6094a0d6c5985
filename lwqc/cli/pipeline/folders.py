"""Folders that a build writes to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lwqc.errors import InputError


def make_folder(folder: Path, where: str) -> None:
    """Make a folder and those above it. Raises InputError; where: starts the message."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{where}: {folder}: cannot be made: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made. Raises InputError while another one works.

    The lock goes with its process, however that ends. Systems without `flock` have none.
    """
    make_folder(folder, "lwqc run")
    if os.name != "posix":
        yield
        return
    import fcntl

    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another lwqc run works in it; wait for its end") from error
        yield
