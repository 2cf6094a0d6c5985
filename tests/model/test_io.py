from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lwqc.errors import InputError
from lwqc.model import io
from lwqc.model.scratch import beside
from lwqc.runtime.session import Session

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((16, 32)).astype(np.float32)


def linear_proto(weight: np.ndarray = WEIGHT) -> onnx.ModelProto:
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def external_proto(location: str = "m.data", **entries: str) -> onnx.ModelProto:
    proto = linear_proto()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return proto


def write(folder: Path, proto: onnx.ModelProto, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def refused(path: Path, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern) as caught:
        io.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Load: the file


def test_load_refuses_what_is_not_a_model_file(tmp_path: Path) -> None:
    whole = linear_proto().SerializeToString()
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("this is not a model\n" * 20)
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "missing", "no such file")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "empty", "is empty")
    refused(tmp_path / "text", "not an ONNX")
    refused(tmp_path / "cut", "cut short")
    refused(tmp_path / "other", "no graph")
    refused(tmp_path / "pipe", "not a regular file")


def test_load_refuses_over_2_gb_without_reading(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(2**31 + 10)
    refused(tmp_path / "big", "over the 2 GB")


@pytest.mark.parametrize("opset", [0, 6, 27, 2**40])
def test_load_refuses_opsets(tmp_path: Path, opset: int) -> None:
    proto = linear_proto()
    proto.opset_import[0].version = opset
    refused(write(tmp_path, proto), f"opset {opset} is not supported; expected 7 to 26")


@pytest.mark.parametrize("version", [-1, 2**31, 2**40])
@pytest.mark.parametrize("inside", [False, True])
def test_load_refuses_versions_that_are_no_c_integers(
    tmp_path: Path, version: int, inside: bool
) -> None:
    proto = linear_proto()
    owner = proto.functions.add(name="f", domain="own") if inside else proto
    owner.opset_import.add(domain="own", version=version)
    refused(write(tmp_path, proto), f"version {version} of domain 'own' is not supported")


@pytest.mark.parametrize("opset", [7, 26])
def test_load_accepts_opsets(tmp_path: Path, opset: int) -> None:
    proto = linear_proto()
    proto.opset_import[0].version = opset
    assert io.load(write(tmp_path, proto)).opset_imports[""] == opset


@pytest.mark.parametrize("version", [0, 2, onnx.IR_VERSION + 1])
def test_load_refuses_ir_versions(tmp_path: Path, version: int) -> None:
    proto = linear_proto()
    proto.ir_version = version
    refused(write(tmp_path, proto), f"IR version {version}")


def test_load_refuses_what_the_ir_would_drop(tmp_path: Path) -> None:
    proto = linear_proto()
    proto.training_info.add()
    refused(write(tmp_path, proto), "training information")
    proto = linear_proto()
    proto.graph.sparse_initializer.add().values.name = "s"
    refused(write(tmp_path, proto), "tensor s: sparse")


def test_duplicate_initializers_give_no_traceback(tmp_path: Path) -> None:
    proto = linear_proto()
    proto.graph.initializer.append(proto.graph.initializer[0])
    path = write(tmp_path, proto)
    with contextlib.suppress(InputError):
        io.load(path)


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    content = linear_proto().SerializeToString()
    path.write_bytes(content.replace(b"matmul", b"ma\xff\xfeul").replace(b"B\x01w", b"B\x01\xff"))
    refused(path, "not a valid ONNX model|not an ONNX")


# Load: tensors


def _tensor(**fields: object) -> TensorProto:
    return TensorProto(name="w", **fields)


@pytest.mark.parametrize(
    ("tensor", "pattern"),
    [
        (_tensor(data_type=1, dims=[16, 32], raw_data=b"1234"), "has 4 bytes.* needs 2048"),
        (_tensor(data_type=1, dims=[2**40, 2**40], raw_data=b"1234"), "no tensor is as large"),
        (_tensor(data_type=1, dims=[2**62, 0], raw_data=b""), "no tensor is as large"),
        (_tensor(data_type=1, dims=[-1, 32], raw_data=b""), "negative dimension"),
        (_tensor(data_type=1, dims=[3], float_data=[1, 2]), "2 values in float_data.* needs 3"),
        (_tensor(data_type=7, dims=[3], int32_data=[1, 2, 3]), "0 values in int64_data"),
        (_tensor(data_type=22, dims=[5], raw_data=b"12"), "has 2 bytes.* needs 3"),
        (_tensor(data_type=22, dims=[5], int32_data=[1]), "needs 3"),
        (_tensor(data_type=8, dims=[2], string_data=[b"a"]), "has 1 strings"),
        (_tensor(data_type=99, dims=[1], raw_data=b"1"), "unknown element type 99"),
        (_tensor(dims=[1], raw_data=b"1"), "no element type"),
    ],
)
@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph", "function"])
def test_load_refuses_tensors(
    tmp_path: Path, tensor: TensorProto, pattern: str, place: str
) -> None:
    proto = linear_proto()
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    if place == "initializer":
        proto.graph.initializer[0].CopyFrom(tensor)
    elif place == "constant":
        proto.graph.node.insert(0, constant)
    elif place == "function":
        proto.functions.add(name="f", domain="d").node.append(constant)
    else:
        node = proto.graph.node.add(op_type="If", output=["z"], input=["x"])
        body = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
        body.initializer.append(tensor)
    refused(write(tmp_path, proto), f"tensor w: .*{pattern}")


def test_load_refuses_deep_subgraphs(tmp_path: Path) -> None:
    def field(tag: int, content: bytes) -> bytes:
        size = len(content)
        return bytes([tag, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + content

    graph = b""
    for _ in range(500):  # onnx cannot build what it cannot parse, so by hand: graph < attribute
        graph = field(0x0A, field(0x2A, field(0x32, graph)))
    path = tmp_path / "m.onnx"
    path.write_bytes(linear_proto().SerializeToString() + field(0x3A, graph))
    refused(path, "not an ONNX file|nested too deep")


# Load: external data


@pytest.mark.parametrize(
    ("entries", "pattern"),
    [
        ({"offset": "1"}, "has 2048 bytes, the tensor ends at 2049"),
        ({"offset": "9223372036854775807"}, "the tensor ends at"),
        ({"offset": "-4"}, "is no number"),
        ({"offset": "9" * 5000}, "is no number"),
        ({"offset": "1_0"}, "is no number"),
        ({"length": "-2048"}, "is no number"),
        ({"length": "0"}, "length 0; its shape needs 2048"),
        ({"length": "2047"}, "length 2047"),
        ({"length": "18446744073709551616"}, "is no number"),
    ],
)
def test_load_refuses_external_ranges(
    tmp_path: Path, entries: dict[str, str], pattern: str
) -> None:
    (tmp_path / "m.data").write_bytes(WEIGHT.tobytes())
    refused(write(tmp_path, external_proto(**entries)), f"tensor w: .*{pattern}")


@pytest.mark.parametrize(
    ("location", "pattern"),
    [
        ("", "names no file"),
        ("gone.data", "does not exist"),
        ("../m.data", "outside the model's folder"),
        ("sub/../../m.data", "outside the model's folder"),
        ("/etc/passwd", "outside the model's folder"),
        ("..\\m.data", "outside the model's folder"),
        ("a\0b", "outside the model's folder"),
        ("x" * 5000, "cannot be opened"),
        (".", "not a file"),
        ("pipe", "not a file"),
        ("loop", "does not exist|cannot be opened"),
        ("out", "link out of the model's folder"),
        ("outfolder/secret", "link out of the model's folder"),
        ("hard", "hard links"),
    ],
)
def test_load_refuses_locations(tmp_path: Path, location: str, pattern: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "outfolder").symlink_to(tmp_path)
    (tmp_path / "other").write_bytes(WEIGHT.tobytes())
    (folder / "hard").hardlink_to(tmp_path / "other")
    refused(write(folder, external_proto(location)), f"tensor w: .*{pattern}")


def test_load_external_in_subfolder_and_inner_link(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w").write_bytes(b"pad!" + WEIGHT.tobytes())
    (tmp_path / "link").symlink_to("sub/w")
    for location in ("sub/w", "link"):
        model = io.load(write(tmp_path, external_proto(location, offset="4", length="2048")))
        tensor = model.graph.initializers["w"].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        np.testing.assert_array_equal(io.read_array(tensor), WEIGHT)
        np.testing.assert_array_equal(tensor.numpy(), WEIGHT)  # onnx_ir's own checks pass too


def test_load_from_a_cache_of_blobs(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "b2").write_bytes(WEIGHT.tobytes())
    write(blobs, external_proto(), "b1")
    (snapshot / "m.onnx").symlink_to("../blobs/b1")
    (snapshot / "m.data").symlink_to("../blobs/b2")
    tensor = io.load(snapshot / "m.onnx").graph.initializers["w"].const_value
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)


def test_load_through_link_with_data_beside_the_real_file(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "m.data").write_bytes(WEIGHT.tobytes())
    write(real, external_proto())
    (tmp_path / "m.onnx").symlink_to("real/m.onnx")
    tensor = io.load(tmp_path / "m.onnx").graph.initializers["w"].const_value
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.data").write_bytes(WEIGHT.tobytes())
    write(tmp_path, external_proto())
    monkeypatch.chdir(tmp_path)
    tensor = io.load("m.onnx").graph.initializers["w"].const_value
    np.testing.assert_array_equal(io.read_array(tensor), WEIGHT)


def test_data_cut_after_loading_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "m.data").write_bytes(WEIGHT.tobytes())
    model = io.load(write(tmp_path, external_proto()))
    tensor = model.graph.initializers["w"].const_value
    os.truncate(tmp_path / "m.data", 100)
    with pytest.raises(InputError, match="tensor w: the file was cut short"):
        io.read_array(tensor)
    (tmp_path / "m.data").unlink()
    with pytest.raises(InputError, match="tensor w: cannot be read"):
        io.read_array(tensor)
    with pytest.raises(InputError, match="tensor w: cannot be read"):
        io.save(model, tmp_path / "out.onnx")
    assert leftovers(tmp_path) == ["m.onnx"]


# Fuzz: nothing but InputError


@pytest.fixture(scope="module")
def fuzz_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "m.data").write_bytes(WEIGHT.tobytes())
    return folder / "m.onnx"


def _loads_or_refuses(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        model = io.load(path)
    except InputError:
        return
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            io.read_array(value.const_value)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzz(fuzz_file: Path, data: st.DataObject) -> None:
    small = WEIGHT[:4, :4]
    whole = data.draw(st.sampled_from([RICH, external_proto("m.data", offset="0"), None]))
    content = bytearray((whole or linear_proto(small)).SerializeToString())
    place = st.integers(0, len(content) - 1)
    for at in data.draw(st.lists(place, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), place))
    _loads_or_refuses(fuzz_file, bytes(content[:cut]))


# Save: nothing is lost


def rich_proto() -> onnx.ModelProto:
    """A model with everything that must survive: types, names, docs, metadata, functions."""
    floats = RNG.standard_normal(37).astype(np.float32)
    tensors = [
        numpy_helper.from_array(WEIGHT, "w"),
        numpy_helper.from_array(floats.astype(ml_dtypes.bfloat16), "bf16"),
        numpy_helper.from_array(floats.astype(ml_dtypes.float8_e4m3fn), "f8"),
        numpy_helper.from_array(np.arange(-8, 7).astype(ml_dtypes.int4), "i4"),
        numpy_helper.from_array(np.arange(15).astype(ml_dtypes.uint4), "u4"),
        numpy_helper.from_array(floats.astype(ml_dtypes.float4_e2m1fn), "f4"),
        numpy_helper.from_array(np.array(["a", "bc"], object), "s"),
        numpy_helper.from_array(np.zeros((0, 3), np.int64), "none"),
        helper.make_tensor("listed", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("scalar", TensorProto.FLOAT16, [], [1.5]),
    ]
    tensors[0].doc_string = "weights"
    tensors[0].metadata_props.add(key="from", value="layer 1")
    body = helper.make_graph(
        [helper.make_node("Add", ["y", "one"], ["then_out"], name="add")],
        "then",
        [],
        [helper.make_tensor_value_info("then_out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(1), "one")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["y"], ["else_out"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_out", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="matmul", doc_string="the product"),
        helper.make_node("Twice", ["m"], ["y"], domain="local", name="twice"),
        helper.make_node("If", ["flag"], ["z"], then_branch=body, else_branch=other),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT, "")),
    ]
    nodes[0].metadata_props.add(key="namespace", value="encoder")
    info = helper.make_tensor_value_info("m", TensorProto.FLOAT, ["batch", 32])
    info.metadata_props.add(key="value", value="prop")
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16], "an input"),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        helper.make_tensor_value_info("scalar", TensorProto.FLOAT16, []),
    ]
    outputs = [
        helper.make_tensor_value_info("z", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32]),
    ]
    graph = helper.make_graph(
        nodes, "rich", inputs, outputs, tensors, doc_string="graph doc", value_info=[info]
    )
    graph.metadata_props.add(key="graph", value="prop")
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    model = helper.make_model(
        graph,
        functions=[twice],
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("local", 3)],
        ir_version=11,
        producer_name="me",
        producer_version="1.2",
        domain="org.example",
        model_version=7,
        doc_string="model doc",
    )
    helper.set_model_props(model, {"author": "x", "license": "y"})
    return model


