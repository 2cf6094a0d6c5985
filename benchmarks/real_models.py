"""Every command on trained models that public packages carry, next to onnxruntime's own tools.

    apt-get install espeak-ng
    python -m benchmarks.real_models [NAME ...] [--packages FOLDER] [--target T] [--json FILE]

Of each file: exit code and reason, size and time as shares of the original's, the loss by channel,
and the decisions kept, judged on inputs that nothing was calibrated on. Times are medians of runs
in turns, one thread, in default sessions. `default` rows are what README promises for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

from benchmarks.door import processor
from benchmarks.real_data import MODELS, Feeds, RealModel, unpack
from lwqc.runtime.session import as_array
from lwqc.runtime.stats.divergence import OutputMeter

ort.set_default_logger_severity(4)
_TOP = 10
COMMANDS: dict[str, list[str]] = {
    "inspect": ["inspect", "{m}", "--groups", "--branches"],
    "default, no data": ["compress", "{m}", "-o", "{o}"],
    "default": ["compress", "{m}", "-o", "{o}", "--data", "{d}"],
    "no-quantize": ["compress", "{m}", "-o", "{o}", "--no-quantize"],
    "size 0.2": ["compress", "{m}", "-o", "{o}", "--data", "{d}", "--max-size", "0.2",
                 "--effort", "low"],
    "quantize 8": ["quantize", "{m}", "-o", "{o}", "--bits", "8"],
    "quantize 4": ["quantize", "{m}", "-o", "{o}", "--bits", "4"],
    "quantize 8 static": ["quantize", "{m}", "-o", "{o}", "--bits", "8", "--activations", "static",
                          "--data", "{d}"],
    "prune 0.2": ["prune", "{m}", "-o", "{o}", "--ratio", "0.2", "--data", "{d}"],
    "drop 1": ["drop", "{m}", "-o", "{o}", "--branches", "1", "--data", "{d}"],
    "lower cuda": ["lower", "{m}", "-o", "{o}", "--target", "cuda", "--data", "{d}"],
    "lower tensorrt": ["lower", "{m}", "-o", "{o}", "--target", "tensorrt", "--data", "{d}"],
}  # fmt: skip
_TARGETED = {"compress", "quantize", "prune", "drop"}


@dataclass
class Row:
    """One file. size, time: over the original's. strongest, ten: see `agreement`."""

    model: str
    tool: str
    exit: int
    seconds: float
    size: float | None = None
    time: float | None = None
    loss: float | None = None
    strongest: float | None = None
    ten: float | None = None
    decisions: dict[str, float] = field(default_factory=dict)
    said: str = ""


class Reader(CalibrationDataReader):
    """Feeds for onnxruntime's static tool."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self):
        """The next feeds, None at the end."""
        return next(self._feeds, None)


def ort_dynamic(model: Path, out: Path, feeds: Sequence[Feeds]) -> None:
    quantize_dynamic(model, out, per_channel=True)


def ort_static(model: Path, out: Path, feeds: Sequence[Feeds]) -> None:
    quantize_static(model, out, Reader(feeds), per_channel=True)


TOOLS: dict[str, Callable[[Path, Path, Sequence[Feeds]], None]] = {
    "onnxruntime quantize_dynamic": ort_dynamic,
    "onnxruntime quantize_static": ort_static,
}


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path: Path, feeds: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    run = session(path)
    names = [o.name for o in run.get_outputs()]
    return [dict(zip(names, map(as_array, run.run(None, f)), strict=True)) for f in feeds]


def relative_time(original: Path, other: Path, feeds: Feeds, seconds: float = 3.0) -> float:
    """Median time of a run over the original's, in turns."""
    pair, times = [session(original), session(other)], ([], [])
    for run in pair:
        run.run(None, feeds)
    end = time.perf_counter() + seconds
    order = [0, 1]
    while len(times[0]) < 5 or time.perf_counter() < end:
        for i in order:
            pair[i].run(None, feeds)
            start = time.perf_counter()
            pair[i].run(None, feeds)
            times[i].append(time.perf_counter() - start)
        order.reverse()
    return statistics.median(times[1]) / statistics.median(times[0])


