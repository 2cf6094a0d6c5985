"""Activation ranges of a ResNet-50: lwqc beside onnxruntime's entropy calibration.

Run `python benchmarks/calibration.py` (`--quick` for 8 and 24 images instead of 32 and 256).
Every measurement runs in a process of its own: seconds are those of the calibration without
imports and loading the model file, memory is the peak resident size of the process. Images are
made on the fly, one at a time. The tensors are those that onnxruntime's calibrator observes.

onnxruntime keeps every activation of every image until the end, so it only runs the smaller count.
At its default of 128 bins its entropy method has a single candidate, the full range; the row with
512 bins, lwqc's default, is the one that chooses.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "zoo")]
SKELETON = ROOT / "tests" / "zoo" / "resnet50.dynamo.onnx"
METHODS = ("minmax", "percentile", "mse", "entropy", "entropy-128")
THEIRS = ("onnxruntime-512", "onnxruntime-128")


class Images:
    """`count` images, made while iterating; every pass sees the same."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for seed in range(self.count):
            rng = np.random.default_rng(seed)
            image = rng.standard_normal((1, 3, 224, 224), dtype=np.float32)
            patches = rng.standard_normal((1, 3, 7, 7), dtype=np.float32)
            yield {"x": 0.5 * image + 0.8 * patches.repeat(32, 2).repeat(32, 3)}


def observed(model: Path, bins: int, folder: str) -> Any:
    """onnxruntime's calibrator, its session built, and the tensors it observes."""
    from onnxruntime.quantization.calibrate import EntropyCalibrater

    calibrator = EntropyCalibrater(model, augmented_model_path=f"{folder}/aug.onnx", num_bins=bins)
    calibrator.augment_graph()
    calibrator.create_inference_session()
    return calibrator


def ours(model: Path, count: int, method: str, names: list[str]) -> dict[str, tuple[float, float]]:
    from lwqc.model import io
    from lwqc.runtime.session import statistics_session
    from lwqc.runtime.stats.entropy import entropy_limits
    from lwqc.runtime.stats.ranges import ranges

    chosen = partial(entropy_limits, bins=128) if method == "entropy-128" else method
    found = ranges(io.load(model), names, Images(count), statistics_session, chosen)
    return {name: (r.low, r.high) for name, r in found.items()}


def theirs(model: Path, count: int, bins: int, folder: str) -> dict[str, tuple[float, float]]:
    class Reader:
        def __init__(self) -> None:
            self.images = iter(Images(count))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.images, None)

    calibrator = observed(model, bins, folder)
    calibrator.collect_data(Reader())
    found = calibrator.compute_data().data
    return {name: tuple(map(float, data.range_value)) for name, data in found.items()}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in this process."""
    import onnxruntime  # noqa: F401 - imports are not calibration

    import lwqc.runtime.session
    import lwqc.runtime.stats.ranges  # noqa: F401

    model = Path(job["model"])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        if job["method"] in THEIRS:
            bins = int(job["method"].split("-")[1])
            limits = theirs(model, job["count"], bins, folder)
        else:
            limits = ours(model, job["count"], job["method"], job["names"])
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / (1e6 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "peak_mb": peak_mb, "limits": limits}


def in_subprocess(job: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a fresh interpreter. It speaks on the last line: the calibrator prints too."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def closeness(a: dict[str, list[float]], b: dict[str, list[float]]) -> str:
    """How far the widths of two sets of ranges are apart."""
    widths = [(a[n][1] - a[n][0], b[n][1] - b[n][0]) for n in b]
    apart = sorted(abs(x - y) / y for x, y in widths if y > 0)
    close = sum(d <= 0.01 for d in apart)
    return f"{close}/{len(apart)} within 1 %, median {np.median(apart):.2%}, most {apart[-1]:.1%}"


def prepare(folder: str) -> tuple[Path, list[str]]:
    """The model with weights, and the tensors to observe."""
    import onnx
    from materialize import materialize

    model = Path(folder) / "resnet50.onnx"
    onnx.save(materialize(SKELETON), model)
    calibrator = observed(model, 128, folder)
    return model, sorted(calibrator.tensors_to_calibrate)


def main(counts: tuple[int, int], repeats: int) -> None:
    few, many = counts
    with tempfile.TemporaryDirectory() as folder:
        model, names = prepare(folder)
        base: dict[str, Any] = {"model": str(model), "names": names}
        jobs = [(m, few) for m in (*THEIRS, *METHODS)]
        rounds: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for turn in range(repeats):
            for method, count in jobs if turn % 2 == 0 else reversed(jobs):
                result = in_subprocess({**base, "method": method, "count": count})
                rounds.setdefault((method, count), []).append(result)
        for method in METHODS:
            result = in_subprocess({**base, "method": method, "count": many})
            rounds[method, many] = [result]
    report(rounds, few, many, len(names))


def report(
    rounds: dict[tuple[str, int], list[dict[str, Any]]], few: int, many: int, tensors: int
) -> None:
    """Print the table and what it has to show."""
    seconds = {k: min(r["seconds"] for r in v) for k, v in rounds.items()}
    peak = {k: statistics.median(r["peak_mb"] for r in v) for k, v in rounds.items()}
    print(f"ResNet-50, {tensors} tensors, images of 224x224; least of the repeated times\n")
    print(
        f"| ranges | s, {few} images | s, {many} images | peak MB, {few} | peak MB, {many} |"
        f" times faster ({few}) | times smaller ({few}) |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    reference = ("onnxruntime-128", few)
    for method in (*THEIRS, *METHODS):
        key, far = (method, few), (method, many)
        label = (
            f"onnxruntime entropy, {method.split('-')[1]} bins"
            if method in THEIRS
            else (
                {
                    "entropy": "**lwqc entropy, 512 bins**",
                    "entropy-128": "lwqc entropy, 128 bins",
                }.get(method, f"lwqc {method}")
            )
        )
        long = (f"{seconds[far]:.1f}", f"{peak[far]:.0f}") if far in rounds else ("-", "-")
        print(
            f"| {label} | {seconds[key]:.1f} | {long[0]} | {peak[key]:.0f} | {long[1]} |"
            f" {seconds[reference] / seconds[key]:.1f} | {peak[reference] / peak[key]:.1f} |"
        )
    limits = {k[0]: v[0]["limits"] for k, v in rounds.items() if k[1] == few}
    print(f"\nRatios are against onnxruntime at its default of 128 bins, {few} images.")
    print("Width of entropy ranges against onnxruntime's:")
    print(f"- 512 bins: {closeness(limits['entropy'], limits['onnxruntime-512'])}")
    print(f"- 128 bins: {closeness(limits['entropy-128'], limits['onnxruntime-128'])}")
    growth = max(peak[m, many] / peak[m, few] for m in METHODS)
    print(f"\nPeak memory at {many} images is at most {growth:.3f} times that at {few}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 and 24 images, measured once")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print("\n" + json.dumps(measure(json.loads(options.job))))
    elif options.quick:
        main((8, 24), repeats=1)
    else:
        main((32, 256), repeats=3)
