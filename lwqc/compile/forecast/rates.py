"""How fast this machine does what jobs in parts consist of, measured on small pieces of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.backends.target import Target
from lwqc.model import io
from lwqc.model.durable import replace_durably
from lwqc.model.scratch import temporary_folder
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.quant.methods import DATA_METHODS, encode_by
from lwqc.runtime.mapped_session import mapped_session
from lwqc.runtime.session import Session
from lwqc.runtime.stats.divergence import DivergenceMeter
from lwqc.runtime.stats.gram import WIDE, Gram

_WIDTH, _NARROW = 1024, 256  # of weights whose products are timed; whole blocks of any format
_LAYERS = 4
_ROWS = 1024  # at most, of an activation
_WIDE = 2048  # features of a Gram matrix
_CLASSES = 4096
# Rows and columns.
_MATRICES = ((4096, 256), (256, 512), (2048, 512), (256, 1024), (1024, 1024), (256, 2048))
_BYTES = 32 << 20  # written and read
_ROUNDS = 3


# Seconds [2]: on the clock while the machine does nothing else, and of its processor.
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Running:
    """What a model takes in parts.

    part: to make a session here and one in another process. mac: for a multiply-accumulate.
    """

    part: Seconds
    mac: Seconds


def seconds(work: Callable[[], object]) -> Seconds:
    """The least of some runs: other work on the machine only ever adds time."""
    found = []
    for _ in range(_ROUNDS):
        begin = _now()
        work()
        found.append(_now() - begin)
    least: Seconds = np.min(found, axis=0)
    return least


def _now() -> Seconds:
    return np.array([time.perf_counter(), time.process_time()])


def running(target: Target, plan: Plan, entry: SiteEntry | None, rows: int) -> Running:
    """Of a model with these formats whose activations have that many rows.

    entry: of its weights; None for floats of the type that the plan has.
    """
    with temporary_folder() as folder:
        small, large = (
            _lowered(_stack(width, rows), target, plan, entry, folder / f"{width}.onnx")
            for width in (_NARROW, _WIDTH)
        )
        feeds = {
            width: {"x": np.ones((min(rows, _ROWS), width), np.float32)}
            for width in (_NARROW, _WIDTH)
        }
        part = seconds(lambda: mapped_session(small, risky=True)(feeds[_NARROW]))
        session: Session = mapped_session(large)
        run = seconds(partial(session, feeds[_WIDTH]))
        macs = _LAYERS * min(rows, _ROWS) * _WIDTH**2
        return Running(part, run / macs)


def _stack(width: int, rows: int) -> ir.Model:
    """Products in a row, as in the large model."""
    rng = np.random.default_rng(0)
    x = ir.Value(
        name="x",
        shape=ir.Shape([min(rows, _ROWS), width]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    nodes, weights, last = [], [], x
    for i in range(_LAYERS):
        values = rng.standard_normal((width, width), np.float32) / np.float32(width**0.5)
        weights.append(
            ir.Value(
                name=f"w{i}",
                shape=ir.Shape(values.shape),
                type=ir.TensorType(ir.DataType.FLOAT),
                const_value=ir.tensor(values, name=f"w{i}"),
            )
        )
        nodes.append(ir.node("MatMul", [last, weights[-1]]))
        last = nodes[-1].outputs[0]
        last.name, last.type, last.shape = f"y{i}", x.type, x.shape
    graph = ir.Graph(
        [x], [last], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="stack"
    )
    return ir.Model(graph, ir_version=10)


def _lowered(
    model: ir.Model, target: Target, plan: Plan, entry: SiteEntry | None, path: Path
) -> ir.Model:
    """As the target runs it, its weights in a file."""
    if entry is not None or plan.floats is not None:
        names = list(model.graph.initializers)
        own = plan.model_copy(
            update={"quantize": dict.fromkeys(names, entry) if entry is not None else {}}
        )
        model = target.lower(model, own, EncodedWeights(model, io.read_array)).model
    io.save(model, path, external_data=True)
    return io.load(path)


def gram_second() -> Seconds:
    """Seconds for each number of a wide Gram matrix and each row that it is summed of."""
    rows = np.random.default_rng(0).standard_normal((_ROWS, _WIDE), np.float32)
    collector = Gram("rows", features=max(_WIDE, WIDE))
    total = collector.read([rows])
    return seconds(lambda: collector.fold(total, [rows])) / (_ROWS * _WIDE**2)


def compare_second() -> Seconds:
    """Seconds for each number of an output that is compared with another."""
    one = np.random.default_rng(0).standard_normal((1, 256, _CLASSES), np.float32)
    return seconds(lambda: DivergenceMeter().add(one, one + np.float32(1e-3))) / one.size


def disk_seconds(file: Path | None) -> tuple[Seconds, Seconds]:
    """Seconds for each byte that is read from where the model is, and written to a temporary file.

    file: of at least some megabytes that are not in memory; None where there is none.
    """
    noise = np.random.default_rng(0).bytes(_BYTES)
    with temporary_folder() as folder:
        place = folder / "noise"
        write = seconds(lambda: replace_durably(place, lambda out: out.write(noise)))
        with (file or place).open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, _BYTES, os.POSIX_FADV_DONTNEED)
            begin = _now()
            count = len(opened.read(_BYTES))
            read = _now() - begin
    return read / max(count, 1), write / _BYTES


@dataclass(frozen=True)
class Encoding:
    """What a method takes for a weight [n, k]. of: for k, n k, n k² and k³, [4, 2]."""

    of: NDArray[np.float64]

    def seconds(self, n: int, k: int) -> Seconds:
        """For a whole weight."""
        found: Seconds = _terms(n, k) @ self.of
        return found


def encoding(entry: SiteEntry) -> Encoding:
    """Of an entry's method and format, fitted to small weights by least squares of shares."""
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    took = []
    for n, k in _MATRICES:
        weight = rng.standard_normal((n, k), np.float32)
        gram = None
        if entry.method in DATA_METHODS:
            inputs = rng.standard_normal((2 * k, k), np.float32)
            gram = (inputs.T @ inputs / np.float32(2 * k)).astype(np.float64)[None]
        took.append(seconds(lambda: encode_by(
            entry.method, weight, entry.weight, gram, search=entry.search)))  # fmt: skip  # noqa: B023
    terms = np.array([_terms(*shape) for shape in _MATRICES])
    factors = []
    for clock in np.array(took).T:
        shares = terms / clock[:, None]
        scale = shares.max(0)
        factors.append(nnls(shares / scale, np.ones(len(shares)))[0] / scale)
    return Encoding(np.array(factors).T)


def _terms(n: int, k: int) -> NDArray[np.float64]:
    return np.array([k, n * k, n * k * k, k**3], np.float64)
