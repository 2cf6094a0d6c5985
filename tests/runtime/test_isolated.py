"""Models in a process of their own, which dies by script here: no model is made to crash."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from lwqc.errors import SessionError
from lwqc.model import io
from lwqc.model.io import to_bytes
from lwqc.runtime import isolated
from lwqc.runtime.isolated import Isolated
from lwqc.runtime.session import Session, SessionSettings, load_isolated

DIES_AT_LOAD = "import os, sys; sys.stdin.buffer.read(1); os.abort()"
DIES_AT_RUN = """
import os, pickle, sys
pickle.load(sys.stdin.buffer)
pickle.dump((True, [("y", "tensor(float)")]), sys.stdout.buffer)
sys.stdout.buffer.flush()
pickle.load(sys.stdin.buffer)
print("terminate called after throwing", file=sys.stderr, flush=True)
os.abort()
"""
HANGS = "import time; time.sleep(60)"
SAYS_NO = """
import pickle, sys
pickle.load(sys.stdin.buffer)
pickle.dump((False, "no such\\nkernel"), sys.stdout.buffer)
sys.stdout.buffer.flush()
pickle.load(sys.stdin.buffer)
"""


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Lets processes that start from now on do what a script says."""

    def become(script: str) -> None:
        path = tmp_path / "child.py"
        path.write_text(script)
        monkeypatch.setattr(isolated, "CHILD", path)
        isolated.shared().close()

    yield become
    isolated.shared().close()


@pytest.fixture
def process():
    made = Isolated()
    yield made
    made.close()


FEEDS = {"x": np.ones((2, 4), np.float32)}


def plain():
    return ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 20]>
        net (float[n,4] x) => (float[n,4] y) { y = Relu(x) }"""
    )


def with_body():
    return ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 20]>
        net (float[n,4] x, bool c) => (float[n,4] y) {
            y = If(c) <
                then_branch = t () => (float[n,4] a) { a = Relu(x) },
                else_branch = e () => (float[n,4] b) { b = Neg(x) }
            >
        }"""
    )


def load(process, model):
    return load_isolated(process, to_bytes(model), SessionSettings())


def test_what_runs_there_gives_what_runs_here(process):
    model = plain()
    assert load(process, model) == [("y", "tensor(float)")]
    (found,) = process.run(FEEDS)
    assert np.array_equal(found, Session(model)(FEEDS)["y"])
    assert process.run(FEEDS, keep=False) is None


def test_a_death_is_one_line_and_the_next_request_finds_a_new_process(child, process, monkeypatch):
    real = isolated.CHILD
    child(DIES_AT_LOAD)
    with pytest.raises(SessionError, match="SIGABRT") as caught:
        load(process, plain())
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(isolated, "CHILD", real)
    assert load(process, plain())


def test_a_death_in_a_run_tells_what_was_said(child, process):
    child(DIES_AT_RUN)
    load(process, plain())
    with pytest.raises(SessionError, match=r"SIGABRT\): terminate called after throwing"):
        process.run({})


def test_what_takes_too_long_is_ended(child):
    child(HANGS)
    process = Isolated(seconds=0.3)
    with pytest.raises(SessionError, match=r"took longer than 0\.3 s"):
        load(process, plain())
    process.close()


def test_an_error_is_no_death(child, process):
    child(SAYS_NO)
    with pytest.raises(SessionError, match=r"^no such kernel$"):
        load(process, plain())


def test_a_model_that_is_none_is_an_error_in_one_line(process):
    with pytest.raises(SessionError) as caught:
        load_isolated(process, b"nothing", SessionSettings())
    assert "\n" not in str(caught.value)
    assert load(process, plain())  # the process is still there


# Sessions of graphs with bodies


def test_a_graph_with_bodies_is_loaded_elsewhere_first(child, monkeypatch):
    def never(*_, **__):
        raise AssertionError("was loaded in this process")

    child(DIES_AT_LOAD)
    monkeypatch.setattr(ort, "InferenceSession", never)
    with pytest.raises(SessionError, match=r"^odd: ONNX Runtime cannot load it: .*SIGABRT"):
        Session(with_body(), label="odd")


def test_and_run_elsewhere_first(child):
    session_made = {**FEEDS, "c": np.asarray(True)}
    session = Session(with_body(), label="odd")
    child(DIES_AT_RUN)
    with pytest.raises(SessionError, match=r"^odd: the run failed: .*SIGABRT"):
        session(session_made)


def test_but_only_once(child):
    session = Session(with_body())
    feeds = {**FEEDS, "c": np.asarray(False)}
    first = session(feeds)["y"]
    child(DIES_AT_LOAD)
    assert np.array_equal(session(feeds)["y"], first)
    assert np.array_equal(first, -FEEDS["x"])


def test_other_graphs_and_files_are_not(child, tmp_path):
    child(DIES_AT_LOAD)
    assert Session(plain())(FEEDS)["y"].shape == (2, 4)
    io.save(with_body(), tmp_path / "m.onnx")
    Session(tmp_path / "m.onnx")
    with pytest.raises(SessionError, match="SIGABRT"):
        Session(tmp_path / "m.onnx", risky=True)