RICH = rich_proto()


def normal(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without the value_info that onnx_ir adds for initializers."""
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    infos = sorted(out.graph.value_info, key=lambda v: v.name)
    known = {v.name for v in RICH.graph.value_info}
    del out.graph.value_info[:]
    out.graph.value_info.extend(v for v in infos if v.name in known)
    for node in out.graph.node:
        node.attribute.sort(key=lambda a: a.name)
        for attribute in node.attribute:
            del attribute.g.value_info[:]
    return out


def test_inline_round_trip_is_the_same_proto(tmp_path: Path) -> None:
    saved = io.save(io.load(write(tmp_path, RICH)), tmp_path / "out.onnx")
    assert saved.data_path is None
    assert saved.size_bytes == saved.path.stat().st_size
    assert normal(onnx.load(saved.path)) == normal(RICH)
    assert io.to_bytes(io.load(saved.path)) == saved.path.read_bytes()


def test_external_round_trip_is_the_same_model(tmp_path: Path) -> None:
    first = io.load(write(tmp_path, RICH))
    saved = io.save(first, tmp_path / "out.onnx", external_data=True)
    assert saved.data_path is not None
    assert saved.data_path.parent == tmp_path
    second = io.load(saved.path)
    assert isinstance(second.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert io.model_digest(second) == io.model_digest(first)
    inlined = io.save(second, tmp_path / "again.onnx", external_data=False)
    assert inlined.data_path is None
    assert normal(onnx.load(inlined.path)) == normal(RICH)


def test_every_type_survives_external_storage(tmp_path: Path) -> None:
    tensors = {
        dtype: RNG.integers(0, 256, -(-777 * dtype.bitwidth // 8), np.uint8)
        for dtype in ir.DataType
        if dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING, ir.DataType.BOOL)
        and dtype.bitwidth != 6  # onnxruntime 1.31 has no such types
    }
    proto = linear_proto()
    for dtype, raw in tensors.items():
        if (rest := 777 * dtype.bitwidth % 8) != 0:
            raw[-1] &= (1 << rest) - 1
        proto.graph.initializer.add(
            name=dtype.name, data_type=dtype.value, dims=[777], raw_data=raw.tobytes()
        )
    model = io.load(write(tmp_path, proto))
    external = io.load(io.save(model, tmp_path / "e.onnx", external_data=True).path)
    inline = io.load(io.save(external, tmp_path / "i.onnx").path)
    for dtype, raw in tensors.items():
        stored = inline.graph.initializers[dtype.name].const_value
        assert stored.tobytes() == raw.tobytes(), dtype
        kept = external.graph.initializers[dtype.name].const_value
        array = io.read_array(kept)
        assert array.tobytes() == stored.numpy().tobytes(), dtype
        assert array.shape == (777,)
        if isinstance(kept, ir.ExternalTensor):
            rows = io.read_rows(kept, 13, 700)
            assert rows.tobytes() == array[13:700].tobytes(), dtype


def test_read_rows(tmp_path: Path) -> None:
    codes = RNG.integers(0, 16, (40, 33)).astype(ml_dtypes.uint4)  # rows begin within a byte
    model = io.load(write(tmp_path, linear_proto(RNG.random((40, 33), np.float32))))
    model.graph.initializers["w"].const_value = ir.tensor(codes, name="w")
    loaded = io.load(io.save(model, tmp_path / "o.onnx", external_data=True).path)
    tensor = loaded.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    for start, stop in ((0, 40), (1, 2), (7, 30), (5, 5), (39, 40)):
        rows = io.read_rows(tensor, start, stop)
        np.testing.assert_array_equal(rows.astype(int), codes[start:stop].astype(int))
    with pytest.raises(ValueError, match="not within"):
        io.read_rows(tensor, 3, 41)


def test_external_tensors_of_subgraphs_and_attributes_are_inlined(tmp_path: Path) -> None:
    proto = RICH.__deepcopy__()
    source = tmp_path / "source"
    source.mkdir()
    (source / "c.data").write_bytes(WEIGHT.tobytes() + np.float32(1).tobytes())
    constant = proto.graph.node[3].attribute[0].t
    branch = next(a for a in proto.graph.node[2].attribute if a.name == "then_branch")
    for tensor, offset in ((constant, 0), (branch.g.initializer[0], 2048)):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="c.data")
        tensor.external_data.add(key="offset", value=str(offset))
    model = io.load(write(source, proto))
    saved = io.save(model, tmp_path / "out.onnx")
    assert normal(onnx.load(saved.path)) == normal(RICH)
    assert io.model_digest(model) == io.model_digest(io.load(saved.path))


def test_runs_in_onnxruntime(tmp_path: Path) -> None:
    import onnxruntime as ort

    model = io.load(write(tmp_path, linear_proto()))
    x = RNG.standard_normal((3, 16)).astype(np.float32)
    for external in (False, True):
        saved = io.save(model, tmp_path / f"{external}.onnx", external_data=external)
        session = ort.InferenceSession(saved.path, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ WEIGHT, atol=1e-5)


def lazy(function: Callable[[], np.ndarray], like: np.ndarray = WEIGHT) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.tensor(function()), dtype=ir.DataType.FLOAT, shape=ir.Shape(like.shape)
    )


@pytest.mark.parametrize("external", [False, True])
def test_lazy_weights_are_evaluated_once(tmp_path: Path, external: bool) -> None:
    calls: list[int] = []

    def weight() -> np.ndarray:
        calls.append(1)
        return WEIGHT * 2

    model = io.load(write(tmp_path, linear_proto()))
    tensor = lazy(weight)
    model.graph.initializers["w"].const_value = tensor
    saved = io.save(model, tmp_path / "o.onnx", external_data=external, workers=2)
    assert len(calls) == 1
    assert model.graph.initializers["w"].const_value is tensor
    stored = io.load(saved.path).graph.initializers["w"].const_value
    np.testing.assert_array_equal(io.read_array(stored), WEIGHT * 2)


def test_bytes_in_flight_are_bounded(tmp_path: Path) -> None:
    made: list[int] = []
    model = io.load(write(tmp_path, linear_proto()))
    for i in range(20):
        value = ir.Value(name=f"v{i}", const_value=lazy(lambda i=i: made.append(i) or WEIGHT))
        model.graph.initializers.add(value)
    from lwqc.model.tensor_bytes import evaluated

    tensors = [v.const_value for v in model.graph.initializers.values()][1:]
    stream = evaluated(tensors, 2, 4 * WEIGHT.nbytes)
    for position in range(5):
        next(stream)
        assert len(made) <= position + 5
    stream.close()


def test_serialized_bytes_is_close_and_evaluates_nothing(tmp_path: Path) -> None:
    model = io.load(write(tmp_path, RICH))
    saved = io.save(model, tmp_path / "o.onnx")
    assert abs(io.serialized_bytes(model) - saved.size_bytes) < 60 * len(model.graph.initializers)
    model.graph.initializers["w"].const_value = lazy(lambda: pytest.fail("evaluated"))
    io.serialized_bytes(model)
    io.weight_bytes(model)


def test_over_2_gb_inline_is_refused_before_evaluation(tmp_path: Path) -> None:
    model = io.load(write(tmp_path, linear_proto()))
    huge = ir.LazyTensor(
        lambda: pytest.fail("evaluated"), dtype=ir.DataType.FLOAT, shape=ir.Shape([2**15, 2**15])
    )
    model.graph.initializers["w"].const_value = huge
    with pytest.raises(InputError, match="over the 2 GB"):
        io.to_bytes(model)
    with pytest.raises(InputError, match="over the 2 GB"):
        io.save(model, tmp_path / "o.onnx", external_data=False)
    assert leftovers(tmp_path) == ["m.onnx"]


def test_digest(tmp_path: Path) -> None:
    model = io.load(write(tmp_path, linear_proto()))
    digest = io.model_digest(model)
    script = (
        f"from lwqc.model import io; print(io.model_digest(io.load({str(tmp_path / 'm.onnx')!r})))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    changed = WEIGHT.copy()
    changed[3, 3] = np.nextafter(changed[3, 3], 9)
    assert io.model_digest(io.load(write(tmp_path, linear_proto(changed)))) != digest
    model.graph.node("matmul").name = "other"
    assert io.model_digest(model) != digest


def test_detached_needs_no_files(tmp_path: Path) -> None:
    saved = io.save(io.load(write(tmp_path, RICH)), tmp_path / "o.onnx", external_data=True)
    model = io.load(saved.path)
    digest = io.model_digest(model)
    io.detached(model)
    assert saved.data_path is not None
    saved.data_path.unlink()
    assert io.model_digest(model) == digest


# Save: where to


def test_check_output(tmp_path: Path) -> None:
    path = write(tmp_path, linear_proto())
    (tmp_path / "soft.onnx").symlink_to("m.onnx")
    (tmp_path / "hard.onnx").hardlink_to(path)
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for target, inputs, pattern in (
        (tmp_path, [], "is a folder"),
        (tmp_path / "no" / "m.onnx", [], "does not exist"),
        (tmp_path / "m.onnx" / "m.onnx", [], "does not exist"),
        (path, [path], "is read as an input"),
        (tmp_path / "soft.onnx", [path], "is read as an input"),
        (tmp_path / "hard.onnx", [path], "is read as an input"),
        (tmp_path / "pipe", [], "not a regular file"),
        (Path("/dev/null"), [], "not a regular file"),
        (Path("/proc/m.onnx"), [], "not writable"),
        (tmp_path / ("x" * 300), [], "cannot be written"),
        (tmp_path / "loop", [], "loop"),
    ):
        with pytest.raises(InputError, match=pattern) as caught:
            io.check_output(target, inputs)
        assert "\n" not in str(caught.value)
    before = leftovers(tmp_path)
    io.check_output(tmp_path / "new.onnx", [path, tmp_path / "gone"])
    assert leftovers(tmp_path) == before


def test_a_link_at_the_target_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.onnx").symlink_to("real/m.onnx")
    model = io.load(write(tmp_path, linear_proto()))
    saved = io.save(model, tmp_path / "link.onnx", external_data=True)
    assert (tmp_path / "link.onnx").is_symlink()
    assert saved.path == tmp_path / "real" / "m.onnx"
    assert io.model_digest(io.load(tmp_path / "link.onnx")) == io.model_digest(model)


def test_replacing_never_mixes_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = io.load(write(tmp_path, linear_proto()))
    second = io.load(write(tmp_path, linear_proto(WEIGHT + 1)))
    target = tmp_path / "out.onnx"
    io.save(first, target, external_data=True)
    before = leftovers(tmp_path)
    replace = os.replace

    def fail_on_model(source: Path, destination: Path) -> None:
        if destination == target:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_on_model)
        with pytest.raises(InputError, match="Input/output error"):
            io.save(second, target, external_data=True)
    assert leftovers(tmp_path) == before
    assert io.model_digest(io.load(target)) == io.model_digest(first)

    saved = io.save(second, target, external_data=True)
    assert saved.data_path != tmp_path / "out.onnx.data"
    assert leftovers(tmp_path) == ["m.onnx", "out.onnx", saved.data_path.name]
    assert io.model_digest(io.load(target)) == io.model_digest(second)
    content = saved.path.read_bytes(), saved.data_path.read_bytes()
    io.save(first, target, external_data=True)
    io.save(second, tmp_path / "out.onnx", external_data=True)
    assert (saved.path.read_bytes(), saved.data_path.read_bytes()) == content


def test_saving_over_itself_keeps_what_is_still_read(tmp_path: Path) -> None:
    io.save(io.load(write(tmp_path, linear_proto())), tmp_path / "o.onnx", external_data=True)
    model = io.load(tmp_path / "o.onnx")
    digest = io.model_digest(model)
    for external in (True, False, True):
        io.save(model, tmp_path / "o.onnx", external_data=external)
        assert io.model_digest(model) == digest
        assert io.model_digest(io.load(tmp_path / "o.onnx")) == digest


def test_foreign_data_files_are_kept(tmp_path: Path) -> None:
    model = io.load(write(tmp_path, linear_proto()))
    (tmp_path / "out.onnx.data").write_bytes(b"somebody's")
    (tmp_path / "out.onnx").write_text("not a model")
    saved = io.save(model, tmp_path / "out.onnx", external_data=True)
    assert (tmp_path / "out.onnx.data").read_bytes() == b"somebody's"
    assert saved.data_path is not None
    assert re.fullmatch(r"out\.onnx\.[0-9a-f]{16}\.data", saved.data_path.name)


# Save: failures


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, MemoryError, OSError])
def test_an_exception_leaves_nothing(
    tmp_path: Path, external: bool, kind: type[BaseException]
) -> None:
    def fail() -> np.ndarray:
        raise kind("lazy")

    model = io.load(write(tmp_path, linear_proto()))
    model.graph.initializers["w"].const_value = lazy(fail)
    with pytest.raises(kind, match="lazy"):
        io.save(model, tmp_path / "out.onnx", external_data=external)
    assert leftovers(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("external", [False, True])
def test_disk_full(tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write half way, as a full disk does."""
    model = io.load(write(tmp_path, linear_proto(RNG.random((512, 2048), np.float32))))
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # Python 3.11 leaves half of it
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written: File too large") as caught:
            io.save(model, tmp_path / "out.onnx", external_data=external)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 2
    assert leftovers(tmp_path) == ["m.onnx"]


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = io.load(write(tmp_path, linear_proto()))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"out\.onnx: .*No space left on device"):
        io.save(model, tmp_path / "out.onnx", external_data=True)
    assert leftovers(tmp_path) == ["m.onnx"]


