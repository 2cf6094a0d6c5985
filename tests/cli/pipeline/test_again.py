"""What `lwqc run` does again, and what it keeps: never something that would come out otherwise."""

import json
import os
import shutil

import numpy as np
import pytest

from lwqc.backends.cpu import CpuTarget
from lwqc.cli.pipeline import content
from lwqc.cli.pipeline.folders import locked
from lwqc.errors import InputError

LIGHT = """
model = "model.onnx"
data = "data.npz"

[[step]]
name = "first"
run = "lower"
verify = false

[[step]]
name = "second"
run = "quantize"
bits = 8
verify = false
output = "out.onnx"
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder that is built once; paths in it are relative."""
    return tmp_path_factory.mktemp("template") / "built"


@pytest.fixture
def built(project, template):
    if template.exists():
        shutil.copytree(template, project.folder, dirs_exist_ok=True)
        return project
    project.write(LIGHT)
    assert project.ran() == {"first": True, "second": True}
    shutil.copytree(project.folder, template)
    return project


def test_nothing_runs_again_where_nothing_changed(built):
    before = (built.folder / "out.onnx").stat()
    assert built.ran() == {"first": False, "second": False}
    assert (built.folder / "out.onnx").stat() == before
    assert built.ran("--force") == {"first": True, "second": True}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p.write(LIGHT.replace("bits = 8", "bits = 4")), (False, True)),
        (lambda p: p.write(LIGHT.replace('"lower"', '"lower"\nseed = 3')), (True, False)),
        (lambda p: p.write_model(seed=5), (True, True)),
        (lambda p: p.write_data(seed=5), (True, True)),
        (lambda p: (p.folder / "out.onnx").unlink(), (False, True)),
        (lambda p: (p.folder / "out.onnx").write_bytes(b"else"), (False, True)),
        (lambda p: (p.folder / "pipeline.lwqc" / "second.plan.json").unlink(), (False, True)),
        (lambda p: shutil.rmtree(p.folder / "pipeline.lwqc"), (True, True)),
        (lambda p: p.write(LIGHT + "# a remark\n"), (False, False)),
        (lambda p: os.utime(p.folder / "model.onnx", (1, 1)), (False, False)),
    ],
    ids=(
        "option of the last", "option that changes no byte", "model", "data", "output missing",
        "output changed", "plan missing", "folder gone", "remark", "time of a file",
    ),
)  # fmt: skip
def test_a_step_runs_again_exactly_where_it_depends_on_what_changed(built, change, expected):
    change(built)
    assert tuple(built.ran().values()) == expected
    assert tuple(built.ran().values()) == (False, False)


def test_the_dry_run_says_why_and_does_nothing(built):
    built.write(LIGHT.replace("bits = 8", "bits = 4"))
    (built.folder / "out.onnx").unlink()
    code, text, _ = built.run("--dry-run")
    assert code == 0
    assert text.splitlines()[0] == "first: kept: nothing changed"
    assert "second: would run: option bits is now 4, was 8; out.onnx is missing" in text
    assert "  lwqc quantize pipeline.lwqc/first.onnx " in text
    assert " --original=model.onnx" in text
    assert not (built.folder / "out.onnx").exists()
    built.write_model(seed=7)
    _, text, _ = built.run("--dry-run")
    assert "first: would run: model.onnx changed" in text
    assert "second: would run: step first runs before it; kept if that leaves the same file" in text


def test_a_dry_run_before_the_first_makes_no_folder(project):
    project.write(LIGHT)
    before = sorted(project.folder.iterdir())
    code, text, _ = project.run("--dry-run")
    assert code == 0
    assert "first: would run: it has not run yet" in text
    assert sorted(project.folder.iterdir()) == before


def test_other_tools_run_everything_again(built, monkeypatch):
    now = {**content.tools(), "onnxruntime": "0.9"}
    monkeypatch.setattr(content, "tools", lambda: now)
    code, text, _ = built.run("--dry-run")
    assert code == 0
    assert "first: would run: onnxruntime is now 0.9, was " in text


def test_the_source_of_an_extension_counts(project, monkeypatch):
    info = project.folder / "own_pass-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-pass\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lwqc.passes]\nown = own_pass:Own\n")
    monkeypatch.syspath_prepend(project.folder)
    found = []
    for text in ("Own = 1\n", "Own = 22\n"):
        (project.folder / "own_pass.py").write_text(text)
        found.append(content.tools.__wrapped__())
    assert found[0]["own-pass"] == "1.0"
    assert {name for name, text in found[0].items() if found[1][name] != text} == {
        "source of own-pass"
    }


def test_a_device_that_comes_or_goes_counts(built, monkeypatch):
    built.write(LIGHT.replace("bits = 8", 'bits = 8\ntarget = "cpu-vnni"\n'))
    built.ran()
    monkeypatch.setattr(CpuTarget, "unmeasured", lambda self: "no device")
    _, text, _ = built.run("--dry-run")
    assert "second: would run: speed of the target is now no device, was measured here" in text


