"""Activation functions of every spelling become the fewest operators; near misses stay."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.passes.fuse_activations import FuseActivations
from lwqc.runtime.session import Session
from tests.build import Row, model, normal

NUMBERS = {
    "zero": 0, "half": 0.5, "one": 1, "three": 3, "six": 6, "sixth": 1 / 6, "tenth": 0.1, "two": 2,
}  # fmt: skip
WEIGHTS = {name: np.float32(number) for name, number in NUMBERS.items()}
WEIGHTS |= {
    "row": np.float32([6]),
    "vector": normal(5, seed=3),
    "cube": np.full((1, 1, 1), 6.0, "f"),
}
SHIFTED: Row = ("Add", ["x", "three"], "shifted", {})
HARD_SWISH: list[Row] = [
    SHIFTED,
    ("Clip", ["shifted", "zero", "six"], "clipped", {}),
    ("Mul", ["x", "clipped"], "product", {}),
    ("Div", ["product", "row"], "y", {}),
]
SPELLINGS: dict[str, tuple[list[Row], list[str]]] = {
    "hard swish of PaddlePaddle": (HARD_SWISH, ["HardSigmoid", "Mul"]),
    "hard swish of tf2onnx": (
        [
            SHIFTED,
            ("Relu", ["shifted"], "positive", {}),
            ("Min", ["positive", "six"], "clipped", {}),
            ("Mul", ["clipped", "sixth"], "gate", {}),
            ("Mul", ["gate", "x"], "y", {}),
        ],
        ["HardSigmoid", "Mul"],
    ),
    "hard sigmoid": (
        [
            ("Mul", ["x", "sixth"], "part", {}),
            ("Add", ["half", "part"], "shifted", {}),
            ("Max", ["zero", "shifted"], "positive", {}),
            ("Min", ["positive", "one"], "y", {}),
        ],
        ["HardSigmoid"],
    ),
    "sigmoid": (
        [
            ("Neg", ["x"], "minus", {}),
            ("Exp", ["minus"], "e", {}),
            ("Add", ["e", "one"], "sum", {}),
            ("Reciprocal", ["sum"], "y", {}),
        ],
        ["Sigmoid"],
    ),
    "swish": (
        [
            ("Neg", ["x"], "minus", {}),
            ("Exp", ["minus"], "e", {}),
            ("Add", ["e", "one"], "sum", {}),
            ("Div", ["x", "sum"], "y", {}),
        ],
        ["Sigmoid", "Mul"],
    ),
    "swish times one": (
        [
            ("Mul", ["x", "one"], "same", {}),
            ("Sigmoid", ["same"], "gate", {}),
            ("Mul", ["x", "gate"], "y", {}),
        ],
        ["Sigmoid", "Mul"],
    ),
    "relu of six": (
        [("Max", ["x", "zero"], "positive", {}), ("Min", ["positive", "cube"], "y", {})],
        ["Clip"],
    ),
    "relu": ([("Max", ["x", "zero"], "y", {})], ["Relu"]),
    "leaky relu": (
        [("Mul", ["x", "tenth"], "part", {}), ("Max", ["x", "part"], "y", {})],
        ["LeakyRelu"],
    ),
    "identity": (
        [
            ("Mul", ["x", "two"], "double", {}),
            ("Div", ["double", "two"], "same", {}),
            ("Abs", ["same"], "y", {}),
        ],
        ["Abs"],
    ),
}


def built(rows: list[Row], outputs: tuple[str, ...] = ("y",), opset: int = 20):
    used = {name for row in rows for name in row[1]}
    weights = {n: w for n, w in WEIGHTS.items() if n in used}
    return model(rows, weights, {"x": ["batch", 4, 5]}, list(outputs), opset=opset)


def operators(net) -> list[str]:
    return [node.op_type for node in net.graph]


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling(name):
    rows, expected = SPELLINGS[name]
    net = built(rows)
    feeds = {"x": normal(3, 4, 5, scale=4.0)}
    before = Session(net)(feeds)["y"]
    assert FuseActivations()(net).modified
    assert operators(net) == expected
    np.testing.assert_allclose(Session(net)(feeds)["y"], before, rtol=1e-5, atol=2e-6)
    assert not FuseActivations()(net).modified


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 2), (1.702, 3)])
def test_swish_has_no_kernel_in_the_runtime(alpha, expected):
    net = built([("Swish", ["x"], "y", {"alpha": alpha})], opset=24)
    feeds = {"x": normal(3, 4, 5, scale=4.0)}
    before = Session(net)(feeds)["y"]
    assert FuseActivations()(net).modified
    assert operators(net)[-2:] == ["Sigmoid", "Mul"]
    assert len(operators(net)) == expected
    np.testing.assert_allclose(Session(net)(feeds)["y"], before, rtol=1e-5, atol=1e-6)


def with_(rows: list[Row], old: str, new: str) -> list[Row]:
    return [(op, [new if n == old else n for n in used], out, a) for op, used, out, a in rows]


MISSES = {
    "another end": built(with_(HARD_SWISH, "six", "half")),
    "a vector": built(with_(HARD_SWISH, "three", "vector")),
    "read in between": built([*HARD_SWISH, ("Abs", ["clipped"], "z", {})], ("y", "z")),
    "an output in between": built(HARD_SWISH, ("y", "clipped")),
    "of more axes": built(
        [
            ("ReduceMax", ["x"], "m", {"keepdims": 0}),
            ("Sub", ["m", "cube"], "p", {}),
            ("Add", ["p", "cube"], "y", {}),
        ]
    ),
    "one operator": built([("Clip", ["x", "zero", "six"], "y", {})]),
    "as few": built([("Sigmoid", ["x"], "gate", {}), ("Mul", ["x", "gate"], "y", {})]),
    "no function of x alone": built(
        [("Abs", ["x"], "a", {}), ("ReduceMax", ["x"], "m", {}), ("Mul", ["a", "m"], "y", {})]
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_near_misses_stay(name):
    net = MISSES[name]
    before = operators(net)
    assert not FuseActivations()(net).modified
    assert operators(net) == before


def test_old_opsets_stay():
    rows: list[Row] = [("Neg", ["x"], "minus", {}), ("Neg", ["minus"], "same", {})]
    rows += [("Abs", ["same"], "y", {})]
    assert not FuseActivations()(built(rows, opset=10)).modified
    assert FuseActivations()(built(rows, opset=11)).modified


NUMBERS = {
    "low": np.float32(1e-7),
    "high": np.float32(1 - 1e-7),
    "tiny": np.float32(1e-8),
    "far": np.float32(65504),
    "neg": np.float32(-65504),
    "small": np.float32(5e-7),
    "least": np.float32(np.finfo(np.float32).min),
}
GUARDS: dict[str, list[Row]] = {
    "a floor for a logarithm": [
        ("Sigmoid", ["x"], "s", {}),
        ("Clip", ["s", "low", "high"], "c", {}),
        ("Log", ["c"], "y", {}),
    ],
    "a divisor that is never zero": [
        ("Relu", ["x"], "r", {}),
        ("Add", ["r", "tiny"], "a", {}),
        ("Reciprocal", ["a"], "y", {}),
    ],
    "the end of float16": [
        ("Max", ["x", "neg"], "m", {}),
        ("Min", ["m", "far"], "y", {}),
    ],
    "that of a ReLU": [
        ("Relu", ["x"], "r", {}),
        ("Clip", ["r", "", "far"], "y", {}),
    ],
    "no infinities for a mask": [
        ("Max", ["x", "least"], "m", {}),
        ("Softmax", ["m"], "y", {}),
    ],
    "a small tangent": [
        ("Tanh", ["x"], "t", {}),
        ("Mul", ["t", "small"], "y", {}),
    ],
}


@pytest.mark.parametrize("name", GUARDS)
def test_guards_are_kept(name):
    """What is behind them depends on numbers that are too small or too large to look at."""
    rows = GUARDS[name]
    used = {n: a for n, a in NUMBERS.items() if any(n in row[1] for row in rows)}
    net = model(rows, used, {"x": ["n", 8]}, ["y"])
    x = np.array([[-np.inf, -3e38, -1e6, -100, 100, 1e6, 3e38, 0]], np.float32)
    before = Session(net)({"x": x})["y"]
    FuseActivations()(net)
    assert np.array_equal(Session(net)({"x": x})["y"], before, equal_nan=True)
