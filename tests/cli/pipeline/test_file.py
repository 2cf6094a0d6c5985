"""The file of `lwqc run`: what it may say, and what becomes of what it may not."""

import json

import pytest

from lwqc.model import io

STEP = '\n[[step]]\nrun = "lower"\nverify = false\n'
MEASURED = STEP.replace("verify = false", 'output = "o.onnx"')
HEAD = 'model = "model.onnx"\ndata = "data.npz"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no steps; write each"),
        (HEAD, "has no steps; write each"),
        ("model = ", "not valid TOML"),
        ("modle = 'model.onnx'" + STEP, "key 'modle' is not known; did you mean 'model'?"),
        (HEAD + STEP + "veryfy = true", "'veryfy' is not known; did you mean 'verify'"),
        (HEAD + '[[step]]\nrun = "quantise"', "'quantise' is not known; did you mean 'quantize'"),
        (HEAD + '[[step]]\nrun = "demo"', "command 'demo' is not known"),
        (HEAD + "[gates]\nmaxsize = 1" + STEP, "'maxsize' is not known; did you mean 'max_size'"),
        (HEAD + STEP + "[step.gates]\nmax_drp = 1", "step 1: gates: key 'max_drp' is not"),
        (HEAD + STEP + 'from = "lover"', "from 'lover' is not known; expected one of model"),
        (HEAD + "[gates]\nmax_size = 'big'" + STEP + 'output = "o.onnx"', "size 'big': expected"),
        (HEAD + "[gates]\nmax_drop = true" + STEP, "gates.max_drop.str: Input should"),
        (HEAD + "[gates]\nmax_drop = '1%%'" + MEASURED, "max-drop '1%%': expected a share"),
        (HEAD + STEP + "output = 3", "step.0.output: Input should be a valid string"),
        (HEAD + STEP + STEP, "another step is called 'lower'"),
        (HEAD + STEP + 'name = "a b"', "name 'a b': expected letters"),
        (HEAD + STEP + 'output = "model.onnx"', "output model.onnx: is the model"),
        (HEAD + STEP + "constant_inputs = 3", "constant_inputs: is 3; expected true or false"),
        (HEAD + STEP + "floats = ['float16']", "floats: is a list; expected one value"),
        (HEAD + STEP + "floats = true", "floats: is True; expected a text or a number"),
        (HEAD + STEP + 'max_drop = "much"', "step lower: Invalid value for '--max-drop'"),
        (HEAD + STEP + 'target = "gpu"', "step lower: target 'gpu' is not known"),
        (HEAD + STEP + 'profile = "batch"', "--profile 'batch': expected"),
        (HEAD + STEP + 'target = "cuda"\ntargets = ["cpu"]', "has both target and targets"),
        (HEAD + STEP + 'targets = ["cpu"]\noutput = "o.onnx"', "expected {target} in it"),
        (HEAD + STEP + 'targets = ["cpu", "cuda"]' + STEP + 'name = "b"', "lower-cuda came before"),
        (HEAD + '[[step]]\nrun = "verify"\noutput = "o.onnx"', "verify writes nothing: leave"),
        (HEAD + '[[step]]\nrun = "plan"\n[step.gates]\nmax_size = 0.5', "plan measures no result"),
        (HEAD + STEP + "[step.gates]\nmax_drop = 0.1", "leave out verify = false"),
        (HEAD + '[[step]]\nrun = "convert"\nsource = "a:b"', "convert comes first, in place of"),
        (STEP, "has no model to begin with"),
        ('model = "none.onnx"' + STEP, "model none.onnx: no such file"),
        (HEAD + '[[step]]\nrun = "apply"', "step apply: Missing argument"),
        (HEAD + '[[step]]\nrun = "compress"\npareto = 3', "key 'pareto' is not known"),
        (HEAD + '[[step]]\nrun = "compress"\nrecipe = "no"', "recipe 'no' is not known"),
        (HEAD + "[step]\nrun = 'lower'", "has no steps; write each of them under [[step]]"),
        ("version = 2\n" + HEAD + STEP, "version: Input should be 1"),
    ],
    ids=lambda text: text.split("\n")[-1] or "nothing",
)  # fmt: skip
def test_mistakes_are_told_in_a_line_before_any_work(project, text, words):
    project.write(text)
    before = {f: f.stat().st_mtime_ns for f in project.folder.rglob("*")}
    project.refused("pipeline.toml: ", words)
    now = {f: f.stat().st_mtime_ns for f in project.folder.rglob("*") if f.suffix == ".onnx"}
    assert now.items() <= before.items()


