"""Branches that the data never runs are named in the report."""

import numpy as np
import onnx_ir as ir
import pytest

import lwqc
from lwqc.compile.idle_branches import idle_branches
from lwqc.runtime.session import statistics_session
from tests.build import normal

CHOICE = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2, 64] x, bool[1] loud) => (float[2, 64] y) {
    [which] y = If (loud) <
        then_branch = yes () => (float[2, 64] a) { a = MatMul(x, w) },
        else_branch = no () => (float[2, 64] b) { b = MatMul(x, v) }
    >
}"""


def choice() -> ir.Model:
    model = ir.from_onnx_text(CHOICE)
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in ("w", "v"):
                array = normal(64, 64, seed=len(value.name), scale=0.1)
                new = ir.Value(name=value.name, const_value=ir.tensor(array, name=value.name))
                new.shape, new.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
                model.graph.register_initializer(new)
                node.replace_input_with(index, new)
    return model


def feeds(*values: bool) -> list[dict[str, np.ndarray]]:
    return [{"x": normal(2, 64, seed=i), "loud": np.array([v])} for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "idle"), [((True, True), "else"), ((False,), "then"), ((True, False), "")]
)
def test_the_branch_that_never_runs_is_named(values, idle):
    found = idle_branches(choice(), feeds(*values), statistics_session)
    assert len(found) == bool(idle)
    assert all(f"its {idle} branch never runs" in line for line in found)


def test_the_report_says_so(tmp_path):
    report = lwqc.quantize(choice(), data=feeds(True, True)).save(tmp_path / "o.onnx")
    assert any("its else branch never runs" in note for note in report.notes)
