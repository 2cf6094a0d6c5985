"""The example of docs/learning.md runs as it stands there."""

import pytest

pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc
from tests.compile.test_recover import narrow, teacher
from tests.doc_pages import example


def test_the_example_trains_and_recovers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lwqc.save(teacher(), "model.onnx")
    lwqc.save(narrow(), "small.onnx")
    exec(compile(example("learning.md").use, "learning.md", "exec"), {})
    before, after, unchanged = capsys.readouterr().out.split(" ", 2)
    assert float(after) < float(before)
    assert not unchanged.strip()
    assert {"trained.onnx", "recovered.onnx"} <= {f.name for f in tmp_path.iterdir()}
