"""Models run by OpenVINO on the CPU, where that package is installed; nothing else imports it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from lwqc.errors import SessionError
from lwqc.model.coded_caches import NO_CACHES
from lwqc.runtime.isolated_child import fitting
from lwqc.runtime.loadable import Loadable, as_loadable
from lwqc.runtime.session import Feeds, Outputs, Session, default_threads

_DEVICE = "CPU"
_PLACE = re.compile(r"Exception from \S+:\d+: ")  # in OpenVINO's sources
_SINK = "/sink_port_0"  # behind the name of an output, in the name of the node that takes it
# By default OpenVINO computes in bfloat16 where the processor has it.
EXACT: Mapping[str, str] = MappingProxyType({"INFERENCE_PRECISION_HINT": "f32"})


@dataclass(frozen=True)
class Kernel:
    """A node of the graph that OpenVINO executes.

    merged: names of the nodes it was made of, as far as OpenVINO keeps them. kind: `Convolution`,
    `FullyConnected`. precision: type of its first data input or of the weight: `u8`, `i4`, `f32`.
    """

    merged: frozenset[str]
    kind: str
    precision: str


def missing() -> str:
    """Why OpenVINO cannot be used here, in a plain sentence, or ""."""
    if find_spec("openvino") is None:
        return "OpenVINO is not installed (pip install 'lwqc[openvino]')"
    return ""


def installed_version() -> str:
    """The version of the installed OpenVINO."""
    return version("openvino")


class OpenvinoSession(Session):
    """A model compiled by OpenVINO for this processor, used like a session of ONNX Runtime."""

    def __init__(
        self, model: Loadable, options: Mapping[str, str] = EXACT, *, label: str = "model"
    ) -> None:
        """options: properties of the CPU plugin. Raises SessionError when it does not load."""
        import openvino

        chosen: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY", **options}
        if threads := default_threads():
            chosen["INFERENCE_NUM_THREADS"] = threads
        self._label = label
        with as_loadable(model) as source:
            try:
                core = openvino.Core()
                self._compiled = core.compile_model(core.read_model(source), _DEVICE, chosen)
            except Exception as error:  # whatever its bindings raise
                raise SessionError(f"{label}: OpenVINO cannot load it: {_line(error)}") from error
        self._request = self._compiled.create_infer_request()
        self.inputs = [port.any_name for port in self._compiled.inputs]
        kinds = {port.any_name: _kind(port) for port in self._compiled.inputs}
        self._input_types = kinds
        self.outputs = [_output_name(port) for port in self._compiled.outputs]
        self.types = {_output_name(port): _kind(port) for port in self._compiled.outputs}
        self.caches = NO_CACHES
        self._binding = None

    def __call__(self, feeds: Feeds) -> Outputs:
        """Run once. Raises SessionError with the runtime's first line when the run fails."""
        found = self._run(self.coded(feeds))
        return {
            name: found[port].copy()
            for name, port in zip(self.outputs, self._compiled.outputs, strict=True)
        }

    def seconds(self, feeds: Feeds) -> float:
        """Wall time of one run in seconds. Raises SessionError."""
        given = self.coded(feeds)
        start = time.perf_counter()
        self._run(given)
        return time.perf_counter() - start

    def kernels(self) -> list[Kernel]:
        """The graph that is executed, without constants, inputs and outputs."""
        found = []
        for op in self._compiled.get_runtime_model().get_ops():
            info = op.get_rt_info()
            kind = _text(info["layerType"])
            if kind not in ("Const", "Input", "Output"):
                names = frozenset(_text(info["originalLayersNames"]).split(",")) - {""}
                found.append(Kernel(names, kind, _text(info["runtimePrecision"])))
        return found

    def _run(self, feeds: Feeds) -> Any:
        given = {n: fitting(array, self._input_types[n]) for n, array in feeds.items()}
        try:
            return self._request.infer(given)
        except Exception as error:  # whatever its bindings raise
            raise SessionError(f"{self._label}: the run failed: {_line(error)}") from error


def _kind(port: Any) -> str:
    """The type of a tensor as ONNX Runtime spells it."""
    name = port.get_element_type().to_string()
    spelled = {"f32": "float", "f16": "float16", "bf16": "bfloat16", "f64": "double"}
    known = {"boolean": "bool", "string": "string", **spelled}
    if name[:1] in "iu" and name[1:].isdigit():
        known[name] = ("uint" if name[0] == "u" else "int") + name[1:]
    return f"tensor({known.get(name, name)})"


def _output_name(port: Any) -> str:
    return str(port.get_node().get_friendly_name()).removesuffix(_SINK)


def _text(value: Any) -> str:
    return str(value.astype(str))


def _line(error: BaseException) -> str:
    """What went wrong, without places in OpenVINO's sources and the way to its documentation."""
    text = " ".join(str(error).split()).partition(" To facilitate the conversion")[0]
    for start in ("Summary: --", "with a message:", "Failed operations detailed log:"):
        text = text.rpartition(start)[2].strip() or text
    text = _PLACE.sub("", text)
    return text if len(text) < 300 else text[:297] + "..."
