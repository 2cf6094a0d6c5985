"""What a plan depends on besides its steps, and how what is there now differs from that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lwqc.plans.plan import DataSource, Plan, Source
from lwqc.plans.version import VERSION
from lwqc.runtime.data import Dataset
from lwqc.runtime.session import VERSION as RUNTIME

_SHOWN = 12  # digits of a digest that a message gives


def tool_versions() -> dict[str, str]:
    """Versions that the bytes of a result depend on, by package."""
    return {"lwqc": VERSION, "onnx": onnx.__version__, "onnxruntime": RUNTIME}


def data_source(data: Dataset) -> DataSource:
    """Identity of data: names, types, shapes and values of all feeds, in their order."""
    digest = hashlib.sha256()
    count, shapes = 0, {}
    for feeds in data:
        count += 1
        if count == 1:
            shapes = {name: array.shape for name, array in feeds.items()}
        for name, array in feeds.items():
            digest.update(repr((name, array.dtype.name, array.shape)).encode())
            digest.update(_bytes(array))
    return DataSource(
        digest=digest.hexdigest(),
        name=data.description,
        given=data.given,
        feeds=count,
        shapes=shapes,
        preprocess=data.preprocess,
    )


def _bytes(array: NDArray[Any]) -> bytes | memoryview:
    if array.dtype == object:  # of texts, which may hold anything but half a character
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def differences(
    plan: Plan, source: Source, data: Callable[[], DataSource], *, draws: bool
) -> list[str]:
    """How a model, its data and the versions here differ from those of a plan, a line each.

    Given data has to be the same. Where none was given, for the plan or now, its shapes have to be,
    where `draws`: steps of the plan take statistics on random inputs of those shapes. A plan that
    does not say what its data or versions were (version 1) fits all. data: asked only if it does.
    """
    return list(
        chain(
            _of_model(plan.source, source),
            _of_data(plan.data, data(), draws) if plan.data is not None else (),
            _of_tools(plan.tools, tool_versions()),
        )
    )


def _of_model(made: Source, here: Source) -> Iterator[str]:
    if made.digest != here.digest:
        yield (
            f"the plan is for {made.name or 'another model'} ({made.digest[:_SHOWN]}), "
            f"not for {here.name} ({here.digest[:_SHOWN]})"
        )


def _of_data(made: DataSource, here: DataSource, draws: bool) -> Iterator[str]:
    if made.given and here.given:
        if made.digest != here.digest:
            yield f"the plan was made on {_told(made)}, not on {_told(here)}{_alike(made, here)}"
    elif draws and made.shapes != here.shapes:
        yield f"the plan was made on inputs {_sizes(made)}, not {_sizes(here)}"


def _of_tools(made: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    for name, version in made.items():
        if version != here.get(name):
            yield f"the plan was made with {name} {version}, not with {here.get(name, 'none')}"


def _told(data: DataSource) -> str:
    return f"{data.name} ({data.feeds} feeds, {_sizes(data)}, {data.digest[:_SHOWN]})"


def _alike(made: DataSource, here: DataSource) -> str:
    if made.preprocess != here.preprocess:
        return f": it was prepared by {_how(made)}, here by {_how(here)}"
    same = (made.feeds, made.shapes) == (here.feeds, here.shapes)
    return ": other values, or the same in another order" if same else ""


def _how(data: DataSource) -> str:
    return f"--preprocess {data.preprocess}" if data.preprocess else "nothing"


def _sizes(data: DataSource) -> str:
    """Shapes of the first feeds."""
    return ", ".join(f"{name} {list(shape)}" for name, shape in data.shapes.items())
