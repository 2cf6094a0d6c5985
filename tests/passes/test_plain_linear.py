"""Linear models of scikit-learn's kind become products, with the same scores and labels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import lwqc
from lwqc.frontends.convert import of_object
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.one_view import one_view
from lwqc.passes.plain_linear import PlainLinear
from lwqc.runtime.session import Session
from lwqc.testing import assert_untouched
from tests.build import normal

FEATURES, CLASSES = 200, 30
W, B = normal(CLASSES, FEATURES, seed=1), normal(CLASSES, seed=2)
INTS = {"classlabels_ints": [7 * i - 20 for i in range(CLASSES)]}
TEXTS = {"classlabels_strings": [f"class {i}" for i in range(CLASSES)]}


def linear(kind="LinearClassifier", shape=("n", FEATURES), dtype=TensorProto.FLOAT, **attributes):
    """A model of one node. Its inputs are of `shape` and `dtype`."""
    numbers = {"coefficients": W.reshape(-1).tolist(), "intercepts": B.tolist()}
    names = ["y"] if kind == "LinearRegressor" else ["label", "y"]
    given = {k: v for k, v in {**numbers, **attributes}.items() if v is not None}
    node = helper.make_node(kind, ["x"], names, domain="ai.onnx.ml", **given)
    label = TensorProto.STRING if "classlabels_strings" in attributes else TensorProto.INT64
    types = {"y": TensorProto.FLOAT, "label": label}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(n, types[n], [None] * (1 + (n == "y"))) for n in names],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    return io.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def check(given: ir.Model, x: np.ndarray) -> ir.Model:
    changed = given.clone()
    assert PlainLinear()(changed).modified
    assert not PlainLinear()(changed).modified
    if given.graph.inputs[0].shape is not None:  # which the checker wants to know of inputs
        onnx.checker.check_model(io.to_bytes(changed), full_check=True)
    expected, found = Session(given)({"x": x}), Session(changed)({"x": x})
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=1e-5)
    if "label" in expected:
        assert found["label"].dtype == expected["label"].dtype
        assert found["label"].tolist() == expected["label"].tolist()
        assert len(set(expected["label"].tolist())) > 3 or len(x.shape) == 1
    return changed


X = normal(50, FEATURES, seed=3)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("labels", [INTS, TEXTS], ids=["ints", "texts"])
def test_classifiers(transform, labels):
    changed = check(linear(post_transform=transform, **labels), X)
    assert changed.graph.node(0).op_type == "Gemm"
    (site,) = find_sites(changed).sites
    assert (site.op, site.n, site.k) == ("Gemm", CLASSES, FEATURES)


def test_regressors():
    check(linear("LinearRegressor", targets=CLASSES), X)
    one = linear("LinearRegressor", coefficients=W[0].tolist(), intercepts=[0.5])
    assert [n.op_type for n in check(one, X).graph] == ["Gemm"]
    check(linear("LinearRegressor", targets=CLASSES, intercepts=None), X)
    check(linear("LinearRegressor", targets=CLASSES, intercepts=[5.0]), X)  # one for 30: none


@pytest.mark.parametrize(
    ("shape", "dtype", "x", "operators"),
    [
        (("n", FEATURES), TensorProto.INT64, (X * 3).astype(np.int64), ["Cast"]),
        (("n", FEATURES), TensorProto.DOUBLE, X.astype(np.float64), ["Cast"]),
        ((FEATURES,), TensorProto.FLOAT, X[0], ["Reshape"]),
        (None, TensorProto.FLOAT, X, ["Reshape"]),
        (None, TensorProto.INT32, X[0].astype(np.int32), ["Cast", "Reshape"]),
    ],
    ids=["int64", "double", "vector", "unknown", "both"],
)
def test_inputs_of_other_types_and_ranks(shape, dtype, x, operators):
    changed = check(linear(shape=shape, dtype=dtype, **INTS), x)
    assert [n.op_type for n in changed.graph][: len(operators)] == operators


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (linear(post_transform="PROBIT", **INTS), "its transform of scores is PROBIT"),
        (linear("LinearRegressor", targets=CLASSES, post_transform="SOFTMAX"),
         "its transform of scores is SOFTMAX"),
        (linear(coefficients=W[0].tolist(), intercepts=[0.0], classlabels_ints=[0, 1]),
         "it has one row of coefficients for two classes"),
        (linear(classlabels_ints=[1, 2]), f"it has 2 labels for {CLASSES} rows of coefficients"),
        (linear("LinearRegressor", targets=7),
         f"{W.size} coefficients are no matrix of 7 rows"),
    ],
    ids=["probit", "regressor", "binary", "labels", "no-matrix"],
)  # fmt: skip
def test_others_stay_and_are_told(given, reason):
    assert_untouched(PlainLinear(), given, reason)
    (note,) = one_view(given).meta["lwqc_notes"]
    assert note.endswith(reason)


def test_every_model_is_opened_in_this_form_and_is_smaller(tmp_path):
    given = linear(post_transform="SOFTMAX", **INTS)
    done = lwqc.quantize(given, data=[{"x": X}])
    report = done.save(tmp_path / "small.onnx")
    assert len(done.plan.quantize) == 1
    assert report.output_bytes < 0.5 * report.source_bytes
    assert report.drop <= 0.02  # a label of 50


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_scikit_learn_writes():
    pytest.importorskip("skl2onnx", reason="of the extra lwqc[sklearn]")
    from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = (X[:, :4] @ np.arange(4) > 0).astype(int) + (X[:, 5] > 0.5)
    models = {
        LogisticRegression(): labels,
        LogisticRegression(solver="liblinear"): labels > 0,
        RidgeClassifier(): labels,
        Ridge(): X[:, :30],
    }
    for model, y in models.items():
        made = make_pipeline(StandardScaler(), model).fit(X, y)
        view = one_view(of_object(made))
        operators = [n.op_type for n in view.graph]
        assert "Gemm" in operators
        assert not {"LinearClassifier", "LinearRegressor"} & set(operators)
        found = list(Session(view)({view.graph.inputs[0].name: X}).values())
        np.testing.assert_allclose(found[0].reshape(y.shape), made.predict(X), atol=1e-4)
        if hasattr(made, "predict_proba"):
            np.testing.assert_allclose(found[1], made.predict_proba(X), atol=1e-4)
