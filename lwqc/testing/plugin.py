"""A plugin of pytest, there wherever lwqc is installed: the fixture `trap`."""

from __future__ import annotations

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `trap` once for each model in which rewrites go wrong."""
    if "trap" in metafunc.fixturenames and not _given(metafunc):
        from lwqc.testing.traps import TRAPS

        metafunc.parametrize("trap", TRAPS.values(), ids=list(TRAPS))


def _given(metafunc: pytest.Metafunc) -> bool:
    """Whether the test says itself what its traps are."""
    marks = metafunc.definition.iter_markers("parametrize")
    names = [name.strip() for mark in marks for name in str(mark.args[0]).split(",")]
    return "trap" in names
