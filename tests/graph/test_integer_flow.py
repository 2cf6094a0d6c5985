"""Which tensors are 8-bit between convolutions, and that what lies behind the last one is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.graph.integer_flow import IntegerFlow, integer_flow
from lwqc.graph.sites import find_sites
from tests.build import Row, model, normal

SIZES = {"x": [1, 8, 6, 6]}
WEIGHTS = {
    "wa": normal(8, 8, 1, 1),
    "wb": normal(8, 8, 1, 1, seed=1),
    "wh": normal(8, 4, 1, 1, seed=2),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "zeros": np.array([0]),
    "fours": np.array([4]),
    "ones": np.array([1]),
}


def flow(rows: Sequence[Row], outputs: Sequence[str]) -> IntegerFlow:
    built = model(list(rows), WEIGHTS, SIZES, list(outputs))
    return integer_flow(built.graph, find_sites(built).sites)


SPLIT = """
    <ir_version: 10, opset_import: ["" : 20]>
    net (float[1,8,6,6] x) => (float[1,4,6,6] y)
    <float[8,8,1,1] wa = {WEIGHTS}, float[4,4,1,1] wh = {SMALL}, int64[1] zero = {0},
     int64[1] four = {4}, int64[1] one = {1}, int64[2] halves = {4, 4}>
    {
        a = Conv (x, wa)
        l, r = Split <axis = 1> (a, halves)
        b = Conv (l, wh)
        c = Concat <axis = 1> (b, r)
        s = Slice (c, zero, four, one)
        d = Conv (s, wh)
        y = Erf (d)
    }
"""


def test_codes_pass_through_a_split() -> None:
    text = SPLIT.replace("WEIGHTS", ", ".join(["1"] * 64)).replace("SMALL", ", ".join(["1"] * 16))
    built = ir.from_onnx_text(text)
    found = integer_flow(built.graph, find_sites(built).sites)
    assert not found.refused
    assert set(found.tensors) == {"x", "a", "l", "r", "b", "c", "s", "d"}
    assert {found.tensors[name] for name in ("a", "l", "r")} == {"a"}
    assert found.tensors["s"] == "c"


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_codes_pass_where_resize_repeats_them(mode: str) -> None:
    rows: list[Row] = [
        ("Conv", ["x", "wa"], "a", {}),
        ("Resize", ["a", "", "twice"], "r", {"mode": mode}),
        ("Neg", ["r"], "n", {}),
        ("Concat", ["r", "r"], "c", {"axis": 1}),
        ("Slice", ["c", "zeros", "fours", "ones"], "s", {}),
        ("Conv", ["s", "wh"], "d", {}),
        ("Erf", ["d"], "e", {}),
    ]
    found = flow(rows, ["n", "e"])
    assert found.tensors["s"] == ("c" if mode == "nearest" else "s")
    assert ("r" in found.tensors) == (mode == "nearest")


def test_behind_the_last_convolution_all_is_float() -> None:
    """The boxes and scores of a detector meet in a Concat, and no grid holds both."""
    rows: list[Row] = [
        ("Conv", ["x", "wa"], "a", {}),
        ("Sigmoid", ["a"], "s", {}),
        ("Conv", ["s", "wb"], "boxes", {}),
        ("Conv", ["s", "wa"], "scores", {}),
        ("Concat", ["boxes", "scores"], "both", {"axis": 1}),
        ("Sigmoid", ["both"], "sigmoid", {}),
        ("Erf", ["sigmoid"], "y", {}),
    ]
    assert set(flow(rows, ["y"]).tensors) == {"x", "a", "s", "boxes", "scores"}


def test_a_side_that_ends_stays_float_though_the_other_goes_on() -> None:
    rows: list[Row] = [
        ("Conv", ["x", "wa"], "a", {}),
        ("Add", ["a", "x"], "sum", {}),
        ("Sigmoid", ["sum"], "end", {}),
        ("Conv", ["sum", "wb"], "b", {}),
        ("Erf", ["b"], "y", {}),
    ]
    assert set(flow(rows, ["end", "y"]).tensors) == {"x", "a", "sum", "b"}
