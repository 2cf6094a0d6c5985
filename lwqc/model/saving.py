"""Write a model to disk so that its file is, at any moment, whole or the one that was there.

Everything goes to a temporary folder beside the target, `.NAME.lwqc-PID-XXXX.tmp`, under the names
that it will have, and is flushed to the disk. There it can be loaded and checked before it replaces
anything; then it is renamed together with what goes with it, see `placing`. An exception removes
the folder. A killed process leaves it, and the next save to the same target removes it.

A model with external data is two files. The data file is named by its content,
`NAME.HASH.data`, and replaced only where it is damaged: the rename of the model file switches from
one whole pair to the other, and the same model gives the same bytes however often it is saved. The
data file that the old model used is removed last. A process killed between the renames leaves one
data file that no model refers to, which the next save removes as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from lwqc.errors import InputError
from lwqc.model.interrupts import terminable
from lwqc.model.model_stream import external_proto, write_data, write_inline
from lwqc.model.outputs import check_output
from lwqc.model.paths import link_free
from lwqc.model.placing import OLD, Move, place_together
from lwqc.model.scratch import Scratch, beside
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
    used = _read_by(model)
    with terminable(), _written(target, "; nothing is left of it"):
        with _disk():
            scratch = beside(target, last=lambda left: _remove_orphans(left, target, used))
        draft = Draft(target, scratch.path / target.name, model, _scratches=[scratch])
        try:
            draft.write(external_data, workers, in_flight_bytes)
            yield draft
        finally:
            draft.remove()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file; it appears whole or not at all. Raises InputError."""
    target = link_free(Path(path))
    check_output(target, [])
    with terminable(), _written(target):
        with _disk():
            scratch = beside(target)
        try:
            _write_whole(scratch.path / target.name, text)
            with _disk():
                place_together([Move(scratch.path / target.name, target)])
        finally:
            scratch.close()


@contextlib.contextmanager
def _written(target: Path, what: str = "") -> Iterator[None]:
    try:
        yield
    except _WriteError as error:
        raise InputError(f"{target}: cannot be written: {error}{what}") from error


def _write_whole(path: Path, text: str) -> None:
    with _synced(path) as file:
        file.write(text.encode())


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
    _files: list[Move] = field(default_factory=list)
    _scratches: list[Scratch] = field(default_factory=list)

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
        self.data_path = self.path.with_name(f"{self.target.name}.{digest[:16]}.data")
        with _disk():
            temporary.rename(self.data_path)
        with _synced(self.path) as file:
            file.write(external_proto(self._model, offsets, self.data_path.name))

    def add_text(self, path: Path, text: str) -> None:
        """A text file that appears with the model, and only with it. Raises InputError."""
        final = link_free(path)
        check_output(final, [])
        with _disk():
            scratch = beside(final)
        self._scratches.append(scratch)
        _write_whole(scratch.path / final.name, text)
        self._files.append(Move(scratch.path / final.name, final))

    def add_made(self, path: Path, make: Callable[[Path], None]) -> None:
        """A file that something else writes, with what that puts beside it. Raises InputError.

        make: is told where to write.
        """
        final = link_free(path)
        check_output(final, [])
        with _disk():
            scratch = beside(final)
        self._scratches.append(scratch)
        made = scratch.path / final.name
        make(made)
        others = [file for file in sorted(scratch.path.iterdir()) if file != made]
        self._files += [Move(file, final.with_name(file.name)) for file in (*others, made)]

    def publish(self) -> SavedModel:
        """Put everything in its place, see `publish_together`."""
        return publish_together([self])[0]

    @property
    def moves(self) -> list[Move]:
        """The data file, what goes with the model, and the model, which refers to them."""
        return [*self._data_move(), *self._files, Move(self.path, self.target)]

    def _data_move(self) -> list[Move]:
        """Of the data file. What the model that is there refers to by that name is ours.

        If it holds something else it is damaged, since the name is that of the content.
        """
        if self.data_path is None:
            return []
        final = self.target.with_name(self.data_path.name)
        ours = final.name in data_files_of(self.target) and not final.is_symlink()
        return [Move(self.data_path, final, new=not ours)]

    def keep_mode(self, names: Iterable[str]) -> None:
        """Give the data file the permissions of the old model's, which had one of these names."""
        old = [file for name in names if (file := self.target.with_name(name)).is_file()]
        if self.data_path is not None and old:
            self.data_path.chmod(stat.S_IMODE(old[0].stat().st_mode))

    def remove(self) -> None:
        """Remove what was not published."""
        for scratch in self._scratches:
            scratch.close()


def publish_together(drafts: Sequence[Draft]) -> list[SavedModel]:
    """Put models and what goes with them in their places: all of it, or nothing.

    Raises InputError when a file cannot be renamed; then everything is as before.
    """
    sizes = [draft.size_bytes for draft in drafts]
    before = [data_files_of(draft.target) for draft in drafts]
    with _written(drafts[0].target), _disk():
        for draft, old in zip(drafts, before, strict=True):
            draft.keep_mode(old)
        place_together([move for draft in drafts for move in draft.moves])
    saved = []
    for draft, size, old in zip(drafts, sizes, before, strict=True):
        name = None if draft.data_path is None else draft.data_path.name
        _remove_unused(draft.target, old - {name}, _read_by(draft._model))
        data = None if name is None else draft.target.with_name(name)
        saved.append(SavedModel(draft.target, data, size))
    return saved


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


def data_files_of(target: Path) -> set[str]:
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


def _read_by(model: ir.Model) -> set[str]:
    """Real names of the files that a model in memory still reads from."""
    return {
        os.path.realpath(v.const_value.path)
        for g in model.graphs()
        for v in g.initializers.values()
        if isinstance(v.const_value, ir.ExternalTensor)
    }


def _remove_unused(target: Path, names: Iterable[str], used: set[str]) -> None:
    """Remove data files that an earlier save to this target wrote, but for those in use."""
    ours = re.compile(re.escape(target.name) + r"\.[0-9a-f]{16}\.data")
    for name in names:
        file = target.with_name(name)
        if ours.fullmatch(name) and os.path.realpath(file) not in used:
            with contextlib.suppress(OSError):
                file.unlink()


def _remove_orphans(left: Path, target: Path, used: set[str]) -> None:
    """Remove data files that a killed process put in their place, or had yet to remove.

    left: the folder that it left, with the models that refer to them.
    """
    models = [left / target.name, left / f"{target.name}{OLD}"]
    names = set().union(*map(data_files_of, models)) - data_files_of(target)
    _remove_unused(target, names, used)
