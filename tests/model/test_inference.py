"""Types of the outputs of single nodes: those that are alike are asked for once."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lwqc.errors import SessionError
from lwqc.model import inference


@pytest.fixture
def asked(monkeypatch):
    """Requests to the other process."""
    inference._kept.cache_clear()
    requests = []
    real = inference._Inference.ask

    def ask(self, *request, **options):
        requests.append(request)
        return real(self, *request, **options)

    monkeypatch.setattr(inference._Inference, "ask", ask)
    return requests


def floats(*sizes):
    return helper.make_tensor_type_proto(TensorProto.FLOAT, sizes)


def sizes(kind):
    return [d.dim_value for d in kind.tensor_type.shape.dim]


def product(layer, k=4):
    node = helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"y{layer}"], f"n{layer}")
    types = {f"x{layer}": floats(2, k), f"w{layer}": floats(k, 8)}
    return {n: sizes(t) for n, t in inference.infer_node(node, 17, types, {}).items()}


def test_nodes_that_differ_in_names_are_asked_for_once(asked):
    assert [product(i) for i in range(3)] == [{f"y{i}": [2, 8]} for i in range(3)]
    assert len(asked) == 1
    assert product(0, k=5) == {"y0": [2, 8]}
    assert len(asked) == 2


def test_one_input_twice_is_not_two_inputs(asked):
    types = {"a": floats(3, 1), "b": floats(1, 5)}
    for names, expected in ((["a", "b"], [3, 5]), (["a", "a"], [3, 1]), (["b", "a"], [3, 5])):
        node = helper.make_node("Add", names, ["y"])
        known = {n: types[n] for n in names}
        assert sizes(inference.infer_node(node, 17, known, {})["y"]) == expected
    assert len(asked) == 3


def test_values_count(asked):
    kinds = {"x": floats(6), "s": helper.make_tensor_type_proto(TensorProto.INT64, [2])}
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    for shape in ([2, 3], [3, 2]):
        found = inference.infer_node(node, 17, kinds, {"s": np.array(shape)})
        assert sizes(found["y"]) == shape


def test_optional_operands_that_are_left_out(asked):
    node = helper.make_node("Dropout", ["x", "", ""], ["y", ""])
    assert set(inference.infer_node(node, 17, {"x": floats(2)}, {})) == {"y"}


def test_what_fails_is_asked_again(asked):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    for count in (1, 2):
        with pytest.raises(SessionError):
            inference.infer_node(node, 17, {"x": floats(2, 3), "w": floats(4, 5)}, {})
        assert len(asked) == count


def test_bodies_keep_the_names_from_around_them(asked):
    branch = helper.make_graph(
        [helper.make_node("Identity", ["outer"], ["z"])], "g", [],
        [helper.make_value_info("z", onnx.TypeProto())],
    )  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    plain, names = inference._renamed(node)
    assert plain == node
    assert names == {"": "", "c": "c", "y": "y"}


def test_large_requests_are_not_kept(asked):
    value = onnx.numpy_helper.from_array(np.zeros(5000, np.float32))
    for _ in range(2):
        node = helper.make_node("Constant", [], ["y"], value=value)
        assert sizes(inference.infer_node(node, 17, {}, {})["y"]) == [5000]
    assert len(asked) == 2
