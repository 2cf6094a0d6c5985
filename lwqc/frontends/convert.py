"""Models of other frameworks: which converter takes them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.frontends import boosting, huggingface, jax, paddle, sklearn, tensorflow, torch
from lwqc.frontends.converting import converting
from lwqc.model import io
from lwqc.model.array_files import Archive
from lwqc.model.needed import needed
from lwqc.model.user_code import check_allowed, load_callable, running

_CODE = re.compile(r"[\w.]+:\w+")
_PICKLES = (".pkl", ".pickle", ".joblib")
# TorchScript and exported programs hold pickles; layers of Keras's old files may hold code.
_PROGRAMS = (*_PICKLES, ".h5", ".hdf5", ".pt", ".pth", ".pt2")
_SOURCES = (
    "module:callable, .keras, .tflite, a SavedModel, LightGBM's .txt, XGBoost's .json or .ubj, "
    "PaddlePaddle's .json or .pdmodel, a folder of Hugging Face's, .pt, .pt2, .joblib or .pkl"
)


def read_model(
    source: Any,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    *,
    trust_code: bool = False,
    task: str = "",
    constant_inputs: bool = False,
) -> ir.Model:
    """A model of whatever kind: an ONNX file, what `convert` takes, or one in memory.

    constant_inputs: of ONNX, see `lwqc.model.io.load`. Others: see `convert` and `of_object`.
    Raises InputError.
    """
    if not isinstance(source, (str, os.PathLike)):
        return of_object(source, example_inputs, dynamic_shapes, constant_inputs=constant_inputs)
    if not is_converted(name := os.fspath(source)):
        return io.load(source, constant_inputs=constant_inputs)
    return convert(
        name,
        trust=trust_code,
        task=task,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
    )


def is_converted(source: str) -> bool:
    """Whether `convert` takes what is called so; files with other endings are read as ONNX."""
    path = Path(source)
    if path.is_dir() or (_CODE.fullmatch(source) and not path.exists()):
        return True
    return path.suffix.lower() in (*_LOADERS, *_WITH_EXAMPLES)


def convert(
    source: str,
    *,
    trust: bool = False,
    task: str = "",
    inputs: str = "",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
) -> ir.Model:
    """A model from a file, a folder, or what `module:callable` returns: a model, or with it example
    inputs and, of torch and JAX, dynamic shapes.

    trust: files may hold code, and it may run. task: of Hugging Face's models. example_inputs,
    dynamic_shapes: of TorchScript, and of pickled models. inputs: `.npz` of example inputs in
    order, instead. The current directory is importable. Raises InputError naming what is wrong
    with `source`.
    """
    path = Path(source)
    if not path.exists():
        if ":" not in source:
            raise InputError(f"{source}: no such file; expected {_SOURCES}")
        return _of_code(source)
    if not path.is_dir() and path.suffix.lower() in _PROGRAMS:
        if not trust:
            raise InputError(
                f"{source}: files of this kind may hold code, which runs when they are loaded: "
                "give --trust-code (trust_code=True) for one of your own, or module:callable"
            )
        check_allowed(source)
    if inputs:
        example_inputs = tuple(Archive(Path(inputs)).arrays().values())
    return _of_path(path, task, example_inputs, dynamic_shapes)


def files_of(source: str) -> list[Path]:
    """Files that a conversion may read; none of `module:callable`."""
    path = Path(source)
    if not source:
        return []
    if path.is_dir():
        return [f for f in path.rglob("*") if f.is_file()]
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.*")) if path.exists() else []


def _of_code(spec: str) -> ir.Model:
    made = load_callable(spec)
    with running(f"{spec}: the call failed"):
        result = made()
    if not isinstance(result, tuple):
        return of_object(result, label=spec)
    if len(result) not in (2, 3):
        raise InputError(f"{spec}: returned {len(result)} things; expected {_RESULT}")
    return of_object(*result, label=spec)


_RESULT = "a model, (model, example inputs) or (model, example inputs, dynamic shapes)"


def _of_path(path: Path, task: str, examples: Any, dynamic: Any) -> ir.Model:
    suffix = path.suffix.lower()
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return tensorflow.load_saved_model(path)
    if paddle.program_of(path) is not None:
        return paddle.load(path)
    if path.is_dir():
        if not (path / huggingface.CONFIG).is_file():
            raise InputError(f"{path}: expected a folder with saved_model.pb or config.json")
        return huggingface.load(path, task)
    if suffix in _WITH_EXAMPLES:
        return _WITH_EXAMPLES[suffix](path, examples, dynamic)
    if suffix not in _LOADERS:
        more = "; it is one that lwqc takes as it is" if suffix == ".onnx" else ""
        raise InputError(f"{path}: cannot be converted{more}; expected {_SOURCES}")
    return _LOADERS[suffix](path)


def _of_pickle(path: Path, examples: Any, dynamic: Any) -> ir.Model:
    """What joblib or pickle wrote; the caller trusts it."""
    loader = needed("joblib", "pickled models", "sklearn")
    with converting(f"{path}: loading it"):
        model = loader.load(path)
    return of_object(model, examples, dynamic, label=str(path))


_LOADERS: dict[str, Callable[[Path], ir.Model]] = {
    ".keras": tensorflow.load_keras,
    ".h5": tensorflow.load_keras,
    ".hdf5": tensorflow.load_keras,
    ".tflite": tensorflow.load_tflite,
    ".txt": boosting.load_lightgbm,
    ".json": boosting.load_xgboost,
    ".ubj": boosting.load_xgboost,
    ".pdmodel": paddle.load,
    ".pt2": torch.load_program,
}
_WITH_EXAMPLES: dict[str, Callable[[Path, Any, Any], ir.Model]] = {
    **dict.fromkeys((".pt", ".pth"), torch.load_script),
    **dict.fromkeys(_PICKLES, _of_pickle),
}


def of_object(
    model: Any,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    *,
    label: str = "",
    constant_inputs: bool = False,
) -> ir.Model:
    """A model in memory, of any framework that is known. Raises InputError that names it."""
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
    roots = {kind.partition(".")[0] for kind in kinds}
    if isinstance(model, ir.Model):
        return model
    if any(kind.endswith(".ModelProto") for kind in kinds):
        return io.from_proto(model, constant_inputs=constant_inputs)
    if torch.EXPORTED in kinds:
        return torch.of_program(model)
    if torch.MODULE in kinds:
        if example_inputs is None:
            raise InputError(f"{label}: a torch module needs example_inputs".removeprefix(": "))
        return torch.export(model, example_inputs, dynamic_shapes=dynamic_shapes)
    if roots & {"keras", "tf_keras"} and hasattr(model, "export"):
        return tensorflow.of_keras(model)
    found = _of_rows(model, example_inputs, roots)
    if found is not None:
        return found
    if callable(model) and example_inputs is not None and not isinstance(example_inputs, Mapping):
        return jax.export(model, example_inputs, dynamic_shapes)
    start = f"{label}: " if label else ""
    raise InputError(
        f"{start}a {type(model).__name__} is no model; expected a path, an ONNX model, one of "
        "torch, Keras, scikit-learn, LightGBM or XGBoost, a JAX function with example inputs, or "
        "what a function of lwqc returned"
    )


def _of_rows(model: Any, examples: Any, roots: set[str]) -> ir.Model | None:
    """Models of tables; None for others."""
    if "lightgbm" in roots:
        return boosting.of_lightgbm(model)
    if "xgboost" in roots:
        return boosting.of_xgboost(model)
    return sklearn.export(model, examples) if "sklearn" in roots else None
