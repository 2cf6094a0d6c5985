"""Runs commands in one process, each in a folder of its own, and tells how they ended.

Requests are lines of JSON on standard input: {"folder", "argv"}; answers are lines too. What may
end the process ends this one, not that which asks.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
_REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    """Answer requests until there are no more."""
    os.dup2(2, 1)
    import lwqc.decide.compress  # noqa: F401 - what every command needs counts for none of them
    from tests.fuzz.quick import quicken

    quicken()
    most = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    ANSWERS.write("ready\n")
    ANSWERS.flush()
    for line in sys.stdin:
        request = json.loads(line)
        ANSWERS.write(json.dumps(_run(Path(request["folder"]), request["argv"])) + "\n")
        ANSWERS.flush()


def _run(folder: Path, argv: list[str]) -> dict[str, Any]:
    """How a command ended; one that says that it failed is run again to tell where."""
    found = _ran(folder, argv)
    if "internal error" in found["error"]:
        told = _ran(folder, [*argv, "--debug"])
        found |= {"kind": told["kind"], "trace": told["trace"]}
    return found


def _ran(folder: Path, argv: list[str]) -> dict[str, Any]:
    from lwqc import cli

    before = set(folder.iterdir())
    os.chdir(folder)
    _forget_peaks()
    sys.argv = ["lwqc", *argv]
    out, err = io.StringIO(), io.StringIO()
    start = time.perf_counter()
    raised: BaseException | None = None
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code, raised = end.code, end.__context__
        except BaseException as error:
            code, raised = "uncaught", error
    seconds = time.perf_counter() - start
    return {
        "code": code,
        "seconds": seconds,
        "bytes": _peaks(),
        "lines": len(err.getvalue().strip().splitlines()),
        "error": err.getvalue()[:4000],
        "kind": "" if raised is None else _kind(raised),
        "trace": "" if raised is None else "".join(traceback.format_exception(raised))[-6000:],
        "left": sorted(p.name for p in set(folder.iterdir()) - before),
    }


def _kind(error: BaseException) -> str:
    """Where an exception came from: its type, and the last line of ours it passed."""
    while isinstance(error, SystemExit) and error.__context__ is not None:
        error = error.__context__
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(f"{_REPOSITORY}/lwqc")]
    last = f"{ours[-1].filename.removeprefix(f'{_REPOSITORY}/')}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {last}"


def _processes() -> list[int]:
    """This one and its children."""
    own = os.getpid()
    listed = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return [own, *map(int, listed)]


def _forget_peaks() -> None:
    for process in _processes():
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")


def _peaks() -> int:
    """The most memory that this process or a child held since; of children only living ones."""
    found = [0]
    for process in _processes():
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            found += [int(w.split()[1]) << 10 for w in lines if w.startswith("VmHWM")]
    return max(found)


if __name__ == "__main__":
    main()
