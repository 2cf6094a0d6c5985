"""BLAS with one thread, so that the last bits of its sums do not depend on how many there are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_users: list[Any] = []  # what restores the number of threads, and one entry for each block inside


@contextmanager
def one_thread() -> Iterator[None]:
    """A block in which products and factors of matrices are computed by one thread.

    It holds for the whole process until the last of several blocks ends, in whatever thread.
    """
    import scipy.linalg  # noqa: F401  # has a BLAS of its own, which must be there to be set
    from threadpoolctl import threadpool_limits

    with _lock:
        _users.append(_users[0] if _users else threadpool_limits(1, "blas"))
    try:
        yield
    finally:
        with _lock:
            before = _users.pop()
            if not _users:
                before.restore_original_limits()
