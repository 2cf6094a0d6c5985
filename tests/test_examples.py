"""The examples do what they are for, and the documentation shows what they hold."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEPLOYMENT = ROOT / "examples" / "deployment"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the example, with its model."""
    copy = tmp_path_factory.mktemp("deployment") / "project"
    shutil.copytree(DEPLOYMENT, copy)
    subprocess.run([sys.executable, "model.py"], cwd=copy, check=True)
    return copy


@pytest.fixture
def call(tmp_path):
    """Run a program where `lwqc` and `python` are those of this test."""
    for name, line in (("lwqc", f"{sys.executable} -m lwqc.cli"), ("python", sys.executable)):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        script.chmod(0o755)

    def run(*command, cwd):
        program = shutil.which(command[0])
        if program is None:
            pytest.skip(f"{command[0]} is not installed")
        env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(
            [program, *command[1:]], cwd=cwd, env=env, capture_output=True, text=True
        )

    return run


def report(folder):
    found = json.loads((folder / "dist" / "report.json").read_text())
    assert found["met"]
    size, drop = found["steps"][-1]["gates"]
    assert size["reached"] == (folder / "dist" / "digits.onnx").stat().st_size
    assert drop["reached"] <= 0.01
    return found


def test_make_runs_the_build_and_stops_where_a_gate_is_missed(folder, call):
    assert call("make", cwd=folder).returncode == 0
    assert [step["ran"] for step in report(folder)["steps"]] == [True, True]
    assert "lwqc" not in call("make", cwd=folder).stdout  # up to date
    text = (folder / "pipeline.toml").read_text()
    (folder / "pipeline.toml").write_text(text.replace("max_size = 0.5 ", "max_size = 0.01 "))
    missed = call("make", cwd=folder)
    (folder / "pipeline.toml").write_text(text)
    assert missed.returncode != 0
    assert "Error 3" in missed.stderr
    assert "size: asked 4515.39, reached " in missed.stderr


def test_cmake_runs_the_build(folder, call):
    out = folder / "build"
    out.mkdir()
    for name in ("dist", "pipeline.lwqc"):  # as a cache brings them
        if (folder / name).exists():
            shutil.copytree(folder / name, out / name)
    for command in (("-B", "build"), ("--build", "build")):
        done = call("cmake", *command, cwd=folder)
        assert done.returncode == 0, done.stderr
    report(out)


def test_the_action_runs_what_the_documentation_shows():
    yaml = pytest.importorskip("yaml", reason="needs pyyaml")
    text = (DEPLOYMENT / "github-action.yml").read_text()
    (job,) = yaml.safe_load(text)["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["pip install lwqc", "lwqc run pipeline.toml"]
    docs = (ROOT / "docs" / "deployment.md").read_text()
    assert all(f"- run: {command}" in docs for command in commands)
    (cache,) = [step for step in job["steps"] if "cache" in step.get("uses", "")]
    assert cache["with"]["path"].split() == ["pipeline.lwqc", "dist"]


def blocks(page, language):
    """Code blocks of a page of the documentation."""
    parts = (ROOT / "docs" / page).read_text().split(f"```{language}\n")[1:]
    return [part.partition("```")[0] for part in parts]


@pytest.mark.parametrize(
    ("language", "file"),
    [
        ("make", "Makefile"),
        ("cmake", "CMakeLists.txt"),
        ("yaml", "github-action.yml"),
        ("toml", "pipeline.toml"),
    ],
)
def test_the_documentation_shows_what_the_example_holds(language, file):
    block = blocks("deployment.md", language)[0]
    assert block in (DEPLOYMENT / file).read_text()
