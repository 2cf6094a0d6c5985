"""What `--dry-run` says of jobs with decoders of random weights, beside what they then take.

`python -m benchmarks.forecast --folder DIR` makes decoders, none of them of a size that the
rates are measured on, asks for a forecast of GPTQ to 4 bits, of lowering for CUDA and of verify
within a bound on memory, runs each, and prints a markdown table. `--large` prints forecasts for 7
and 70 billion parameters, whose weights are holes in files: nothing of these is run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoder import build
from benchmarks.in_parts import run

SHAPES = {  # layers, width, hidden width, vocabulary
    "0.1": (8, 768, 3072, 32000),
    "0.2": (14, 896, 2432, 32000),
    "0.3": (20, 1024, 2816, 32000),
    "0.65": (25, 1536, 4096, 32000),
}
LARGE = {"7": (32, 4096, 16384, 32000), "70": (80, 8192, 36864, 32000)}
BOUNDS = {
    "0.1": "1.5GB",
    "0.2": "1.5GB",
    "0.3": "1.5GB",
    "0.65": "1.5GB",
    "7": "12GB",
    "70": "48GB",
}
TOKENS = 128


def foretold(arguments: list[str], log: Path) -> dict[str, Any]:
    """What `--dry-run` prints."""
    command = [sys.executable, "-m", "lwqc.cli", *arguments, "--dry-run", "--json"]
    with log.open("ab") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def made(folder: Path, size: str, samples: int, *, sparse: bool) -> tuple[Path, list[str]]:
    """A decoder, and the options for its data and its bound on memory."""
    shape = (LARGE if sparse else SHAPES)[size]
    model, data = folder / "decoder.onnx", folder / "data.npz"
    parameters = build(model, shape, sparse=sparse)
    np.savez(data, ids=np.random.default_rng(0).integers(0, shape[3], (samples, TOKENS)))
    print(f"\n{parameters / 1e6:.0f}M parameters, {samples} samples of {TOKENS} tokens\n")
    return model, ["--data", str(data), "--memory", BOUNDS[size]]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", choices=SHAPES, default=["0.1", "0.2", "0.3"])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--large", action="store_true", help="forecasts alone, of 7 and 70")
    parser.add_argument("--folder", type=Path, default=None, help="where to put 6 GB for a while")
    parser.add_argument("--log", type=Path, default=Path("forecast.log"))
    given = parser.parse_args()
    for size in LARGE if given.large else given.sizes:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            folder = Path(name)
            model, bound = made(folder, size, given.samples, sparse=given.large)
            out = folder / "q4.onnx"
            method = ["--bits", "4", "--method", "gptq", "--external-data"]
            jobs = {
                "GPTQ to 4 bits": ["quantize", str(model), "-o", str(out), *method],
                "lower for CUDA": [
                    *("lower", str(model), "-o", str(folder / "half.onnx")),
                    *("--target", "cuda", "--external-data"),
                ],
            }
            if given.large:
                tell(jobs, bound, given.log)
            else:
                jobs["verify"] = ["verify", str(model), str(out)]
                compare(jobs, bound, given.log)


def tell(jobs: dict[str, list[str]], bound: list[str], log: Path) -> None:
    """Forecasts, stage by stage."""
    print("| job | stage | hours | processor h | memory GB | read GB | written GB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for job, arguments in jobs.items():
        found = foretold([*arguments, *bound], log)
        for stage in [*found["stages"], {**found, "stage": "all"}]:
            read, written = (
                sum(s[key] for s in found["stages"]) if key not in stage else stage[key]
                for key in ("read_bytes", "written_bytes")
            )
            print(
                f"| {job} | {stage['stage']} | {stage['seconds'] / 3600:.2f} | "
                f"{stage['processor_seconds'] / 3600:.2f} | {stage['memory_bytes'] / 1e9:.2f} | "
                f"{read / 1e9:.0f} | {written / 1e9:.0f} |"
            )


def compare(jobs: dict[str, list[str]], bound: list[str], log: Path) -> None:
    """Forecast and truth."""
    print("| job | | seconds | processor s | own MB |")
    print("| --- | --- | ---: | ---: | ---: |")
    for job, arguments in jobs.items():
        said = foretold([*arguments, *bound], log)
        took = run([*arguments, *bound], log)
        before = np.array([said["seconds"], said["processor_seconds"], said["memory_bytes"] / 1e6])
        after = np.array([took.seconds, took.processor, took.own])
        for name, row, digits in (
            ("foretold", before, 0),
            ("measured", after, 0),
            ("foretold / measured", before / after, 2),
        ):
            print(f"| {job} | {name} | {' | '.join(f'{v:.{digits}f}' for v in row)} |")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.reconfigure(line_buffering=True)
    main()
