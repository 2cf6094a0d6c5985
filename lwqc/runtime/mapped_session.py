"""Sessions for instrumented models whose weights stay in the files that they come from."""

from __future__ import annotations

import os
from collections.abc import Iterable

import onnx
import onnx_ir as ir

from lwqc.model.untrusted import tensor_protos
from lwqc.runtime.session import Session, SessionSettings, has_bodies, statistics_session

_FOLDER = "session.model_external_initializers_file_folder_path"
_INLINE_BYTES = 1_500_000_000  # of weights that are not in files; a protobuf message ends at 2 GB


def mapped_session(model: ir.Model, *, risky: bool | None = None) -> Session:
    """A `statistics_session` in which the runtime maps external weights instead of copying them.

    Weights are used as they lie in the file, not packed for the kernels, as that would copy them.
    risky: see `Session`.
    """
    weights = [v.const_value for v in model.graph.initializers.values()]
    files = _files(weights)
    inline = sum(int(t.nbytes) for t in weights if t and not isinstance(t, ir.ExternalTensor))
    if not files or inline > _INLINE_BYTES:
        return statistics_session(model, risky=risky)
    # Onnxruntime 1.31 refuses links out of the model's folder, so the files stay where they are.
    folder = os.path.commonpath([os.path.dirname(path) for path in files.values()])
    proto = ir.serde.serialize_model(model)
    for stored in tensor_protos(proto):
        if stored.data_location == onnx.TensorProto.EXTERNAL:
            for entry in stored.external_data:
                if entry.key == "location":
                    entry.value = os.path.relpath(files[entry.value], folder)
    entries = {_FOLDER: folder, "session.disable_prepacking": "1"}
    settings = SessionSettings(keep_arena=False, entries=entries)
    source = proto.SerializeToString()
    bodies = has_bodies(model)
    return Session(source, settings, label="instrumented model", risky=risky or bodies)


def _files(weights: Iterable[ir.TensorProtocol | None]) -> dict[str, str]:
    """Real path by name in the model; none when a name means two files."""
    found: dict[str, str] = {}
    for tensor in weights:
        if isinstance(tensor, ir.ExternalTensor):
            path = os.path.realpath(tensor.path)
            if found.setdefault(str(tensor.location), path) != path:
                return {}
    return found
