"""What one model may take, and how more is allowed."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakSet

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.compile.timing import form_seconds
from lwqc.decide.compress import open_version
from lwqc.errors import InputError, SessionError
from lwqc.graph.sites import find_sites
from lwqc.model import inference, io, limits
from lwqc.model.limits import LimitError, Limits, parse_limits
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime import isolated, memory, proof
from lwqc.runtime.counted import counted
from lwqc.runtime.data import open_data
from lwqc.runtime.session import Session
from lwqc.runtime.stats.crossing import Crossing
from tests.odd_files import CASES


@pytest.fixture
def allowed(monkeypatch):
    return lambda **changed: monkeypatch.setattr(limits, "_current", Limits(**changed))


def model(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": 17]> net {text}')


LARGE = "(float[n,2147483647] x) => (float[n,2147483647] y) { y = Relu(x) }"
# A loop that counts for days, and one tensor of 8 GB on the way.
ENDLESS = """(float[2] x) => (float[2] y) {
    count = Constant<value_int = 4611686018427387904>()
    yes = Constant<value = bool {1}>()
    y = Loop(count, yes, x)<body = b (int64 i, bool go, float[2] h) => (bool on, float[2] g) {
        g = Relu(h)
        on = Identity(go)
    }>
}"""
WIDE = """(int64[1] x) => (float y) {
    many = Constant<value_ints = [2000000000]>()
    size = Mul(x, many)
    z = ConstantOfShape(size)
    y = ReduceSum<keepdims = 0>(z)
}"""
PLAIN = CASES["two_imports"]().SerializeToString()
ONES = {"x": np.ones(1, np.int64)}


def test_amounts():
    read = parse_limits(["inputs=1.5GB", "run=2min", "memory=512MiB"])
    assert (read.inputs, read.run, read.memory) == (1.5e9, 120, 2**29)
    assert read.data == Limits().data


@pytest.mark.parametrize(
    "text", ["inputs", "inputs=", "other=3GB", "run=3GB", "inputs=3s", "inputs=-1", "inputs=0",
             "inputs=٣", "inputs=1e9GB", "run=inf", "run=9" * 30],
)  # fmt: skip
def test_what_is_no_amount(text):
    with pytest.raises(InputError, match="--limit"):
        parse_limits([text])


def test_declared_sizes_draw_nothing(allowed):
    with pytest.raises(LimitError, match=r"input x \[1, 2147483647\] takes 17\.2 GB"):
        open_data("random:1", model(LARGE)).first()
    small = model("(float[n,512] x) => (float[n,512] y) { y = Relu(x) }")
    open_data("random:1", small).first()
    allowed(inputs=4000.0)
    with pytest.raises(LimitError, match="raise it with lwqc --limit inputs="):
        open_data("random:1", small).first()


def test_other_processes_have_the_limits(allowed, monkeypatch):
    asked = []
    monkeypatch.setattr(inference, "_process", lambda: SimpleNamespace(
        ask=lambda *request, seconds: asked.append((request[:2], seconds)) or b""
    ))  # fmt: skip
    calls = []
    monkeypatch.setattr(memory.subprocess, "run", lambda call, **_: calls.append(call) or (
        SimpleNamespace(returncode=0, stdout="1")
    ))  # fmt: skip
    allowed(run=77.0, memory=5e9)
    inference.infer(onnx.ModelProto())
    assert asked == [(("model", 5_000_000_000), 77.0)]
    memory.peak_memory(PLAIN, {"x": np.ones(1, np.float32)})
    assert Limits(**json.loads(calls[0][-1])) == limits.limits()


def test_what_is_kept_of_runs(allowed):
    runs = [{"y": np.zeros(25, np.float32)} for _ in range(4)]
    assert list(counted(runs, "outputs")) == runs
    allowed(traces=399.0)
    with pytest.raises(LimitError, match="keeping outputs takes 400 B; allowed are 399 B"):
        list(counted(iter(runs), "outputs", len(runs)))
    with pytest.raises(LimitError, match="--limit traces=400B"):
        open_version(small_model(), data=[{"x": np.ones((1, 100), np.float32)}]).job.data.judge  # noqa: B018
    crossing = Crossing(0)
    crossing.put("a", 0, np.zeros(99, np.float32))
    crossing.drop("a", 0)
    crossing.put("a", 1, np.zeros(99, np.float32))
    with pytest.raises(LimitError, match="keeping activations"):
        crossing.put("b", 1, np.zeros(1, np.float32))


def test_a_site_is_not_timed_on_what_does_not_fit(allowed):
    built = small_model()
    site = find_sites(io.from_proto(CASES["two_imports"]())).sites[0]
    work = open_version(built, data=[{"x": np.ones((1, 100), np.float32)}])
    allowed(traces=1e6)
    with pytest.raises(LimitError, match="--limit traces=549"):
        form_seconds(work, site, SiteEntry(weight=WeightFormat(8)), (2**31, 32))


def small_model():
    return model("(float[n,100] x) => (float[n,100] y) { y = Relu(x) }")


FOLDED = """(float[n] x) => (float[n] y) {
    many = Constant<value_ints = [100000]>()
    one = Constant<value = float[3] {1, 2, 2}>()
    z = Tile(one, many)
    two = ReduceMax<keepdims = 0>(z)
    y = Mul(x, two)
}"""


def test_more_is_folded_where_that_is_allowed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_current", Limits())
    monkeypatch.chdir(tmp_path)
    ir.save(model(FOLDED), "m.onnx")
    lower = ["lower", "m.onnx", "-o", "o.onnx", "--no-verify", "--plan-out", "p.json"]
    assert run("--limit", "folding=2MB", *lower)[0] == 0
    assert [n.op_type for n in onnx.load("o.onnx").graph.node] == ["Mul"]
    monkeypatch.setattr(limits, "_current", Limits())
    apply = ["apply", "m.onnx", "p.json", "-o", "a.onnx", "--no-verify"]
    code, _, error = run(*apply)
    assert (code, len(error.splitlines())) == (2, 1)
    assert "--limit folding=2MB" in error
    assert run("--limit", "folding=2MB", *apply)[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()
    monkeypatch.setattr(limits, "_current", Limits())
    assert run(*lower)[0] == 0
    assert "ReduceMax" in [n.op_type for n in onnx.load("o.onnx").graph.node]


def test_the_option_comes_before_the_command(run, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_current", Limits())
    onnx.save(CASES["unsorted"](), tmp_path / "m.onnx")
    arguments = ["verify", tmp_path / "m.onnx", tmp_path / "m.onnx"]
    code, _, error = run("--limit", "inputs=100B", *arguments)
    assert (code, len(error.splitlines())) == (2, 1)
    assert "--limit inputs=512B" in error
    assert run("--limit", "inputs=1KB", *arguments)[0] == 0
    code, _, error = run("--limit", "inputs=much", *arguments)
    assert (code, len(error.splitlines())) == (2, 1)


def test_a_run_that_never_ends(allowed):
    allowed(run=0.5)
    with pytest.raises(SessionError, match=r"odd: .*took longer than 0\.5 s.*--limit run=600s"):
        proof.prove(model(ENDLESS), {"x": np.ones(2, np.float32)}, "odd")


def test_a_run_that_takes_all_memory(allowed):
    allowed(memory=1e8)
    with pytest.raises(SessionError, match=r"odd: it takes more than .*--limit memory=16GB"):
        proof.prove(model(WIDE), ONES, "odd")


def test_nothing_is_loaded_here_before_it_ran_elsewhere(monkeypatch, tmp_path):
    script = tmp_path / "child.py"
    script.write_text("import os, sys; sys.stdin.buffer.read(1); os.abort()")
    built = model(WIDE)
    proof.prove_first(built, lambda: ONES, "odd")
    monkeypatch.setattr(isolated, "CHILD", script)
    isolated.shared().close()
    for _ in range(2):  # it is not tried again
        with pytest.raises(SessionError, match=r"odd: ONNX Runtime does not survive it.*SIGABRT"):
            Session(PLAIN)
    monkeypatch.undo()
    isolated.shared().close()
    other = model(WIDE)
    proof.prove_first(other, dict, "other")  # which does not run, as it gets no inputs
    assert Session(PLAIN).inputs == ["x"]
    assert not proof._waiting


def test_a_large_model_does_not_stay_where_it_ran(monkeypatch):
    monkeypatch.setattr(proof, "_LARGE_BYTES", -1)
    proof.prove(model(WIDE), {"x": np.zeros(1, np.int64)}, "large")
    assert isolated.shared().alive
    with pytest.raises(SessionError):  # nothing is loaded
        isolated.shared().run({})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells private memory")
def test_a_large_model_is_run_without_copies_of_its_weights(tmp_path, monkeypatch):
    weight = np.ones((4096, 4608), np.float32)  # 75 MB
    net = model("(float[n,4096] x) => (float[n,4608] y) { y = MatMul(x, w) }")
    net.graph.register_initializer(value := ir.Value(name="w", const_value=ir.tensor(weight)))
    net.graph.node(0).replace_input_with(1, value)
    io.save(net, tmp_path / "m.onnx", external_data=True)

    def private() -> int:
        status = Path(f"/proc/{isolated.shared()._process.pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    proof.prove(model(WIDE), {"x": np.zeros(1, np.int64)}, "small")
    before, after = private(), []
    forget = isolated.Isolated.forget
    monkeypatch.setattr(isolated.Isolated, "forget", lambda p: (after.append(private()), forget(p)))
    proof.prove(io.load(tmp_path / "m.onnx"), {"x": np.ones((2, 4096), np.float32)}, "large")
    assert after
    assert after[0] - before < weight.nbytes / 2


def test_a_model_that_is_gone_is_not_run():
    proof.prove_first(model(WIDE), lambda: pytest.fail("was run"), "odd")
    assert Session(PLAIN).inputs == ["x"]


def test_an_opened_model_is_gone_as_soon_as_nobody_works_on_it(monkeypatch):
    """Not when garbage is collected next, for which a session would have to wait."""
    monkeypatch.setattr(proof, "_waiting", WeakSet())
    gc.disable()
    try:
        for data in (None, "random:1", [ONES]):
            assert open_version(model(WIDE), data=data).sites is not None
        assert not proof._waiting
    finally:
        gc.enable()


def test_what_was_refused_and_is_gone_stops_nothing(allowed):
    allowed(run=0.5)
    gone = model(ENDLESS)
    gone.meta["itself"] = gone
    proof.prove_first(gone, lambda: {"x": np.ones(2, np.float32)}, "odd")
    del gone
    assert Session(PLAIN).inputs == ["x"]
