"""Give mutants to commands in worker processes and tell how each run ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from tests.fuzz.commands import COMMANDS
from tests.fuzz.mutants import Mutant, mutant, original

MOST_SECONDS, MOST_BYTES = 60.0, 2 << 30
GOOD = ("ok", "refused in one line")
OUTCOMES = (
    *GOOD, "traceback", "several lines", "output after failure", "abort", "over time",
    "over memory",
)  # fmt: skip
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ending:
    """How one command ended. kind: of a fault, for counting alike ones. said: its last words."""

    number: int
    mutant: Mutant
    command: str
    outcome: str
    kind: str
    said: str
    seconds: float
    size_bytes: int


class Worker:
    """A process that runs commands; a new one after a death."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._folder = tempfile.TemporaryDirectory(prefix="lwqc-fuzz-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._end()
        self._errors.close()
        self._folder.cleanup()

    def run(
        self, data: bytes, plan: bytes, command: str, *, keep: Path | None = None
    ) -> dict[str, Any]:
        """The answer of `worker`; {"died": how} or {"late": True} where there is none.

        keep: where the output of the command goes, if there is one.
        """
        process = self._process or self._start()
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        (folder / "m.onnx").write_bytes(data)
        (folder / "p.json").write_bytes(plan)
        filled = COMMANDS[command].format(m="m.onnx", o="o.onnx", p="p.json")
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"folder": str(folder), "argv": filled.split()}) + "\n")
            process.stdin.flush()
            answer = self._answer(process, MOST_SECONDS)
        except BrokenPipeError:
            answer = {"died": "before the command"}
        if "code" not in answer:
            self._end()
        if keep is not None and (folder / "o.onnx").exists():
            shutil.copy(folder / "o.onnx", keep)
        shutil.rmtree(folder, ignore_errors=True)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        self._errors.truncate(0)
        environment = {
            **os.environ,
            "LWQC_CACHE": f"{self._folder.name}/cache",
            "LWQC_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(MOST_BYTES + (1 << 30))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=_ROOT,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self._process

    def _answer(self, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        if not ready:
            return {"late": True}
        line = process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"died": name}

    def _end(self) -> None:
        """End the worker and what it started: they are a process group of their own."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


def endings(seed: int, first: int, count: int | None, seconds: float) -> Iterator[Ending]:
    """Run mutants by number until so many are done or the time is over."""
    stop = time.monotonic() + seconds
    with Worker() as worker:
        plans: dict[str, bytes] = {}
        number = first
        while time.monotonic() < stop and (count is None or number < first + count):
            yield one(worker, plans, seed, number)
            number += 1


def one(worker: Worker, plans: dict[str, bytes], seed: int, number: int) -> Ending:
    """Give one mutant to the command that is its turn."""
    chosen = mutant(seed, number)
    command = list(COMMANDS)[int(np.random.default_rng([seed, number, 1]).integers(len(COMMANDS)))]
    answer = worker.run(chosen.data, _plan(chosen.model, plans), command)
    outcome, kind = judged(answer)
    said = str(answer.get("error", "")).strip() or str(answer.get("trace", ""))
    if outcome == "traceback":
        said = str(answer["trace"])
    return Ending(
        number,
        chosen,
        command,
        outcome,
        kind,
        said,
        float(answer.get("seconds", MOST_SECONDS)),
        int(answer.get("bytes", 0)),
    )


def _plan(model: str, plans: dict[str, bytes]) -> bytes:
    """A plan for the model as it was."""
    if model not in plans:
        import onnx

        import lwqc

        made = lwqc.quantize(onnx.ModelProto.FromString(original(model))).plan
        plans[model] = made.model_dump_json().encode()
    return plans[model]


def judged(answer: dict[str, Any]) -> tuple[str, str]:
    """The outcome, and the kind of fault it is."""
    if "late" in answer:
        return "over time", "no answer in time"
    if "died" in answer:
        return "abort", answer["died"]
    if "out of memory" in answer["error"] or answer["bytes"] > MOST_BYTES:
        return "over memory", answer["kind"]
    if answer["code"] == "uncaught" or "internal error" in answer["error"]:
        return "traceback", answer["kind"]
    if answer["seconds"] > MOST_SECONDS:
        return "over time", "slow"
    if answer["code"] in (0, 3):
        return "ok", ""
    if answer["left"]:
        return "output after failure", f"{answer['kind']}: {answer['left']}"
    if answer["lines"] != 1 or not answer["error"].startswith("lwqc: "):
        return "several lines", answer["kind"]
    return "refused in one line", answer["kind"]
