"""Files that appear together: renamed to their places in one go, or none of them.

No file system renames several files at once. So all are written and checked before, signals wait,
and where a rename fails the ones before it are taken back. A process that is killed between two of
them leaves the first ones; what others refer to goes first, so that nothing refers to what is not
there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lwqc.model.interrupts import held

OLD = ".old"  # behind the name of a file that is being replaced, in the folder of the new one


@dataclass(frozen=True)
class Move:
    """A file to be renamed within a file system.

    new: the place is named by the content, and nothing there is replaced.
    """

    source: Path
    target: Path
    new: bool = False


def place_together(moves: Sequence[Move]) -> None:
    """Rename files in this order; permissions of replaced files stay.

    Raises OSError when one cannot be renamed; then all places are as before.
    """
    done: list[tuple[Path, Path | None]] = []
    with held():
        try:
            for move in moves:
                old = _kept(move)
                if move.new:
                    if _placed_new(move):
                        done.append((move.target, None))
                    continue
                os.replace(move.source, move.target)
                done.append((move.target, old))
        except OSError:
            for target, old in reversed(done):
                _take_back(target, old)
            raise
        for folder in {move.target.parent for move in moves}:
            _sync_folder(folder)


def _kept(move: Move) -> Path | None:
    """Another name of what is about to be replaced; its permissions are taken over."""
    if move.new or not move.target.exists():
        return None
    move.source.chmod(stat.S_IMODE(move.target.stat().st_mode))
    kept = move.source.with_name(f"{move.source.name}{OLD}")
    try:
        os.link(move.target, kept)
    except OSError:  # a file system without hard links
        shutil.copy2(move.target, kept)
    return kept


def _placed_new(move: Move) -> bool:
    """Whether the file is there only now. Raises FileExistsError for another content."""
    try:
        os.link(move.source, move.target)
    except OSError as error:  # it is there, or a file system without hard links
        if not os.path.lexists(move.target):
            os.replace(move.source, move.target)
        elif same_content(move.source, move.target):
            return False
        else:
            text = f"{move.target.name} is there and holds something else"
            raise FileExistsError(error.errno, text) from error
    else:
        move.source.unlink()  # files with several names are refused as data of a model
    return True


def same_content(first: Path, second: Path) -> bool:
    """Whether two regular files hold the same bytes."""
    if second.is_symlink() or not second.is_file():
        return False
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        while block := one.read(1 << 20):
            if block != other.read(1 << 20):
                return False
    return True


def _take_back(target: Path, old: Path | None) -> None:
    with contextlib.suppress(OSError):
        if old is not None:
            os.replace(old, target)
        else:
            target.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
