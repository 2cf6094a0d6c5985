"""Commands are killed at random moments; what they leave is checked: `python -m tests.kills`.

Inputs stay as they are. Every output is the old one or the complete new one, and what belongs
together is of one age. SIGINT and SIGTERM say one line and end with 130 and 143. The next run of
the same command completes, and then nothing is left over: no file, no process.

Half of the kills come once a command has begun to write. Most runs are forks of a process that has
imported everything and times as seldom as it takes, so that many fit into an hour; every fifth is a
process of its own, which may be killed while it imports.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from lwqc.errors import LwqcError
from lwqc.model import io
from lwqc.plans.plan import Plan
from tests.build import model, normal
from tests.fuzz.quick import quicken

SEARCH = ["--data", "d.npz", "--max-size", "0.4", "--effort", "low", "--workers", "1"]
OUT = ["-o", "out.onnx"]
# Options of a command; the files that it writes, those that belong together in one tuple.
COMMANDS: Mapping[str, tuple[Sequence[str], Sequence[tuple[str, ...]]]] = {
    "compress": (["compress", "m.onnx", *OUT, "--data", "d.npz", "--plan-out", "out.json"],
                 [("out.json", "out.onnx")]),
    "search": (["compress", "m.onnx", *OUT, *SEARCH, "--plan-out", "out.json"],
               [("out.json", "out.onnx")]),
    "resume": (["compress", "m.onnx", *OUT, *SEARCH, "--resume"], [("out.onnx",)]),
    "row": (["compress", "m.onnx", *OUT, *SEARCH, "--pareto", "2"],
            [("out-1.plan.json", "out-1.onnx", "out-2.plan.json", "out-2.onnx")]),
    "quantize": (["quantize", "e.onnx", *OUT, "--bits", "4", "--plan-out", "out.json"],
                 [("out.json", "out.onnx")]),
    "quantize-external": (["quantize", "e.onnx", *OUT, "--external-data", "--plan-out", "out.json"],
                          [("out.json", "out.onnx")]),
    "quantize-parts": (["quantize", "e.onnx", *OUT, "--bits", "4", "--method", "gptq", "--data",
                        "d.npz", "--memory", "545MB"], [("out.onnx",)]),
    "prune": (["prune", "m.onnx", *OUT, "--ratio", "0.2", "--plan-out", "out.json",
               "--report", "out.html"], [("out.json", "out.onnx"), ("out.html",)]),
    "drop": (["drop", "m.onnx", *OUT, "--branches", "1", "--plan-out", "out.json"],
             [("out.json", "out.onnx")]),
    "recover": (["recover", "m.onnx", *OUT, "--teacher", "e.onnx", "--data", "d.npz",
                 "--steps", "20"], [("out.onnx",)]),
    "recover-resume": (["recover", "m.onnx", *OUT, "--teacher", "e.onnx", "--data", "d.npz",
                        "--steps", "20", "--resume"], [("out.onnx",)]),
    "lower": (["lower", "m.onnx", *OUT, "--external-data"], [("out.onnx",)]),
    "plan": (["plan", "m.onnx", "-o", "out.json", "--recipe", "w8"], [("out.json",)]),
    "apply": (["apply", "m.onnx", "p.json", *OUT, "--external-data"], [("out.onnx",)]),
    "inspect": (["inspect", "e.onnx", "--groups", "--branches"], []),
    "verify": (["verify", "m.onnx", "e.onnx", "--data", "d.npz"], []),
    "bench": (["bench", "m.onnx", "e.onnx", "--seconds", "0.3"], []),
}  # fmt: skip
INPUTS = ("m.onnx", "e.onnx", "weights.bin", "d.npz", "p.json")
MARK = "LWQC_KILLS"
_SECONDS = 300
_NOTHING = "nothing to resume"  # the search was over when its run was killed


@dataclass
class Ended:
    """How a run ended."""

    code: int
    error: str
    seconds: float


@dataclass
class Tally:
    """Outcomes of one command, and everything that is not as it should be."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def make_inputs(folder: Path) -> None:
    """A small model with a residual branch, inline and with external data, its data, and a plan."""
    rows = [
        ("MatMul", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}), ("MatMul", ["r", "v"], "b", {}),
        ("Add", ["x", "b"], "s", {}), ("MatMul", ["s", "u"], "y", {}),
    ]  # fmt: skip
    weights = {"w": normal(64, 256), "v": normal(256, 64, seed=1), "u": normal(64, 16, seed=2)}
    scaled = {name: value / np.float32(16) for name, value in weights.items()}
    io.save(model(rows, scaled, {"x": ["batch", 64]}, ["y"]), folder / "m.onnx")
    proto = onnx.load(folder / "m.onnx")
    onnx.save(
        proto, folder / "e.onnx", save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    np.savez(folder / "d.npz", x=normal(64, 64, seed=3))
    digest = io.model_digest(io.load(folder / "m.onnx"))
    plan = {"source": {"digest": digest}, "quantize": {"w": {"weight": "w8c"}}}
    (folder / "p.json").write_text(Plan.model_validate(plan).text)


class Run:
    """A run of the command in a folder, with temporary files in a folder of its own."""

    def __init__(
        self, folder: Path, arguments: Sequence[str], *, fork: bool, errors: Path | None = None
    ) -> None:
        """errors: where its lines go; beside the inputs if None."""
        self._folder, self._arguments, self._fork = folder, list(arguments), fork
        self._errors = errors or folder / "stderr"
        self._start = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = self._forked() if fork else self._spawned()

    def _environment(self) -> dict[str, str]:
        temporary = self._folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return {"TMPDIR": str(temporary), MARK: str(self._folder), "LWQC_CACHE": "off"}

    def _spawned(self) -> int:
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lwqc.cli", *self._arguments],
                cwd=self._folder, env=os.environ | self._environment(), stderr=errors,
                stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return self._process.pid

    def _forked(self) -> int:
        environment = self._environment()
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.setsid()
            os.environ.update(environment)
            tempfile.tempdir = None
            os.chdir(self._folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(self._errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.argv = ["lwqc", *self._arguments]
            code = _main()
        finally:
            os._exit(code)

    @property
    def lives(self) -> bool:
        """Whether it has not ended yet."""
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return status is None

    def wait(self) -> Ended:
        """Until it ends, however."""
        if self._process is not None:
            code = self._process.wait(_SECONDS)
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        seconds = time.monotonic() - self._start
        return Ended(code, self._errors.read_text(errors="replace"), seconds)


def _main() -> int:
    from lwqc import cli

    try:
        cli.main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(ended.code or 0)
    return 0


def contents(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Of those files that are there."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def complete(folder: Path, name: str) -> bool:
    """Whether a model with all its data, a plan or a page can be read."""
    if name.endswith(".html"):
        return (folder / name).read_text().endswith("</html>")
    try:
        if name.endswith(".json"):
            Plan.load(folder / name)
        else:
            io.model_digest(io.load(folder / name))
    except LwqcError:
        return False
    return True


def leftovers(folder: Path) -> list[str]:
    """Files that no command should leave: temporary ones, and data that no model refers to."""
    found = [p.name for p in folder.iterdir() if p.name.startswith(".")]
    (folder / "tmp").mkdir(exist_ok=True)
    # The runtime's, and the cache that torch opens for its compiler as soon as it has an optimizer.
    theirs = (".ses", "torchinductor_")
    temporary = [p.name for p in (folder / "tmp").iterdir() if not p.name.startswith(theirs)]
    found += [f"tmp/{name}" for name in temporary]
    used = {
        entry.value
        for path in folder.glob("out*.onnx")
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return found + [p.name for p in folder.glob("*.data") if p.name not in used]


def processes(folder: Path, patience_s: float = 10.0) -> list[int]:
    """Processes of a run that are still there after some seconds."""
    mark = f"{MARK}={folder}".encode()
    end = time.monotonic() + patience_s
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


@dataclass
class Trial:
    """One kill, and what comes after it. fork, forks: whether this run, and the next, are forks."""

    folder: Path
    name: str
    number: int
    fork: bool
    tally: Tally
    forks: bool = True

    def fault(self, what: str) -> None:
        """Note something that is not as it should be."""
        self.tally.faults.append(f"{self.name}, {signal.Signals(self.number).name}: {what}")

    def check(
        self, delay: float, inputs: Mapping[str, bytes], *, writing: bool, again: bool = True
    ) -> None:
        """Kill the command after some seconds, look at what is there, and run it again.

        writing: the seconds begin when it has begun to write. again: False leaves the last out.
        """
        arguments, groups = COMMANDS[self.name]
        names = [name for group in groups for name in group]
        before, left_before = contents(self.folder, names), set(leftovers(self.folder))
        run = Run(self.folder, arguments, fork=self.fork)
        while writing and run.lives and not self._writes():
            time.sleep(0.0005)
        time.sleep(delay)
        with suppress(ProcessLookupError):
            os.kill(run.pid, self.number)
        ended = run.wait()
        done = ended.code in (0, 3) or _NOTHING in ended.error
        self.tally.counts["finished" if done else "killed"] += 1
        self._signal(ended)
        after = contents(self.folder, names)
        self._outputs(groups, before, after)
        left = set(leftovers(self.folder)) - left_before
        if self.number != signal.SIGKILL and left:
            self.fault(f"left {left}")
        if alive := processes(self.folder):
            self.fault(f"processes {alive} go on")
        if again:
            self._again(arguments, names)
        if contents(self.folder, INPUTS) != inputs:
            self.fault("an input changed")

    def _writes(self) -> bool:
        with suppress(FileNotFoundError):  # of a folder that comes and goes
            return any(self.folder.glob(".out*/*"))
        return False

    def _signal(self, ended: Ended) -> None:
        if self.number == signal.SIGKILL or ended.code in (0, 3) or _NOTHING in ended.error:
            return
        if ended.code == -self.number and not ended.error and not self.fork:
            self.tally.counts["before our first line"] += 1
            return
        lines = ended.error.strip().splitlines()
        if not self.fork and lines and "frozen" in "".join(lines) and "lwqc" not in ended.error:
            self.tally.counts["before our first line"] += 1
        elif ended.code != 128 + self.number or len(lines) != 1:
            self.fault(f"exit code {ended.code}, stderr {ended.error[-400:]!r}")
        else:
            self.tally.counts["one line"] += 1

    def _outputs(
        self,
        groups: Sequence[tuple[str, ...]],
        before: Mapping[str, bytes],
        after: Mapping[str, bytes],
    ) -> None:
        for group in groups:
            new = [name for name in group if after.get(name) != before.get(name)]
            self.tally.counts["new" if new else "old"] += 1
            for name in group:
                if name in before and name not in after:
                    self.fault(f"{name} is gone")
                elif name in after and not complete(self.folder, name):
                    self.fault(f"{name} is not whole")
            if new and len(new) < len(group):
                self.tally.counts["between two renames"] += 1
                if group[-1] in new:
                    self.fault(f"only {new} of {group} are new")

    def _again(self, arguments: Sequence[str], names: Sequence[str]) -> None:
        again = Run(self.folder, arguments, fork=self.forks).wait()
        if "--resume" in arguments and _NOTHING in again.error:
            plain = [a for a in arguments if a != "--resume"]
            again = Run(self.folder, plain, fork=self.forks).wait()
        if again.code not in (0, 3):
            self.fault(f"the next run ended with {again.code}: {again.error[-400:]!r}")
        if left := leftovers(self.folder):
            self.fault(f"the next run leaves {left}")
        for state in ("search", "recover", "parts"):
            if (self.folder / f"out.onnx.{state}").exists():
                self.fault(f"the next run leaves the state of the {state}")
        for name in names:
            if not complete(self.folder, name):
                self.fault(f"after the next run {name} is not whole")


def durations(folder: Path, names: Sequence[str]) -> dict[str, float]:
    """Seconds of each command in a fork; the outputs stay, as the old ones of what comes next."""
    found = {}
    for name in names:
        arguments = [a for a in COMMANDS[name][0] if a != "--resume"]
        ended = Run(folder, arguments, fork=True).wait()
        if ended.code not in (0, 3):
            raise SystemExit(f"{name} does not work: {ended.error}")
        found[name] = ended.seconds
    return found


def run_all(counts: Mapping[int, int], seed: int, names: Sequence[str]) -> dict[str, Tally]:
    """Kill by signal number so many times, commands in turn. Prints faults as they come."""
    import lwqc.api  # noqa: F401 - forks have it imported

    quicken()
    rng = random.Random(seed)
    tallies = {name: Tally() for name in names}
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "inputs"
        source.mkdir()
        make_inputs(source)
        inputs = contents(source, INPUTS)
        seconds = durations(_copy(source, Path(place) / "timed"), names)
        old = _old_outputs(source, Path(place) / "old")
        jobs = [(number, i) for number, count in counts.items() for i in range(count)]
        rng.shuffle(jobs)
        try:
            for done, (number, i) in enumerate(jobs):
                name = names[done % len(names)]
                folder = _copy(source, Path(place) / str(done))
                trial = Trial(folder, name, number, i % 5 != 4, tallies[name])
                _prepare(trial, rng, seconds[name], old)
                writing = rng.random() < 0.5 and bool(COMMANDS[name][1])
                share = 0.2 if writing else 1.1 if trial.fork else 2
                before = len(trial.tally.faults)
                trial.check(rng.random() * seconds[name] * share, inputs, writing=writing)
                trial.tally.counts[signal.Signals(number).name] += 1
                for fault in trial.tally.faults[before:]:
                    print(fault, flush=True)
                shutil.rmtree(folder)
        except KeyboardInterrupt:  # what was found until now counts
            pass
    return tallies


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _old_outputs(source: Path, target: Path) -> Path:
    """A folder with an output of every name, made by another command."""
    shutil.copytree(source, target)
    options = ["--external-data", "--no-verify"]
    for name in ("out", "out-1", "out-2"):
        Run(target, ["quantize", "m.onnx", "-o", f"{name}.onnx", *options], fork=True).wait()
        for plan in (f"{name}.json", f"{name}.plan.json"):
            shutil.copy(source / "p.json", target / plan)
    return target


def _prepare(trial: Trial, rng: random.Random, seconds: float, old: Path) -> None:
    """Half of the runs find an old output; what is resumed was killed before."""
    arguments, groups = COMMANDS[trial.name]
    names = [name for group in groups for name in group]
    if rng.random() < 0.5 and names:
        for name in names:
            for file in old.glob(f"{name}*"):
                shutil.copy(file, trial.folder)
    if "--resume" in arguments:
        plain = [a for a in arguments if a != "--resume"]
        first = Run(trial.folder, plain, fork=True)
        time.sleep(rng.uniform(0.3, 0.9) * seconds)
        with suppress(ProcessLookupError):
            os.kill(first.pid, signal.SIGKILL)
        first.wait()


def print_table(tallies: Mapping[str, Tally]) -> None:
    """A row for each command."""
    columns = ("SIGKILL", "SIGTERM", "SIGINT", "killed", "finished", "old", "new",
               "between two renames", "one line", "before our first line")  # fmt: skip
    print("| command | " + " | ".join(columns) + " | faults |")
    print("| --- |" + " ---: |" * (len(columns) + 1))
    total: Counter[str] = Counter()
    for name, tally in tallies.items():
        total += tally.counts
        row = [str(tally.counts[column]) for column in columns]
        print(f"| {name} | {' | '.join(row)} | {len(tally.faults)} |")
    row = [str(total[column]) for column in columns]
    print(f"| all | {' | '.join(row)} | {sum(len(t.faults) for t in tallies.values())} |")


def main() -> int:
    """Exit code 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="of SIGKILL; of others a quarter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    options = parser.parse_args()
    few = max(options.count // 4, 1)
    counts = {signal.SIGKILL: options.count, signal.SIGTERM: few, signal.SIGINT: few}
    tallies = run_all(counts, options.seed, options.commands.split(","))
    print_table(tallies)
    return int(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
