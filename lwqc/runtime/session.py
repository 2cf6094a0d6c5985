"""Sessions of ONNX Runtime; the only module that imports it."""

from __future__ import annotations

import ctypes
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from lwqc.errors import InputError, LwqcError, SessionError
from lwqc.model.coded_caches import caches_of
from lwqc.model.kept_parts import forget_parts
from lwqc.model.limits import limits
from lwqc.model.model_stream import apart
from lwqc.model.scratch import temporary_folder, unwritable
from lwqc.runtime.isolated import Isolated, Signature, shared
from lwqc.runtime.isolated_child import fitting
from lwqc.runtime.loadable import Loadable, as_loadable, over_memory
from lwqc.runtime.proof import prove_waiting

Feeds = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]
VERSION: str = ort.__version__

THREADS = "LWQC_THREADS"
_CPU = "CPUExecutionProvider"
_UNLOADABLE = "ONNX Runtime cannot load it"
SPIN_US = 1000  # how long a thread waits in a loop for work; the runtime's default is far longer

_TYPES = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(bfloat16)": ir.DataType.BFLOAT16,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(string)": ir.DataType.STRING,
    **{
        f"tensor({sign}int{bits})": ir.DataType[f"{sign}int{bits}".upper()]
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}

ort.set_default_logger_severity(4)  # the runtime's warnings are not addressed to our users


