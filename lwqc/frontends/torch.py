"""torch modules to ONNX; needs the extra `lwqc[torch]`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.frontends.converting import converting
from lwqc.model import io
from lwqc.model.scratch import temporary_folder

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = {"dynamo": 20, "legacy": 17}
MODULE = "torch.nn.modules.module.Module"
EXPORTED = "torch.export.exported_program.ExportedProgram"
MAX_OPSET = 26  # the newest that onnxruntime 1.31 loads


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
    with converting(f"{type(module).__name__}: export"), _evaluation(module), torch.no_grad():
        return run(torch, module, arguments, keywords, dynamic_shapes, version)


def of_program(program: Any) -> ir.Model:
    """What `torch.export.export` made. Raises InputError."""
    torch = _torch()
    with converting("ExportedProgram: export"):
        exported = torch.onnx.export(
            program, opset_version=DEFAULT_OPSET["dynamo"], dynamo=True, verbose=False
        )
    model: ir.Model = exported.model
    return model


def load_program(path: Path) -> ir.Model:
    """A `.pt2` file, as `torch.export.save` writes it; it is trusted. Raises InputError."""
    torch = _torch()
    with converting(f"{path}: loading it"):
        program = torch.export.load(str(path))
    return of_program(program)


def load_script(path: Path, inputs: Any, dynamic_shapes: Any = None) -> ir.Model:
    """A TorchScript file, which is trusted. inputs: arrays or tensors, its arguments in order.

    Raises InputError.
    """
    torch = _torch()
    if inputs is None:
        raise InputError(
            f"{path}: TorchScript needs example inputs: give --inputs FILE.npz (example_inputs)"
        )
    with converting(f"{path}: loading it"):
        module = torch.jit.load(str(path), map_location="cpu")
    tensors = tuple(map(torch.as_tensor, inputs if isinstance(inputs, tuple) else (inputs,)))
    return export(module, tensors, dynamic_shapes=dynamic_shapes, exporter="legacy")


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
    if isinstance(module, torch.jit.ScriptModule):
        return [argument.name for argument in module.forward.schema.arguments[1:]]
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
