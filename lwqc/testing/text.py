"""Models as text, in and out; and what makes two of them the same graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.value_types import infer_types
from lwqc.model import io
from lwqc.model.model_scopes import check_scopes
from lwqc.passes.graph_text import to_text

__all__ = ["HEADER", "AnyModel", "as_model", "model_of", "to_text"]

AnyModel = ir.Model | onnx.ModelProto | str | Path
HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'


def model_of(
    text: str, stored: Sequence[str] | Mapping[str, NDArray[Any]] = (), *, seed: int = 0
) -> ir.Model:
    """The model that a text in ONNX's own syntax describes, with types and shapes inferred.

    A text without a header is of opset 20. stored: inputs of the text that are weights instead,
    with their numbers, or just their names: then numbers are drawn.

    Raises InputError for what is no ONNX text, and for values that nothing makes or that are made
    twice.
    """
    try:
        proto = onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
    except (ValueError, onnx.parser.ParseError) as error:
        reason = error.args[0] if error.args else error
        told = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise InputError(f"not ONNX text: {' '.join(told.split())}") from error
    check_scopes(proto)
    model = ir.from_proto(proto)
    rng = np.random.default_rng(seed)
    inputs = {value.name: value for value in model.graph.inputs}
    for name in stored:
        if name not in inputs:
            raise InputError(f"{name}: is no input of the text")
        given = stored[name] if isinstance(stored, Mapping) else _drawn(inputs[name], rng)
        _store(model.graph, inputs[name], given)
    infer_types(model)
    return model


def as_model(given: AnyModel) -> ir.Model:
    """The model that is given as such, as a proto, as text, or as the path of its file.

    Raises InputError for what cannot be read.
    """
    if isinstance(given, str):
        return model_of(given)
    if isinstance(given, Path):
        return io.load(given)
    return io.from_proto(given) if isinstance(given, onnx.ModelProto) else given


def _drawn(value: ir.Value, rng: np.random.Generator) -> NDArray[Any]:
    sizes = [dim for dim in value.shape or () if isinstance(dim, int)]
    if value.shape is None or len(sizes) < len(value.shape) or value.dtype is None:
        raise InputError(f"{value.name}: a weight needs a type and sizes that are numbers")
    if value.dtype.is_integer():
        return rng.integers(-8, 8, sizes).astype(value.dtype.numpy())
    # A product with it keeps the size of its operand.
    fan = sizes[0] if len(sizes) == 2 else math.prod(sizes[1:])
    drawn: NDArray[Any] = rng.standard_normal(sizes) * fan**-0.5
    return drawn.astype(value.dtype.numpy())


def _store(graph: ir.Graph, value: ir.Value, numbers: NDArray[Any]) -> None:
    value.const_value = ir.tensor(numbers, name=value.name)
    value.shape, value.dtype = ir.Shape(numbers.shape), value.const_value.dtype
    graph.inputs.remove(value)
    graph.register_initializer(value)
