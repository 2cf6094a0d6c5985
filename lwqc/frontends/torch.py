"""torch modules to ONNX; needs the extra `lwqc[torch]`."""

from __future__ import annotations

import contextlib
import importlib
import io as text_io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from lwqc import io
from lwqc.errors import InputError

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = {"dynamo": 20, "legacy": 17}


def export(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | Any,
    *,
    dynamic_shapes: Any = None,
    exporter: Literal["dynamo", "legacy"] = "dynamo",
    opset: int | None = None,
) -> ir.Model:
    """Export a module in evaluation mode; its own mode is restored afterwards.

    example_inputs: positional arguments as a tuple, keyword arguments as a mapping, or one tensor.
    dynamic_shapes: as in `torch.export.export`; the legacy exporter takes `dynamic_axes`.

    Raises InputError when torch or onnxscript is missing, or when the export fails.
    """
    torch = _torch()
    arguments, keywords = _arguments(example_inputs)
    version = opset or DEFAULT_OPSET[exporter]
    training = module.training
    module.eval()
    try:
        with _quiet(), torch.no_grad():
            if exporter == "legacy":
                return _legacy(torch, module, arguments, keywords, dynamic_shapes, version)
            program = torch.onnx.export(
                module,
                arguments,
                kwargs=keywords,
                dynamic_shapes=dynamic_shapes,
                opset_version=version,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise InputError(f"{type(module).__name__}: export failed: {_first_line(error)}") from error
    finally:
        module.train(training)
    if program is None:
        raise InputError(f"{type(module).__name__}: the exporter returned nothing")
    model: ir.Model = program.model
    return model


def convert(spec: str) -> ir.Model:
    """Export what `module:callable` returns: (torch module, example inputs[, dynamic shapes]).

    The current directory is importable. Raises InputError naming what is wrong with `spec`.
    """
    name, colon, attribute = spec.partition(":")
    if not colon or not name or not attribute:
        raise InputError(f"{spec}: expected module:callable")
    _torch()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(name), attribute)
    except ImportError as error:
        raise InputError(f"{spec}: module {name} cannot be imported: {error}") from error
    except AttributeError as error:
        raise InputError(f"{spec}: module {name} has no attribute {attribute}") from error
    if not callable(made):
        raise InputError(f"{spec}: {attribute} is not callable")
    try:
        result = made()
    except Exception as error:
        raise InputError(f"{spec}: the call failed: {_first_line(error)}") from error
    return export_result(result, spec)


def export_result(result: Any, label: str) -> ir.Model:
    """Export a tuple as `convert` expects it. Raises InputError that starts with `label`."""
    torch = _torch()
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise InputError(
            f"{label}: returned {type(result).__name__}, expected (module, example inputs) or "
            "(module, example inputs, dynamic shapes)"
        )
    if not isinstance(result[0], torch.nn.Module):
        raise InputError(f"{label}: first item is {type(result[0]).__name__}, not a torch module")
    return export(result[0], result[1], dynamic_shapes=result[2] if len(result) == 3 else None)


def _torch() -> Any:
    try:
        import onnxscript  # noqa: F401 - the exporter needs it and says so less clearly
        import torch
    except ImportError as error:
        raise InputError(
            "torch models need torch and onnxscript: pip install lwqc[torch]"
        ) from error
    return torch


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _legacy(
    torch: Any,
    module: Any,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    axes: Any,
    version: int,
) -> ir.Model:
    """The legacy exporter only writes files; the result is read back into memory."""
    with tempfile.TemporaryDirectory(prefix="lwqc-") as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            arguments,
            str(path),
            kwargs=keywords,
            dynamic_axes=axes,
            opset_version=version,
            dynamo=False,
        )
        model = io.load(path)
        del model.meta["lwqc_path"]
        return io.detached(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress texts off our standard output."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(text_io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else repr(error))[:300]
