"""Whether any architecture gets slower: each zoo model as it is and as lwqc leaves it.

    python -m benchmarks.cpu_zoo [NAME ...] [--rounds 6]

`clean` is `lwqc compress --no-quantize`, `lwqc` is `lwqc compress`, both with one batch of random
inputs as data and nothing else. Sessions are default ones that take turns; medians, batch 1.
Weights are random, so `cosine` says what rounding does to random features, not what it costs in
accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import onnx

import lwqc
from benchmarks.cpu import ZOO, latencies
from tests.zoo.materialize import materialize, sample_inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of file names; none: all")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    print("| model | float ms | clean x | lwqc x | MB | cosine | made in s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for path in sorted(ZOO.glob("*.onnx")):
        if not arguments.names or any(name in path.stem for name in arguments.names):
            with tempfile.TemporaryDirectory() as folder:
                print(row(path, Path(folder), arguments.rounds), flush=True)


def row(path: Path, folder: Path, rounds: int) -> str:
    """A line of the table."""
    proto = materialize(path, whole=True)
    feeds = {n: a for n, a in sample_inputs(path, batch=1).items() if n in inputs(proto)}
    files = {name: folder / f"{name}.onnx" for name in ("float", "clean", "auto")}
    onnx.save(proto, files["float"])
    start = time.perf_counter()
    lwqc.compress(files["float"], data=[feeds], recipe="clean").save(files["clean"], verify=False)
    report = lwqc.compress(files["float"], data=[feeds]).save(files["auto"])
    seconds = time.perf_counter() - start
    times = latencies(files, {"one": feeds}, rounds)["one"]
    cosines = [d.cosine_mean for d in report.divergence.values() if d.cosine_mean is not None]
    cosine = min(cosines, default=float("nan"))
    sizes = [files[name].stat().st_size / 1e6 for name in ("float", "auto")]
    return (
        f"| {path.stem} | {times['float']:.2f} | {times['float'] / times['clean']:.2f} "
        f"| {times['float'] / times['auto']:.2f} | {sizes[0]:.1f} → {sizes[1]:.1f} "
        f"| {cosine:.4f} | {seconds:.0f} |"
    )


def inputs(proto: onnx.ModelProto) -> set[str]:
    """Names of the graph's inputs."""
    return {value.name for value in proto.graph.input}


if __name__ == "__main__":
    main()