SLOW_SAVE = """
    import sys, time
    import numpy as np, onnx_ir as ir
    from lwqc.model import io

    def slow():
        print("saving", flush=True)
        time.sleep(0.3 if {signal!r} != "SIGKILL" else 60)
        return ir.tensor(np.ones((16, 32), np.float32))

    model = io.load({source!r})
    for i in range(4):
        tensor = ir.LazyTensor(slow, dtype=ir.DataType.FLOAT, shape=ir.Shape([16, 32]))
        model.graph.initializers.add(ir.Value(name=f"v{{i}}", const_value=tensor))
    io.save(model, {target!r}, external_data={external})
"""


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_interrupted_save(tmp_path: Path, name: str, external: bool) -> None:
    source = write(tmp_path, linear_proto())
    target = tmp_path / "out.onnx"
    model = io.load(source)
    io.save(model, target, external_data=external)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    script = textwrap.dedent(SLOW_SAVE).format(
        signal=name, source=str(source), target=str(target), external=external
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=30) != 0
    after = leftovers(tmp_path)
    assert {n: (tmp_path / n).read_bytes() for n in before} == before
    extra = sorted(set(after) - set(before))
    if name == "SIGKILL":
        assert extra
        assert all(re.fullmatch(r"\.out\.onnx\.lwqc-\d+-\w{8}\.tmp", n) for n in extra)
        io.save(model, target, external_data=external)
        assert not [n for n in leftovers(tmp_path) if n.endswith(".tmp")]
    else:
        assert not extra


