"""What the process behind `lwqc.runtime.isolated` does: load models and run them, on request.

Imports nothing of lwqc, which would take longer than the work. Requests come as pickled tuples on
standard input, answers go to standard output: (True, result) or (False, reason).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

_LOOK_S = 1.0
_BFLOAT16 = 16  # its number in onnx.proto
_BASE_BYTES = 512 << 20  # of libraries and threads


class _Loaded:
    """The session of the last model; one at a time, so that memory holds one."""

    def __init__(self) -> None:
        self.session: ort.InferenceSession | None = None

    def load(
        self,
        model: str | bytes,
        optimize: bool,
        flags: Mapping[str, Any],
        entries: Mapping[str, str],
        providers: list[Any],
        most_bytes: int | None,
    ) -> list[tuple[str, str]]:
        """Names and types of the outputs. flags, entries: of the session options."""
        self.session = None
        _bound_memory(len(providers) == 1)  # devices reserve addresses that are no memory
        _bound_data(most_bytes)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        for name, value in flags.items():
            setattr(options, name, value)
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        self.session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        return [(o.name, o.type) for o in self.session.get_outputs()]

    def forget(self) -> None:
        """Free what the last model takes."""
        self.session = None

    def run(self, feeds: Mapping[str, Any], keep: bool) -> list[Any] | None:
        """The outputs, if they are wanted."""
        session = self.session
        assert session is not None
        given = (i for i in session.get_inputs() if i.name in feeds)
        known = {i.name: fitting(feeds[i.name], i.type) for i in given}
        outputs = session.get_outputs()
        brain = any("bfloat16" in o.type for o in outputs)
        if not brain and not any(a.dtype.name == "bfloat16" for a in known.values()):
            values = session.run(None, known)
            return values if keep else None
        held = {name: _held(array) for name, array in known.items()}
        found = session.run_with_ort_values([o.name for o in outputs], held)
        return list(map(_numbers, found)) if keep else None


def fitting(array: Any, kind: str) -> Any:
    """Numbers for an input of that type: a lowered model may take float32 ones in 16 bits."""
    halved = kind == "tensor(float16)" and getattr(array, "dtype", None) == np.float32
    return array.astype(np.float16) if halved else array


def _held(array: Any) -> ort.OrtValue:
    """An array as the runtime takes it: its Python binding knows no numpy type for bfloat16."""
    if array.dtype.name != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)


def _numbers(value: ort.OrtValue) -> Any:
    """The numbers of a result; bfloat16, the upper half of float32, as that."""
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    count = math.prod(value.shape())
    words = np.frombuffer((ctypes.c_uint16 * count).from_address(value.data_ptr()), np.uint16)
    return (words.astype(np.uint32) << 16).view(np.float32).reshape(value.shape())


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    _step_back()
    ort.set_default_logger_severity(4)
    loaded = _Loaded()
    while True:
        try:
            name, *arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = (True, getattr(loaded, name)(*arguments))
        except Exception as error:  # the runtime's own, of any kind
            answer = (False, " ".join(str(error).split()))
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


def _end_with_parent(parent: int) -> None:
    """Where the one that asks was killed in the middle of a run, nobody else ends it."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _bound_memory(bounded: bool) -> None:
    """Address space as large as memory; what asks for more gets an error instead of it all."""
    if sys.platform == "win32":
        return
    import resource

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or memory < hard:
        resource.setrlimit(resource.RLIMIT_AS, (memory if bounded else hard, hard))


def _bound_data(most_bytes: int | None) -> None:
    """Memory of its own, files that are mapped left out, beside what it has before any model."""
    if sys.platform == "win32":
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = hard if most_bytes is None else _BASE_BYTES + most_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _step_back() -> None:
    """Where memory gets short, this process is the one to go; and it leaves no core file."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # a system that does not know it or does not let us
        score.write_text("1000")


if __name__ == "__main__":
    main()
