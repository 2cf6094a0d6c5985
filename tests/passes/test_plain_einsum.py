"""Einsum with a weight becomes the matrix product that it is, or stays as it was."""

import numpy as np
import pytest

import lwqc
from lwqc.passes.one_view import one_view
from lwqc.passes.plain_einsum import PlainEinsum
from lwqc.runtime.session import Session
from tests.build import model, normal

SIZES = {"a": "n", "b": 3, "c": 4, "d": 5, "e": 6, "f": 1}


def einsum(equation, swapped=False, operands=("x", "w"), **changed):
    """Of x [the first term] and w [the second one]."""
    sizes = SIZES | changed
    first, second = equation.replace(" ", "").partition("->")[0].split(",")
    weights = {"w": normal(*(sizes[c] for c in second), seed=1)}
    shape = [sizes[c] for c in first]
    if swapped:
        equation = f"{second},{first}->{equation.partition('->')[2]}"
        operands = operands[::-1]
    return model(
        [("Einsum", list(operands), "y", {"equation": equation})], weights, {"x": shape}, ["y"]
    )


def feed(given):
    shape = [d if isinstance(d, int) else 2 for d in given.graph.inputs[0].shape]
    return {"x": normal(*shape)}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("equation", "operators"),
    [
        ("abc,cd->abd", ["MatMul"]),
        ("abc,dc->abd", ["MatMul"]),
        ("ab c, cd -> abd", ["MatMul"]),
        ("acb,cd->abd", ["Transpose", "MatMul"]),
        ("abc,cd->adb", ["MatMul", "Transpose"]),
        ("abcd,cde->abe", ["Reshape", "MatMul"]),
        ("abcd,dce->abe", ["Transpose", "Reshape", "MatMul"]),
        ("abc,cde->abde", ["MatMul", "Reshape"]),
        ("abc,dec->adbe", ["MatMul", "Reshape", "Transpose"]),
    ],
)
def test_products(equation, operators, swapped):
    given = einsum(equation, swapped)
    changed = given.clone()
    assert PlainEinsum()(changed).modified
    assert not PlainEinsum()(changed).modified
    assert [n.op_type for n in changed.graph] == operators
    assert [v.name for v in changed.graph.initializers.values() if v.name.startswith("w")] == ["w"]
    a, b = Session(given)(feed(given))["y"], Session(changed)(feed(given))["y"]
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        einsum("abc,bcd->abd"),  # b is in both, and stays
        einsum("abc,ce->ab"),  # e is summed over alone
        einsum("abc,cd->ad"),  # b is summed over alone
        einsum("abc,cd"),
        model(
            [("Einsum", ["x", "w"], "y", {"equation": "...c,cd->...d"})],
            {"w": normal(4, 5)},
            {"x": [2, 4]},
            ["y"],
        ),
        model(
            [("Einsum", ["x", "u"], "y", {"equation": "ab,bc->ac"})],
            {},
            {"x": [2, 4], "u": [4, 5]},
            ["y"],
        ),
        model(
            [("Einsum", ["x", "w"], "y", {"equation": "ab,bc->ac"})],
            {"w": normal(4, 5)},
            {"x": [2, "m"]},
            ["y"],
        ),
    ],
    ids=["kept", "columns", "rows", "implicit", "ellipsis", "computed", "unknown"],
)
def test_others_stay(given):
    assert not PlainEinsum()(given).modified


def test_a_weight_of_one_row_is_repeated_by_einsum_alone():
    given = model(
        [("Einsum", ["x", "w"], "y", {"equation": "ab,bc->ac"})],
        {"w": normal(1, 5)},
        {"x": [2, 4]},
        ["y"],
    )
    assert not PlainEinsum()(given).modified


def test_a_weight_that_others_read_keeps_its_value():
    rows = [
        ("Einsum", ["x", "w"], "a", {"equation": "ab,cb->ac"}),
        ("MatMul", ["a", "w"], "y", {}),
    ]
    given = model(rows, {"w": normal(4, 4)}, {"x": ["n", 4]}, ["y"])
    changed = given.clone()
    assert PlainEinsum()(changed).modified
    x = {"x": normal(3, 4)}
    np.testing.assert_allclose(
        Session(given)(x)["y"], Session(changed)(x)["y"], rtol=1e-5, atol=1e-5
    )


def test_every_model_is_opened_in_this_form(tmp_path):
    given = einsum("abc,cd->abd", c=64, d=64)
    assert [n.op_type for n in one_view(given).graph] == ["MatMul"]
    small = lwqc.quantize(given, data=[feed(given)])
    assert list(small.plan.quantize) == ["w"]
    report = small.save(tmp_path / "m.onnx")
    assert report.output_bytes < report.source_bytes / 2
