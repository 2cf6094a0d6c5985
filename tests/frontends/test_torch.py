"""Exports run in onnxruntime with torch's numbers; every way to fail has one clear line."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from lwqc.errors import InputError
from lwqc.frontends.convert import convert
from lwqc.frontends.torch import export
from lwqc.model.metadata import bare

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(8, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.drop = torch.nn.Dropout()
        self.last = torch.nn.Linear(16, 4)

    def forward(self, x, scale=None):
        y = self.last(self.drop(torch.relu(self.norm(self.first(x)))))
        return y if scale is None else y * scale


def run(model: ir.Model, *arrays) -> np.ndarray:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


def expected(module, *tensors) -> np.ndarray:
    with torch.no_grad():
        return module.eval()(*tensors).numpy()


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_numbers_equal_torch_on_other_batch_sizes(exporter: str) -> None:
    module = Net()
    batch = torch.export.Dim("batch")
    model = export(
        module,
        (torch.randn(3, 8),),
        dynamic_shapes={"x": {0: batch}} if exporter == "dynamo" else ({0: batch},),
        exporter=exporter,
    )
    x = torch.randn(5, 8)
    # Folding the batch norm reorders float32 sums of 8 products: a few ulp of values near one.
    np.testing.assert_allclose(run(model, x.numpy()), expected(module, x), atol=1e-5)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert str(model.graph.inputs[0].shape[0]) == "batch"
    assert model.opset_imports[""] == {"dynamo": 20, "legacy": 17}[exporter]
    assert {"last.weight", "last.bias"} <= set(model.graph.initializers)


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_keyword_inputs(exporter: str) -> None:
    module = Net()
    x, scale = torch.randn(3, 8), torch.tensor(2.0)
    model = export(module, {"x": x, "scale": scale}, exporter=exporter)
    result = run(model, x.numpy(), scale.numpy())
    np.testing.assert_allclose(result, expected(module, x, scale), atol=1e-5)


def test_one_tensor_is_a_tuple_of_one() -> None:
    assert len(export(Net(), torch.randn(3, 8)).graph.inputs) == 1


def test_modes_are_restored_and_local_paths_left_out() -> None:
    module = Net()
    module.norm.eval()
    model = export(module, (torch.randn(3, 8),))
    assert (module.training, module.norm.training, module.drop.training) == (True, False, True)
    assert __file__ not in str(ir.to_proto(bare(model)))


def test_modes_are_restored_after_a_failure() -> None:
    module = Net()
    with pytest.raises(InputError, match=r"^Net: export failed: .*must have same reduction dim"):
        export(module, (torch.randn(3, 9),))
    assert module.training


def test_opset() -> None:
    assert export(Net(), (torch.randn(3, 8),), opset=18).opset_imports[""] == 18
    with pytest.raises(InputError, match="opset 27 is too new"):
        export(Net(), (torch.randn(3, 8),), opset=27)


def test_unknown_exporter() -> None:
    with pytest.raises(InputError, match="expected dynamo or legacy"):
        export(Net(), (torch.randn(3, 8),), exporter="other")


def test_missing_torch_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install lwqc\[torch\]"):
        export(Net(), (torch.randn(3, 8),))


SOURCE = """
import torch

def make():
    return torch.nn.Linear(8, 4), (torch.ones(2, 8),), ({0: torch.export.Dim("batch")},)

def two():
    return torch.nn.Linear(8, 4), (torch.ones(2, 8),)

def fails():
    raise RuntimeError("no data\\nhere")

def alone():
    return torch.nn.Linear(8, 4)

def wrong():
    return 1, 2

def unfit():
    return torch.nn.Linear(8, 4), (torch.ones(2, 9),)

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "lwqc_user_code.py").write_text(SOURCE)
    (tmp_path / "lwqc_broken_code.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("lwqc_user_code", None)


def test_convert(folder) -> None:
    model = convert("lwqc_user_code:make")
    assert str(model.graph.inputs[0].shape[0]) == "batch"
    assert run(model, np.ones((3, 8), np.float32)).shape == (3, 4)
    assert model.graph.inputs[0].shape.is_dynamic()
    assert convert("lwqc_user_code:two").graph.inputs[0].shape.is_static()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lwqc_user_code", "expected module:callable"),
        (":make", "expected module:callable"),
        ("sub/own.py:make", "modules are named without .py: write sub.own:make"),
        ("lwqc_no_such_module:make", "cannot be imported: .*No module named"),
        ("lwqc_broken_code:make", "cannot be imported: SyntaxError: invalid syntax"),
        ("lwqc_user_code:nothing", "has no attribute nothing"),
        ("lwqc_user_code:number", "number is not callable"),
        ("lwqc_user_code:fails", "the call failed: RuntimeError: no data here$"),
        ("lwqc_user_code:alone", "alone: a torch module needs example_inputs"),
        ("lwqc_user_code:wrong", "lwqc_user_code:wrong: a int is no model; expected"),
        ("lwqc_user_code:unfit", "Linear: export failed: .*must have same reduction dim"),
    ],
)
def test_convert_refuses(folder, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        convert(spec)
    assert "\n" not in str(caught.value)
