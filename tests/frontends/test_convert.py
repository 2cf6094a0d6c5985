"""Models of other frameworks: converted here where the converter is, and files made once."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.errors import InputError
from lwqc.frontends import tensorflow
from lwqc.frontends.convert import convert, files_of, of_object, read_model
from lwqc.model import io
from lwqc.model.user_code import allow, forbid
from lwqc.runtime.session import Session
from tests.frontends.make_files import FILES, MODELS, NEEDS
from tests.sources import net

NETWORKS = [name for name in MODELS if name not in ("lightgbm", "xgboost")]


def stored(name):
    with np.load(FILES / f"{name}.npz") as data:
        inputs = [data[n] for n in data.files if n.startswith("input")]
        return inputs, [data[n] for n in data.files if n.startswith("output")]


def check(model, inputs, outputs, tolerance=1e-5):
    session = Session(model, label="converted")
    feeds = dict(zip((v.name for v in model.graph.inputs), inputs, strict=True))
    found = list(session(feeds).values())
    assert len(found) == len(outputs)
    for one, expected in zip(found, outputs, strict=True):
        np.testing.assert_allclose(one, expected, atol=tolerance * np.abs(expected).max())
    return feeds


def has(name):
    try:
        return all(importlib.util.find_spec(module) is not None for module in NEEDS[name])
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("name", MODELS)
def test_converted_files_compute_what_the_framework_did(name):
    check(io.load(FILES / f"{name}.onnx"), *stored(name))


@pytest.mark.parametrize("name", MODELS)
def test_converters_that_are_here(name, tmp_path):
    if not has(name):
        pytest.skip(f"needs {' and '.join(NEEDS[name])}")
    source, inputs, outputs = MODELS[name](tmp_path)
    model = of_object(*source) if isinstance(source, tuple) else convert(os.fspath(source))
    feeds = check(model, inputs, outputs)
    if name in NETWORKS:
        small = lwqc.compress(model, data=[feeds], recipe="w8")
        assert small.plan.quantize
        check(small.model, inputs, outputs, 0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_all_frameworks_are_compressed(name, tmp_path):
    model = io.load(FILES / f"{name}.onnx")
    inputs, _ = stored(name)
    feeds = dict(zip((v.name for v in model.graph.inputs), inputs, strict=True))
    small = lwqc.compress(model, data=[feeds], recipe="w8")
    report = small.save(tmp_path / "small.onnx")
    assert io.weight_bytes(small.model) < 0.7 * io.weight_bytes(model)  # there is little else
    assert report.drop < 0.02
    assert len(small.plan.quantize) >= 2


@pytest.mark.parametrize("name", ["lightgbm", "xgboost"])
def test_trees_hold_nothing_to_quantize(name, tmp_path, run):
    code, out, _ = run("compress", FILES / f"{name}.onnx", "-o", tmp_path / "o.onnx")
    assert code == 0
    assert "has no weight that could take a number format" in " ".join(out.split())


# What is refused


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("gone.keras", "no such file; expected module:callable, .keras"),
        ("m.onnx", "cannot be converted; it is one that lwqc takes as it is"),
        ("m.xyz", "cannot be converted; expected module:callable"),
        ("m.pdmodel", r"expected NAME.json or NAME.pdmodel, and NAME.pdiparams beside it"),
        ("folder", "expected a folder with saved_model.pb or config.json"),
        ("m.joblib", "files of this kind may hold code, .*: give --trust-code"),
        ("m.h5", "files of this kind may hold code"),
        ("m.pt2", "files of this kind may hold code"),
    ],
)
def test_what_cannot_be_converted(tmp_path, name, pattern):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif "gone" not in name:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=pattern) as caught:
        convert(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("m.keras", "tensorflow", "keras"),
        ("m.tflite", "tf2onnx", "keras"),
        ("m.txt", "lightgbm", "boosting"),
        ("m.ubj", "xgboost", "boosting"),
        ("m.json", "xgboost", "boosting"),
        ("paddle", "paddle2onnx", "paddle"),
        ("net.pdmodel", "paddle2onnx", "paddle"),
        ("hf", "optimum.exporters.onnx", "hf"),
    ],
)
def test_a_missing_package_is_a_line_with_the_extra(tmp_path, monkeypatch, name, missing, extra):
    if name == "paddle":
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.json").write_text("{}")
        (tmp_path / name / "net.pdiparams").write_text("")
    elif name == "hf":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    else:
        (tmp_path / name).write_text("")
        if name.endswith(".pdmodel"):
            (tmp_path / name).with_suffix(".pdiparams").write_text("")
    for module in ("tensorflow", "tf2onnx", missing):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("lwqc.model.needed.find_spec", lambda package: None)
    with pytest.raises(InputError, match=rf"pip install lwqc\[{extra}\]"):
        convert(str(tmp_path / name))


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def test_pickles_run_only_with_consent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(InputError, match="--trust-code"):
        convert("m.pkl")
    forbid(True)
    try:
        with pytest.raises(InputError, match="--no-user-code does not run"):
            convert("m.pkl", trust=True)
    finally:
        allow()
    assert not (tmp_path / "made_by_a_pickle").exists()
    pytest.importorskip("joblib", reason="of the extra lwqc[sklearn]")
    with pytest.raises(InputError, match=r"m\.pkl: a NoneType is no model"):
        convert("m.pkl", trust=True)
    assert (tmp_path / "made_by_a_pickle").exists()


def test_what_a_function_may_return(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(
        "def nothing():\n    return 3\n"
        "def much():\n    return 1, 2, 3, 4\n"
        "def onnx():\n    from lwqc.model import io\n    return io.load('m.onnx')\n"
    )
    io.save(net("float[n, 2] x", "float[n, 2] y", "y = Relu(x)"), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="own_models:nothing: a int is no model; expected"):
        convert("own_models:nothing")
    with pytest.raises(InputError, match="returned 4 things; expected a model, "):
        convert("own_models:much")
    assert convert("own_models:onnx").graph.outputs[0].name == "y"


def test_a_source_is_not_written_over(tmp_path, run):
    (tmp_path / "m.txt").write_text("tree")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text("{}")
    assert files_of(str(tmp_path / "m.txt")) == [tmp_path / "m.txt"]
    assert files_of(str(tmp_path / "d")) == [tmp_path / "d" / "config.json"]
    for source, output in (("m.txt", "m.txt"), ("d", "d/config.json")):
        code, _, err = run("convert", tmp_path / source, "-o", tmp_path / output)
        assert code == 2
        assert "pip install" not in err


# What torch has beside modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_and_scripts_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="of the extra lwqc[torch]")
    pytest.importorskip("onnxscript", reason="of the extra lwqc[torch]")
    layer = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    x = torch.randn(2, 4)
    expected = layer(x).detach().numpy()
    program = torch.export.export(layer, (x,))
    check(of_object(program), [x.numpy()], [expected])
    torch.export.save(program, tmp_path / "m.pt2")
    check(read_model(tmp_path / "m.pt2", trust_code=True), [x.numpy()], [expected])
    torch.jit.trace(layer, (x,)).save(str(tmp_path / "m.pt"))
    with pytest.raises(InputError, match="TorchScript needs example inputs: give --inputs"):
        convert(str(tmp_path / "m.pt"), trust=True)
    np.savez(tmp_path / "x.npz", x=x.numpy())
    found = convert(str(tmp_path / "m.pt"), trust=True, inputs=str(tmp_path / "x.npz"))
    check(found, [x.numpy()], [expected])
    given = {"example_inputs": x, "dynamic_shapes": ({0: "n"},)}
    found = read_model(tmp_path / "m.pt", trust_code=True, **given)
    assert str(found.graph.inputs[0].shape[0]) == "n"
    check(found, [x.numpy()], [expected])


# What tf2onnx leaves as TensorFlow's


@pytest.mark.parametrize(
    ("operator", "attributes", "expected"),
    [
        ("Erfc", {}, [1.8427, 1.0, 0.1573]),
        ("TFL_GELU", {"approximate": 0}, [-0.15866, 0.0, 0.84134]),
        ("TFL_GELU", {"approximate": 1}, [-0.15881, 0.0, 0.84119]),
    ],
)
def test_operators_of_tensorflow_become_functions(operator, attributes, expected):
    node = onnx.helper.make_node(operator, ["x"], ["y"], **attributes)
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [3]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )
    model = tensorflow._loaded(proto)
    found = Session(model, label="m")({"x": np.array([-1, 0, 1], np.float32)})["y"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    node.op_type = "TFL_CUSTOM"
    with pytest.raises(InputError, match="tf2onnx has no form for TFL_CUSTOM of TensorFlow"):
        tensorflow._loaded(onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", values[:1], values[1:])))  # fmt: skip


def test_types_that_inference_does_not_know_of():
    """LightGBM's scores go through Identity, of which ONNX wants to know the type."""
    model = ir.from_proto(onnx.load(FILES / "lightgbm.onnx"))
    (trees,) = (n for n in model.graph if n.op_type == "TreeEnsembleClassifier")
    assert trees.outputs[1].consumers()
    assert io.load(FILES / "lightgbm.onnx") is not None


def test_the_page_tells_of_every_source_and_extra():
    root = Path(lwqc.__file__).parent.parent
    page = (root / "docs" / "converting.md").read_text()
    for suffix in (
        ".keras",
        ".h5",
        ".tflite",
        ".pt",
        ".pt2",
        ".joblib",
        ".pkl",
        ".ubj",
        ".pdmodel",
    ):
        assert suffix in page
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"`lwqc\[(\w+)\]`", page))
    assert {"torch", "keras", "jax", "sklearn", "boosting", "paddle", "hf"} == named
    assert named | {"data", "parquet"} <= project["optional-dependencies"].keys()
