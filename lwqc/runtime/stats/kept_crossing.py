"""Activations between two segments in files that a killed process leaves for the next one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from lwqc.errors import InputError
from lwqc.model.durable import replace_durably, sync
from lwqc.model.scratch import unwritable
from lwqc.runtime.stats.collector import Array
from lwqc.runtime.stats.crossing import Crossing

_HEAD = "run.json"
_OURS = re.compile("[0-9]+-[0-9]+[.]npy")


class KeptCrossing(Crossing):
    """Arrays in files of a folder, from which a run goes on after the last `commit`.

    What was dropped stays until then, as a run that is killed starts there again.
    """

    def __init__(self, folder: Path) -> None:
        """folder: of nothing else; files that no commit tells of are removed.

        Raises InputError where it cannot be used, or holds what no commit wrote.
        """
        super().__init__(0)
        self._place = folder
        self._remedy = f"remove {folder.parent}"
        self._dropped: list[Path] = []
        self._new: list[Path] = []
        head = folder / _HEAD
        try:
            folder.mkdir(exist_ok=True)
            self._read(head)
            kept = {head, *(found for found in self._held.values() if isinstance(found, Path))}
            for path in folder.iterdir():
                if path not in kept:
                    path.unlink()
        except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{head}: is damaged: {self._remedy}") from error
        except OSError as error:
            raise InputError(f"{folder}: cannot be used: {error.strerror}") from error

    def _read(self, head: Path) -> None:
        """Take what the last commit tells."""
        told = json.loads(head.read_bytes()) if head.exists() else {}
        self.position, self.feeds = int(told.get("position", 0)), int(told.get("feeds", 0))
        for name, feed, file in told.get("files", ()):
            if not _OURS.fullmatch(file):
                raise ValueError(file)
            path = self._place / file
            self._held[str(name), int(feed)] = path
            self._sizes[name, feed] = path.stat().st_size
            self._kept += self._sizes[name, feed]

    def get(self, name: str, feed: int) -> Array | None:
        """The array. Raises InputError for a damaged file."""
        try:
            return super().get(name, feed)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"{self._held[name, feed]}: is damaged: {self._remedy}") from error

    def drop(self, name: str, feed: int) -> None:
        """Forget an array; its file goes with the next commit."""
        found = self._held.get((name, feed))
        if not isinstance(found, Path):
            super().drop(name, feed)
            return
        del self._held[name, feed]
        self._kept -= self._sizes.pop((name, feed), 0)
        self._dropped.append(found)

    def commit(self, position: int, feeds: int) -> None:
        """Go on from that segment from now on; nothing is kept of texts, which files cannot hold.

        Raises InputError where the disk is full.
        """
        if not all(isinstance(found, Path) for found in self._held.values()):
            return
        files = [(n, i, p.name) for (n, i), p in self._held.items() if isinstance(p, Path)]
        told = json.dumps({"position": position, "feeds": feeds, "files": files}).encode()
        for path in self._new:
            if path.exists():
                sync(path)
        replace_durably(self._place / _HEAD, lambda file: file.write(told))
        for path in self._dropped:
            path.unlink()
        self.position, self.feeds = position, feeds
        self._new, self._dropped, self._files = [], [], 0

    def _spilled(self, array: Array) -> Path:
        self._files += 1
        path = self._place / f"{self.position}-{self._files}.npy"
        try:
            np.save(path, array)
        except OSError as error:
            raise unwritable(error) from error
        self._new.append(path)
        return path