def test_the_same_inputs_give_the_same_bytes(built):
    first = (built.folder / "out.onnx").read_bytes()
    shutil.rmtree(built.folder / "pipeline.lwqc")
    (built.folder / "out.onnx").unlink()
    assert built.ran() == {"first": True, "second": True}
    assert (built.folder / "out.onnx").read_bytes() == first


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _edited(text: str) -> str:
    table = json.loads(text)
    table["steps"]["second"]["facts"]["option bits"] = "4"
    return json.dumps(table, indent=1)


def _other_version(text: str) -> str:
    return text.replace('"version": 1', '"version": 99', 1)


def _without_steps(text: str) -> str:
    table = json.loads(text)
    del table["steps"]
    return json.dumps(table, indent=1)


@pytest.mark.parametrize("damage", [_cut, _edited, _other_version, _without_steps, lambda t: ""])
def test_a_damaged_state_has_every_step_run_again(built, damage):
    state = built.folder / "pipeline.lwqc" / "state.json"
    state.write_text(damage(state.read_text()))
    built.write(LIGHT.replace("bits = 8", "bits = 4"))
    assert built.ran() == {"first": True, "second": True}
    assert built.ran() == {"first": False, "second": False}


@pytest.mark.parametrize("text", ['{"mine": 1}', "[]", "notes\n", "\xff"])
def test_a_state_file_of_something_else_is_left_alone(built, text):
    state = built.folder / "pipeline.lwqc" / "state.json"
    state.write_bytes(text.encode("latin-1"))
    built.refused("pipeline.lwqc/state.json: is no state of lwqc run")
    assert state.read_bytes() == text.encode("latin-1")


def test_python_code_runs_each_time_unless_the_file_says_what_it_reads(project):
    (project.folder / "own_feeds.py").write_text(
        "import numpy as np\n\n\ndef feeds():\n    yield {'x': np.load('own.npy')}\n"
    )
    np.save(project.folder / "own.npy", np.ones((4, 96), np.float32))
    code = LIGHT.replace("data.npz", "own_feeds:feeds")
    project.write(code)
    assert project.ran() == {"first": True, "second": True}
    assert project.ran() == {"first": True, "second": True}
    assert "data own_feeds:feeds is Python code; `depends` says" in project.run("--dry-run")[1]
    project.write('depends = ["*.npy"]\n' + code)
    project.ran()
    assert project.ran() == {"first": False, "second": False}
    np.save(project.folder / "own.npy", np.zeros((4, 96), np.float32) + 2)
    assert project.ran() == {"first": True, "second": True}
    with (project.folder / "own_feeds.py").open("a") as file:
        file.write("# changed\n")
    assert project.ran() == {"first": True, "second": True}
    project.write('depends = ["missing/*.npy"]\n' + code)
    project.refused("depends missing/*.npy: no such file")


def test_a_run_that_fails_goes_on_where_it_failed(project):
    project.write(
        LIGHT.replace("bits = 8", 'bits = 8\nmethod = "gptq"').replace('data = "data.npz"\n', "")
    )
    project.refused("step second: --method gptq looks at the data")
    assert not (project.folder / "pipeline.lwqc" / "first.onnx").exists()  # found before any work
    wide = LIGHT.replace("bits = 8", 'bits = 8\nshape = "none=3"')
    project.write(wide)
    project.refused("step second: shape none: the inputs have no such dimension")
    assert (project.folder / "pipeline.lwqc" / "first.onnx").exists()
    project.write(LIGHT)
    assert project.ran() == {"first": False, "second": True}


def test_what_changes_under_a_running_step_is_not_taken_for_its_input(built, monkeypatch):
    from lwqc.cli.pipeline.commands import Command

    call = Command.call

    def meanwhile(self, arguments, where):
        done = call(self, arguments, where)
        if self.name == "quantize":
            built.write_data(seed=9)
        return done

    built.write(LIGHT.replace("bits = 8", "bits = 4"))
    monkeypatch.setattr(Command, "call", meanwhile)
    built.refused("step second: content of data.npz changed while the step ran")
    monkeypatch.undo()
    assert built.ran()["second"]


def test_an_interrupted_run_keeps_what_was_done(project, monkeypatch):
    from lwqc.cli.pipeline.commands import Command

    call = Command.call

    def interrupted(self, arguments, where):
        if self.name == "quantize":
            raise KeyboardInterrupt
        return call(self, arguments, where)

    monkeypatch.setattr(Command, "call", interrupted)
    project.write(LIGHT)
    code, _, error = project.run()
    assert code == 130
    assert "interrupted; steps that were done are kept" in error
    monkeypatch.undo()
    assert project.ran() == {"first": False, "second": True}


def test_two_runs_at_once_do_not_mix(built):
    pytest.importorskip("fcntl", reason="the system has no flock")
    with locked(built.folder / "pipeline.lwqc"):
        built.refused("another lwqc run works in it")
    with pytest.raises(InputError, match="cannot be made"), locked(built.folder / "model.onnx"):
        pass


def test_data_files_of_models_count(built):
    out = LIGHT.replace("bits = 8", "bits = 8\nexternal_data = true")
    built.write(out)
    assert built.ran() == {"first": False, "second": True}
    (data,) = built.folder.glob("out.onnx.*.data")
    data.unlink()
    assert built.ran() == {"first": False, "second": True}
