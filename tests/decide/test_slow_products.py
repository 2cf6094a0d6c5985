"""Weights whose low-bit kernel is slower than the float one become float when they are loaded."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.compile.timing import slow_products
from lwqc.decide import mixed
from lwqc.decide.compress import compress_version, open_version
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.runtime.session import Session
from tests.build import Row, model, normal


@pytest.fixture(scope="module")
def net():
    """Two products of different sizes, and weights enough for the nodes that unpack them."""
    rows: list[Row] = [
        ("MatMul", ["x", "w0"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("MatMul", ["b", "w1"], "y", {}),
    ]
    weights = {"w0": normal(192, 256, seed=0), "w1": normal(256, 192, seed=1)}
    return model(rows, weights, {"x": ["batch", 192]}, ["y"])


@pytest.fixture
def work(net, monkeypatch):
    """The first product is slow with packed weights, the second is not."""
    monkeypatch.setenv("LWQC_CACHE", "off")
    monkeypatch.setattr(
        "lwqc.compile.timing.form_seconds",
        lambda work, site, entry, shape: (1.0, 2.0 if site.name == "w0" else 0.5),
    )
    return open_version(net, data=[{"x": normal(256, 192, seed=i)} for i in range(4)])


def test_only_what_is_slower_is_unpacked(work) -> None:
    assert dict(slow_products(work)) == {bits: frozenset({"w0"}) for bits in (2, 4, 8)}
    forms = {
        c.site.name: {e.layout for e in c.entries if e is not None} for c in mixed.choices(work)
    }
    assert all(name.endswith(" unpacked") for name in forms["w0"])
    assert not any(name.endswith(" unpacked") for name in forms["w1"])


@pytest.mark.parametrize("recipe", ["knapsack", "auto"])
def test_it_computes_the_same_on_the_float_kernel(work, recipe) -> None:
    done = compress_version(work, Goals(max_size=Amount(0.2, True)), recipe)
    assert done.lowered.forms == {"w0": "Folded", "w1": "MatMulNBits"}
    feeds = work.job.data.fit.first()
    original, outputs = (Session(m)(feeds)["y"] for m in (work.model, done.model))
    assert np.linalg.norm(outputs - original) < 0.2 * np.linalg.norm(original)


def test_bytes_come_before_speed(work, monkeypatch) -> None:
    """Which of the two takes fewer bytes depends on the model: here packed codes shall."""
    least = {True: 100, False: 80}
    monkeypatch.setattr(mixed, "least_bytes", lambda work, *, tiny, unpack: least[unpack])
    assert mixed.fitting_forms(work, 100) == {"tiny": False, "unpack": True}
    assert mixed.fitting_forms(work, 99) == {"tiny": False, "unpack": False}
    assert mixed.fitting_forms(work, 79) == {"tiny": True, "unpack": False}
    curves = mixed.choices(work, unpack=False)
    assert not any(e.unpacked for c in curves for e in c.entries if e is not None)
