"""Runs other software on one file at a time, each in a fork: what dies of it is not this process.

Needs nothing of lwqc, so that any Python may run it: that of an environment which holds the peers.
Requests are lines of JSON on standard input, {"tool", "source", "target"}; answers are lines too,
{"ended"}: "ok", "refused", the name of a signal, or "late". The first line names the tools there.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

SECONDS, BYTES = 60.0, 3 << 30
_SIZE = 2  # of dynamic dimensions
_TYPES = {
    "float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_,
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}").type
       for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


def onnxsim(source: str, target: str) -> None:
    """As its default options are."""
    simplified, sound = importlib.import_module("onnxsim").simplify(onnx.load(source))
    if not sound:
        raise ValueError("its own check failed")
    onnx.save(simplified, target)


def quantize_dynamic(source: str, target: str) -> None:
    """As its default options are."""
    importlib.import_module("onnxruntime.quantization").quantize_dynamic(source, target)


def run(source: str, target: str) -> None:
    """The outputs of a model, by name, on inputs that its signature and a fixed seed give."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {i.name: _drawn(rng, i.type, i.shape) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    with open(target, "wb") as file:
        pickle.dump(dict(zip(names, session.run(names, feeds), strict=True)), file)


def _drawn(rng: np.random.Generator, kind: str, shape: list[Any]) -> np.ndarray[Any, Any]:
    dtype = np.dtype(_TYPES[kind.removeprefix("tensor(").removesuffix(")")])
    sizes = [d if isinstance(d, int) and d >= 0 else _SIZE for d in shape]
    if dtype.kind == "f":
        return rng.standard_normal(sizes).astype(dtype)
    return rng.integers(0, 2, sizes).astype(dtype)


TOOLS: dict[str, Callable[[str, str], None]] = {
    "onnxsim": onnxsim,
    "quantize_dynamic": quantize_dynamic,
    "run": run,
}
_MODULES = {"onnxsim": "onnxsim", "quantize_dynamic": "onnxruntime.quantization"}


def forked(tool: Callable[[str, str], None], source: str, target: str) -> str:
    """How a tool ended on a file."""
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            tool(source, target)
            code = 0
        os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return signal.Signals(-code).name if code < 0 else "refused" if code else "ok"
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "late"


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    there = {}
    for name, module in _MODULES.items():
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
            package = module.partition(".")[0]
            there[name] = str(getattr(sys.modules[package], "__version__", ""))
    _answer(answers, there)
    for line in sys.stdin:
        asked = json.loads(line)
        ended = forked(TOOLS[asked["tool"]], asked["source"], asked["target"])
        _answer(answers, {"ended": ended})


def _answer(answers: Any, found: dict[str, str]) -> None:
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