def agreement(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Of a detector [images, 4 + classes, anchors]: shares of the same strongest anchor by class,
    and of the ten strongest anchors by any class, exactly the same ones.
    """
    a, b = before[:, 4:], after[:, 4:]
    strongest = float((a.argmax(2) == b.argmax(2)).mean())
    ranked = [np.argsort(-scores.max(1), 1)[:, :_TOP] for scores in (a, b)]
    common = [len({*p} & {*q}) / _TOP for p, q in zip(*ranked, strict=True)]
    return strongest, float(np.mean(common))


def judge(row: Row, original: Path, made: Path, feeds: Sequence[Feeds]) -> None:
    """Size, time and quality of a file."""
    size = made.stat().st_size + sum(
        f.stat().st_size for f in made.parent.glob(f"{made.name}*.data")
    )
    row.size = size / original.stat().st_size
    before, after = outputs(original, feeds), outputs(made, feeds)
    found = OutputMeter().over(zip(before, after, strict=True)).result()
    row.loss = max((d.drop for d in found.values()), default=None)
    for name, d in found.items():
        row.decisions |= {f"{name} {what}": share for what, share in d.decisions.shares().items()}
    if row.model == "nudenet":
        whole = [np.concatenate([run["output0"] for run in runs]) for runs in (before, after)]
        row.strongest, row.ten = agreement(*whole)
    row.time = relative_time(original, made, feeds[0])


def data_file(feeds: Sequence[Feeds], folder: Path) -> Path:
    """A folder with one file of arrays for each of the feeds."""
    folder.mkdir()
    for number, one in enumerate(feeds):
        np.savez(folder / f"{number:04}.npz", **one)
    return folder


def rows(model: RealModel, root: Path, folder: Path, target: str, only: Sequence[str]):
    """All rows of a model, one after the other."""
    original = root / model.file
    fit, judged = (model.feeds(use, original) for use in ("fit", "judge"))
    data = data_file(fit, folder / "data")
    for tool, template in COMMANDS.items():
        if only and tool not in only:
            continue
        made = folder / f"{tool.replace(' ', '-')}.onnx"
        words = [w.format(m=original, o=made, d=data) for w in template]
        if target and template[0] in _TARGETED:
            words += ["--target", target]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "lwqc.cli", *words], capture_output=True, text=True, check=False
        )
        row = Row(model.name, tool, done.returncode, time.perf_counter() - start)
        row.said = " ".join(done.stderr.split())[-300:] if done.returncode else ""
        if made.exists():
            judge(row, original, made, judged)
        yield row
    for tool, make in TOOLS.items():
        if only and tool not in only:
            continue
        made = folder / f"{tool.replace(' ', '-')}.onnx"
        start = time.perf_counter()
        row = Row(model.name, tool, 0, 0.0)
        try:
            make(original, made, fit)
            judge(row, original, made, judged)
        except Exception as error:  # whatever another tool raises is its row
            row.exit, row.said = 1, " ".join(f"{type(error).__name__}: {error}".split())[:300]
        row.seconds = time.perf_counter() - start
        yield row


def shown(row: Row) -> str:
    def number(value: float | None, digits: int = 3) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    kept = ", ".join(f"{name} {share:.1%}" for name, share in row.decisions.items())
    cells = [
        row.model, row.tool, str(row.exit), f"{row.seconds:.0f}", number(row.size),
        number(row.time, 2), number(row.loss, 4), number(row.strongest), number(row.ten), kept,
        row.said,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--packages", type=Path, default=Path(tempfile.gettempdir()) / "lwqc-real")
    parser.add_argument("--target", default="", help="of the commands for the CPU")
    parser.add_argument("--only", action="append", default=[], help="a command or tool")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.packages.mkdir(parents=True, exist_ok=True)
    unpack(asked.packages)
    print(processor(), f"onnxruntime {ort.__version__}", asked.target)
    print("| model | tool | exit | s | size | time | loss | strongest | ten | decisions | said |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    found = []
    for name in asked.names:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(MODELS[name], asked.packages, Path(folder), asked.target, asked.only):
                found.append(row)
                print(shown(row), flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    main()
