"""How many samples make one batch of a model."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.shapes import symbol_of
from lwqc.plans.preprocess import Preprocess

DEFAULT_BATCH = 8


def first_dim(value: ir.Value) -> int | str | None:
    """Axis 0 of an input: its size, its name, or None if there is no such axis."""
    if value.shape is None or not len(value.shape):
        return None
    dim = value.shape[0]
    return dim if isinstance(dim, int) else symbol_of(value, 0, dim)


def fixed_batch(inputs: Mapping[str, ir.Value]) -> int:
    """The size that axis 0 has in the model; 0 where it has none."""
    return next((d for d in map(first_dim, inputs.values()) if isinstance(d, int)), 0)


def batch_size(
    inputs: Mapping[str, ir.Value],
    shapes: Mapping[str, int],
    settings: Preprocess,
    usual: int = DEFAULT_BATCH,
) -> int:
    """That of the model, of the settings, of the shapes, or the usual one. Raises InputError."""
    named = [
        shapes[d] for d in map(first_dim, inputs.values()) if isinstance(d, str) and d in shapes
    ]
    fixed = fixed_batch(inputs)
    if fixed and settings.batch not in (None, fixed):
        raise InputError(f"--preprocess batch={settings.batch}: the model takes batch={fixed}")
    return fixed or settings.batch or next(iter(named), usual)
