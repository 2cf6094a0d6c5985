"""A process of our own that does what the one that asks could die of.

A fault in native code cannot be caught: it ends the process that it happens in. The other process
answers one request after another; after a death the next request starts a new one. Requests are
pickled tuples, answers are (True, result) or (False, reason).
"""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from lwqc.errors import SessionError

_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "runpy.run_path(sys.argv[2], run_name='__main__')"
)
_SIGNALS = frozenset(int(s) for s in signal.Signals)


class ChildProcess:
    """Runs a script that answers requests. Every request raises SessionError.

    script: what runs there; it is looked up whenever a process starts.
    """

    script: Path

    def __init__(self, seconds: float) -> None:
        """seconds: the longest that one request may take."""
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._busy = threading.Lock()

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

    def ask(self, *request: Any, seconds: float | None = None) -> Any:
        """The answer to a request. seconds: the longest it may take, if not as usual."""
        allowed = self._seconds if seconds is None else seconds
        with self._busy:
            process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            hung = threading.Event()
            late = threading.Timer(allowed, _kill, (process, hung))
            late.start()
            try:
                pickle.dump(request, process.stdin, protocol=5)
                process.stdin.flush()
                done, value = pickle.load(process.stdout)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                late_by = allowed if hung.is_set() else None
                raise DeathError(self._death(late_by), late=hung.is_set()) from error
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
            [sys.executable, "-c", _START, json.dumps(sys.path), str(self.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        return self._process

    def _death(self, allowed: float | None) -> str:
        """Why the process is gone, in a line. allowed: seconds, where it took longer."""
        process, errors = self._process, self._errors
        assert process is not None
        assert errors is not None
        code = process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        if allowed is not None:
            return f"the process that ran it took longer than {allowed:g} s"
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name if -code in _SIGNALS else f"signal {-code}"
        return _line(f"the process that ran it died ({how})" + (f": {said[-1]}" if said else ""))


class DeathError(SessionError):
    """The process died of a request, or was ended as it took too long (late)."""

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


def _kill(process: subprocess.Popen[bytes], hung: threading.Event) -> None:
    hung.set()
    process.kill()


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) < 400 else line[:397] + "..."
