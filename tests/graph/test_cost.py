"""Costs of single operators, shared weights, unknown shapes, and known architectures."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from lwqc.graph.cost import OPERATORS, node_costs, static_shapes, total

ZOO = Path(__file__).parents[1] / "zoo"


def model_of(body: str, signature: str, initializers: dict[str, tuple[str, list[int]]]):
    """A textual graph; initializers name -> (dtype, shape), all zeros."""
    text = (
        '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
        f"net {signature} {{\n{body}\n}}"
    )
    proto = onnx.parser.parse_model(text)
    for name, (dtype, shape) in initializers.items():
        tensor = proto.graph.initializer.add(name=name, dims=shape)
        tensor.data_type = onnx.TensorProto.DataType.Value(dtype)
        tensor.raw_data = bytes(int(ir.DataType[dtype].bitwidth * _volume(shape) + 7) // 8)
    return ir.from_proto(proto)


def _volume(shape: list[int]) -> int:
    return int(onnx.numpy_helper.np.prod(shape))


@pytest.mark.parametrize(
    ("call", "shapes", "initializers", "macs", "parameters"),
    [
        ("MatMul(x, w)", {"x": (2, 5, 8), "y": (2, 5, 3)}, {"w": [8, 3]}, 240, 24),
        ("MatMul(x, w)", {"x": (5, 8), "y": (5,)}, {"w": [8]}, 40, 8),
        ("Gemm<transA = 1>(x, w, b)", {"x": (8, 5), "y": (5, 3)}, {"w": [8, 3], "b": [3]}, 120, 27),
        ("Gemm<transB = 1>(x, w)", {"x": (5, 8), "y": (5, 3)}, {"w": [3, 8]}, 120, 24),
        ("Conv(x, w)", {"x": (1, 4, 9, 9), "y": (1, 6, 7, 7)}, {"w": [6, 4, 3, 3]}, 10584, 216),
        (
            "Conv<group = 4>(x, w)",
            {"x": (1, 4, 9, 9), "y": (1, 4, 7, 7)},
            {"w": [4, 1, 3, 3]},
            1764,
            36,
        ),
        (
            "ConvTranspose(x, w)",
            {"x": (1, 4, 5, 5), "y": (1, 6, 6, 6)},
            {"w": [4, 6, 2, 2]},
            2400,
            96,
        ),
        ("Einsum<equation = 'bik,kj->bij'>(x, w)", {"x": (2, 5, 8)}, {"w": [8, 3]}, 240, 24),
        ("Einsum<equation = '...ik,kj'>(x, w)", {"x": (2, 7, 5, 8)}, {"w": [8, 3]}, 1680, 24),
        ("Gather(w, x)", {"x": (4,), "y": (4, 8)}, {"w": [10, 8]}, 0, 80),
        (
            "LSTM<hidden_size = 6>(x, w, b)",
            {"x": (7, 2, 5)},
            {"w": [1, 24, 5], "b": [1, 24, 6]},
            7 * 2 * 24 * 11,
            264,
        ),
        (
            "com.microsoft.FusedMatMul<transA = 1>(x, w)",
            {"x": (8, 5), "y": (5, 3)},
            {"w": [8, 3]},
            120,
            24,
        ),
        ("Relu(x)", {}, {}, 0, 0),
    ],
)
def test_operator(call, shapes, initializers, macs, parameters) -> None:
    signature = "(float[n] x) => (float[m] y)"
    body = "y = " + call.replace("'", '"')
    model = model_of(body, signature, {n: ("FLOAT", s) for n, s in initializers.items()})
    (cost,) = node_costs(model.graph, shapes)
    assert (cost.macs, cost.parameters, cost.weight_bytes) == (macs, parameters, 4 * parameters)


def test_packed_weights_count_as_two_per_byte() -> None:
    model = model_of(
        "y = com.microsoft.MatMulNBits<K = 64, N = 8, bits = 4, block_size = 32>(x, w, s)",
        "(float[n, 64] x) => (float[n, 8] y)",
        {"w": ("UINT8", [8, 2, 16]), "s": ("FLOAT", [16])},
    )
    (cost,) = node_costs(model.graph, {"x": (3, 64)})
    assert (cost.macs, cost.parameters, cost.weight_bytes) == (3 * 64 * 8, 512 + 16, 256 + 64)


def test_weights_behind_constant_nodes_belong_to_their_user() -> None:
    model = model_of(
        "d = DequantizeLinear(w, s)\nt = Transpose(d)\nm = MatMul(x, t)\n"
        "shape = Constant<value_ints = [-1]>()\ny = Reshape(m, shape)",
        "(float[2, 8] x) => (float[6] y)",
        {"w": ("INT4", [3, 8]), "s": ("FLOAT", [])},
    )
    costs = {c.op: c for c in node_costs(model.graph, {"x": (2, 8), "m": (2, 3)})}
    assert (costs["MatMul"].parameters, costs["MatMul"].weight_bytes) == (25, 16)
    assert costs["MatMul"].macs == 48
    assert {c.parameters for op, c in costs.items() if op != "MatMul"} == {0}


def test_tied_weights_count_once_in_the_total() -> None:
    model = model_of(
        "e = Gather(w, i)\nt = Transpose(w)\ny = MatMul(e, t)",
        "(int64[4] i) => (float[4, 10] y)",
        {"w": ("FLOAT", [10, 8])},
    )
    costs = node_costs(model.graph, static_shapes(model, {}))
    assert [c.parameters for c in costs] == [80, 0, 80]
    assert (total(costs).parameters, total(costs).weight_bytes) == (80, 320)


def test_what_is_not_known_is_listed_and_not_guessed() -> None:
    model = model_of(
        """
        a = MatMul(x, w)
        b = some.domain.Thing(a)
        c = If (flag) <
          then_branch = t () => (float[n, 8] p) { p = MatMul(a, w) },
          else_branch = e () => (float[n, 8] q) { q = Neg(a) }
        >
        y = Add(b, c)
        """,
        "(float[n, 8] x, bool flag) => (float[n, 8] y)",
        {"w": ("FLOAT", [8, 8])},
    )
    costs = node_costs(model.graph, {"x": (2, 8), "a": (2, 8), "p": (2, 8)})
    assert total(costs).unknown == ("b", "p")
    assert (total(costs).macs, total(costs).known_macs) == (None, 128)
    assert total(node_costs(model.graph, {})).unknown == ("a", "b", "p")


def test_static_shapes_bind_symbols_and_leave_the_model_alone() -> None:
    model = model_of(
        "a = MatMul(x, w)\nb = Reshape(a, s)\ny = Relu(b)",
        "(float[batch, seq, 8] x) => (float[k, l] y)",
        {"w": ("FLOAT", [8, 4]), "s": ("INT64", [2])},
    )
    model.graph.initializers["s"].const_value = ir.tensor([-1, 4], name="s")
    before = ir.to_proto(model).SerializeToString()
    assert static_shapes(model, {"batch": 2, "seq": 3})["b"] == (6, 4)
    partly = static_shapes(model, {"batch": 2})
    assert "x" not in partly
    assert "a" not in partly
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("name", "mega_macs", "kilo_parameters"),
    # MACs of convolutions and linear layers as published by torchvision.
    [("resnet50.dynamo", 4089, 25557), ("mobilenet_v2.dynamo", 301, 3505)],
)
def test_known_architectures(name: str, mega_macs: int, kilo_parameters: int) -> None:
    model = ir.load(ZOO / f"{name}.onnx")
    found = total(node_costs(model.graph, static_shapes(model, {"batch": 1})))
    assert found.unknown == ()
    assert found.macs / 1e6 == pytest.approx(mega_macs, rel=2e-3)
    # Batch norms are partly folded in the export.
    assert found.parameters / 1e3 == pytest.approx(kilo_parameters, rel=0.01)


def test_table_names_operators_that_exist() -> None:
    for domain, op in OPERATORS:
        if domain == "":
            assert onnx.defs.has(op), op
