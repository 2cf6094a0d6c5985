"""One external data file for several graphs that use the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

_SMALLEST, _ALIGNMENT = 1024, 64


def share_weights(paths: Iterable[Path], data: Path) -> None:
    """Move initializers of at least 1 KiB to `data`, each distinct content once.

    The ONNX files are rewritten in place and must lie in the folder of `data`.
    """
    offsets: dict[bytes, int] = {}
    models = {path: onnx.load(path) for path in paths}
    with data.open("wb") as stream:
        for model in models.values():
            for tensor in model.graph.initializer:
                content = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(content) < _SMALLEST:
                    continue
                key = hashlib.sha256(content).digest()
                if key not in offsets:
                    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
                    offsets[key] = stream.tell()
                    stream.write(content)
                _refer(tensor, data.name, offsets[key], content)
    for path, model in models.items():
        path.write_bytes(model.SerializeToString(deterministic=True))


def _refer(tensor: TensorProto, location: str, offset: int, content: bytes) -> None:
    """Make a tensor point into the data file."""
    for field in ("raw_data", "float_data", "int64_data", "int32_data"):
        tensor.ClearField(field)
    tensor.raw_data = content  # set_external_data insists on raw data
    set_external_data(tensor, location, offset, len(content))
    tensor.ClearField("raw_data")