def test_a_file_that_is_not_there(project):
    project.refused("pipeline.toml: cannot be read: No such file or directory")


def test_steps_take_each_others_models_and_share_options(project):
    project.write(
        HEAD
        + """seed = 4
report = "dist/report.json"

[[step]]
name = "bits"
run = "quantize"
verify = false
bits = 8
targets = ["cpu-avx2", "cpu-vnni"]
output = "dist/{target}.onnx"

[[step]]
name = "wide"
run = "lower"
from = "bits-cpu-vnni"
verify = false
plan_out = "dist/wide.plan.json"

[[step]]
name = "other"
run = "lower"
from = "model"
verify = false
output = "dist/other.onnx"
"""
    )
    code, _, error = project.run()
    assert code == 0, error
    report = json.loads(project.text_of("dist/report.json"))
    commands = {step["name"]: step["command"] for step in report["steps"]}
    assert set(commands) == {"bits-cpu-avx2", "bits-cpu-vnni", "wide", "other"}
    assert commands["bits-cpu-vnni"][:3] == ["lwqc", "quantize", "model.onnx"]
    assert "--target=cpu-vnni" in commands["bits-cpu-vnni"]
    assert {"--data=data.npz", "--seed=4"} <= set(commands["wide"])
    assert commands["wide"][2] == "dist/cpu-vnni.onnx"
    assert "--original=model.onnx" in commands["wide"]
    assert commands["other"][2] == "model.onnx"
    assert "--original=model.onnx" not in commands["other"]
    outputs = {path for step in report["steps"] for path in step["outputs"]}
    assert "pipeline.lwqc/wide.onnx" in outputs
    assert "dist/wide.plan.json" in outputs
    for path in outputs:
        assert (project.folder / path).exists()


def test_a_plan_that_one_step_makes_is_applied_by_another(project):
    project.write(
        HEAD
        + """
[[step]]
name = "decision"
run = "plan"
recipe = "w8"

[[step]]
run = "apply"
plan_file = "decision"
verify = false
output = "out.onnx"
"""
    )
    assert project.ran() == {"decision": True, "apply": True}
    assert json.loads(project.text_of("pipeline.lwqc/decision.plan.json"))["recipe"] == "w8"
    assert project.ran() == {"decision": False, "apply": False}
    project.write((project.folder / "pipeline.toml").read_text().replace('"w8"', '"w4"'))
    assert "step decision runs before it" in project.run("--dry-run")[1]
    assert project.ran() == {"decision": True, "apply": True}


def test_the_first_step_may_convert(project, monkeypatch):
    converted = project.folder / "model.onnx"
    project.write(
        """
[[step]]
run = "convert"
source = "nets:tiny"

[[step]]
run = "quantize"
verify = false
output = "out.onnx"
"""
    )
    _, text, _ = project.run("--dry-run")
    assert "convert: would run: source nets:tiny is Python code" in text
    assert "lwqc convert nets:tiny --output=pipeline.lwqc/convert.onnx" in text
    assert "lwqc quantize pipeline.lwqc/convert.onnx" in text
    monkeypatch.setattr("lwqc.frontends.convert.convert", lambda source, **_: io.load(converted))
    assert project.ran() == {"convert": True, "quantize": True}
