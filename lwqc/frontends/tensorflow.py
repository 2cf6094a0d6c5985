"""Keras models, SavedModels and TFLite files to ONNX by tf2onnx; extra `lwqc[keras]`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.frontends.converting import converting, native_quiet
from lwqc.model import io
from lwqc.model.needed import needed
from lwqc.model.scratch import temporary_folder

OPSET = 18  # the newest that tf2onnx 1.17 writes
_EXTRA = "keras"


def of_keras(model: Any) -> ir.Model:
    """A built model of Keras 3. Raises InputError."""
    _prepare("Keras models")
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        with native_quiet(), converting(f"{type(model).__name__}: running it"):
            model(_first_inputs(model))  # Keras 3.15 exports what was called before alone
        with native_quiet(), converting(f"{type(model).__name__}: export"):
            model.export(str(path), format="onnx", verbose=False, opset_version=OPSET)
        return _loaded(onnx.load(path))


def _first_inputs(model: Any) -> Any:
    """Zeros as the model takes them. Raises ValueError for one that does not know its inputs."""
    inputs = model.inputs
    if not inputs:
        raise ValueError("it does not say what its inputs are: call it once, or build it")
    zeros = [np.zeros([size or 1 for size in one.shape], one.dtype) for one in inputs]
    return zeros[0] if len(zeros) == 1 else zeros


def load_keras(path: Path) -> ir.Model:
    """A `.keras` or `.h5` file. Layers with code of their own are refused by Keras."""
    _prepare("Keras models")
    keras = needed("keras", "Keras models", _EXTRA)
    with native_quiet(), converting(f"{path}: loading it"):
        model = keras.saving.load_model(str(path), compile=False, safe_mode=True)
    return of_keras(model)


def load_saved_model(path: Path) -> ir.Model:
    """The serving signature of a folder of TensorFlow's. Raises InputError."""
    _prepare("SavedModels")
    tensorflow = needed("tensorflow", "SavedModels", _EXTRA)
    tf2onnx = needed("tf2onnx", "SavedModels", _EXTRA)
    with native_quiet(), converting(f"{path}: loading it"):
        loaded = tensorflow.saved_model.load(str(path))
        signatures = dict(loaded.signatures)
    if not signatures:
        raise InputError(f"{path}: has no signature to serve by; export it with one")
    function = signatures.get("serving_default") or next(iter(signatures.values()))
    specs = list(function.structured_input_signature[1].values())

    def call(*inputs: Any) -> Any:
        return function(**{s.name: value for s, value in zip(specs, inputs, strict=True)})

    with native_quiet(), converting(f"{path}: conversion"):
        wrapped = tensorflow.function(call, input_signature=specs, autograph=False)
        proto, _ = tf2onnx.convert.from_function(wrapped, input_signature=specs, opset=OPSET)
    return _loaded(proto)


def load_tflite(path: Path) -> ir.Model:
    """A `.tflite` file. Raises InputError."""
    _prepare("TFLite files")
    tf2onnx = needed("tf2onnx", "TFLite files", _EXTRA)
    with native_quiet(), converting(f"{path}: conversion"):
        proto, _ = tf2onnx.convert.from_tflite(str(path), opset=OPSET)
    return _loaded(proto)


def _prepare(what: str) -> None:
    """Import what is needed, in an order that works."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with native_quiet():
        needed("tensorflow", what, _EXTRA)
        needed("tf2onnx", what, _EXTRA)


def _loaded(proto: onnx.ModelProto) -> ir.Model:
    """The model, where operators that tf2onnx left as TensorFlow's are functions of ONNX's.

    Raises InputError for those that are not known.
    """
    version = next(entry.version for entry in proto.opset_import if not entry.domain)
    used = set()
    for node in proto.graph.node:
        if node.domain or onnx.defs.has(node.op_type, version):
            continue
        text = _FUNCTIONS.get(_kind(node))
        if text is None:
            raise InputError(f"tf2onnx has no form for {node.op_type} of TensorFlow")
        node.op_type, node.domain = _kind(node), _DOMAIN
        del node.attribute[:]
        used.add(text)
    for text in sorted(used):
        head = f'<domain: "{_DOMAIN}", opset_import: ["": {version}]>'
        proto.functions.append(onnx.parser.parse_function(f"{head} {text}"))
    if used:
        proto.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return io.from_proto(proto)


def _kind(node: onnx.NodeProto) -> str:
    """The operator, where its attributes leave it one form."""
    rough = any(a.name == "approximate" and a.i for a in node.attribute)
    return f"{node.op_type}{_TANH if rough else ''}"


_DOMAIN = "tensorflow"
_TANH = "_tanh"
# tf2onnx 1.17 passes these on as they are. Constants are of x's type.
_FUNCTIONS = {
    "Erfc": """Erfc (x) => (y) {
        e = Erf(x)
        one = Constant <value = float {1.0}> ()
        as_x = CastLike(one, x)
        y = Sub(as_x, e)
    }""",
    "TFL_GELU": """TFL_GELU (x) => (y) {
        root = Constant <value = float {1.4142135623730951}> ()
        one = Constant <value = float {1.0}> ()
        half = Constant <value = float {0.5}> ()
        root_x = CastLike(root, x)
        one_x = CastLike(one, x)
        half_x = CastLike(half, x)
        scaled = Div(x, root_x)
        e = Erf(scaled)
        both = Add(e, one_x)
        product = Mul(x, both)
        y = Mul(product, half_x)
    }""",
    "TFL_GELU_tanh": """TFL_GELU_tanh (x) => (y) {
        cubic = Constant <value = float {0.044715}> ()
        slope = Constant <value = float {0.7978845608028654}> ()
        one = Constant <value = float {1.0}> ()
        half = Constant <value = float {0.5}> ()
        cubic_x = CastLike(cubic, x)
        slope_x = CastLike(slope, x)
        one_x = CastLike(one, x)
        half_x = CastLike(half, x)
        square = Mul(x, x)
        cube = Mul(square, x)
        small = Mul(cube, cubic_x)
        inner = Add(x, small)
        scaled = Mul(inner, slope_x)
        t = Tanh(scaled)
        both = Add(t, one_x)
        product = Mul(x, both)
        y = Mul(product, half_x)
    }""",
}
