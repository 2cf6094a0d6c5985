"""GELU in any spelling becomes one operator."""

from __future__ import annotations

import numpy as np
import pytest

import lwqc
from lwqc.passes.fuse_gelu import FuseGelu
from lwqc.passes.raise_opset import RaiseOpset
from lwqc.runtime.session import Session
from lwqc.testing import applied, assert_harmless, assert_untouched
from tests.build import model, normal

ROOT = ("Div", ["x", "root"], "b", {})
INVERSE = ("Mul", ["x", "inverse"], "b", {})
PHI = [("Erf", ["b"], "c", {}), ("Add", ["c", "one"], "d", {})]
HALF_FIRST = [("Mul", ["half", "x"], "a", {}), ("Mul", ["a", "d"], "y", {})]
HALF_LAST = [("Mul", ["x", "d"], "a", {}), ("Mul", ["a", "half"], "y", {})]
INNER = [
    ("Add", ["x", "e"], "f", {}),
    ("Mul", ["f", "width"], "b", {}),
    ("Tanh", ["b"], "c", {}),
    ("Add", ["one", "c"], "d", {}),
]
CUBES = [("Mul", ["x", "x"], "s", {}), ("Mul", ["s", "x"], "t", {}), ("Mul", ["t", "k"], "e", {})]
POWER = [("Pow", ["x", "three"], "t", {}), ("Mul", ["k", "t"], "e", {})]
STORED = {
    "root": 2**0.5,
    "inverse": 0.5**0.5,
    "one": 1.0,
    "half": 0.5,
    "three": 3.0,
    "k": 0.044715,
    "width": (2 / np.pi) ** 0.5,
}


def spelled(rows, *, opset=20, **others):
    numbers = {**STORED, **others}
    used = {name for _, inputs, _, _ in rows for name in inputs} & set(numbers)
    stored = {name: np.float32(numbers[name]) for name in used}
    return model(rows, stored, {"x": ["n", 40]}, ["y"], opset=opset)


SPELLINGS = {
    "root": ([ROOT, *PHI, *HALF_LAST], "none"),
    "root, half first": ([ROOT, *PHI, *HALF_FIRST], "none"),
    "keras": ([INVERSE, *PHI, *HALF_FIRST], "none"),
    "inverse": ([INVERSE, *PHI, *HALF_LAST], "none"),
    "jax": ([*CUBES, *INNER, *HALF_FIRST], "tanh"),
    "power": ([*POWER, *INNER, *HALF_LAST], "tanh"),
}


@pytest.mark.parametrize(("rows", "approximate"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_becomes_one_operator(rows, approximate):
    built = spelled(rows)
    (node,) = applied(FuseGelu(), built).model.graph
    assert (node.op_type, node.attributes["approximate"].as_string()) == ("Gelu", approximate)
    feeds = {"x": 4 * normal(30, 40)}
    assert_harmless(FuseGelu(), built, "gelu", feeds=feeds, tolerance=1e-6)


def test_spellings_in_a_row():
    again = [(op, [f"{v}2" if v not in STORED else v for v in ins], f"{out}2", a)
             for op, ins, out, a in SPELLINGS["keras"][0]]  # fmt: skip
    again = [(op, ["y" if v == "x2" else v for v in ins], out, a) for op, ins, out, a in again]
    rows = [*SPELLINGS["jax"][0], *again]
    numbers = {n: np.float32(v) for n, v in STORED.items() if any(n in r[1] for r in rows)}
    built = model(rows, numbers, {"x": ["n", 40]}, ["y2"])
    done = applied(FuseGelu(), built).model
    assert [n.op_type for n in done.graph] == ["Gelu", "Gelu"]
    x = {"x": normal(8, 40)}
    assert np.allclose(Session(done)(x)["y2"], Session(built)(x)["y2"], atol=1e-6)


@pytest.mark.parametrize(
    "built",
    [
        spelled([INVERSE, *PHI, *HALF_LAST], inverse=0.7),
        spelled([INVERSE, *PHI, *HALF_LAST], half=1.0),
        spelled([INVERSE, *PHI, *HALF_LAST], one=1.001),
        spelled([*POWER, *INNER, *HALF_LAST], k=0.0447),
        spelled([*POWER, *INNER, *HALF_LAST], three=2.0),
        spelled(SPELLINGS["keras"][0], opset=19),
    ],
)
def test_other_functions_stay(built):
    assert_untouched(FuseGelu(), built)


def test_what_is_read_in_between_stays():
    rows = [*SPELLINGS["keras"][0], ("Neg", ["c"], "z", {})]
    numbers = {n: np.float32(v) for n, v in STORED.items() if any(n in r[1] for r in rows)}
    assert_untouched(FuseGelu(), model(rows, numbers, {"x": ["n", 40]}, ["y", "z"]))


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(("name", "raised"), [("keras", True), ("power", True), ("root", False)])
def test_models_are_lifted_for_what_the_runtime_does_not_recognise(name, raised):
    built = spelled(SPELLINGS[name][0], opset=17)
    done = applied(RaiseOpset(23, for_fusions=True), built)
    assert done.model.opset_imports[""] == (23 if raised else 17)
    made = lwqc.compress(built, recipe="clean", data="random:2").model
    assert ("Gelu" in [n.op_type for n in made.graph]) == raised
