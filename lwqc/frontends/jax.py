"""JAX functions and Flax modules to ONNX by jax2onnx; extra `lwqc[jax]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.frontends.converting import converting
from lwqc.model import io
from lwqc.model.needed import needed

OPSET = 23


def export(function: Callable[..., Any], inputs: Any, dynamic: Any = None) -> ir.Model:
    """A function of arrays, or a module of Flax's.

    inputs: a tuple of example arrays, `jax.ShapeDtypeStruct`, or shapes with names for sizes that
    vary, `("batch", 16, 64)`. dynamic: for each of them axis -> name, as of torch. Raises
    InputError.
    """
    converter = needed("jax2onnx", "JAX functions", "jax")
    specs = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    if _is_shape(inputs):
        specs = [tuple(inputs)]
    axes = [dynamic] if isinstance(dynamic, Mapping) else list(dynamic or ())
    specs = [_spec(one, axes[i] if i < len(axes) else None) for i, one in enumerate(specs)]
    name = getattr(function, "__name__", type(function).__name__)
    with converting(f"{name}: export"):
        proto = converter.to_onnx(function, specs, opset=OPSET)
    return io.from_proto(proto)


def _is_shape(inputs: Any) -> bool:
    return isinstance(inputs, Sequence) and all(isinstance(size, (int, str)) for size in inputs)


def _spec(one: Any, axes: Mapping[int, str] | None) -> Any:
    """An input as jax2onnx takes it; shapes stand for float32."""
    if isinstance(one, (tuple, list)):
        return tuple(one)
    if not hasattr(one, "shape") or not hasattr(one, "dtype"):
        raise InputError(f"a {type(one).__name__} is no input of a JAX function: expected an array")
    if not axes:
        return one
    if str(one.dtype) != "float32":
        raise InputError(f"sizes that vary need inputs of float32, not {one.dtype}")
    return tuple(axes.get(axis, size) for axis, size in enumerate(one.shape))
