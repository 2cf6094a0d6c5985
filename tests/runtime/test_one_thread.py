"""BLAS has one thread in a block, in whatever order blocks end."""

from __future__ import annotations

import pytest

from lwqc.runtime.one_thread import one_thread

threadpoolctl = pytest.importorskip("threadpoolctl", reason="needs lwqc[cluster]")


def threads():
    import scipy.linalg  # noqa: F401

    found = threadpoolctl.threadpool_info()
    return [one["num_threads"] for one in found if one["user_api"] == "blas"]


def test_the_last_block_that_ends_gives_the_threads_back():
    with threadpoolctl.threadpool_limits(3, "blas"):
        before = threads()
        first, second = one_thread(), one_thread()
        first.__enter__()
        second.__enter__()
        assert set(threads()) == {1}
        first.__exit__(None, None, None)
        assert set(threads()) == {1}
        second.__exit__(None, None, None)
        assert threads() == before
