"""Workers give the same scores as this process, whatever happens to them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from functools import cache
from pathlib import Path

import pytest

from lwqc.decide.search import workers as module
from lwqc.decide.search.workers import workers
from lwqc.errors import InputError, LwqcError
from lwqc.model import limits
from lwqc.runtime import cluster as cluster_module
from tests.decide.search.searched import changed, found, trial


@cache
def candidates():
    return [
        changed(format_0=0),
        changed(width_0=2),
        changed(branch_0=0),
        changed(format_1=0, width_1=1),
        changed(format_2=0, width_2=1),
        changed(format_3=0, branch_1=0),
    ]


def expected():
    return [trial().score(c, 2) for c in candidates()]


def test_processes_agree_and_one_that_dies_loses_nothing() -> None:
    with workers(found().spec, 2) as evaluate:
        assert evaluate(candidates(), 2) == expected()
        victims = multiprocessing.active_children()
        assert len(victims) == 2
        victims[0].kill()
        assert evaluate(candidates(), 2) == expected()


def test_workers_have_the_limits_of_this_process(monkeypatch) -> None:
    spec = found().spec
    monkeypatch.setattr(limits, "_current", limits.Limits(traces=100))
    with (
        pytest.raises(limits.LimitError, match=r"keeping outputs .* --limit traces="),
        workers(spec, 2) as evaluate,
    ):
        evaluate(candidates(), 2)


def test_short_searches_stay_in_this_process() -> None:
    with workers(found().spec, None, expected=10) as evaluate:
        assert evaluate(candidates()[:2], 0) == [trial().score(c, 0) for c in candidates()[:2]]
        assert not multiprocessing.active_children()


def test_dask_workers_agree_and_one_that_dies_loses_nothing() -> None:
    distributed = pytest.importorskip("distributed", reason="needs lwqc[cluster]")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        workers(found().spec, cluster=cluster.scheduler_address) as evaluate,
    ):
        assert evaluate(candidates(), 2) == expected()
        victim = cluster.workers[0].process.process.pid

        def kill() -> None:
            time.sleep(0.05)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        assert evaluate(candidates() * 5, 2) == expected() * 5
        killer.join()
        assert evaluate(candidates(), 2) == expected()


class Forgetful:
    """A cluster that fails for the first `lost` candidates that it gets, or never answers."""

    def __init__(self, lost: int, error: Exception | None = None) -> None:
        self.lost, self.given, self.error = lost, 0, error

    def get_executor(self, **_: object) -> Forgetful:
        return self

    def scatter(self, data: bytes, **_: object) -> bytes:
        return data

    def submit(self, function: object, source: bytes, digest: str, candidate: int, stage: int):
        future: Future[float] = Future()
        self.given += 1
        if self.given > self.lost:
            future.set_result(float(candidate))
        elif self.error is not None:
            future.set_exception(self.error)
        return future


def test_candidates_that_a_cluster_never_answers_for_are_sent_again(monkeypatch) -> None:
    monkeypatch.setattr(cluster_module, "PATIENCE_S", 0.05)
    forgetful = Forgetful(lost=3)
    assert module._Cluster(forgetful, b"")([5, 6, 7, 8, 9], 1) == [5, 6, 7, 8, 9]
    assert forgetful.given == 8
    with pytest.raises(LwqcError, match="lost again and again: TimeoutError"):
        module._Cluster(Forgetful(lost=99), b"")([5], 1)


def test_a_fault_on_a_worker_is_no_loss() -> None:
    closed = Forgetful(lost=2, error=ConnectionResetError("closed"))
    assert module._Cluster(closed, b"")([5, 6], 1) == [5, 6]
    for error in (ZeroDivisionError("in a score"), InputError("bad data")):
        faulty = Forgetful(lost=1, error=error)
        with pytest.raises(type(error), match=str(error)):
            module._Cluster(faulty, b"")([5], 1)
        assert faulty.given == 1


def test_no_scheduler_is_one_line(monkeypatch) -> None:
    pytest.importorskip("distributed", reason="needs lwqc[cluster]")
    monkeypatch.setattr(cluster_module, "_CONNECT_S", 1)
    with (
        pytest.raises(InputError, match="no scheduler answers"),
        workers(found().spec, cluster="tcp://127.0.0.1:9"),
    ):
        pass


def test_without_dask_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"lwqc\[cluster\]"), workers(found().spec, cluster="x"):
        pass


SCRIPT = """
import os, signal, sys
print("the script runs", flush=True)
from lwqc.decide.search.workers import _Pool, _unnoticed_start
pool = _Pool(1, "", "")
with _unnoticed_start():
    worker = pool._pool().submit(os.getpid)
print("worker", worker.result(), flush=True)
if sys.argv[1] == "ends":
    pool.close()
else:
    os.kill(worker.result(), signal.SIGINT)
    assert pool._pool().submit(abs, -1).result() == 1
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_workers_run_no_script_and_outlive_nobody(tmp_path, how) -> None:
    """Of a script without a guard around its main part; and they take no notice of Ctrl-C."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, how], capture_output=True, text=True)
    assert done.stdout.count("the script runs") == 1
    assert "Traceback" not in done.stderr
    worker = int(done.stdout.split()[-1])
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker is still there")
