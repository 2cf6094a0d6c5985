"""Peers on the same mutants: `python -m tests.fuzz.peers --python OTHER/bin/python --mutants 500`.

onnxsim beside our clean-up, onnxruntime's quantize_dynamic beside our 8-bit weights. What does not
run as it is cannot come out wrong; of what runs, the outputs before and after are compared. Nothing
is kept of any input: the table counts.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tests.fuzz.mutants import mutant, original
from tests.fuzz.run import Worker, judged

OURS = {"lwqc clean-up": "compress-clean", "lwqc 8 bits": "quantize-8"}
# Largest relative difference of the outputs. Of 8 bits far more than of the models as they were.
MOST = {"onnxsim": 1e-3, "lwqc clean-up": 1e-3, "quantize_dynamic": 0.25, "lwqc 8 bits": 0.25}
OUTCOMES = (
    "same", "refused", "crashed", "over 60 s", "does not run any more", "other outputs",
    "made of what does not run",
)  # fmt: skip
_CHILD = Path(__file__).with_name("peer_child.py")


class Peers:
    """The process that runs other software. versions: of the tools that are there."""

    def __init__(self, python: str, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [python, str(_CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": ""},
        )  # fmt: skip
        assert self._process.stdout is not None
        self.versions: Mapping[str, str] = json.loads(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def ended(self, tool: str, source: Path, target: Path) -> str:
        """How a tool ended on a file."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"tool": tool, "source": str(source), "target": str(target)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return str(json.loads(self._process.stdout.readline())["ended"])

    def outputs(self, model: Path) -> dict[str, Any] | None:
        """What a model computes; None where it does not run."""
        found = self._folder / "outputs.pickle"
        found.unlink(missing_ok=True)
        if self.ended("run", model, found) != "ok":
            return None
        read: dict[str, Any] = pickle.loads(found.read_bytes())
        return read


def counts(python: str, seed: int, count: int) -> tuple[Mapping[str, Counter[str]], Sequence[str]]:
    """Outcomes by tool, and what is not installed."""
    with tempfile.TemporaryDirectory(prefix="lwqc-peers-") as place, Worker() as worker:
        folder = Path(place)
        source, target = folder / "m.onnx", folder / "o.onnx"
        with Peers(python, folder) as peers:
            found: dict[str, Counter[str]] = {n: Counter() for n in (*peers.versions, *OURS)}
            for number in range(count):
                source.write_bytes(mutant(seed, number).data)
                before = peers.outputs(source)
                for tool in found:
                    target.unlink(missing_ok=True)
                    if tool in OURS:
                        answer = worker.run(source.read_bytes(), b"", OURS[tool], keep=target)
                        ended = _of_ours(answer)
                    else:
                        ended = _of_peer(peers.ended(tool, source, target))
                    found[tool][ended or _of_file(peers, target, before, MOST[tool])] += 1
            missing = [tool for tool in MOST if tool not in found]
            return found, missing


def noise(python: str) -> float:
    """The largest relative difference that 8 bits make of the models as they were."""
    from tests.fuzz.corpus import MODELS

    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="lwqc-peers-") as place:
        source, target = Path(place) / "m.onnx", Path(place) / "o.onnx"
        with Peers(python, Path(place)) as peers:
            for name in MODELS:
                source.write_bytes(original(name))
                before = peers.outputs(source)
                if peers.ended("quantize_dynamic", source, target) == "ok" and before is not None:
                    worst = max(worst, _difference(before, peers.outputs(target) or {}))
    return worst


def _of_peer(ended: str) -> str:
    """The outcome, where there is no file to look at."""
    return {"ok": "", "refused": "refused", "late": "over 60 s"}.get(ended, "crashed")


def _of_ours(answer: dict[str, Any]) -> str:
    outcome, _ = judged(answer)
    known = {"ok": "", "refused in one line": "refused", "over time": "over 60 s"}
    return known.get(outcome, "crashed")


def _of_file(peers: Peers, target: Path, before: dict[str, Any] | None, most: float) -> str:
    if before is None:
        return "made of what does not run"
    after = peers.outputs(target)
    if after is None:
        return "does not run any more"
    return "same" if _difference(before, after) <= most else "other outputs"


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """The largest relative difference of an output; infinite where it cannot be compared."""
    worst = 0.0
    for name, value in before.items():
        if name not in after:
            return float("inf")
        worst = max(worst, _relative(value, after[name]))
    return worst


def _relative(one: Any, other: Any) -> float:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        one, other = np.asarray(list(one.values())), np.asarray([other[key] for key in one])
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(_relative, one, other), default=0.0)
    if not isinstance(one, np.ndarray) or one.dtype.kind not in "fiub":
        return 0.0 if repr(one) == repr(other) else float("inf")
    if not isinstance(other, np.ndarray) or one.shape != other.shape:
        return float("inf")
    with np.errstate(all="ignore"):
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)):
            return float("inf")
        size = float(np.linalg.norm(a[finite]))
        return float(np.linalg.norm((a - b)[finite])) / max(size, 1e-6)


def main() -> int:
    """Print the table. Exit code 1 where nothing of ours or theirs could be compared."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.peers", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="of the environment of the peers")
    parser.add_argument("--mutants", type=int, default=500)
    parser.add_argument("--seed", type=int, default=21)
    chosen = parser.parse_args()
    print(f"8 bits move outputs of the models as they are by {noise(chosen.python):.2g} at most")
    found, missing = counts(chosen.python, chosen.seed, chosen.mutants)
    print("| tool | " + " | ".join(OUTCOMES) + " |")
    print("| --- |" + " ---: |" * len(OUTCOMES))
    for tool, own in found.items():
        print(f"| {tool} | " + " | ".join(str(own[o]) for o in OUTCOMES) + " |")
    for tool in missing:
        print(f"{tool} is not installed for {chosen.python}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
