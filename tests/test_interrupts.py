"""Signals end a command with one line and their number, whatever it is at."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lwqc.model import interrupts, scratch

LINES = {
    "SIGINT": "lwqc: interrupted; every file is as before or complete\n",
    "SIGTERM": "lwqc: ended by SIGTERM; every file is as before or complete\n",
}
# What the command does when the signal comes; none of it computes.
WORK = {
    "sleeps": "time.sleep(60)",
    "is in native code": "interrupts.PATIENCE_S = 0.3; ctypes.CDLL(None).sleep(60)",
    "is in a destructor": """
        class Slow:
            def __del__(self):
                for _ in range(600):
                    time.sleep(0.1)
        slow = Slow()
        del slow
        time.sleep(60)
    """,
    "evaluates text": "eval('time.sleep(60)')",
    "imports an extension": """
        try:
            time.sleep(60)
        except BaseException:  # as extension modules do
            raise ImportError('initialization failed')
    """,
}
SCRIPT = """
import ctypes, sys, time
from lwqc import cli
from lwqc.model import interrupts
def work():
{work}
cli._command = lambda: print("here", flush=True) or work()
cli.main()
"""


def started(script: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    time.sleep(0.1)
    return process


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("what", WORK)
def test_one_line_and_the_number(what, name):
    work = textwrap.indent(textwrap.dedent(WORK[what]).strip(), "    ")
    process = started(SCRIPT.format(work=work))
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + getattr(signal, name), LINES[name])


def test_what_must_not_be_divided_is_finished_first():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append("raised"))
    try:
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            seen.append("finished")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["finished", "raised"]


def test_a_signal_while_a_folder_is_made_leaves_none(tmp_path, monkeypatch):
    lock = scratch._lock

    def signalled(path, *, wait):
        signal.raise_signal(signal.SIGTERM)
        return lock(path, wait=wait)

    def stop(number, frame):
        raise interrupts.Terminated(number)

    monkeypatch.setattr(scratch, "_lock", signalled)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(interrupts.Terminated):
            scratch.beside(tmp_path / "out.onnx")
    finally:
        signal.signal(signal.SIGTERM, before)
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_library_is_ended_by_the_signal_itself():
    """Who calls the functions has handlers of their own, or none."""
    script = """
    import time
    from lwqc.model import interrupts, scratch
    try:
        with interrupts.terminable():
            try:
                print("here", flush=True)
                time.sleep(60)
            finally:
                print("cleaned up", flush=True)
    finally:
        print("never")
    """
    process = started(textwrap.dedent(script))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGTERM, "cleaned up\n", "")


def test_a_process_that_runs_models_outlives_nobody():
    script = """
    import os, signal
    from lwqc.runtime.isolated import Isolated
    child = Isolated()._start()
    print("here", flush=True)
    print(child.pid, flush=True)
    os.kill(child.pid, signal.SIGINT)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    process = started(textwrap.dedent(script))
    assert process.stdout is not None
    child = Path(f"/proc/{process.stdout.readline().strip()}")
    process.wait(timeout=60)
    for _ in range(600):
        if not child.exists():
            return
        time.sleep(0.05)
    pytest.fail("it is still there")
