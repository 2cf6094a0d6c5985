"""Stack traces, source paths and the like do not get into what is saved."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import helper

import lwqc
from lwqc.model import io
from lwqc.model.metadata import without_metadata
from tests.build import normal

TRACE = 'File "/home/someone/secret/model.py", line 17, in forward'
TEXT = """<ir_version: 10, opset_import: ["": 20, "own": 1], metadata_props: ["names": "cat, dog"]>
net (float[n, 32] x) => (float[n, 32] y) <float[n, 32] a> {
    a = MatMul (x, w)
    go = Constant <value = bool {1}> ()
    b = If (go) <
        then_branch = yes () => (float[n, 32] t) { t = Relu (a) },
        else_branch = no () => (float[n, 32] e) { e = Neg (a) }
    >
    y = own.twice (b)
}
<opset_import: ["": 20], domain: "own">
twice (v) => (r) { r = Add (v, v) }"""


def described() -> onnx.ModelProto:
    """Written as exporters do, in every graph and function; some of it is not theirs."""
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(32, 32), "w"))
    helper.set_model_props(proto, {"names": "cat, dog", "namespace": "ours", "pkg.version": "3"})
    proto.doc_string = proto.graph.doc_string = proto.graph.input[0].doc_string = "of the model"
    branches = [a.g for n in proto.graph.node for a in n.attribute if a.HasField("g")]
    for graph in (proto.graph, *branches):
        helper.set_metadata_props(graph, {"pkg.torch.export.signature": TRACE})
        for value in graph.value_info:
            helper.set_metadata_props(value, {"pkg.torch.onnx.original_node_name": TRACE})
    helper.set_metadata_props(proto.functions[0], {"pkg.torch.onnx.class": TRACE})
    proto.functions[0].doc_string = TRACE
    bodies = (proto.graph, *branches, proto.functions[0])
    for node in (n for body in bodies for n in body.node):
        node.doc_string = TRACE
        helper.set_metadata_props(
            node,
            {"pkg.torch.onnx.stack_trace": TRACE, "namespace": TRACE, "layer_ann": "first"},
        )
    return proto


@pytest.fixture
def net(tmp_path):
    onnx.save(described(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_only_what_exporters_wrote_for_themselves_goes():
    model = io.from_proto(described())
    bare, taken = without_metadata(model)
    proto = onnx.load_from_string(io.to_bytes(bare))
    text = proto.SerializeToString()
    assert TRACE.encode() not in text
    assert taken > 15 * len(TRACE)
    own = {"names": "cat, dog", "namespace": "ours", "pkg.version": "3"}
    assert {e.key: e.value for e in proto.metadata_props} == own
    assert text.count(b"of the model") == 3
    assert text.count(b"layer_ann") == 7  # onnxruntime places nodes by it
    assert TRACE.encode() in io.to_bytes(model)
    assert without_metadata(bare) == (bare, 0)


COMMANDS = (
    ["compress"],
    ["quantize", "--bits", "4"],
    ["lower", "--target", "cuda"],
    ["opt", "-p", "clean"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_it_stays_where_that_is_asked_for(run, net, tmp_path, command):
    out = tmp_path / "o.onnx"
    code, text, _ = run(*command, net, "-o", out, "--json")
    assert code == 0
    assert b"secret" not in out.read_bytes()
    assert any("--keep-metadata" in note for note in json.loads(text)["notes"])
    code, text, _ = run(*command, net, "-o", out, "--json", "--keep-metadata")
    assert code == 0
    assert b"secret" in out.read_bytes()
    assert not any("--keep-metadata" in note for note in json.loads(text)["notes"])


def test_a_conversion_leaves_it_out(run, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "def model():\n    import onnx\n    return onnx.load('m.onnx')\n"
    (tmp_path / "traced_net.py").write_text(code)
    convert = ("convert", "traced_net:model", "-o", tmp_path / "o.onnx")
    code, _, err = run(*convert)
    assert code == 0
    assert "--keep-metadata keeps them" in err
    assert b"secret" not in (tmp_path / "o.onnx").read_bytes()
    assert run(*convert, "--keep-metadata")[0] == 0
    assert b"secret" in (tmp_path / "o.onnx").read_bytes()


def test_a_fit_leaves_it_out(run, tmp_path):
    pytest.importorskip("torch", reason="of the extra lwqc[torch]")
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) '
    proto = onnx.parser.parse_model(text + "{ y = MatMul (x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(4, 4), "w"))
    proto.graph.node[0].doc_string = TRACE
    source, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(proto, source)
    recover = ("recover", source, "--teacher", source, "-o", out, "--steps", "1")
    code, text, _ = run(*recover, "--data", "random:5")
    assert code == 0
    assert "--keep-metadata keeps them" in text
    assert b"secret" not in out.read_bytes()
    assert run(*recover, "--data", "random:5", "--keep-metadata")[0] == 0
    assert b"secret" in out.read_bytes()


def test_a_plan_fits_the_model_with_it_and_without(run, net, tmp_path):
    plan, out = tmp_path / "p.json", tmp_path / "o.onnx"
    assert run("plan", net, "-o", plan, "--recipe", "w8")[0] == 0
    assert run("apply", net, plan, "-o", out)[0] == 0
    assert b"secret" not in out.read_bytes()
    assert run("apply", net, plan, "-o", out, "--keep-metadata")[0] == 0
    assert b"secret" in out.read_bytes()


def test_a_model_in_memory_is_left_alone(net):
    model = io.load(net)
    made = lwqc.quantize(model, bits=8)
    assert b"secret" not in io.to_bytes(made.model)
    assert b"secret" in io.to_bytes(model)
    again = lwqc.lower(lwqc.quantize(model, bits=8, keep_metadata=True), target="cuda")
    assert b"secret" in io.to_bytes(again.model)
