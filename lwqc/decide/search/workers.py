"""Where candidates are evaluated: in this process, in others on this machine, or on a cluster.

Every worker builds its own session from the same plain data, once. Candidates are scored one by
one and come back in order, so a search takes the same path whatever evaluates it.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any

from lwqc.decide.allocators.evolutionary import Candidate
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.trial_model import LITTLE, TrialModel, TrialSpec
from lwqc.errors import LwqcError
from lwqc.model.limits import limits, set_limits
from lwqc.model.scratch import temporary_folder
from lwqc.runtime.cluster import LOSSES, RESTARTS, connected, first_ended, reason_of

Evaluate = Callable[[Sequence[Candidate], int], list[float]]
_WORTH_SECONDS = 30.0  # of evaluations, before starting processes can pay
_STILL_PAYS = 0.8
_built: dict[str, TrialModel] = {}
_building = threading.Lock()


@contextmanager
def workers(
    spec: TrialSpec, count: int | None = None, cluster: str = "", expected: int = 0
) -> Iterator[Evaluate]:
    """A function that scores candidates on the data of a stage.

    count: processes; 1 evaluates in this one, None takes as many as there are cores where that is
    measured to pay for `expected` evaluations. cluster: address of a Dask scheduler.
    Raises InputError when the cluster cannot be used.
    """
    if cluster:
        with _dask(spec, cluster) as evaluate:
            yield evaluate
        return
    if count is None or count < 2:
        trial = TrialModel(spec)
        count = 1 if count is not None else _paying(spec, trial, expected)
        if count < 2:
            yield lambda candidates, stage: [trial.score(c, stage) for c in candidates]
            return
        del trial  # processes build their own
    with temporary_folder() as folder:
        path = folder / "trial"
        data = _packed(spec)
        path.write_bytes(data)
        pool = _Pool(count, str(path), hashlib.sha256(data).hexdigest())
        try:
            yield pool
        finally:
            pool.close()


def remembering(evaluate: Evaluate, log: SearchLog, key: str) -> Evaluate:
    """Scores from the log where it has them; new ones go there."""

    def score(candidates: Sequence[Candidate], stage: int) -> list[float]:
        new = [c for c in dict.fromkeys(candidates) if log.get(key, stage, c) is None]
        if new:
            log.add(key, stage, dict(zip(new, evaluate(new, stage), strict=True)))
        found = [log.get(key, stage, c) for c in candidates]
        return [math.inf if v is None or math.isnan(v) else v for v in found]

    return score


def score_one(source: str | bytes, digest: str, candidate: Candidate, stage: int) -> float:
    """One score, on a worker. source: the packed spec, or the file that holds it."""
    with _building:
        if digest not in _built:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            _built.clear()  # one search at a time: the last one's memory is free
            spec, allowed = pickle.loads(data)
            set_limits(allowed)
            _built[digest] = TrialModel(spec, threads=1)
        model = _built[digest]
    return model.score(candidate, stage)


def _packed(spec: TrialSpec) -> bytes:
    """What a worker builds its session from, and what that may take."""
    return pickle.dumps((spec, limits()))


class _Pool:
    """Processes; when one dies, new ones take over what was not done."""

    def __init__(self, count: int, path: str, digest: str) -> None:
        self._count, self._path, self._digest = count, path, digest
        self._executor: Executor | None = None

    def __call__(self, candidates: Sequence[Candidate], stage: int) -> list[float]:
        known: dict[int, float] = {}
        for _ in range(RESTARTS + 1):
            left = [i for i in range(len(candidates)) if i not in known]
            if not left:
                break
            try:
                with _unnoticed_start():
                    futures = {
                        i: self._pool().submit(
                            score_one, self._path, self._digest, candidates[i], stage
                        )
                        for i in left
                    }
                for i, future in futures.items():
                    known[i] = future.result()
            except (BrokenExecutor, OSError):  # a dying pool may have closed its pipes already
                self.close()
        if len(known) < len(candidates):
            raise LwqcError("search workers die again and again; is there enough memory?")
        return [known[i] for i in range(len(candidates))]

    def _pool(self) -> Executor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._count,
                mp_context=get_context("spawn"),
                initializer=_end_with_parent,
            )
        return self._executor

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


@contextmanager
def _unnoticed_start() -> Iterator[None]:
    """Processes that start within know neither the user's script nor Ctrl-C.

    The script would run again in each of them, where it has no guard around its main part: so
    there is none. A signal that is blocked stays so in them, from their first moment.
    """
    script = sys.modules["__main__"]
    blocked = {signal.SIGINT} if hasattr(signal, "pthread_sigmask") else set()
    if blocked:
        resource_tracker.ensure_running()  # which unblocks the signal when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        if blocked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    parent = parent_process()
    if parent is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


@contextmanager
def _dask(spec: TrialSpec, address: str) -> Iterator[Evaluate]:
    with connected(address) as cluster:
        yield _Cluster(cluster.client, _packed(spec), (*LOSSES, cluster.died))


class _Cluster:
    """A Dask cluster through its executor. Lost workers' candidates are given to others by Dask;
    where the last copy of the data went with them, it is sent again.
    """

    def __init__(
        self, client: Any, data: bytes, losses: tuple[type[Exception], ...] = LOSSES
    ) -> None:
        """losses: what results raise when workers or connections are gone; others are faults."""
        self._client, self._data, self._losses = client, data, losses
        self._digest = hashlib.sha256(data).hexdigest()
        self._executor: Executor = client.get_executor(pure=False, retries=RESTARTS)
        self._source = self._sent()

    def _sent(self) -> Any:
        return self._client.scatter(self._data, broadcast=True, hash=False)

    def __call__(self, candidates: Sequence[Candidate], stage: int) -> list[float]:
        known: dict[int, float] = {}
        lost: Exception | None = None
        for _ in range(RESTARTS + 1):
            left = [i for i in range(len(candidates)) if i not in known]
            if not left:
                break
            if lost is not None:
                self._source = self._sent()
            futures = {
                i: self._executor.submit(
                    score_one, self._source, self._digest, candidates[i], stage
                )
                for i in left
            }
            for i, future in _as_they_end(futures):
                try:
                    known[i] = future.result(timeout=0)
                except self._losses as error:
                    lost = error
        if len(known) < len(candidates):
            raise LwqcError(f"--cluster: candidates are lost again and again: {reason_of(lost)}")
        return [known[i] for i in range(len(candidates))]


def _as_they_end(futures: Mapping[int, Future[float]]) -> Iterator[tuple[int, Future[float]]]:
    """Futures as they are done; where none has been for too long, the others as they are."""
    pending = dict(futures)
    while pending:
        done = first_ended(pending.values())
        ended = {i: f for i, f in pending.items() if f in done} or dict(pending)
        for i, future in ended.items():
            del pending[i]
            yield i, future


def _paying(spec: TrialSpec, local: TrialModel, expected: int) -> int:
    """As many processes as cores, if one thread in each is measured to do more than all in one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not cores or cores < 2:
        return 1
    together = _seconds(local, spec)
    if together * expected < _WORTH_SECONDS:
        return 1
    alone = _seconds(TrialModel(spec, threads=1), spec)
    return cores if alone / cores < _STILL_PAYS * together else 1


def _seconds(model: TrialModel, spec: TrialSpec) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        model.score(spec.top, LITTLE)
        taken.append(time.perf_counter() - start)
    return min(taken)
