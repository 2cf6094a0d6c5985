"""Products whose batch axes are flattened, as tf2onnx writes Einsum, and near misses."""

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.model import io
from lwqc.passes.cleanup import clean_up
from lwqc.passes.flat_product import FlatProduct
from lwqc.runtime.session import Session
from tests.build import normal
from tests.frontends.make_files import FILES

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
# Queries and keys [n, 5, 2, 8], of which a product over the last axis is to be [n, 2, 5, 5].
FLAT = f"""{HEAD} g (float[n, 5, 2, 8] q, float[n, 5, 2, 8] k) => (float[n, 2, 5, 5] y)
<int64[1] three = {{3}}, int64[1] one = {{1}}, int64[1] four = {{4}}, int64[3] flat = {{-1, 5, 8}},
 int64[5] apart = {{-1, 2, 5, 5, 1}}> {{
    q5 = Unsqueeze(q, three)
    qt = Transpose<perm = [0, 2, 1, 3, 4]>(q5)
    qf = Reshape(qt, flat)
    k5 = Unsqueeze(k, one)
    kt = Transpose<perm = [0, 3, 1, 2, 4]>(k5)
    kf = Reshape(kt, flat)
    kr = Transpose<perm = [0, 2, 1]>(kf)
    p = MatMul(qf, kr)
    p5 = Reshape(p, apart)
    y = Squeeze(p5, four)
}}"""


def operators(model):
    return [node.op_type for node in model.graph]


def test_flattened_axes_come_back():
    given = ir.from_onnx_text(FLAT)
    changed = given.clone()
    assert FlatProduct()(changed).modified
    assert operators(changed) == ["Transpose", "Transpose", "MatMul"]
    assert not FlatProduct()(changed).modified
    feeds = {"q": normal(3, 5, 2, 8), "k": normal(3, 5, 2, 8, seed=1)}
    np.testing.assert_allclose(
        Session(given)(feeds)["y"], Session(changed)(feeds)["y"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[0, 2, 1, 3, 4]", "[2, 0, 1, 3, 4]"),  # other batches meet
        ("{-1, 2, 5, 5, 1}", "{2, -1, 5, 5, 1}"),  # the batch axes come back in another order
        ("[0, 2, 1]>", "[0, 1, 2]>"),  # another axis is summed over
    ],
)
def test_near_misses(old, new):
    given = ir.from_onnx_text(
        FLAT.replace(old, new).replace("float[n, 2, 5, 5] y", "float[a, b, 5, 5] y")
    )
    assert not FlatProduct()(given).modified


def test_what_is_computed_in_between_stays():
    text = FLAT.replace("(kf)", "(kc)").replace("kr = ", "kc = Relu(kf)\n    kr = ")
    given = ir.from_onnx_text(text)
    assert not FlatProduct()(given).modified


@pytest.mark.parametrize("name", ["keras", "saved_model", "tflite", "jax", "huggingface"])
def test_attention_of_other_frameworks_is_one_operator(name):
    cleaned = clean_up(io.load(FILES / f"{name}.onnx"))
    assert operators(cleaned.model).count("Attention") == 1
    with np.load(FILES / f"{name}.npz") as data:
        inputs = [v.name for v in cleaned.model.graph.inputs]
        feeds = {name: data[f"input{number}"] for number, name in enumerate(inputs)}
        (found,) = Session(cleaned.model, label=name)(feeds).values()
        np.testing.assert_allclose(found, data["output0"], atol=1e-5 * abs(data["output0"]).max())
