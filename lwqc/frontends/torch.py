"""torch modules to ONNX; needs the extra `lwqc[torch]`."""

from __future__ import annotations

import contextlib
import inspect
import io as text_io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.model import io
from lwqc.model.scratch import temporary_folder
from lwqc.model.user_code import load_callable, running

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = {"dynamo": 20, "legacy": 17}
MAX_OPSET = 26  # the newest that onnxruntime 1.31 loads
# They hold the exporting machine's file paths and source lines, and outweigh small graphs.
_PRIVATE_METADATA = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


def export(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | Any,
    *,
    dynamic_shapes: Any = None,
    exporter: Literal["dynamo", "legacy"] = "dynamo",
    opset: int | None = None,
) -> ir.Model:
    """Export a module in evaluation mode; the modes of its parts are restored afterwards.

    example_inputs: positional arguments as a tuple, keyword arguments as a mapping, or one tensor.
    dynamic_shapes: as in `torch.export.export`; with the legacy exporter for tensor arguments only.
    opset: at most `MAX_OPSET`; 20 by default, 17 with the legacy exporter.

    The dynamo exporter's weights are views of the module's: save the model before training on.
    Raises InputError when torch or onnxscript is missing, or when the export fails.
    """
    torch = _torch()
    if exporter not in DEFAULT_OPSET:
        raise InputError(f"exporter {exporter!r} is not known; expected dynamo or legacy")
    version = opset or DEFAULT_OPSET[exporter]
    if version > MAX_OPSET:
        raise InputError(f"opset {version} is too new for onnxruntime; the highest is {MAX_OPSET}")
    arguments, keywords = _arguments(example_inputs)
    run = _legacy if exporter == "legacy" else _dynamo
    try:
        with _quiet(), _evaluation(module), torch.no_grad():
            return run(torch, module, arguments, keywords, dynamic_shapes, version)
    except Exception as error:
        raise InputError(f"{type(module).__name__}: export failed: {_first_line(error)}") from error


def convert(spec: str) -> ir.Model:
    """Export what `module:callable` returns: (torch module, example inputs[, dynamic shapes]).

    The current directory is importable. Raises InputError naming what is wrong with `spec`.
    """
    made = load_callable(spec)
    _torch()
    with running(f"{spec}: the call failed"):
        result = made()
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


def _dynamo(
    torch: Any,
    module: Any,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    dynamic_shapes: Any,
    version: int,
) -> ir.Model:
    program = torch.onnx.export(
        module,
        arguments,
        kwargs=keywords,
        dynamic_shapes=dynamic_shapes,
        opset_version=version,
        dynamo=True,
        verbose=False,
    )
    model: ir.Model = program.model
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for node in (node for graph in graphs for node in graph.all_nodes()):
        for key in _PRIVATE_METADATA:
            node.metadata_props.pop(key, None)
    return model


def _legacy(
    torch: Any,
    module: Any,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    dynamic_shapes: Any,
    version: int,
) -> ir.Model:
    """The legacy exporter only writes files; the result is read back into memory."""
    names = _input_names(torch, module, arguments, keywords)
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        torch.onnx.export(
            module,
            arguments,
            str(path),
            kwargs=keywords,
            input_names=names,
            dynamic_axes=_dynamic_axes(names, dynamic_shapes),
            opset_version=version,
            dynamo=False,
        )
        model = io.load(path)
        del model.meta["lwqc_path"]
        return io.detached(model)


def _input_names(
    torch: Any, module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> list[str]:
    """Names of the arguments in the order in which the exporter flattens them.

    Empty, so that the exporter makes some up, when an argument is not a plain tensor.
    """
    if not all(isinstance(v, torch.Tensor) for v in (*arguments, *keywords.values())):
        return []
    bound = inspect.signature(module.forward).bind(*arguments, **keywords)
    return list(bound.arguments) if len(bound.arguments) == len(bound.args) else []


def _dynamic_axes(names: list[str], shapes: Any) -> dict[str, dict[int, str]] | None:
    """`dynamic_shapes` as the legacy exporter's `dynamic_axes`: argument -> axis -> name."""
    if shapes is None:
        return None
    if not names:
        raise InputError(
            "dynamic shapes with the legacy exporter need plain tensor arguments; use dynamo"
        )
    by_name = shapes if isinstance(shapes, Mapping) else dict(zip(names, shapes, strict=True))
    axes: dict[str, dict[int, str]] = {}
    for name, dims in by_name.items():
        pairs = dims.items() if isinstance(dims, Mapping) else enumerate(dims or ())
        axes[name] = {
            int(axis): label
            for axis, dim in pairs
            if (label := _dimension_name(dim, f"{name}_{axis}")) is not None
        }
    return axes


def _dimension_name(dim: Any, unnamed: str) -> str | None:
    """Name of a `torch.export.Dim`, a string or a hint; None for a fixed size."""
    if dim is None or isinstance(dim, int):
        return None
    if isinstance(dim, str):
        return dim
    hint = getattr(getattr(dim, "type", None), "name", None)  # Dim.AUTO, Dim.STATIC, ...
    if hint is not None:
        return None if hint == "STATIC" else unnamed
    return str(getattr(dim, "__name__", unnamed))


@contextlib.contextmanager
def _evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; parts that were frozen in evaluation mode stay so afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress texts, warnings and tracebacks off our output."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch's loggers have levels and handlers of their own
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(text_io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: BaseException) -> str:
    """First line of the error that started it all: the exporter wraps it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\x1b\[[0-9;]*m", "", lines[0] if lines else repr(error))[:300]
