"""Workers give the same scores as this process, whatever happens to them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest

from lwqc.decide.search.workers import workers
from lwqc.errors import InputError
from tests.decide.search.searched import changed, found, trial

CANDIDATES = [
    changed(format_0=0),
    changed(width_0=2),
    changed(branch_0=0),
    changed(format_1=0, width_1=1),
    changed(format_2=0, width_2=1),
    changed(format_3=0, branch_1=0),
]


def expected():
    return [trial().score(c, 2) for c in CANDIDATES]


def test_processes_agree_and_one_that_dies_loses_nothing() -> None:
    with workers(found().spec, 2) as evaluate:
        assert evaluate(CANDIDATES, 2) == expected()
        victims = multiprocessing.active_children()
        assert len(victims) == 2
        victims[0].kill()
        assert evaluate(CANDIDATES, 2) == expected()


def test_short_searches_stay_in_this_process() -> None:
    with workers(found().spec, None, expected=10) as evaluate:
        assert evaluate(CANDIDATES[:2], 0) == [trial().score(c, 0) for c in CANDIDATES[:2]]
        assert not multiprocessing.active_children()


def test_dask_workers_agree_and_one_that_dies_loses_nothing() -> None:
    distributed = pytest.importorskip("distributed", reason="needs lwqc[cluster]")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        workers(found().spec, cluster=cluster.scheduler_address) as evaluate,
    ):
        assert evaluate(CANDIDATES, 2) == expected()
        victim = cluster.workers[0].process.process.pid

        def kill() -> None:
            time.sleep(0.05)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        assert evaluate(CANDIDATES * 5, 2) == expected() * 5
        killer.join()
        assert evaluate(CANDIDATES, 2) == expected()


def test_no_scheduler_is_one_line() -> None:
    pytest.importorskip("distributed", reason="needs lwqc[cluster]")
    with (
        pytest.raises(InputError, match="no scheduler answers"),
        workers(found().spec, cluster="tcp://127.0.0.1:9"),
    ):
        pass


def test_without_dask_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"lwqc\[cluster\]"), workers(found().spec, cluster="x"):
        pass
