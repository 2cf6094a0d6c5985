"""How long the door takes to open: `import lwqc` and `lwqc --help` beside what every run loads.

    python -m benchmarks.door

Each is a fresh process, in turns with the others and in alternating order; ratios are of medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import lwqc

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
    from lwqc.backends.cpu_rules import probed

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {probed().name}"


def seconds(arguments: list[str], tree: Path) -> float:
    """Of a fresh process that finds lwqc in a folder."""
    paths = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-P", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tree", type=Path, default=Path(lwqc.__file__).parent.parent)
    given = parser.parse_args()
    order = list(COMMANDS)
    times: dict[str, list[float]] = {name: [] for name in order}
    for arguments in COMMANDS.values():  # fills the disk cache and writes bytecode
        seconds(arguments, given.tree)
    for _ in range(given.rounds):
        for name in order:
            times[name].append(seconds(COMMANDS[name], given.tree))
        order.reverse()
    print(f"{processor()}; {given.rounds} rounds\n")
    print("| process | median ms | ratio |")
    print("| --- | --- | --- |")
    peer = statistics.median(times[PEER])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"| `{name}` | {1e3 * median:.0f} | {median / peer:.2f} |")


if __name__ == "__main__":
    main()
