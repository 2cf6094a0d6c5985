"""Which source a file, a folder or an object is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lwqc.errors import InputError
from lwqc.model.array_files import check_regular
from lwqc.plans.preprocess import Preprocess
from lwqc.runtime.sources import arrays
from lwqc.runtime.sources.batch_sizes import batch_size, fixed_batch
from lwqc.runtime.sources.folders import KINDS, Found, find, kind_of
from lwqc.runtime.sources.images import Images
from lwqc.runtime.sources.labels import Labels
from lwqc.runtime.sources.objects import Objects, as_array
from lwqc.runtime.sources.samples import Arrays, Inputs, SampleBatches, Samples, fed
from lwqc.runtime.sources.sounds import Sounds
from lwqc.runtime.sources.tables import Table, open_table
from lwqc.runtime.sources.texts import Texts

Sizes = Mapping[str, int]


class Batches(Protocol):
    """Feeds that can be read again. settings: with all that was found out."""

    settings: Preprocess
    left_out: int

    def __iter__(self) -> Iterator[Arrays]:
        """Feeds by input name."""

    def labels(self) -> Labels | None:
        """Labels of all samples."""


def of_path(
    path: Path, inputs: Inputs, settings: Preprocess, sizes: Sizes, beside: Path
) -> Batches | None:
    """Feeds of a file or folder; None for a name that is neither. beside: folder of the model.

    Raises InputError for what does not fit the model.
    """
    if is_folder(path):
        if files := sorted(path.glob("*.npz")):
            return arrays.of_folder(files, inputs, settings)
        if files := sorted(path.glob("*.npy")):
            batch = batch_size(inputs, sizes, settings)
            return arrays.of_mapped(files, inputs, settings, batch, str(path))
    elif path.suffix in {".npz", ".npy"}:
        check_regular(path)
        return arrays.of_file(path, inputs, settings, batch_size(inputs, sizes, settings))
    elif kind_of(path):
        check_regular(path, "data")
    else:
        return None
    found = find(path)
    if found is None:
        known = ", ".join(suffix for suffixes in KINDS.values() for suffix in suffixes)
        raise InputError(f"{path}: holds no .npz files, .npy files or any of {known}")
    return _batched(_samples(found, inputs, settings, beside), inputs, sizes, str(path))


def _samples(found: Found, inputs: Inputs, settings: Preprocess, beside: Path) -> Samples:
    if found.kind == "images":
        return Images(found, inputs, settings)
    if found.kind == "sounds":
        return Sounds(found, inputs, settings)
    if found.kind == "tables":
        return open_table(found, inputs, settings, beside)
    return Texts(found, inputs, settings, beside)


def _batched(samples: Samples, inputs: Inputs, sizes: Sizes, where: str) -> SampleBatches:
    settings = samples.settings
    own = fed(inputs, settings)
    size = batch_size(own, sizes, settings) if samples.alike else batch_size(own, {}, settings, 1)
    made = SampleBatches(samples, inputs, size, sizes)
    if made.count % size and fixed_batch(own):
        raise InputError(
            f"{where}: {made.count} samples are not a multiple of the batch size {size}: write "
            f"limit={made.count - made.count % size or size}"
        )
    return made


def of_object(
    source: Any, inputs: Inputs, settings: Preprocess, sizes: Sizes, beside: Path, most: int | None
) -> Batches:
    """Feeds of a Python object. most: of a generator, that are read.

    Raises InputError for what gives none.
    """
    size = batch_size(fed(inputs, settings), sizes, settings)
    if hasattr(source, "iloc") and hasattr(source, "columns"):  # a DataFrame
        columns = {str(name): source[name].tolist() for name in source.columns}
        return _batched(Table(columns, inputs, settings, "data", [beside]), inputs, sizes, "data")
    if isinstance(source, Mapping):
        named = {str(name): as_array(value) for name, value in source.items()}
        return arrays.of_memory(named, inputs, settings, size)
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        if len(inputs) != 1:
            raise InputError(f"data: one array for {len(inputs)} inputs: expected a dict of them")
        return arrays.of_memory({next(iter(inputs)): as_array(source)}, inputs, settings, size)
    if not isinstance(source, Iterable):
        if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
            raise InputError(
                f"data: is a {type(source).__name__}; expected a list of dicts of arrays"
            )
        source = Indexed(source)
    return Objects(source, inputs, settings, size, most=most, sizes=sizes, folders=[beside])


class Indexed:
    """Items of an object that has a length and indices, as datasets of torch have."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Any]:
        return (self._source[index] for index in range(len(self._source)))


def length_of(found: Batches) -> int | None:
    """How many feeds there are; None where the source does not know."""
    try:
        return len(found)  # type: ignore[arg-type]
    except TypeError:
        return None


def files_of(path: Path) -> list[Path]:
    """Files of a folder that may be read as data."""
    if not is_folder(path):
        return []
    own = sorted([*path.glob("*.npz"), *path.glob("*.npy")])
    if own:
        return own
    found = find(path)
    return [] if found is None else list(found.files)


def holds_samples(path: Path) -> bool:
    """Whether it is a file or folder of samples that are to be prepared, not of arrays."""
    if is_folder(path):
        return not any(f.suffix in (".npz", ".npy") for f in path.iterdir())
    return bool(kind_of(path))


def is_folder(path: Path) -> bool:
    """Whether it is a folder. Raises InputError for a name that the system does not take."""
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long
        raise InputError(f"{str(path)[:80]}: cannot be read: {error.strerror}") from error
