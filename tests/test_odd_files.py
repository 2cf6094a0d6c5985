"""Every command on files as odd and old exporters write them, checked without lwqc's help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import lwqc
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.model.kept_parts import KEY
from lwqc.passes.cleanup import clean_up
from lwqc.runtime.data import open_data
from tests.odd_files import CASES, EXACT, MLP, mlp, proto, value

NUMBERS = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}  # fmt: skip
# Weight sites that an 8-bit quantization finds; two where nothing is said.
SITES = {
    "inputs_of_ir_3": 2, "convolution_of_ir_3": 0, "question_marks": 2, "uneven_sequence": 2,
    "doubles": 1, "captured_later": 1, "unknown_operators": 1, "overridable": 1,
    "passed_through": 1,
}  # fmt: skip


def session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def feeds(file: Path, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {}
    for info in session(file).get_inputs():
        shape = [d if isinstance(d, int) else 4 for d in info.shape]
        if info.type == "tensor(bool)":
            found[info.name] = np.asarray(seed % 2 == 0)
        elif info.type == "tensor(int64)":
            found[info.name] = rng.integers(1000, 9999, shape)
        else:
            found[info.name] = rng.standard_normal(shape).astype(NUMBERS[info.type])
    return found


def flat(result: Any) -> np.ndarray:
    """All numbers of a result, sequences and maps included."""
    if isinstance(result, dict):
        return np.concatenate([flat(result[k]) for k in sorted(result)])
    if isinstance(result, list):
        return np.concatenate([flat(each) for each in result])
    return np.asarray(result, np.float64).reshape(-1)


def agree(before: Path, after: Path, least: float, exact: tuple[str, ...] = ()) -> None:
    old, new = session(before), session(after)
    assert [o.name for o in new.get_outputs()] == [o.name for o in old.get_outputs()]
    for seed in range(3):
        fed = feeds(before, seed)
        for info, a, b in zip(
            old.get_outputs(), old.run(None, fed), new.run(None, fed), strict=True
        ):
            a, b = flat(a), flat(b)
            assert a.shape == b.shape, info.name
            cosine = a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)
            assert cosine > least or not a.any(), (info.name, cosine)
            if info.name in exact:
                np.testing.assert_array_equal(a, b)


def signature(file: Path) -> tuple[list[bytes], list[bytes]]:
    graph = onnx.load(file).graph
    stored = {t.name for t in graph.initializer}
    old = onnx.load(file).ir_version < 4
    inputs = [v for v in graph.input if not (old and v.name in stored)]
    return tuple([v.SerializeToString() for v in vs] for vs in (inputs, graph.output))


def sound(before: Path, after: Path, least: float, exact: tuple[str, ...] = ()) -> None:
    written = onnx.load(after)
    onnx.checker.check_model(written, full_check=True)
    assert signature(after) == signature(before)
    assert KEY not in {e.key for e in written.metadata_props}
    if "bfloat16" not in {o.type[7:15] for o in session(before).get_outputs()}:
        agree(before, after, least, exact)


@pytest.fixture(params=sorted(CASES))
def odd(request, tmp_path) -> Path:
    path = tmp_path / f"{request.param}.onnx"
    onnx.save(CASES[request.param](), path)
    return path


def test_inspect(run, odd):
    code, text, error = run("inspect", odd, "--json")
    assert (code, error) == (0, "")
    assert '"sites": [' in text


def test_load_and_save(odd, tmp_path):
    io.save(io.load(odd), tmp_path / "o.onnx")
    sound(odd, tmp_path / "o.onnx", 1 - 1e-9)


def test_clean(run, odd, tmp_path, monkeypatch):
    quick(monkeypatch)
    code, _, error = run("compress", odd, "-o", tmp_path / "o.onnx", "--no-quantize")
    if odd.stem == "brain_output":  # random data knows no bfloat16
        assert code in (0, 2), error
        return
    assert code == 0, error
    sound(odd, tmp_path / "o.onnx", 1 - 1e-6)


def test_clean_up(odd, tmp_path):
    io.save(clean_up(io.load(odd)).model, tmp_path / "o.onnx")
    sound(odd, tmp_path / "o.onnx", 1 - 1e-6)


def test_quantize(run, odd, tmp_path):
    out = tmp_path / "o.onnx"
    code, _, error = run("quantize", odd, "-o", out, "--bits", "8", "--no-verify")
    assert code == 0, error
    sound(odd, out, 0.98)
    stored = onnx.load(out).graph.initializer
    codes = [t for t in stored if t.data_type in (2, 3) and np.prod(t.dims) >= 1024]
    assert len(codes) >= SITES.get(odd.stem, 2)


def test_lower(run, odd, tmp_path):
    out = tmp_path / "o.onnx"
    code, _, error = run(
        "lower", odd, "-o", out, "--target", "cuda", "--allow-fallback", "--no-verify"
    )
    assert code == 0, error
    sound(odd, out, 0.98, EXACT.get(odd.stem, ()))


def quick(monkeypatch) -> None:
    """Time everything only as often as it takes."""
    from lwqc.runtime import served, timer

    timed = timer.time_turns
    for module in (timer, served):
        monkeypatch.setattr(module, "time_turns", lambda s, f, **_: timed(s, f, seconds=0, least=1))


def stored(file: Path) -> set[str]:
    return {t.name for t in onnx.load(file).graph.initializer}


def saved(folder: Path, name: str, **changes: Any) -> Path:
    """A case as a file. changes: of fields of the model."""
    built = CASES[name]()
    for field, content in changes.items():
        setattr(built, field, content)
    onnx.save(built, folder / "m.onnx")
    return folder / "m.onnx"


def refused(result, *words: str) -> None:
    code, _, error = result
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    for word in words:
        assert word in error


def test_initializers_of_ir_3_are_constants_and_the_report_says_so(run, tmp_path, monkeypatch):
    quick(monkeypatch)
    out = tmp_path / "o.onnx"
    code, text, _ = run("quantize", saved(tmp_path, "inputs_of_ir_3"), "-o", out, "--json")
    assert code == 0
    assert [n for n in json.loads(text)["notes"] if n.startswith("IR version 3 became 4")]
    assert onnx.load(out).ir_version >= 4
    assert [v.name for v in onnx.load(out).graph.input] == ["x"]


def test_overridable_weights_are_listed_and_an_option_makes_them_constants(run, tmp_path):
    path, out = saved(tmp_path, "overridable"), tmp_path / "o.onnx"
    (left,) = lwqc.inspect(str(path)).sites.skipped
    assert left.name == "w"
    assert "--constant-inputs" in left.reason
    assert len(lwqc.inspect(str(path), constant_inputs=True).sites.sites) == 2
    assert run("quantize", path, "-o", out, "--no-verify")[0] == 0
    assert "w" in stored(out)
    assert run("quantize", path, "-o", out, "--no-verify", "--constant-inputs")[0] == 0
    assert "w" not in stored(out)
    assert [v.name for v in onnx.load(out).graph.input] == ["x"]
    assert len(lwqc.quantize(onnx.load(path), constant_inputs=True).plan.quantize) == 2


def test_why_no_weight_takes_a_format_is_said(run, tmp_path):
    built = CASES["overridable"]()
    built.graph.input.append(value("v", [96, 32]))
    onnx.save(built, tmp_path / "m.onnx")
    result = run("quantize", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    refused(result, "no weight", "w: is also an input", "--constant-inputs", "1 more")
    refused(run("prune", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx"), "--constant-inputs")


def test_float64_weights_are_listed(tmp_path):
    (left,) = lwqc.inspect(str(saved(tmp_path, "doubles"))).sites.skipped
    assert (left.name, "float64" in left.reason) == ("w", True)


def test_nodes_in_a_circle_are_refused(run, tmp_path):
    built = CASES["unsorted"]()
    built.graph.node[-1].input[0] = "r"
    onnx.save(built, tmp_path / "m.onnx")
    refused(run("inspect", tmp_path / "m.onnx"), "m.onnx: graph g: ", "waits for its own result")


def test_nodes_of_functions_and_bodies_are_sorted(tmp_path):
    body = [helper.make_node("Relu", ["h"], ["q"]), helper.make_node("MatMul", ["p", "k"], ["h"])]
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx", 17)]
    layer = helper.make_function("own", "Layer", ["p", "k"], ["q"], body, ids)
    then = helper.make_graph(mlp("x", "t")[::-1], "then", [], [value("t", None)])
    other = helper.make_graph([helper.make_node("Layer", ["x", "w"], ["e"], domain="own")], "else",
                              [], [value("e", None)])  # fmt: skip
    nodes = [helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)]
    inputs = [value("x", ["n", 64]), value("flag", [], onnx.TensorProto.BOOL)]
    built = proto(nodes, inputs, [value("y", None)], MLP, imports=[("", 17), ("own", 1)],
                  functions=[layer])  # fmt: skip
    model = io.from_proto(built)
    (made,) = model.functions.values()
    assert [n.op_type for n in made] == ["MatMul", "Relu"]
    assert [n.op_type for n in model.graph[0].attributes["then_branch"].as_graph()] == [
        "MatMul", "Relu", "MatMul",
    ]  # fmt: skip
    assert [n.op_type for n in built.functions[0].node] == ["Relu", "MatMul"]  # left alone


def test_unknown_sizes_are_no_symbol(tmp_path):
    for name in ("question_marks", "empty_names", "negative_sizes"):
        (first,) = io.load(saved(tmp_path, name)).graph.inputs
        assert [d for d in first.shape if not isinstance(d, int)]
        assert {d.value for d in first.shape if not isinstance(d, int)} == {None}


def test_unknown_sizes_are_given_by_input_and_axis(tmp_path):
    model = io.load(saved(tmp_path, "question_marks"))
    sizes = {"x:0": 2, "x:2": 12}
    assert open_data("random:1", model, shapes=sizes).first()["x"].shape == (2, 3, 12, 16)
    with pytest.raises(InputError, match=r"shape x:1.*expected one of x:0, x:2, x:3"):
        open_data("random:1", model, shapes={"x:1": 3})


def test_data_of_a_model_whose_sizes_have_no_names(run, tmp_path):
    path, data = saved(tmp_path, "question_marks"), tmp_path / "d.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((6, 3, 10, 14)).astype(np.float32))
    code, text, error = run("verify", path, path, "--data", data, "--json")
    assert code == 0, error
    assert json.loads(text)["drop"] == 0


def test_data_that_contradicts_the_names_of_sizes(tmp_path):
    """The runtime does not compare sizes of one name, so data of two sizes is good."""
    inputs = [value("x", ["s", 64]), value("z", ["s", 3])]
    outputs = [value("y", ["s", 32]), value("t", ["s", 3])]
    nodes = [*mlp(), helper.make_node("Tanh", ["z"], ["t"])]
    onnx.save(proto(nodes, inputs, outputs, MLP), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    fed = [
        {n: rng.standard_normal(s).astype(np.float32) for n, s in (("x", (5, 64)), ("z", (2, 3)))}
    ]
    done = lwqc.quantize(tmp_path / "m.onnx", data=iter(fed))
    assert {d.value for v in done.work.model.graph.inputs for d in v.shape[:1]} == {None}
    io.save(done.model, tmp_path / "o.onnx")
    assert signature(tmp_path / "o.onnx") == signature(tmp_path / "m.onnx")
    nodes[-1] = helper.make_node("MatMul", ["q", "z"], ["t"])  # here they are one size
    nodes.insert(0, helper.make_node("Transpose", ["x"], ["q"], perm=[1, 0]))
    outputs[1] = value("t", [64, 3])
    onnx.save(proto(nodes, inputs, outputs, MLP), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="dimension s is 2, elsewhere 5"):
        lwqc.quantize(tmp_path / "m.onnx", data=iter(fed))


def test_annotations_stay_with_tensors_that_exist(run, tmp_path):
    path, out = saved(tmp_path, "annotated"), tmp_path / "o.onnx"
    seen = 0
    for arguments in (["quantize", path], ["lower", path, "--target", "cuda"]):
        assert run(*arguments, "-o", out, "--no-verify")[0] == 0
        after = onnx.load(out).graph
        if "a" in {n for made in after.node for n in made.output}:
            (note,) = after.quantization_annotation
            assert note.tensor_name == "a"
            found = {e.key: e.value for e in note.quant_parameter_tensor_names}
            assert list(found) == ["SCALE_TENSOR", "ZERO_POINT_TENSOR"]
            held = {t.name: numpy_helper.to_array(t) for t in after.initializer}
            assert [held[name] for name in found.values()] == [np.float32(0.1), 3]
            seen += 1
    assert seen
    built = onnx.load(path)
    built.graph.quantization_annotation[0].tensor_name = "w"  # which becomes codes
    onnx.save(built, path)
    assert run("quantize", path, "-o", out, "--no-verify")[0] == 0
    assert not onnx.load(out).graph.quantization_annotation
    assert not {"a/scale", "a/zero"} & stored(out)


def test_nodes_that_make_maps_come_back_bit_for_bit(run, tmp_path):
    path, out = saved(tmp_path, "map_of_numbers"), tmp_path / "o.onnx"
    assert run("quantize", path, "-o", out, "--no-verify")[0] == 0
    makers = [
        [n.SerializeToString() for n in onnx.load(f).graph.node if n.op_type == "ZipMap"]
        for f in (path, out)
    ]
    assert len(makers[0]) == 1
    assert makers[0] == makers[1]
    code, text, _ = run("verify", path, out, "--json")
    assert code == 0
    assert json.loads(text)["outputs"]["probabilities"]["cosine_mean"] > 0.99


def test_maps_that_the_rest_reads_are_refused(run, tmp_path):
    built = CASES["map_of_numbers"]()
    built.graph.node.append(
        helper.make_node("CastMap", ["m"], ["back"], domain="ai.onnx.ml", cast_to="TO_FLOAT")
    )
    built.graph.value_info.append(
        helper.make_value_info(
            "m",
            helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, [])),
        )
    )
    built.graph.node.append(helper.make_node("Relu", ["back"], ["z"]))
    built.graph.output.append(value("z", None))
    onnx.save(built, tmp_path / "m.onnx")
    refused(run("inspect", tmp_path / "m.onnx"), "value back: is made of a map")
    built = CASES["unsorted"]()
    built.graph.input[0].type.CopyFrom(built.graph.input[0].type)
    built.graph.input[0].type.map_type.key_type = 7
    onnx.save(built, tmp_path / "m.onnx")
    refused(run("inspect", tmp_path / "m.onnx"), "input x: is a map")


@pytest.mark.parametrize("name", ["uneven_sequence", "even_sequence", "optional_value"])
def test_outputs_that_are_no_tensors_are_compared(run, tmp_path, name):
    path, out = saved(tmp_path, name), tmp_path / "o.onnx"
    assert run("quantize", path, "-o", out, "--bits", "4", "--no-verify")[0] == 0
    code, text, error = run("verify", path, out, "--json")
    assert code == 0, error
    assert 0 < json.loads(text)["drop"] < 0.1


def test_inputs_that_are_no_tensors_are_refused(run, tmp_path):
    nodes = [helper.make_node("SequenceAt", ["s", "i"], ["x"]), *mlp()]
    stored = [*MLP, numpy_helper.from_array(np.asarray(0), "i")]
    inputs = [helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, ["n", 64])]
    path = tmp_path / "m.onnx"
    onnx.save(proto(nodes, inputs, [value("y", ["n", 32])], stored), path)
    refused(run("quantize", path, "-o", tmp_path / "o.onnx"), "input s: is no tensor")
    assert run("quantize", path, "-o", tmp_path / "o.onnx", "--no-verify")[0] == 0


FLAGS = """<ir_version: 8, opset_import: ["": 17]>
flags (float[2, 4] x, bool flag, int64[1] choice, int64 count, bool[2, 4] mask) => (float[2, 4] y) {
    chosen = Cast<to = 9>(choice)
    only = Squeeze(chosen)
    no = Not(flag)
    a = If(no)<then_branch = t () => (float[2, 4] b) { b = Relu(x) },
               else_branch = e () => (float[2, 4] c) { c = Neg(x) }>
    d = If(only)<then_branch = t () => (float[2, 4] f) { f = Relu(a) },
                 else_branch = e () => (float[2, 4] g) { g = Neg(a) }>
    more = Cast<to = 1>(count)
    h = Mul(d, more)
    y = Where(mask, h, x)
}"""


def test_every_combination_of_flags_occurs():
    feeds = list(open_data("random:8", ir.from_onnx_text(FLAGS)))
    first = feeds[0]
    assert bool(first["flag"])
    assert first["choice"] == [1]
    assert len({(bool(f["flag"]), int(f["choice"][0])) for f in feeds[:4]}) == 4
    assert {int(f["count"]) for f in feeds} == {1}
    masks = np.stack([f["mask"] for f in feeds])
    assert masks[..., 0].all()
    assert 0.7 < masks.mean() < 1


def test_bfloat16_goes_in_and_out(tmp_path):
    path = saved(tmp_path, "brain_output")
    fed = {"z": np.random.default_rng(0).standard_normal((3, 64)).astype(ml_dtypes.bfloat16)}
    found = lwqc.verify(str(path), str(path), data=[fed])
    assert found["y"].cosine_mean == pytest.approx(1)


def test_statistics_of_an_old_opset(run, tmp_path):
    """Flatten counts its axis from the start before opset 11."""
    path, out = saved(tmp_path, "inputs_of_ir_3"), tmp_path / "o.onnx"
    data = ["--method", "gptq", "--data", "random:2"]
    code, _, error = run("quantize", path, "-o", out, "--no-verify", *data)
    assert code == 0, error
    sound(path, out, 0.98)
