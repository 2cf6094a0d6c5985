"""The files that a model is stored in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from lwqc.model import io


def data_files(model: ir.Model) -> Sequence[Path]:
    """External data files that the model reads."""
    files = {
        Path(value.const_value.path)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return sorted(files)


def stored_bytes(model: ir.Model) -> int:
    """Bytes of a model's files, or of its graph and weights when it is only in memory."""
    path = model.meta.get("lwqc_path")
    if not path or not Path(path).exists():
        return io.serialized_bytes(model)
    return Path(path).stat().st_size + sum(f.stat().st_size for f in data_files(model))


def model_files(model: ir.Model) -> list[Path]:
    """Every file that a model in memory still reads from, its own file first."""
    path = model.meta.get("lwqc_path")
    return [*([Path(path)] if path else []), *data_files(model)]
