"""What a job in parts has done so far, in a folder beside its output, for when it is killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Hashable
from pathlib import Path

import numpy as np

from lwqc.errors import InputError, LwqcError
from lwqc.model.array_files import Archive
from lwqc.model.durable import replace_durably
from lwqc.model.scratch import lock_folder, unlock_folder
from lwqc.passes.to_encode import Held
from lwqc.quant.formats import WeightFormat

_HEAD, _CODES, _RUN = "lwqc.json", "codes", "run"
_VERSION = 1


class KeptParts:
    """Codes by site, and the activations in front of the part that is next.

    Only one process works with a folder. It is of one model, data and plan; what is there of others
    goes. Every file is on the disk before it counts.
    """

    def __init__(self, output: Path, key: str) -> None:
        """output: of the job. key: of all that the codes depend on.

        Raises InputError where another process works on it, and where something else has its name.
        """
        self.path = parts_of(output)
        told = json.dumps({"lwqc_parts": _VERSION, "key": key}).encode()
        if os.path.lexists(self.path) and not self._is_ours():
            raise InputError(
                f"{self.path}: is no folder that lwqc wrote for {output.name}; remove it, or "
                "choose another output"
            )
        _made(self.path)
        lock = lock_folder(self.path)
        if lock is None:
            raise InputError(f"{self.path}: another process is at work on {output.name}")
        self._unlock = weakref.finalize(self, unlock_folder, lock)
        head = self.path / _HEAD
        self.resumed = head.exists() and head.read_bytes() == told
        if not self.resumed:
            for name in (_CODES, _RUN):  # before the head, which would call them ours
                shutil.rmtree(self.path / name, ignore_errors=True)
            replace_durably(head, lambda file: file.write(told))
        _made(self.path / _CODES)

    def _is_ours(self) -> bool:
        if self.path.is_symlink() or not self.path.is_dir():
            return False
        left = {entry.name for entry in self.path.iterdir()}
        return not left or (_HEAD in left or f"{_HEAD}.draft" in left)

    @property
    def run(self) -> Path:
        """The folder of activations."""
        return self.path / _RUN

    def has(self, key: Hashable) -> bool:
        """Whether a site's codes are kept."""
        return self._file(key).exists()

    def get(self, key: Hashable, fmt: WeightFormat) -> Held | None:
        """A site's codes, if they are kept. fmt: of them. Raises InputError for a damaged file."""
        if not self.has(key):
            return None
        try:
            arrays = dict(Archive(self._file(key)).arrays())
            return Held.of_arrays(arrays, fmt)
        except (LwqcError, ValueError, KeyError) as error:
            raise InputError(f"{self._file(key)}: is damaged: remove {self.path}") from error

    def put(self, key: Hashable, held: Held) -> None:
        """Keep a site's codes. Raises InputError where the disk is full."""
        arrays = held.arrays()
        replace_durably(self._file(key), lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def remove(self) -> None:
        """The job is done."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Another job may go on with what there is."""
        self._unlock()

    def _file(self, key: Hashable) -> Path:
        return self.path / _CODES / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npz"


def parts_of(output: Path) -> Path:
    """The folder of a job."""
    return output.with_name(f"{output.name}.parts")


def _made(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from error
