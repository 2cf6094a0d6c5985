"""A Dask cluster: who is on it, and answers as they come, whatever becomes of its workers."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np

from lwqc.errors import InputError
from lwqc.plans.version import VERSION

PATIENCE_S = 1800.0  # without any answer; then what was asked for is taken to be lost
RESTARTS = 3  # of what was lost
# What answers raise when workers or connections are gone; others are faults.
LOSSES = (OSError, CancelledError)  # closed connections, no answer in time, data that is gone
_CONNECT_S = 10  # until a scheduler must have answered, and a worker be there
_SENT_WHOLE = {"distributed.admin.large-graph-warning-threshold": "1 PB"}
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Cluster:
    """A connection to a scheduler. client: of Dask. died: raised once a task has killed workers."""

    client: Any
    died: type[Exception]

    @property
    def threads(self) -> int:
        """How many tasks the workers that are there now do at a time."""
        return sum(self.client.nthreads().values())


def require_dask() -> None:
    """Raises InputError unless what `--cluster` needs is installed."""
    if any(find_spec(name) is None for name in ("dask", "distributed", "threadpoolctl")):
        raise InputError("--cluster needs Dask: pip install 'lwqc[cluster]'")


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """A connection for a block. address: of a scheduler.

    Raises InputError where none answers, it has no workers, or they have other versions than here.
    """
    require_dask()
    import dask
    from distributed import Client, KilledWorker

    connect: Any = Client  # which has no annotations
    try:
        client = connect(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # also of TLS settings
        reason = reason_of(error)
        raise InputError(f"--cluster {address}: no scheduler answers: {reason}") from error
    try:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_S)
        except TimeoutError as error:
            raise InputError(f"--cluster {address}: has no workers") from error
        _check_versions(client, address)
        with dask.config.set(_SENT_WHOLE):
            yield Cluster(client, KilledWorker)
    finally:
        client.close()


@cache
def versions() -> Mapping[str, str]:
    """What the numbers that a worker computes depend on, by package."""
    import scipy

    return {"lwqc": VERSION, "numpy": np.__version__, "scipy": scipy.__version__}


def _check_versions(client: Any, address: str) -> None:
    found = client.get_versions(packages=list(versions()))
    here = {"lwqc": VERSION}  # the scheduler only reads what it hands on
    check_versions(address, "its scheduler", found["scheduler"]["packages"], here)
    for worker, told in found["workers"].items():
        if isinstance(told, dict):  # or it is gone again
            check_versions(address, f"worker {worker}", told["packages"], versions())


def check_versions(
    address: str, who: str, there: Mapping[str, str | None], here: Mapping[str, str]
) -> None:
    """Raises InputError where versions differ from those here."""
    for name, version in here.items():
        if there.get(name) != version:
            other = f"{name} {there[name]}" if there.get(name) else f"no {name}"
            raise InputError(f"--cluster {address}: {who} has {other}, here is {version}")


def first_ended(
    pending: Collection[Future[Answer]], since: float | None = None
) -> set[Future[Answer]]:
    """What has ended as soon as something has; nothing where that takes more than `PATIENCE_S`.

    since: `time.monotonic()` when the last one ended; None for now.
    """
    waited = 0.0 if since is None else time.monotonic() - since
    return wait(pending, max(PATIENCE_S - waited, 0), FIRST_COMPLETED).done


def reason_of(error: Exception | None) -> str:
    """What an error says, in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
