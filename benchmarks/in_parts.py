"""A decoder of random weights that is larger than the memory it is worked on in.

`python -m benchmarks.in_parts --folder DIR` makes the model (5.3 GB of float32: 1.33e9 parameters)
and random token ids, then runs plan, GPTQ to 4 bits, the same killed twice (SIGKILL) and gone on
with, lowering for CPU and CUDA, and verify, each in a process of its own within `--memory 2GB`. It
prints a markdown table. Memory is read from /proc every 0.1 s: the peak of the command's own
process as the kernel keeps it (VmHWM, mapped pages included), and of it and its helper together
without mapped pages (RssAnon) and with them (VmRSS; a page that both map counts twice). Nothing is
kept.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.decoder import build

SHAPES = {  # layers, width, hidden width, vocabulary
    "0.3": (20, 1024, 2816, 32000),
    "0.65": (25, 1536, 4096, 32000),
    "1.3": (30, 2048, 5632, 32000),
}
SAMPLES, TOKENS, EVERY_S = 16, 128, 0.1
INPUT = 2  # the status of input that lwqc refuses
FIELDS = ("VmHWM", "VmRSS", "RssAnon")


@dataclass
class Used:
    """What a command took. own, private, all: peaks in MB, see above."""

    seconds: float = 0.0
    processor: float = 0.0
    own: float = 0.0
    private: float = 0.0
    all: float = 0.0
    killed: bool = False
    refused: str = ""  # the command's own line


def _memory(pid: int) -> dict[str, float]:
    """Fields of a process's status in MB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return dict.fromkeys(FIELDS, 0.0)
    found = dict.fromkeys(FIELDS, 0.0)
    for line in lines:
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024 / 1e6
    return found


def _children(pid: int) -> Iterator[int]:
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (task / "children").read_text().split())
    except OSError:
        return


def run(arguments: list[str], log: Path, kill_when: Callable[[], bool] = lambda: False) -> Used:
    """Run a command of lwqc; kill it once something holds."""
    used, start = Used(), time.perf_counter()
    with log.open("ab") as file:
        command = [sys.executable, "-m", "lwqc.cli", *arguments]
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            found = [_memory(p) for p in (process.pid, *_children(process.pid))]
            used.own = max(used.own, found[0]["VmHWM"])
            used.private = max(used.private, sum(f["RssAnon"] for f in found))
            used.all = max(used.all, sum(f["VmRSS"] for f in found))
            if kill_when():
                used.killed = True
                os.killpg(process.pid, signal.SIGKILL)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    over.set()
    watcher.join()
    used.seconds = time.perf_counter() - start
    used.processor = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    if code == INPUT:
        used.refused = log.read_text().strip().splitlines()[-1]
    elif code and not used.killed:
        raise SystemExit(f"failed with status {code}, see {log}: {' '.join(arguments)}")
    return used


def row(name: str, used: Used, size: str = "") -> None:
    """Print one line of the table."""
    if used.refused:
        print(f"| {name} | refused: {used.refused} |")
        return
    print(
        f"| {name} | {used.seconds:.0f} | {used.processor:.0f} | {used.own:.0f} | "
        f"{used.private:.0f} | {used.all:.0f} | {size} |"
    )


def size_of(path: Path) -> str:
    """MB of a model and its data."""
    return f"{sum(f.stat().st_size for f in path.parent.glob(f'{path.name}*')) / 1e6:.0f}"


def same(one: Path, other: Path) -> bool:
    """Whether two models have the same data, which is named by its hash, and the same graph."""
    (first,), (second,) = (list(p.parent.glob(f"{p.name}.*.data")) for p in (one, other))
    hashes = [p.name.split(".")[-2] for p in (first, second)]
    return hashes[0] == hashes[1] and first.stat().st_size == second.stat().st_size


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SHAPES, default="1.3", help="1e9 parameters")
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--folder", type=Path, default=None, help="where to put 20 GB for a while")
    parser.add_argument("--log", type=Path, default=Path("in_parts.log"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        model, data = folder / "decoder.onnx", folder / "data.npz"
        shape = SHAPES[given.size]
        parameters = build(model, shape)
        ids = np.random.default_rng(0).integers(0, shape[3], (given.samples, TOKENS))
        np.savez(data, ids=ids)
        print(
            f"{parameters / 1e6:.0f}M parameters, {size_of(model)} MB, {given.samples} samples of "
            f"{TOKENS} tokens, --memory {given.memory}\n"
        )
        print("| job | seconds | processor s | own MB | private MB | all MB | output MB |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        bound = ["--data", str(data), "--memory", given.memory]
        used = run(["plan", str(model), "-o", str(folder / "p.json"), "--recipe", "gptq", *bound],
                   given.log)  # fmt: skip
        row("plan (recipe gptq)", used)
        whole, resumed = folder / "q4.onnx", folder / "again.onnx"

        def quantize(out: Path, **more: Callable[[], bool]) -> Used:
            options = ["--bits", "4", "--method", "gptq", "--external-data", *bound]
            return run(["quantize", str(model), "-o", str(out), *options], given.log, **more)

        row("quantize --bits 4 --method gptq, verified", quantize(whole), size_of(whole))
        codes = folder / "again.onnx.parts" / "codes"
        sites = 6 * shape[0] + 1
        for share in (0.35, 0.7):
            least = int(share * sites)
            used = quantize(resumed, kill_when=lambda: len(list(codes.glob("*.npz"))) >= least)  # noqa: B023
            row(f"the same, killed at {100 * share:.0f} % of the weights", used)
        row("the same, gone on with", quantize(resumed), size_of(resumed))
        print(f"\nthe same bytes as without kills: {'yes' if same(whole, resumed) else 'NO'}\n")
        for file in folder.glob("again.onnx*"):
            file.unlink()
        for source, target in ((model, "cuda"), (model, "cpu"), (whole, "cuda")):
            out = folder / f"{source.stem}-{target}.onnx"
            options = ["--target", target, "--external-data", *bound]
            used = run(["lower", str(source), "-o", str(out), *options], given.log)
            row(f"lower {source.name} --target {target}, verified", used, size_of(out))
            for file in folder.glob(f"{out.name}*"):
                file.unlink()
        row("verify", run(["verify", str(model), str(whole), *bound], given.log))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.reconfigure(line_buffering=True)
    main()
