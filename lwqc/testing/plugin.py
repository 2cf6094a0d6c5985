"""A plugin of pytest, there wherever lwqc is installed: the fixture `trap`, and verified pipelines.

With `lwqc_verify = true` in pytest's configuration, whatever pipeline runs in a test stops behind a
pass that makes its model invalid.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a project ask for it."""
    parser.addini("lwqc_verify", "verify models between the passes of lwqc", "bool", False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Run a test with an instrument on every pipeline."""
    if not item.config.getini("lwqc_verify"):
        return (yield)
    from lwqc.passes.instruments import Verify
    from lwqc.passes.pipeline import watching

    with watching(lambda: Verify(believing=True)):
        return (yield)


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
