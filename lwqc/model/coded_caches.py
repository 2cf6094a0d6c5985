"""What the metadata of a file says of caches that hold codes: how to read and write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from lwqc.errors import InputError

KEY = "lwqc.caches"  # of the metadata
_LEAST, _MOST = -128, 127


class _Entry(pydantic.BaseModel):
    """output: its name. scale: [heads][size]."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    output: str
    scale: list[list[Annotated[float, pydantic.Field(ge=1e-30, le=1e30)]]]


_Entries = pydantic.TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True)
class CodedCaches:
    """Inputs and outputs in int8 that stand for floats [batch, heads, tokens, size].

    pairs: input -> its output, and their scale [1, heads, 1, size].
    """

    pairs: Mapping[str, tuple[str, NDArray[np.float32]]]

    @cached_property
    def inputs(self) -> dict[str, NDArray[np.float32]]:
        """Scales by input."""
        return {name: scale for name, (_, scale) in self.pairs.items()}

    @cached_property
    def outputs(self) -> dict[str, NDArray[np.float32]]:
        """Scales by output."""
        return dict(self.pairs.values())

    def coded(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The feeds with codes in place of floats. Raises InputError for NaN and infinity."""
        return {name: self._coded(name, array) for name, array in feeds.items()}

    def _coded(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        scale = self.inputs.get(name)
        if scale is None or array.dtype.kind != "f" or not _fits(array, scale):
            return array
        if not np.isfinite(array).all():
            raise InputError(f"{name}: holds NaN or infinity, which have no codes")
        return np.clip(np.rint(array / scale), _LEAST, _MOST).astype(np.int8)

    def decoded(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs with floats in place of codes."""
        scales = ((name, array, self.outputs.get(name)) for name, array in outputs.items())
        return {
            n: array * s if s is not None and _fits(array, s) else array for n, array, s in scales
        }

    def has_floats(self, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Whether a cache is given as floats."""
        return any(n in self.inputs and a.dtype.kind == "f" for n, a in feeds.items())


def _fits(array: NDArray[Any], scale: NDArray[np.float32]) -> bool:
    return array.ndim == scale.ndim and array.shape[1::2] == scale.shape[1::2]


NO_CACHES = CodedCaches({})


def caches_of(metadata: Mapping[str, str]) -> CodedCaches:
    """Those that the metadata of a model tells of. Raises InputError."""
    return _read(metadata[KEY]) if KEY in metadata else NO_CACHES


def told_of_caches(metadata: Mapping[str, str]) -> dict[str, str]:
    """What parts of the model have to tell of them too."""
    return {key: text for key, text in metadata.items() if key == KEY}


def entry(caches: Mapping[str, tuple[str, NDArray[np.float32]]]) -> str:
    """The metadata of caches. caches: input -> its output and scale [1, heads, 1, size]."""
    told = {
        name: {"output": output, "scale": scale[0, :, 0].tolist()}
        for name, (output, scale) in caches.items()
    }
    return json.dumps(told)


def _read(text: str) -> CodedCaches:
    try:
        found = _Entries.validate_json(text)
        scales = {n: np.asarray(e.scale, np.float32)[None, :, None] for n, e in found.items()}
    except (pydantic.ValidationError, ValueError):
        raise InputError(f"the metadata {KEY} is not what lwqc writes") from None
    return CodedCaches({name: (e.output, scales[name]) for name, e in found.items()})
