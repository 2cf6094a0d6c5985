"""Models are loaded and run in another process, which may die of them.

A fault in native code cannot be caught: it ends the process that it happens in. What is loaded for
the first time and may hit one is loaded there first. One process serves many models; after a death
the next request starts a new one.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lwqc.errors import SessionError

CHILD = Path(__file__).with_name("isolated_child.py")
SECONDS = 600.0  # for one request; a process that takes longer hangs
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "runpy.run_path(sys.argv[2], run_name='__main__')"
)
Signature = list[tuple[str, str]]  # of the outputs: names and types


class Isolated:
    """A process that loads one model at a time and runs it. Every request raises SessionError."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """seconds: the longest that one request may take."""
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._busy = threading.Lock()

    def load(
        self,
        model: str | bytes,
        *,
        optimize: bool,
        flags: Mapping[str, Any],
        entries: Mapping[str, str],
        providers: Sequence[Any],
    ) -> Signature:
        """Load a model in place of the last one. The options are those of a session."""
        source = model if isinstance(model, bytes) else os.path.abspath(model)
        request = (source, optimize, dict(flags), dict(entries), list(providers))
        signature: Signature = self._ask("load", *request)
        return signature

    def run(self, feeds: Mapping[str, Any], *, keep: bool = True) -> list[Any] | None:
        """Run the loaded model. keep: return the outputs, in their order."""
        values: list[Any] | None = self._ask("run", dict(feeds), keep)
        return values

    @property
    def alive(self) -> bool:
        """Whether the process has survived what was asked of it so far."""
        return self._process is not None

    def close(self) -> None:
        """End the process, so that its memory is free."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, self._errors):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:  # what it had not read any more
                pass

    def _ask(self, *request: Any) -> Any:
        with self._busy:
            process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            hung = threading.Event()
            late = threading.Timer(self._seconds, _kill, (process, hung))
            late.start()
            try:
                pickle.dump(request, process.stdin, protocol=5)
                process.stdin.flush()
                done, value = pickle.load(process.stdout)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                raise SessionError(self._death(hung.is_set())) from error
            except BaseException:  # interrupted half way: the pipes hold half a message
                self.close()
                raise
            finally:
                late.cancel()
            if not done:
                raise SessionError(_line(value))
            return value

    def _start(self) -> subprocess.Popen[bytes]:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        return self._process

    def _death(self, hung: bool) -> str:
        """Why the process is gone, in a line."""
        process, errors = self._process, self._errors
        assert process is not None
        assert errors is not None
        code = process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        if hung:
            return f"the process that ran it took longer than {self._seconds:g} s"
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name if -code in _SIGNALS else f"signal {-code}"
        return _line(f"the process that ran it died ({how})" + (f": {said[-1]}" if said else ""))


def _kill(process: subprocess.Popen[bytes], hung: threading.Event) -> None:
    hung.set()
    process.kill()


_SIGNALS = frozenset(int(s) for s in signal.Signals)
_shared: dict[int, Isolated] = {}


def shared() -> Isolated:
    """The process that candidates are tried in; one for each of ours."""
    if os.getpid() not in _shared:  # also after a fork, as pipes are not for two
        _shared.clear()
        _shared[os.getpid()] = Isolated()
    return _shared[os.getpid()]


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) < 400 else line[:397] + "..."
