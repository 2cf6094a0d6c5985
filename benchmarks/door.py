"""How long the door takes to open: `import lwqc` and `lwqc --help` beside what every run loads.

    python -m benchmarks.door
    python -m benchmarks.door --compress MODEL --data DATA --against FOLDER

The second times `lwqc compress` with default options, beside another version of lwqc: FOLDER is a
checkout of it. Every run is a fresh process, in turns with the others and in alternating order;
ratios are of medians. Each version has a folder of its own for timings that are kept between runs,
and they are there: the first run of each does not count.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import lwqc
from lwqc.backends.cpu_rules import probed

OURS = Path(lwqc.__file__).parent.parent
PEER = "import onnx_ir, onnxruntime"
COMMANDS = {
    PEER: ["-c", PEER],
    "import lwqc": ["-c", "import lwqc"],
    "from lwqc import compress": ["-c", "from lwqc import compress"],
    "lwqc --help": ["-m", "lwqc.cli", "--help"],
    "lwqc compress --help": ["-m", "lwqc.cli", "compress", "--help"],
}


def processor() -> str:
    """Its name where the system tells it, and which kernels the runtime takes here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {probed().name}"


def seconds(arguments: list[str], tree: Path, **variables: str) -> float:
    """Of a fresh process that finds lwqc in a folder."""
    paths = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-P", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **variables, "PYTHONPATH": paths},
    )
    return time.perf_counter() - start


def in_turns(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each; the first run fills caches and writes bytecode, and is not counted."""
    order = list(runs)
    times: dict[str, list[float]] = {name: [] for name in order}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name in order:
            times[name].append(runs[name]())
        order.reverse()
    return times


def compressions(
    model: Path, data: str | None, trees: Mapping[str, Path], folder: Path
) -> dict[str, Callable[[], float]]:
    """`lwqc compress MODEL` with default options, by version."""
    given = ["--data", data] if data else []

    def run(name: str) -> float:
        out = folder / f"{name}.onnx"
        arguments = ["-m", "lwqc.cli", "compress", str(model), "-o", str(out), *given]
        return seconds(arguments, trees[name], LWQC_CACHE=str(folder / name))

    return {name: lambda name=name: run(name) for name in trees}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compress", type=Path, help="a model, instead of the door itself")
    parser.add_argument("--data", help="as of lwqc compress")
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.compress is not None:
            trees = {"against": given.against} if given.against else {}
            runs = compressions(given.compress, given.data, {**trees, "ours": OURS}, Path(folder))
        else:
            runs = {
                name: lambda arguments=arguments: seconds(arguments, OURS)
                for name, arguments in COMMANDS.items()
            }
        times = in_turns(runs, given.rounds)
    print(f"{processor()}; {given.rounds} rounds\n")
    print("| process | median s | least | most | ratio |")
    print("| --- | --- | --- | --- | --- |")
    first = statistics.median(next(iter(times.values())))
    for name, found in times.items():
        median = statistics.median(found)
        print(
            f"| `{name}` | {median:.2f} | {min(found):.2f} | {max(found):.2f} "
            f"| {median / first:.2f} |"
        )


if __name__ == "__main__":
    main()
