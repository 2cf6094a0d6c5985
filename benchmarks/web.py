"""The target web, next to float and onnxruntime's quantize_dynamic, in a headless Chromium.

    npm install onnxruntime-web
    python -m benchmarks.web [NAME ...] --dist node_modules/onnxruntime-web/dist [--gpu]

WebAssembly with one thread, the models of `benchmarks.four_models`: files of a model take turns
on one page, medians. Agreement is the mean cosine to the float model's outputs in the browser, on
inputs that calibration has not seen. `--gpu` has numbers, not times, of files for WebGPU on
Chromium's software adapter.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import quantize_dynamic

import lwqc
from benchmarks.browser import Ran, run_in_browser
from benchmarks.four_models import Case, Feeds, asked, command_line

_JUDGED = 4  # batches


@dataclass
class Row:
    """One file in the browser. ms: median of one run; load_ms: until the session is there."""

    model: str
    tool: str
    megabytes: float
    ms: float = 0.0
    load_ms: float = 0.0
    cosine: float = 0.0
    failed: str = ""


def ours(target: str, **options: Any) -> Callable[[Case, Path], None]:
    def make(case: Case, out: Path) -> None:
        data = list(case.calibration)
        lwqc.quantize(case.path, target=target, data=data, **options).save(out, verify=False)

    return make


def for_gpu(bits: int) -> Callable[[Case, Path], None]:
    """Nodes without a kernel on the GPU are accepted, which only `lower` does."""

    def make(case: Case, out: Path) -> None:
        codes = out.with_suffix(".codes.onnx")
        lwqc.quantize(case.path, bits=bits, target="cpu-vnni").save(codes, verify=False)
        lowered = lwqc.lower(codes, target="webgpu", allow_fallback=True)
        lowered.save(out, verify=False)

    return make


def dynamic(case: Case, out: Path) -> None:
    """onnxruntime's own tool, without stored shapes, which its inference may contradict."""
    plain = onnx.load(case.path)
    del plain.graph.value_info[:]
    quantize_dynamic(plain, out, per_channel=True)


def static(case: Case, out: Path) -> None:
    ours("web", bits=8, activations="static")(case, out)


TOOLS: dict[str, Callable[[Case, Path], None]] = {
    "onnxruntime quantize_dynamic": dynamic,
    "lwqc int8": static,
    "lwqc 4-bit weights": ours("web", bits=4),
}
GPU_TOOLS: dict[str, Callable[[Case, Path], None]] = {
    "lwqc webgpu 4-bit weights": for_gpu(4),
    "lwqc webgpu 8-bit weights": for_gpu(8),
}


def rows_of(case: Case, folder: Path, dist: Path, seconds: float, gpu: bool) -> list[Row]:
    """Everything about one model."""
    files = {"float": case.path}
    for tool, make in (GPU_TOOLS if gpu else TOOLS).items():
        files[tool] = folder / f"{case.name}-{tool}.onnx".replace(" ", "_")
        make(case, files[tool])
    names = {f"m{i}": tool for i, tool in enumerate(files)}
    judged = [case.timed, *(first_rows(case) if gpu else case.held_back[:_JUDGED])]
    found = run_in_browser(
        {name: files[tool] for name, tool in names.items()},
        judged,
        dist,
        provider="webgpu" if gpu else "wasm",
        seconds=0.1 if gpu else seconds,
    )
    reference = found["m0"]
    return [
        Row(
            case.name,
            tool,
            files[tool].stat().st_size / 1e6,
            statistics.median(found[name].milliseconds or [0.0]),
            found[name].load_ms,
            agreement(found[name], reference),
            found[name].failed,
        )
        for name, tool in names.items()
    ]


def first_rows(case: Case) -> list[Feeds]:
    """Single inputs: the software adapter takes seconds for each."""
    return [{n: array[:1] for n, array in feeds.items()} for feeds in case.held_back[:_JUDGED]]


def agreement(ran: Ran, reference: Ran) -> float:
    """Mean cosine over the inputs, without the one that is timed."""

    def flat(outputs: dict[str, Any]) -> Any:
        return np.concatenate([v.ravel().astype(np.float64) for v in outputs.values()])

    pairs = zip(map(flat, ran.outputs[1:]), map(flat, reference.outputs[1:]), strict=False)
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
    return statistics.mean(cosines or [0.0])


def table(rows: Sequence[Row], gpu: bool) -> str:
    lines = [
        f"| model | tool | MB |{'' if gpu else ' ms | x | load ms |'} cosine |",
        f"| --- | --- | ---: |{'' if gpu else ' ---: | ---: | ---: |'} ---: |",
    ]
    for row in rows:
        base = next(r.ms for r in rows if (r.model, r.tool) == (row.model, "float"))
        shown = f"| {row.model} " if row.tool == "float" else "| "
        times = f" {row.ms:.1f} | {base / (row.ms or 1):.2f} | {row.load_ms:.0f} |"
        end = row.failed or f"{row.cosine:.4f}"
        lines.append(f"{shown}| {row.tool} | {row.megabytes:.2f} |{'' if gpu else times} {end} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = command_line(__doc__, seconds=4.0)
    parser.add_argument("--dist", type=Path, required=True)
    parser.add_argument("--gpu", action="store_true")
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in asked(given, Path(folder)):
            rows += rows_of(case, Path(folder), given.dist, given.seconds, given.gpu)
            print(table(rows, given.gpu), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
