"""Functions of lwqc take the models of all frameworks as they are, files and objects."""

from __future__ import annotations

import sys
import types

import numpy as np
import onnx
import pytest

import lwqc
from lwqc.frontends.convert import is_converted
from lwqc.model import io
from tests.build import normal

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def keras(tmp_path, monkeypatch):
    """As much of Keras as its front end calls; the model that it loads is the class of models."""
    body = "h = MatMul(x, w)\n y = Relu(h)"
    weight = onnx.numpy_helper.from_array(normal(64, 32, scale=0.1), "w")
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[n, 64] x) => (float[n, 32] y) '
        f"<float[64, 32] w> {{ {body} }}"
    )
    del proto.graph.value_info[:]
    proto.graph.initializer.append(weight)

    class Model:
        inputs = (types.SimpleNamespace(shape=(None, 64), dtype="float32"),)
        called = False

        def __call__(self, zeros):
            assert zeros.shape == (1, 64)
            self.called = True

        def export(self, path, *, format, verbose, opset_version):
            assert (self.called, format, verbose, opset_version) == (True, "onnx", False, 18)
            onnx.save(proto, path)

    Model.__module__ = "keras.src.models.model"
    fake = types.ModuleType("keras")
    fake.saving = types.SimpleNamespace(load_model=lambda path, compile, safe_mode: Model())
    for name in ("tensorflow", "tf2onnx"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "keras", fake)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.keras").write_bytes(b"what Keras saves")
    (tmp_path / "net.h5").write_bytes(b"what Keras saved")
    return Model


def test_models_of_keras(keras, tmp_path):
    done = lwqc.quantize("net.keras")
    assert set(done.plan.quantize) == {"w"}
    assert done.plan.source.name == "net.keras"
    assert lwqc.verify("net.keras", done)["y"].drop < 0.01
    for source, options in ((tmp_path / "net.h5", {"trust_code": True}), (keras(), {})):
        assert [site.name for site in lwqc.inspect(source, **options).sites.sites] == ["w"]
    with pytest.raises(lwqc.InputError, match=r"net\.h5: .* may hold code, .*trust_code=True"):
        lwqc.compress("net.h5")


def test_models_of_scikit_learn(tmp_path, monkeypatch):
    pytest.importorskip("skl2onnx", reason="of the extra lwqc[sklearn]")
    import joblib
    from sklearn.neural_network import MLPRegressor

    x = normal(40, 64)
    made = MLPRegressor(hidden_layer_sizes=(32,), max_iter=5, random_state=0)
    with np.errstate(all="ignore"), pytest.warns(UserWarning, match="converged"):
        made.fit(x, x[:, 0])
    joblib.dump(made, tmp_path / "made.joblib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_estimator.py").write_text(
        "import joblib\n\n\ndef make():\n    return joblib.load('made.joblib')\n"
    )
    assert set(lwqc.quantize(made, example_inputs=x).plan.quantize) == {"coefficient"}
    for source, options in (
        (made, {}),
        ("own_estimator:make", {}),
        ("made.joblib", {"trust_code": True}),
    ):
        assert lwqc.inspect(source, **options).sites.sites[0].name == "coefficient"
    with pytest.raises(lwqc.InputError, match=r"made\.joblib: .* may hold code"):
        lwqc.compress("made.joblib")


@pytest.mark.parametrize(
    ("source", "converted"),
    [
        ("m.onnx", False),
        ("m", False),
        ("m.ort", False),
        ("gone.keras", True),
        ("M.PT2", True),
        ("net.pdmodel", True),
        ("package.module:make", True),
        ("a folder", True),
        ("C:\\models\\m.onnx", False),
        ("there:too", False),
    ],
)
def test_what_is_converted_and_what_is_read(tmp_path, monkeypatch, source, converted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    (tmp_path / "there:too").write_bytes(b"")
    assert is_converted(source) == converted


@pytest.mark.parametrize("name", ["net.keras", "net.tflite", "saved"])
def test_commands_tell_of_convert(tmp_path, run, name):
    if name == "saved":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"PK\3\4 of another framework")
    code, _, error = run("compress", tmp_path / name, "-o", tmp_path / "o.onnx")
    assert code == 2
    assert f"; one of another framework: lwqc convert {tmp_path / name} -o model.onnx" in error
    assert len(error.splitlines()) == 1
    (tmp_path / "m.onnx").write_bytes(b"PK\3\4 cut short")
    with pytest.raises(lwqc.InputError, match=r"not an ONNX file, or cut short$"):
        io.load(tmp_path / "m.onnx")
