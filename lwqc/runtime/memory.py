"""What a process needs to load a model and run it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError, LwqcError
from lwqc.model import io
from lwqc.model.limits import Limits, limits, set_limits
from lwqc.model.scratch import temporary_folder
from lwqc.runtime.loadable import Loadable
from lwqc.runtime.session import Feeds, Session

_RUNS = 3
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMORY = Path("/proc/meminfo")
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from lwqc.runtime.memory import report_peak; report_peak(*sys.argv[2:])"
)


def peak_memory(model: Loadable, feeds: Feeds) -> int:
    """Bytes that a process of its own holds at most while it loads the model and runs it.

    Beside what Python, numpy and the runtime take without a model. A model in memory is written to
    a temporary file first, with external data above 2 GB. Raises InputError where it cannot be
    measured, LwqcError when the process dies.
    """
    if not can_measure_memory():
        raise InputError("memory is measured on Linux only")
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        if isinstance(model, ir.Model):
            io.save(model, path)
        elif isinstance(model, bytes):
            path.write_bytes(model)
        else:
            path = Path(model)
        inputs = folder / "feeds.npz"
        # By position: an input may have any name, also one that np.savez takes for its own.
        np.savez(inputs, *(a.astype(str) if a.dtype == object else a for a in feeds.values()))
        call = [sys.executable, "-c", _CHILD, json.dumps(sys.path)]
        call += [str(path), str(inputs), json.dumps(list(feeds)), json.dumps(asdict(limits()))]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise LwqcError(f"a process that runs the model ended with {done.returncode}: {reason}")
        return int(done.stdout.split()[-1])


def free_memory() -> int | None:
    """Bytes that a process could take now without swapping; None where the system does not tell."""
    try:
        lines = _MEMORY.read_text().splitlines()
        return next(int(ln.split()[1]) * 1024 for ln in lines if ln.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def own_memory() -> tuple[int, int]:
    """Bytes that this process has, and at most had. Raises InputError."""
    if not can_measure_memory():
        raise InputError("memory is measured on Linux only")
    return _kilobytes("VmRSS") * 1024, _kilobytes("VmHWM") * 1024


def can_measure_memory() -> bool:
    """Whether the system tells the peak of a process since a moment of its life."""
    return _STATUS.exists() and _CLEAR.exists()


def report_peak(path: str, inputs: str, names: str, allowed: str) -> None:
    """What the process of `peak_memory` does: prints bytes.

    names, allowed: of the inputs, and the limits, as JSON.
    """
    set_limits(Limits(**json.loads(allowed)))
    with np.load(inputs) as stored:
        feeds = {name: stored[f"arr_{i}"] for i, name in enumerate(json.loads(names))}
    Session(_smallest())({"x": np.zeros((1, 64, 8, 8), np.float32)})  # code and threads stay
    _CLEAR.write_text("5")  # the peak starts anew
    before = _kilobytes("VmRSS")
    session = Session(path)
    for _ in range(_RUNS):
        session(feeds)
    print((_kilobytes("VmHWM") - before) * 1024)


def _smallest() -> ir.Model:
    """A convolution and a product, so that the runtime's kernels are loaded."""
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", shape=ir.Shape((1, 64, 8, 8)), type=ir.TensorType(ir.DataType.FLOAT))
    stored = {
        name: ir.Value(name=name, const_value=ir.tensor(array, name=name))
        for name, array in {
            "kernel": rng.standard_normal((64, 64, 3, 3)).astype(np.float32),
            "weight": rng.standard_normal((6, 64)).astype(np.float32),
        }.items()
    }
    convolved = ir.node("Conv", [x, stored["kernel"]])
    product = ir.node("MatMul", [convolved.outputs[0], stored["weight"]])
    product.outputs[0].name = "y"
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x],
        product.outputs,
        nodes=[convolved, product],
        initializers=list(stored.values()),
        opset_imports={"": 17},
        name="smallest",
    )
    return ir.Model(graph, ir_version=9)


def _kilobytes(field: str) -> int:
    line = next(row for row in _STATUS.read_text().splitlines() if row.startswith(f"{field}:"))
    return int(line.split()[1])