@dataclass(frozen=True)
class SessionSettings:
    """How to build a session.

    Threads of an idle session soon stop waiting for its next run in a loop. By default the runtime
    has them do so for tens of milliseconds, which slows down whatever runs next, the session whose
    turn it is above all.

    optimize: let the runtime fuse and fold. keep_arena: keep freed memory for the next run; off
    for statistics, whose memory must not grow. threads: 0 for `default_threads`. profile: the
    start of the name of a file that the runtime writes its times to, see `Session.profile`.
    provider: the execution provider and its options; nodes that it has no kernel for run on the
    CPU.
    """

    optimize: bool = True
    keep_arena: bool = True
    threads: int = 0
    profile: str = ""
    entries: Mapping[str, str] = field(default_factory=dict)
    provider: str = _CPU
    provider_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> dict[str, bool | int]:
        """Fields of the runtime's options object that do not stay as they are."""
        return {
            "enable_cpu_mem_arena": self.keep_arena,
            "enable_mem_pattern": self.keep_arena,
            "intra_op_num_threads": self.threads or default_threads(),
        }

    @property
    def all_entries(self) -> dict[str, str]:
        """Configuration entries, with ours."""
        return {"session.intra_op.spin_duration_us": str(SPIN_US), **self.entries}

    def build(self) -> ort.SessionOptions:
        """The runtime's own options object."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if not self.optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        for flag, chosen in self.flags.items():
            setattr(options, flag, chosen)
        if self.profile:
            options.enable_profiling = True
            options.profile_file_prefix = self.profile
        for key, value in self.all_entries.items():
            options.add_session_config_entry(key, value)
        return options


def default_threads() -> int:
    """Threads of a session that asks for no number: `$LWQC_THREADS`; 0 lets the runtime choose.

    Raises InputError.
    """
    text = os.environ.get(THREADS, "") or "0"
    if not re.fullmatch("[0-9]{1,4}", text):
        raise InputError(f"{THREADS}={text[:40]}: expected a number of threads")
    return int(text)


class Session:
    """A loaded model: call it with feeds by input name, get outputs by output name.

    A model with bodies (If, Loop, Scan) is loaded, and run for the first time, in another process
    before, as the runtime's optimisations may die of what others survive. Models of strangers that
    were opened are run there before anything is loaded here, see `proof`.
    """

    def __init__(
        self,
        model: Loadable,
        settings: SessionSettings | None = None,
        *,
        label: str = "model",
        optimized_path: str | None = None,
        risky: bool | None = None,
    ) -> None:
        """risky: load it elsewhere first; None for what its graph tells, files being sound.

        Raises SessionError when it does not load.
        """
        prove_waiting()
        chosen = settings or SessionSettings()
        options = chosen.build()
        if optimized_path:
            options.optimized_model_filepath = optimized_path
        bodies = isinstance(model, ir.Model) and has_bodies(model)
        risky = bodies if risky is None else risky
        self._label = label
        self._unproven: tuple[Loadable, SessionSettings] | None = None
        # Where an If is decided while the model is loaded, what only its bodies read is gone.
        whole = risky or bodies or optimized_path is not None
        with _loadable(model, options, whole=whole) as source:
            if risky and chosen.provider == _CPU:
                _try_load(source, chosen, label)
                if not isinstance(model, ir.Model) or isinstance(source, bytes):
                    self._unproven = (source, chosen)
            try:
                self._session = ort.InferenceSession(
                    source, options, providers=_providers(chosen), enable_fallback=0
                )
            except Exception as error:
                raise SessionError(f"{label}: {_UNLOADABLE}: {_line(error)}") from error
        if self._session.get_providers()[0] != chosen.provider:
            raise InputError(f"{label}: {chosen.provider} did not load, the CPU would run it")
        self._binding: ort.IOBinding | None = None
        self.outputs = [o.name for o in self._session.get_outputs()]
        self.types = {o.name: o.type for o in self._session.get_outputs()}
        self._brain = any("bfloat16" in kind for kind in self.types.values())
        self._input_types = {i.name: i.type for i in self._session.get_inputs()}
        self.inputs = list(self._input_types)
        self.caches = caches_of(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Run once; what is no tensor comes as one, see `as_array`.

        Caches that hold codes are taken as floats too, and given as what they are taken as. Raises
        SessionError with the runtime's first line when the run fails.
        """
        given = self.coded(feeds)
        self._prove(given)
        try:
            values = self._values(given)
        except Exception as error:
            raise SessionError(f"{self._label}: the run failed: {_line(error)}") from error
        outputs = dict(zip(self.outputs, map(as_array, values), strict=True))
        return self.caches.decoded(outputs) if self.caches.has_floats(feeds) else outputs

    def coded(self, feeds: Feeds) -> Feeds:
        """What of the feeds the model takes, with codes for caches that hold them."""
        return self.caches.coded({name: feeds[name] for name in self.inputs if name in feeds})

    def _prove(self, feeds: Feeds) -> None:
        """Run a risky model for the first time in another process."""
        if self._unproven is None:
            return
        source, settings = self._unproven
        try:
            load_isolated(shared(), source, settings)
            shared().run(feeds, keep=False, seconds=limits().run)
            shared().forget()
        except SessionError as error:
            raise SessionError(f"{self._label}: the run failed: {error}") from error
        self._unproven = None

    def assignment(self) -> Sequence[Any]:
        """Nodes by provider, before fusions, of a session that records it."""
        return list(self._session.get_provider_graph_assignment_info())

    def bind(self, feeds: Feeds, device: str, shapes: Mapping[str, NDArray[Any]]) -> None:
        """Keep feeds and outputs on a device; `seconds` then times runs without transfers.

        shapes: outputs of a run with these feeds. They get fixed places, as CUDA graphs need it.
        """
        binding = self._session.io_binding()
        feeds = self.coded(feeds)
        for name in self.inputs:
            if name in feeds:
                array = fitting(feeds[name], self._input_types[name])
                value = ort.OrtValue.ortvalue_from_numpy(array, device, 0)
                binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            like = shapes[name]
            place = ort.OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype, device, 0)
            binding.bind_ortvalue_output(name, place)
        self._binding = binding

    def seconds(self, feeds: Feeds) -> float:
        """Wall time of one run in seconds; of the bound feeds after `bind`. Raises SessionError."""
        if self._binding is None:
            feeds = self.coded(feeds)
            self._prove(feeds)
        start = time.perf_counter()
        try:
            if self._binding is None:
                self._values(feeds)
            else:
                self._session.run_with_iobinding(self._binding)
                self._binding.synchronize_outputs()
        except Exception as error:
            raise SessionError(f"{self._label}: the run failed: {_line(error)}") from error
        return time.perf_counter() - start

    def _values(self, feeds: Feeds) -> list[Any]:
        given = self._input_types.items()
        known = {name: _fed(fitting(feeds[name], kind)) for name, kind in given if name in feeds}
        if not self._brain:
            return list(self._session.run(None, known))
        held = {n: v if isinstance(v, ort.OrtValue) else _held(v) for n, v in known.items()}
        return [_read(v) for v in self._session.run_with_ort_values(self.outputs, held)]

    def profile(self) -> str:
        """Ends profiling; the path of the file with the runtime's times."""
        return str(self._session.end_profiling())