def test_temporaries_of_living_processes_and_other_targets_stay(tmp_path: Path) -> None:
    model = io.load(write(tmp_path, linear_proto()))
    living = beside(tmp_path / "out.onnx")
    kept = [".other.onnx.lwqc-999999999-0123abcd.tmp", ".out.onnx.lwqc-mine.tmp"]
    # The next process in a container may have the number of the one that was killed.
    left = [
        f".out.onnx.lwqc-{os.getpid()}-0123abcd.tmp",
        ".out.onnx.lwqc-999999999-0123abcd.data.tmp",
    ]
    for name in [*kept, *left]:
        (tmp_path / name).touch()
    (tmp_path / ".out.onnx.lwqc-1-00000000.tmp").mkdir()
    (tmp_path / ".out.onnx.lwqc-2-00000000.tmp").symlink_to(tmp_path / "m.onnx")
    io.save(model, tmp_path / "out.onnx")
    kept += [living.path.name, ".out.onnx.lwqc-2-00000000.tmp"]
    assert leftovers(tmp_path) == sorted([*kept, "m.onnx", "out.onnx"])
    living.close()
    assert not living.path.exists()


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    first = io.load(write(tmp_path, linear_proto()))
    second = io.load(write(tmp_path, linear_proto(WEIGHT + 1)))
    target = tmp_path / "out.onnx"

    def saved(model: ir.Model) -> dict[str, bytes]:
        io.save(model, target, external_data=True)
        return {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    once = saved(first)
    assert saved(first) == once
    assert saved(second) != once
    assert saved(first) == once


@pytest.mark.parametrize("left", ["out.onnx", "out.onnx.old"])
def test_data_of_a_killed_save_is_removed_by_the_next(tmp_path: Path, left: str) -> None:
    """Killed between the renames of data and model, and between those and the clean-up."""
    first = io.load(write(tmp_path, linear_proto()))
    second = io.load(write(tmp_path, linear_proto(WEIGHT + 1)))
    target, folder = tmp_path / "out.onnx", tmp_path / ".out.onnx.lwqc-5-00000000.tmp"
    orphan = io.save(second, target, external_data=True).data_path
    assert orphan is not None
    model, content = target.read_bytes(), orphan.read_bytes()
    io.save(first, target, external_data=True)
    before = leftovers(tmp_path)
    folder.mkdir()
    (folder / left).write_bytes(model)
    orphan.write_bytes(content)
    io.save(first, target, external_data=True)
    assert leftovers(tmp_path) == before


def test_plan_and_model_keep_their_permissions(tmp_path: Path) -> None:
    model = io.load(write(tmp_path, linear_proto()))
    other = io.load(write(tmp_path, linear_proto(WEIGHT + 1)))
    target, text = tmp_path / "out.onnx", tmp_path / "plan.json"

    def saved(model: ir.Model) -> list[Path]:
        with io.drafted(model, target, external_data=True) as draft:
            draft.add_text(text, "{}")
            made = draft.publish()
        assert made.data_path is not None
        return [target, text, made.data_path]

    for file, mode in zip(saved(model), (0o600, 0o640, 0o604), strict=True):
        file.chmod(mode)
    assert [oct(f.stat().st_mode & 0o777) for f in saved(other)] == ["0o600", "0o640", "0o604"]


def test_what_belongs_together_appears_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = io.load(write(tmp_path, linear_proto()))
    target, text = tmp_path / "out.onnx", tmp_path / "plan.json"
    replace = os.replace

    def attempt(broken: Path) -> None:
        def fail(source: Path, destination: Path) -> None:
            if destination == broken and Path(source).suffix != ".old":
                raise OSError(errno.EIO, "Input/output error")
            replace(source, destination)

        with monkeypatch.context() as patch, io.drafted(model, target) as draft:
            draft.add_text(text, "new")
            patch.setattr(os, "replace", fail)
            with pytest.raises(InputError, match="Input/output error"):
                draft.publish()

    for broken in (target, text):
        attempt(broken)
        assert leftovers(tmp_path) == ["m.onnx"]
    target.write_text("old model")
    text.write_text("old plan")
    for broken in (target, text):
        attempt(broken)
        assert leftovers(tmp_path) == ["m.onnx", "out.onnx", "plan.json"]
        assert (target.read_text(), text.read_text()) == ("old model", "old plan")


def test_a_foreign_file_under_the_name_of_the_data_is_kept(tmp_path: Path) -> None:
    model = io.load(write(tmp_path, linear_proto()))
    out = tmp_path / "out.onnx"
    data = io.save(model, out, external_data=True).data_path
    assert data is not None
    data.write_bytes(b"somebody's")
    out.unlink()
    for there in (None, b"no model"):
        if there is not None:
            out.write_bytes(there)
        with pytest.raises(InputError, match="holds something else"):
            io.save(model, out, external_data=True)
        assert data.read_bytes() == b"somebody's"
        assert (out.read_bytes() if out.exists() else None) == there


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:9] + b"!" + b[10:]])
def test_damaged_data_of_an_earlier_run_is_replaced(tmp_path: Path, damage) -> None:
    model = io.load(write(tmp_path, linear_proto()))
    out = tmp_path / "out.onnx"
    data = io.save(model, out, external_data=True).data_path
    assert data is not None
    whole = data.read_bytes()
    data.write_bytes(damage(whole))
    io.save(model, out, external_data=True)
    assert data.read_bytes() == whole
    assert io.model_digest(io.load(out)) == io.model_digest(model)


