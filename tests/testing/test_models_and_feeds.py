"""Helpers of tests take a model in every form, and inputs once or several times."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from lwqc.errors import InputError
from lwqc.model import io
from lwqc.passes.fold_constants import FoldConstants
from lwqc.passes.fuse_activations import FuseActivations
from lwqc.testing import (
    applied,
    assert_harmless,
    assert_rewrites,
    assert_same_outputs,
    assert_untouched,
    feeds_of,
    model_of,
    outputs_of,
    random_models,
)

TEXT = """g (float[n,4] x) => (float[n,4] y) {
    a = Constant<value = float {1.0}>()
    b = Constant<value = float {2.0}>()
    c = Add(a, b)
    y = Mul(x, c)
}"""
AFTER = TEXT.replace("c = Add(a, b)", "c = Constant<value = float {3.0}>()")


@pytest.fixture(params=["text", "model", "proto", "path"])
def as_given(request, tmp_path):
    def give(text):
        built = model_of(text)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        io.save(built, path)
        forms = {"text": text, "model": built, "proto": ir.to_proto(built), "path": path}
        return forms[request.param]

    return give


def test_models_are_taken_in_every_form(as_given):
    before, after = as_given(TEXT), as_given(AFTER)
    assert_rewrites(FoldConstants(), before, after)
    assert_untouched(FuseActivations(), before)
    assert_untouched(FuseActivations(), before, "")
    assert_harmless(FoldConstants(), before)
    assert_same_outputs(before, after)
    assert applied(FoldConstants(), before).changes == 1
    assert list(outputs_of(before, feeds_of(before))) == ["y"]


@settings(max_examples=3, deadline=None, database=None)
@given(random_models(max_nodes=8))
def test_random_models_are_what_helpers_take(model):
    assert isinstance(model, ir.Model)
    assert_harmless(FoldConstants(), model)


def test_feeds_are_one_or_several():
    one, same = (np.full((2, 4), number, np.float32) for number in (0, 1))
    other = TEXT.replace("2.0", "3.0")
    assert_same_outputs(TEXT, other, {"x": one})
    assert_same_outputs(TEXT, other, [{"x": one}, {"x": one}])
    with pytest.raises(AssertionError, match="feed 1: output y moved by 0"):
        assert_same_outputs(TEXT, other, [{"x": one}, {"x": same}])
    with pytest.raises(AssertionError, match="feed 1: output y"):
        assert_same_outputs(TEXT, other, ({"x": x} for x in (one, same)))
    with pytest.raises(InputError, match="feeds: there are none"):
        assert_same_outputs(TEXT, other, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Add(a, b)", "Add(a, zz)"), "graph g: Add: reads zz, which nothing makes before it"),
        (("y = Mul", "p = Mul"), "graph g: output y: nothing makes it"),
        (("c = Add", "a = Add"), "graph g: Add: makes a, which is there already"),
        (("Add(a, b)", "Add(a, b"), "not ONNX text: [ParseError at position (line: 6 "),
    ],
)
def test_a_slip_in_a_text_is_told_in_one_line(change, message):
    with pytest.raises(InputError) as caught:
        assert_untouched(FoldConstants(), TEXT.replace(*change))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