def has_bodies(model: ir.Model) -> bool:
    """Whether there are graphs inside of nodes: of If, Loop and Scan."""
    return len(list(islice(model.graphs(), 2))) > 1


def _try_load(source: str | bytes, settings: SessionSettings, label: str) -> None:
    try:
        load_isolated(shared(), source, settings)
    except SessionError as error:
        raise SessionError(f"{label}: {_UNLOADABLE}: {error}") from error


def load_isolated(
    process: Isolated, source: Loadable, settings: SessionSettings, most_bytes: int | None = None
) -> Signature:
    """Load a file or the bytes of a model in another process. Raises SessionError.

    most_bytes: that the process may then take.
    """
    assert not isinstance(source, ir.Model)
    return process.load(
        source if isinstance(source, bytes) else os.fspath(source),
        optimize=settings.optimize,
        flags=settings.flags,
        entries=settings.all_entries,
        providers=_providers(settings),
        most_bytes=most_bytes,
    )


def _fed(array: NDArray[Any]) -> NDArray[Any] | ort.OrtValue:
    """What the runtime's Python binding takes: it knows no numpy type for bfloat16."""
    if array.dtype != ml_dtypes.bfloat16:
        return array
    words = np.ascontiguousarray(array).view(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(words, ir.DataType.BFLOAT16.value)


def _held(array: NDArray[Any]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array)


def _read(value: ort.OrtValue) -> Any:
    """The numbers of a result; bfloat16 as float32."""
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    count = math.prod(value.shape())
    words = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    halves = np.frombuffer(words, np.uint16).reshape(value.shape()).view(ml_dtypes.bfloat16)
    return halves.astype(np.float32)


def as_array(value: Any) -> NDArray[Any]:
    """A result of the runtime as one array.

    Sequences: the elements stacked, or end to end [1, n] where their shapes differ. Maps: the
    values in the order of their keys. An optional that holds nothing: no elements.
    """
    if isinstance(value, np.ndarray):
        return value
    if value is None:
        return np.zeros(0, np.float32)
    if isinstance(value, Mapping):
        return as_array([value[key] for key in sorted(value)])
    if not isinstance(value, list):
        return np.asarray(value)
    parts = [as_array(each) for each in value]
    if len({part.shape for part in parts}) > 1:
        return np.concatenate([part.ravel() for part in parts])[np.newaxis]
    return np.stack(parts) if parts else np.zeros(0, np.float32)


@dataclass(frozen=True)
class Placement:
    """Where a session runs its nodes.

    elsewhere: (operator, name) of nodes that another provider than the one asked for takes.
    copies: between devices.
    """

    elsewhere: tuple[tuple[str, str], ...]
    copies: int


def placement(path: str | os.PathLike[str], settings: SessionSettings) -> Placement:
    """Where the runtime puts the nodes of a model. Raises InputError when it does not load."""
    entries = {**settings.entries, "session.record_ep_graph_assignment_info": "1"}
    recording = replace(settings, entries=entries)
    session = Session(path, recording, label=str(path))
    elsewhere = tuple(
        (node.op_type, node.name)
        for group in session.assignment()
        if group.ep_name != settings.provider
        for node in group.get_nodes()
    )
    graph = optimized_graph(path, settings)
    return Placement(elsewhere, sum(n.op_type.startswith("Memcpy") for n in graph.node))


def compile_model(
    path: str | os.PathLike[str], output: str | os.PathLike[str], settings: SessionSettings
) -> None:
    """Write a model whose engines are built already (EPContext). Raises InputError."""
    options = settings.build()
    device = dict(settings.provider_options)
    try:
        options.add_provider(settings.provider, device)
        ort.ModelCompiler(options, os.fspath(path)).compile_to_file(os.fspath(output))
    except Exception as error:
        raise InputError(f"{path}: engines cannot be built: {_line(error)}") from error


def available_providers() -> list[str]:
    """Execution providers that the installed runtime was built with."""
    return list(ort.get_available_providers())


def installed_folder() -> Path:
    """Where the libraries of the installed runtime are."""
    return Path(ort.__file__).parent / "capi"


def provider_error(provider: str) -> str:
    """What goes wrong when a tiny model is run by a provider, or ""."""
    value = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Identity", [value])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 17}, name="tiny")
    try:
        session = Session(ir.Model(graph, ir_version=8), SessionSettings(provider=provider))
        session({"x": np.zeros(1, np.float32)})
    except LwqcError as error:
        return str(error)
    return ""


@contextmanager
def _loadable(
    model: Loadable, options: ort.SessionOptions, *, whole: bool
) -> Iterator[str | bytes]:
    """What to load; whole: with its weights, for others who load it too.

    Otherwise the options have the weights: the runtime copies them while it loads, once. Inside
    the model they would be copied three times.
    """
    if whole or not isinstance(model, ir.Model) or over_memory(model):
        with as_loadable(model) as source:
            yield source
        return
    graph, weights = apart(model)
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    yield graph


def _providers(settings: SessionSettings) -> list[str | tuple[str, dict[str, str]]]:
    if settings.provider == _CPU:
        return [_CPU]
    return [(settings.provider, dict(settings.provider_options)), _CPU]


def tensor_types(model: ir.Model, names: Sequence[str]) -> dict[str, ir.DataType]:
    """Element types that the runtime infers for tensors of the main graph, as far as it can.

    It knows its own operators, of which ONNX has no schema.
    """
    copy = model.clone()
    forget_parts(copy)
    made = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs.extend(made[name] for name in names if name in made)
    try:
        with as_loadable(copy) as source:
            found = load_isolated(shared(), source, SessionSettings(optimize=False))
    except SessionError:
        return {}
    return {n: _TYPES[kind] for n, kind in found if n in names and kind in _TYPES}


def statistics_session(model: ir.Model, *, risky: bool | None = None) -> Session:
    """A session for instrumented models: memory is handed back after every run.

    risky: see `Session`.
    """
    settings = SessionSettings(keep_arena=False)
    return Session(model, settings, label="instrumented model", risky=risky)


def optimized_graph(
    model: ir.Model | str | os.PathLike[str], settings: SessionSettings | None = None
) -> onnx.GraphProto:
    """The graph that the runtime executes after its own optimisations, weights left out."""
    return read_back(model, settings)[1]


def read_back(
    model: ir.Model | str | os.PathLike[str],
    settings: SessionSettings | None = None,
    label: str = "model",
) -> tuple[Session, onnx.GraphProto]:
    """A session, and the graph that it executes, see `optimized_graph`.

    Writing that graph changes nothing of how the session runs.
    """
    with temporary_folder() as folder:
        path = str(folder / "optimized.onnx")
        chosen = settings or SessionSettings()
        entries = dict(chosen.entries) | {
            "session.optimized_model_external_initializers_file_name": "weights.bin",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        try:
            session = Session(
                model, replace(chosen, entries=entries), label=label, optimized_path=path
            )
        except InputError as error:
            if "Failed to write" in str(error):
                raise unwritable() from error
            raise
        return session, onnx.load(path, load_external_data=False).graph


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 400 else text[:397] + "..."
