"""What the gate and the processes of strangers' models cost `lwqc compress`, in processor time.

    python -m benchmarks.gate MODEL [--data DATA] [--rounds 3]

Every run is a fresh process, in turns with and without: without, nothing is checked after loading,
shapes are inferred in the process itself, and the model does not run elsewhere first. Seconds are
user and system time of a run with all its processes; they grow little on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_RUN = "from benchmarks.gate import report; report()"


def without() -> None:
    """Leave out what is measured."""
    from lwqc.decide import compress
    from lwqc.graph import shapes, value_types
    from lwqc.model import inference, inference_child, io, kept_parts

    def ask(name: str, most_bytes: int, *request: Any, seconds: float) -> Any:
        return inference_child._ANSWERS[name](*request)

    io.check_model = lambda proto: None  # type: ignore[attr-defined]
    inference._process = lambda: argparse.Namespace(ask=ask)
    compress.prove_first = lambda *_: None  # type: ignore[attr-defined]
    assert shapes
    assert value_types
    assert kept_parts


class Share:
    """Processor seconds of this process in some functions; the outermost counts."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted."""

        def counted(*given: Any, **named: Any) -> Any:
            if self._inside:
                return function(*given, **named)
            self._inside, start = True, time.process_time()
            try:
                return function(*given, **named)
            finally:
                self._inside = False
                self.seconds += time.process_time() - start

        return counted


def report() -> None:
    """What one run prints, as JSON. Its first argument is with or without, the others are ours."""
    from lwqc import cli

    if sys.argv[1] == "without":
        without()
    share = Share()
    if sys.argv[1] == "with":
        from lwqc.model import io
        from lwqc.runtime import session

        io.check_model = share.of(io.check_model)  # type: ignore[attr-defined]
        session.prove_waiting = share.of(session.prove_waiting)  # type: ignore[attr-defined]
    sys.argv = ["lwqc", *sys.argv[2:]]
    code: object = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    from lwqc.model import inference
    from lwqc.runtime import isolated

    for process in (*inference._shared.values(), *isolated._shared.values()):
        if hasattr(process, "close"):
            process.close()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, children = (each.ru_utime + each.ru_stime for each in used)
    print(json.dumps({"code": code, "own": own, "children": children, "share": share.seconds}))


def measured(kind: str, model: str, data: str | None, folder: Path) -> dict[str, float]:
    """Seconds of one run."""
    given = ["compress", model, "-o", str(folder / "o.onnx"), *(["--data", data] if data else [])]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, kind, *given], capture_output=True, text=True, check=True,
        env={**os.environ, "LWQC_CACHE": str(folder / kind)},
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if found["code"] not in (0, 3):
        raise SystemExit(done.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    times: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as place:
        for _ in range(given.rounds):
            for kind, own in times.items():
                found = measured(kind, given.model, given.data, Path(place))
                own.append(found["own"] + found["children"])
                print(f"{kind}: {json.dumps(found)}", flush=True)
    medians = {kind: statistics.median(own) for kind, own in times.items()}
    print(f"with {medians['with']:.1f} s, without {medians['without']:.1f} s: "
          f"{medians['with'] / medians['without'] - 1:+.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