MEMORY = """
    import resource, sys
    from lwqc.model import io

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak()
    model = io.load({source!r})
    io.model_digest(model)
    io.save(model, {target!r}, external_data={external})
    print(peak() - before)
"""


def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    proto = linear_proto()
    proto.graph.initializer[0].CopyFrom(external_proto("big.data").graph.initializer[0])
    for i in range(12):
        tensor = proto.graph.initializer.add(name=f"v{i}", data_type=1, dims=[1024, 8192])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="big.data")
        tensor.external_data.add(key="offset", value=str(i << 25))
    with (tmp_path / "big.data").open("wb") as file:
        file.truncate(12 << 25)  # 400 MB, sparse
    source = write(tmp_path, proto)
    for external in (False, True):
        script = textwrap.dedent(MEMORY).format(
            source=str(source), target=str(tmp_path / "out.onnx"), external=external
        )
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert float(out.stdout) < 60, out.stderr  # MB; a weight has 32
        (tmp_path / "out.onnx").unlink()


@pytest.mark.parametrize("shape", [(3,), (64, 64), (1000, 200), (2, 3, 5, 7)])
def test_serialized_bytes_is_a_close_upper_bound(tmp_path, shape):
    weight = np.ones(shape, np.float32)
    built = ir.Model(
        ir.Graph(
            [],
            [],
            nodes=[],
            initializers=[
                ir.Value(
                    name=f"w{i}",
                    shape=ir.Shape(shape),
                    type=ir.TensorType(ir.DataType.FLOAT),
                    const_value=ir.tensor(weight, name=f"w{i}"),
                )
                for i in range(20)
            ],
            opset_imports={"": 20},
            name="g",
        ),
        ir_version=9,
    )
    saved = io.save(built, tmp_path / "m.onnx")
    estimate = io.serialized_bytes(built)
    assert saved.size_bytes <= estimate <= saved.size_bytes + 20 * 16


def test_sizes_stay_in_the_model_file(tmp_path):
    """The runtime reads them before it opens the file of weights."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Split", ["x", "sizes"], [f"p{i}" for i in range(40)])],
        "g",
        [info("x", TensorProto.FLOAT, [40, 8])],
        [info("p39", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(np.ones(40, np.int64), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = tmp_path / "m.onnx"
    io.save(io.from_proto(model), path, external_data=True)
    found = Session(path)({"x": np.arange(320, dtype=np.float32).reshape(40, 8)})["p39"]
    assert found.tolist() == [list(range(312, 320))]
