"""`inspect` as a graph, as a drawing, and beside another version of the model."""

import json
import shutil
import subprocess

import pytest

import lwqc
from lwqc.decide.explain.comparison import compare
from lwqc.decide.explain.inspection import inspect_model
from lwqc.decide.explain.structure import structure, to_dot
from lwqc.model import io
from tests.decide.test_pruning import perceptron


def test_groups_and_branches_hang_together():
    found = inspect_model(perceptron())
    graph = structure(found)
    group = found.groups.groups[0]
    shrinks = graph[("group", group.name)]
    assert {name for _, name in shrinks} == {o.name for o in group.occurrences}
    assert graph.nodes["group", group.name]["size"] == group.size
    frozen = found.groups.frozen[0]
    assert graph.nodes["tensor", frozen.tensor]["frozen"][frozen.axis] == frozen.reason


def test_branches_follow_one_another_in_blocks(shipped_vit):
    found = inspect_model(io.load(shipped_vit))
    graph = structure(found, groups=False)
    kinds = [graph.nodes[key]["kind"] for key in graph]
    assert kinds.count("branch") == len(found.branches.branches)
    assert kinds.count("block") == len(found.branches.blocks)
    following = [e for *e, is_next in graph.edges(data="next") if is_next]
    assert len(following) == kinds.count("branch") - 1 + kinds.count("block") - 1


@pytest.fixture
def shipped_vit():
    from models.training import FOLDER

    return FOLDER / "glyph_vit.onnx"


def test_names_are_quoted_for_graphviz():
    model = perceptron()
    for value in list(model.graph.initializers.values()):
        value.name = f'{value.name}"\\n\n['
    text = to_dot(structure(inspect_model(model)))
    assert '\\"\\\\n\\n[' in text
    assert all(line.count('"') - line.count('\\"') in (0, 2) for line in text.splitlines())
    if shutil.which("dot"):
        done = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_pruned_model_differs_in_what_was_pruned(run, tmp_path):
    io.save(perceptron(), tmp_path / "m.onnx")
    small = lwqc.prune(tmp_path / "m.onnx", ratio=0.5, target="cpu-vnni")
    small.save(tmp_path / "small.onnx")
    code, out, _ = run(
        "inspect", tmp_path / "m.onnx", "--against", tmp_path / "small.onnx", "--json"
    )
    assert code == 0
    changes = {
        (c["what"], c["name"]): (c["before"], c["after"]) for c in json.loads(out)["changes"]
    }
    before, after = changes["total", "parameters"]
    assert after < before
    groups = [pair for (what, _), pair in changes.items() if what == "group"]
    assert groups
    assert all(after is None or after < before for before, after in groups)
    code, out, _ = run("inspect", tmp_path / "m.onnx", "--against", tmp_path / "m.onnx")
    assert (code, "no differences" in out) == (0, True)


def test_the_same_model_has_no_differences():
    found = inspect_model(perceptron())
    assert compare(found, found).changes == ()


def test_drawings_are_written_and_models_are_not_overwritten(run, tmp_path, monkeypatch):
    model = tmp_path / "m.onnx"
    io.save(perceptron(), model)
    before = model.read_bytes()
    assert run("inspect", model, "--groups", "--dot", tmp_path / "m.dot")[0] == 0
    assert (tmp_path / "m.dot").read_text().startswith("digraph")
    code, _, err = run("inspect", model, "--dot", model)
    assert (code, len(err.splitlines()), model.read_bytes()) == (2, 1, before)
    monkeypatch.setenv("PATH", "")
    code, _, err = run("inspect", model, "--svg", tmp_path / "m.svg")
    assert (code, "is not installed" in err, (tmp_path / "m.svg").exists()) == (2, True, False)
