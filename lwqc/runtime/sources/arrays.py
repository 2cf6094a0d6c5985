"""Arrays of `.npz` and `.npy` files, or in memory, as feeds of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.array_files import Archive, read_npy
from lwqc.model.extensions import expected
from lwqc.plans.preprocess import Preprocess
from lwqc.runtime.sources.batch_sizes import first_dim, fixed_batch
from lwqc.runtime.sources.labels import Labels, read_classes
from lwqc.runtime.sources.samples import Arrays, Inputs, check_keys, check_names

KEYS = ("label",)


class ArrayFeeds:
    """Feeds that are arrays already. label: in `settings`, the array that holds labels."""

    left_out = 0

    def __init__(
        self,
        make: Callable[[], Iterator[Mapping[str, NDArray[Any]]]],
        settings: Preprocess,
        count: int | None = None,
    ) -> None:
        """make: called for each pass, labels included. Raises InputError."""
        check_keys(settings, KEYS, "arrays, which are taken as they are")
        if settings.fill or settings.labels:
            raise InputError("--preprocess: fill and labels say nothing about arrays")
        self._make, self.settings = make, settings
        self._count = sum(1 for _ in make()) if count is None else count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Arrays]:
        for arrays in self._make():
            yield {n: a for n, a in arrays.items() if n != self.settings.label}

    def labels(self) -> Labels | None:
        """The array that `label=` names."""
        if not self.settings.label:
            return None
        parts = [arrays[self.settings.label].reshape(-1).tolist() for arrays in self._make()]
        names = tuple(str(one) for part in parts for one in part)
        return Labels(names, read_classes(self.settings.classes))


def of_folder(files: Sequence[Path], inputs: Inputs, settings: Preprocess) -> ArrayFeeds:
    """Of a folder of `.npz` files, one feed each."""
    chosen = files if settings.limit is None else files[: settings.limit]
    return ArrayFeeds(
        lambda: (_arrays(file, inputs, settings) for file in chosen), settings, len(chosen)
    )


def of_file(file: Path, inputs: Inputs, settings: Preprocess, batch: int) -> ArrayFeeds:
    """Of an `.npz` or `.npy` file, in batches."""
    return ArrayFeeds(lambda: batches(_arrays(file, inputs, settings), inputs, settings, batch,
                                      str(file)), settings)  # fmt: skip


def of_mapped(
    files: Sequence[Path], inputs: Inputs, settings: Preprocess, batch: int, where: str
) -> ArrayFeeds:
    """Of a folder of `.npy` files, each named after the input that it holds; they are mapped."""
    arrays = {file.stem: read_npy(file) for file in files}
    _check_names(list(arrays), inputs, settings, where)
    make = partial(batches, arrays, inputs, settings, batch, where)
    return ArrayFeeds(make, settings)


def of_memory(
    arrays: Mapping[str, NDArray[Any]], inputs: Inputs, settings: Preprocess, batch: int
) -> ArrayFeeds:
    """Of arrays by input name."""
    _check_names(list(arrays), inputs, settings, "data")
    return ArrayFeeds(partial(batches, arrays, inputs, settings, batch, "data"), settings)


def _check_names(names: Sequence[str], inputs: Inputs, settings: Preprocess, where: str) -> None:
    label = settings.label
    if label and label not in names:
        known = expected(label, sorted(names))
        raise InputError(f"{where}: has no {label} for label={label}; {known}")
    check_names([name for name in names if name != label], inputs, where)


def _arrays(file: Path, inputs: Inputs, settings: Preprocess) -> Mapping[str, NDArray[Any]]:
    """The arrays of a file, once their names are those of the inputs."""
    if file.suffix == ".npy":
        if len(inputs) != 1:
            raise InputError(f"{file}: .npy data needs a model with one input, not {len(inputs)}")
        return {next(iter(inputs)): read_npy(file)}
    archive = Archive(file)
    _check_names(archive.names, inputs, settings, str(file))
    return archive.arrays()


def batches(
    arrays: Mapping[str, NDArray[Any]],
    inputs: Mapping[str, ir.Value],
    settings: Preprocess,
    batch: int,
    where: str,
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Samples along axis 0, or one feed where inputs share no axis 0. Raises InputError."""
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(lengths.values())) != 1 or not all(a.ndim for a in arrays.values()):
        if len({str(first_dim(v)) for v in inputs.values()}) > 1 or not inputs:
            yield arrays
            return
        raise InputError(f"{where}: arrays differ in their number of samples: {lengths}")
    total = next(iter(lengths.values()))
    total = total if settings.limit is None else min(total, settings.limit)
    if total % batch and fixed_batch(inputs):
        raise InputError(f"{where}: {total} samples are not a multiple of the batch size {batch}")
    for start in range(0, total, batch):
        stop = min(start + batch, total)
        yield {name: np.asarray(a[start:stop]) for name, a in arrays.items()}
