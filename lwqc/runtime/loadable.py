"""What a session loads, in a form that the runtime takes."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import onnx_ir as ir

from lwqc.model import io
from lwqc.model.scratch import Scratch, temporary

Loadable = ir.Model | bytes | str | os.PathLike[str]
_IN_MEMORY_BYTES = 1_500_000_000  # of weights; what has more goes through a file


def over_memory(model: ir.Model) -> bool:
    """Whether a model is loaded from a temporary file."""
    return io.weight_bytes(model) >= _IN_MEMORY_BYTES


class as_loadable(AbstractContextManager[str | bytes]):
    """What a session loads: a path, bytes, or a temporary file for models over 2 GB."""

    def __init__(self, model: Loadable) -> None:
        self._model = model
        self._folder: Scratch | None = None

    def __enter__(self) -> str | bytes:
        if isinstance(self._model, bytes):
            return self._model
        if not isinstance(self._model, ir.Model):
            return os.fspath(self._model)
        if not over_memory(self._model):
            return io.to_bytes(self._model)
        self._folder = temporary()
        path = self._folder.path / "model.onnx"
        io.save(self._model, path, external_data=True)
        return str(path)

    def __exit__(self, *exc: object) -> None:
        if self._folder is not None:
            self._folder.close()
