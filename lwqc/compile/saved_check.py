"""Whether a model that lies on the disk is what it should be, before it goes to its place.

Another process loads it, as it may die of it, and runs it once: its outputs must have the names,
types and ranks of the original's, and be finite where those are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import SessionError, UnsoundResult
from lwqc.model import io
from lwqc.model.coded_caches import NO_CACHES, CodedCaches
from lwqc.model.scratch import temporary_folder
from lwqc.passes.widen_bfloat16 import WidenBfloat16, has_bfloat16
from lwqc.runtime.isolated import shared
from lwqc.runtime.session import Feeds, SessionSettings, as_array, load_isolated

Array = NDArray[Any]
_FLOATS = frozenset({"float16", "bfloat16", "float", "double"})


@dataclass(frozen=True)
class Expected:
    """What the outputs of a model have to be like.

    outputs: of the original for `feeds`, by name and in order. types: as its session calls them.
    gone: outputs that were to go. any_float: the type of floats was to change. caches: in codes,
    where those of the original are in floats.
    """

    feeds: Feeds
    outputs: Mapping[str, Array]
    types: Mapping[str, str]
    gone: Collection[str] = ()
    any_float: bool = False
    caches: CodedCaches = NO_CACHES


def check_saved(
    path: Path,
    expected: Expected | None,
    settings: SessionSettings,
    label: str,
    *,
    brain: bool = False,
) -> None:
    """Load a saved model in another process and run it once. Raises UnsoundResult.

    expected: None where there is nothing to compare with; then it is only loaded. settings: of the
    session. label: for messages. brain: whether it computes in bfloat16, for which float32 stands
    in without a device that has it.
    """
    process = shared()
    widened = brain and settings.provider == SessionSettings().provider
    try:
        with _runnable(path, widened) as file:
            signature = load_isolated(process, file, settings)
            if expected is not None:
                caches = expected.caches
                feeds = caches.coded(expected.feeds)
                values = process.run(_widened(feeds) if widened else feeds) or []
                names = [name for name, _ in signature]
                found = dict(zip(names, map(as_array, values), strict=True))
                found = caches.decoded(found) if caches.has_floats(expected.feeds) else found
                compare_outputs(found, dict(signature), expected, widened)
    except (SessionError, Unlike) as error:
        reason = str(error).replace(str(path), label)
        raise UnsoundResult(f"{label}: was not saved: {reason}") from error
    finally:
        if process.alive:
            process.forget()


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    verify: bool = True,
) -> io.SavedModel:
    """Write a model for which there is no original, if another process can load it.

    verify: False writes it in any case. Raises InputError when the file cannot be written, see
    `lwqc.model.io.drafted`, and UnsoundResult when the runtime does not load it.
    """
    with io.drafted(model, path, external_data=external_data) as draft:
        if verify:
            label, brain = str(draft.target), has_bfloat16(model)
            check_saved(draft.path, None, SessionSettings(), label, brain=brain)
        return draft.publish()


class Unlike(Exception):
    """What of the outputs is not as expected, in a line."""


@contextmanager
def _runnable(path: Path, widened: bool) -> Iterator[Path]:
    """A file that runs here: the CPU has no bfloat16."""
    if not widened:
        yield path
        return
    model = io.load(path)
    WidenBfloat16()(model)
    with temporary_folder() as folder:
        stand_in = folder / "model.onnx"
        io.save(model, stand_in)
        yield stand_in


def _widened(feeds: Feeds) -> dict[str, Array]:
    return {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        for name, array in feeds.items()
    }


def compare_outputs(
    found: Mapping[str, Array], types: Mapping[str, str], expected: Expected, widened: bool
) -> None:
    """Raises Unlike. types: of all outputs found."""
    names = [name for name in expected.outputs if name not in expected.gone]
    if list(found) != names:
        raise Unlike(f"its outputs are {', '.join(found)}; expected {', '.join(names)}")
    loose = expected.any_float or widened
    for name in names:
        same = _type(types[name], loose) == _type(expected.types[name], loose)
        if not same and name not in expected.caches.outputs:
            raise Unlike(
                f"output {name} has the type {types[name]}; expected {expected.types[name]}"
            )
        _compare_value(name, found[name], expected.outputs[name])


def _type(text: str, loose: bool) -> str:
    """A type as sessions write it; loose: all floats alike."""
    if loose:
        for kind in _FLOATS:
            text = text.replace(f"({kind})", "(float)")
    return text


def _compare_value(name: str, found: Array, expected: Array) -> None:
    """By rank and finiteness."""
    if found.ndim != expected.ndim:
        raise Unlike(
            f"output {name} has the shape {found.shape}; expected one like {expected.shape}"
        )
    if found.dtype.kind == "f" and expected.dtype.kind == "f" and _less_finite(found, expected):
        raise Unlike(f"output {name} holds NaN or infinity where the original does not")


def _less_finite(found: Array, expected: Array) -> bool:
    bad, known = ~np.isfinite(found), ~np.isfinite(expected)
    if found.shape == expected.shape:
        return bool((bad & ~known).any())
    return bool(bad.any() and not known.any())
