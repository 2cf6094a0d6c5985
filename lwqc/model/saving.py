"""Write a model to disk so that its file is, at any moment, whole or the one that was there.

Everything goes to a temporary folder beside the target, `.NAME.lwqc-PID-XXXX.tmp`, under the names
that it will have, and is flushed to the disk. There it can be loaded and checked before it replaces
anything; then it is renamed, the data file first. An exception removes the folder. A killed process
leaves it, and the next save to the same target removes those whose process is gone.

A model with external data is two files, which no file system renames together. So a data file is
never replaced by another one: the first is `NAME.data`; if that name is taken, the new one is
`NAME.HASH.data`, named by its content. The rename of the model file then switches from one whole
pair to the other, and the data file that the old model used is removed last. A process killed
between the renames leaves one data file that no model refers to.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from lwqc.errors import InputError
from lwqc.model.model_stream import external_proto, write_data, write_inline
from lwqc.model.paths import link_free
from lwqc.model.untrusted import tensor_protos

EXTERNAL_ABOVE_BYTES = 1_500_000_000  # a protobuf file ends at 2 GB


@dataclass(frozen=True)
class SavedModel:
    """A model on disk. size_bytes counts the model file and its data file."""

    path: Path
    data_path: Path | None
    size_bytes: int


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, subgraphs included."""
    return sum(
        int(value.const_value.nbytes)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse, before any work, an output that cannot be written or that is one of the inputs.

    An input counts as the output through symbolic and hard links too, and so does one at the
    name of the output's data file.
    """
    target = link_free(Path(path))
    try:
        _check_place(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    for other in map(Path, inputs):
        for written in (target, _data_name(target)):
            if written.exists() and other.exists() and written.samefile(other):
                raise InputError(f"{written}: is the input itself; choose another output")


def _check_place(target: Path) -> None:
    if target.is_dir():
        raise InputError(f"{target}: is a folder; expected a file name for the output")
    folder = target.parent
    if not folder.is_dir():
        raise InputError(f"{target}: the folder {folder} does not exist; create it first")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise InputError(f"{target}: is not a regular file; choose another output")
    probe = folder / f".lwqc-probe-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{target}: the folder {folder} is not writable: {error.strerror}"
        ) from error


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    workers: int = 1,
    in_flight_bytes: int = 128 << 20,
) -> SavedModel:
    """Write a model; the target appears whole or not at all. See `drafted`.

    Raises InputError when the folder cannot be written or the disk is full; nothing is left then.
    """
    with drafted(
        model, path, external_data=external_data, workers=workers, in_flight_bytes=in_flight_bytes
    ) as draft:
        return draft.publish()


@contextlib.contextmanager
def drafted(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    workers: int = 1,
    in_flight_bytes: int = 128 << 20,
) -> Iterator[Draft]:
    """Write a model beside its target, where it can be loaded; it goes there by `Draft.publish`.

    What is not published when the block ends is removed.

    external_data: True writes weights to a file of their own beside the model, None does so above
    1.5 GB. Lazy weights are evaluated while writing, `workers` at a time, and at most
    `in_flight_bytes` of them (or one weight, if larger) are held.

    A link at `path` stays, and the file behind it is replaced. Data files that `model` itself
    still reads from are not removed.

    Raises InputError when the folder cannot be written or the disk is full.
    """
    target = link_free(Path(path))
    check_output(target, [])
    if external_data is None:
        external_data = weight_bytes(model) > EXTERNAL_ABOVE_BYTES
    folder = _temporary(target)
    draft = Draft(target, folder / target.name, model)
    try:
        with _terminable():
            _remove_stale(target)
            with _disk():
                folder.mkdir()
            draft.write(external_data, workers, in_flight_bytes)
            yield draft
    except _WriteError as error:
        raise InputError(f"{target}: cannot be written: {error}; nothing is left of it") from error
    finally:
        draft.remove()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file; it appears whole or not at all. Raises InputError."""
    target = link_free(Path(path))
    check_output(target, [])
    temporary = _temporary(target)
    try:
        _write_whole(temporary, text)
        with _disk():
            os.replace(temporary, target)
    except _WriteError as error:
        raise InputError(f"{target}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    with _synced(path) as file:
        file.write(text.encode())


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.lwqc-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


class _WriteError(Exception):
    """The disk refused; unlike an OSError raised while a lazy weight is evaluated."""


@dataclass
class Draft:
    """A model that lies whole beside its target, and what is to appear together with it.

    target: where it will be. path, data_path: where it is, under its final names. size_bytes counts
    both files.
    """

    target: Path
    path: Path
    _model: ir.Model
    data_path: Path | None = None
    _placed: Path | None = None
    _texts: dict[Path, Path] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of the model file and its data file, until they are published."""
        return self.path.stat().st_size + (self.data_path.stat().st_size if self.data_path else 0)

    def write(self, external: bool, workers: int, in_flight_bytes: int) -> None:
        """Write the files of the model."""
        if not external:
            with _synced(self.path) as file:
                write_inline(self._model, file, workers, in_flight_bytes)
            return
        temporary = self.path.with_name("data.tmp")
        with _synced(temporary) as file:
            offsets, digest = write_data(self._model, file, workers, in_flight_bytes)
        final = _data_name(self.target)
        if final.exists():
            final = self.target.with_name(f"{self.target.name}.{digest[:16]}.data")
        self.data_path = self.path.with_name(final.name)
        with _disk():
            temporary.rename(self.data_path)
        with _synced(self.path) as file:
            file.write(external_proto(self._model, offsets, final.name))

    def add_text(self, path: Path, text: str) -> None:
        """A text file that appears with the model, and only with it."""
        final = link_free(path)
        self._texts[final] = _temporary(final)
        _write_whole(self._texts[final], text)

    def publish(self) -> SavedModel:
        """Rename the data file, then the model that names it, then what goes with it."""
        size, old = self.size_bytes, _data_of(self.target)
        data = None if self.data_path is None else self.target.with_name(self.data_path.name)
        with _disk():
            if self.target.exists():
                self.path.chmod(stat.S_IMODE(self.target.stat().st_mode))
            if self.data_path is not None and data is not None:
                self._placed = None if data.exists() else data
                _place(self.data_path, data)
            os.replace(self.path, self.target)
            for final, temporary in self._texts.items():
                os.replace(temporary, final)
            _sync_folder(self.target.parent)
        _remove_unused(self.target, old, data, self._model)
        return SavedModel(self.target, data, size)

    def remove(self) -> None:
        """Remove what is left. The temporary model is gone exactly if it was published."""
        placed = self._placed
        if placed is not None and self.path.exists() and placed.exists():
            left = self.data_path is not None and self.data_path.exists()
            if not left or placed.samefile(self.data_path or placed):
                placed.unlink()
        for temporary in self._texts.values():
            temporary.unlink(missing_ok=True)
        shutil.rmtree(self.path.parent, ignore_errors=True)


class _Writer:
    """A file whose failures are told from those of whatever produces its content."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, content: bytes | memoryview, /) -> int:
        with _disk():
            return self._file.write(content)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _WriteError(error.strerror or str(error)) from error


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[_Writer]:
    """A new file that is on the disk when the block ends."""
    with _disk():
        file = path.open("xb", buffering=1 << 20)
    try:
        yield _Writer(file)
        with _disk():
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):  # a full disk fails again when the buffer is dropped
            file.close()


def _place(temporary: Path, data: Path) -> None:
    """Rename, but never over a data file that another save put there in the meantime."""
    if data.exists():  # named by its content, so the same bytes
        os.replace(temporary, data)
        return
    try:
        os.link(temporary, data)
    except FileExistsError as error:
        raise _WriteError(f"{data.name} was just written by another process") from error
    except OSError:  # a file system without hard links
        os.replace(temporary, data)
    else:
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _data_name(target: Path) -> Path:
    return target.with_name(f"{target.name}.data")


def _data_of(target: Path) -> set[str]:
    """Data files that the model now at `target` refers to; none if there is no readable model."""
    if not target.exists():
        return set()
    try:
        proto = onnx.load(target, format="protobuf", load_external_data=False)
        return {
            e.value for t in tensor_protos(proto) for e in t.external_data if e.key == "location"
        }
    except (OSError, DecodeError, ValueError, RecursionError):
        return set()


def _remove_unused(target: Path, old: set[str], current: Path | None, model: ir.Model) -> None:
    """Remove the data files, named by an earlier save, of the model that was just replaced."""
    ours = re.compile(re.escape(target.name) + r"(\.[0-9a-f]{16})?\.data")
    used = {
        os.path.realpath(v.const_value.path)
        for g in model.graphs()
        for v in g.initializers.values()
        if isinstance(v.const_value, ir.ExternalTensor)
    }
    for name in old:
        file = target.with_name(name)
        if ours.fullmatch(name) and file != current and os.path.realpath(file) not in used:
            with contextlib.suppress(OSError):
                file.unlink()


def _remove_stale(target: Path) -> None:
    """Remove temporaries of processes that were killed while saving this target."""
    ours = re.compile(re.escape(f".{target.name}.lwqc-") + r"(\d+)-[0-9a-f]{8}(\.data)?\.tmp")
    for file in target.parent.iterdir():
        match = ours.fullmatch(file.name)
        if match and not _alive(int(match[1])):
            with contextlib.suppress(OSError):
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def _alive(pid: int) -> bool:
    if os.name != "posix":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that temporaries are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
