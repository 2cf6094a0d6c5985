"""Each page on extending lwqc ends in an example that works as it stands."""

import json
import subprocess
import sys

import numpy as np
import pytest

import lwqc
from lwqc.graph import rules
from lwqc.model import extensions, io
from lwqc.plans.recipe import Recipe, find, named
from tests.build import model, normal
from tests.doc_pages import example
from tests.short import short

PAGES = ["writing-a-score.md", "writing-a-target.md", "writing-a-recipe.md", "writing-a-rule.md"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of modules and models, which lwqc has looked for nothing in yet."""
    short(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    known = [dict(kind._loaded) for kind in extensions.EXTENSIONS]
    rules.all_rules.cache_clear()
    yield tmp_path
    rules.all_rules.cache_clear()
    for kind, loaded in zip(extensions.EXTENSIONS, known, strict=True):
        kind._loaded.clear()
        kind._loaded.update(loaded)
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.fixture
def models(folder):
    """The models that the examples work on."""
    weights = {"w1": normal(32, 64, scale=0.1), "w2": normal(64, 64, scale=0.1, seed=1)}
    weights["w3"] = normal(64, 16, scale=0.1, seed=2)
    nodes = [
        ("MatMul", ["x", "w1"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("MatMul", ["r", "w2"], "i", {}),
        ("Relu", ["i"], "s", {}),
        ("MatMul", ["s", "w3"], "y", {}),
    ]
    io.save(model(nodes, weights, {"x": ["batch", 32]}, ["y"]), folder / "model.onnx")
    blocks = [
        ("MatMul", ["x", "w1"], "b1", {}),
        ("Add", ["x", "b1"], "s1", {}),
        ("MatMul", ["s1", "w2"], "b2", {}),
        ("Add", ["s1", "b2"], "y", {}),
    ]
    square = {name: normal(32, 32, scale=0.05, seed=i) for i, name in enumerate(("w1", "w2"))}
    io.save(model(blocks, square, {"x": ["batch", 32]}, ["y"]), folder / "blocks.onnx")
    expanded = [
        ("MatMul", ["x", "w1"], "h", {}),
        ("ExpandDims", ["h", "axis"], "e", {}),
        ("MatMul", ["e", "w2"], "y", {}),
    ]
    stored = {"w1": normal(32, 16), "w2": normal(16, 32), "axis": np.asarray(1, np.int32)}
    contrib = model(expanded, stored, {"x": [4, 32]}, ["y"])
    contrib.graph.node("n_e").domain = "com.microsoft"
    contrib.opset_imports["com.microsoft"] = 1
    io.save(contrib, folder / "expanded.onnx")


@pytest.mark.parametrize("page", PAGES)
def test_an_example_is_short_and_works(page, folder, models):
    found = example(page)
    assert 0 < found.lines <= 60
    found.install(folder)
    made = {}
    exec(compile(found.use, page, "exec"), made)
    if page == "writing-a-score.md":
        gone = {unit.index for unit in made["narrow"].plan.prune.units}
        assert gone
        (gone,) = made["shallow"].plan.remove
        assert gone.name == lwqc.inspect("blocks.onnx").branches.branches[-1].name
        bits = [entry.weight.bits for entry in made["small"].plan.quantize.values()]
        assert bits == [8, 4, 8]


def test_extensions_are_listed_with_where_they_come_from(folder, run):
    example("writing-a-score.md").install(folder)
    example("writing-a-target.md").install(folder)
    code, text, _ = run("extensions")
    assert code == 0
    assert "channel score, lwqc.scores.channels: fpgm, l1, l2, " in text
    assert "spread (own_scores:spread)" in text
    assert "allocator, lwqc.allocators: bisect, knapsack, rank, uniform, fine-ends (own_" in text
    assert "target, lwqc.targets: cpu, cpu-vnni, cpu-avx2, cpu-arm, cuda, tensorrt, eight-" in text
    assert run("extensions", "--json")[0] == 0


def _install(folder, group, points, code="x = 1\nloop = {}\n"):
    (folder / "own_broken.py").write_text(code)
    info = folder / "own_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n" + points)


@pytest.mark.parametrize("kind", extensions.EXTENSIONS, ids=lambda kind: kind.kind)
def test_a_broken_extension_is_told_in_a_line(kind, folder):
    taken, name = kind.built_in[0], kind.kind
    points = {"missing": "own_missing:x", "nothing": "own_broken:y", "other": "own_broken:x"}
    points[taken] = "own_broken:x"
    _install(folder, kind.group, "".join(f"{n} = {at}\n" for n, at in points.items()))
    with pytest.raises(lwqc.InputError, match=f"{name} missing: own_missing:x cannot be loaded: "):
        kind.find("missing")
    with pytest.raises(lwqc.InputError, match=f"{name} nothing: own_broken:y cannot be loaded"):
        kind.find("nothing")
    with pytest.raises(lwqc.InputError, match=f"{name} other: own_broken:x is a int; expected a"):
        kind.find("other")
    with pytest.raises(lwqc.InputError, match=f"{name} 'mising' is not .* mean 'missing'"):
        kind.find("mising")
    assert kind.find(taken) != 1  # names of lwqc are not taken over


def test_what_an_extension_gives_wrong_is_told_in_a_line(folder, models, run):
    code = """
import lwqc

short = lwqc.ChannelScore(lambda facts: [1.0])
nan = lwqc.ChannelScore(lambda facts: [float("nan")] * facts.group.size)
silent = lwqc.ChannelScore(lambda facts: None)
none = lwqc.BranchScore(lambda facts: {})
"""
    _install(
        folder,
        "lwqc.scores.channels",
        "short = own_broken:short\nnan = own_broken:nan\nsilent = own_broken:silent\n"
        "[lwqc.scores.branches]\nnone = own_broken:none\n"
        "[lwqc.targets]\nmisnamed = lwqc.backends.cuda:CudaTarget\n",
        code,
    )

    def prune(score):
        return lwqc.prune("model.onnx", recipe="spa-l2", score=score, ratio=0.3)

    with pytest.raises(
        lwqc.InputError,
        match=r"short \(of own-broken\) on group w1:1: gave the shape \(1,\).*\(64,\)",
    ):
        prune("short")
    with pytest.raises(
        lwqc.InputError, match=r"nan .* on group w1:1: gave a number that is not finite"
    ):
        prune("nan")
    with pytest.raises(
        lwqc.InputError, match=r"branch score none \(of own-broken\): gave no number for "
    ):
        lwqc.drop_layers("blocks.onnx", branches=1, score="none")
    with pytest.raises(lwqc.InputError, match="target misnamed: calls itself cuda"):
        lwqc.quantize("model.onnx", target="misnamed")
    plans = {}
    for score in ("silent", "l2"):  # where nothing is said of a group, magnitude decides
        arguments = ["prune", "model.onnx", "-o", "o.onnx", "--recipe", "spa-l2", "--no-verify"]
        code, _, error = run(*arguments, "--score", score, "--plan-out", f"{score}.json")
        assert code == 0, error
        plans[score] = lwqc.Plan.load(f"{score}.json").prune
    assert plans["silent"] == plans["l2"]


def test_rules_of_packages_stand_behind_those_of_lwqc(folder):
    _install(
        folder, "lwqc.rules", "own = own_broken:RULES\n",
        "def rule(ctx):\n    pass\n\n\nRULES = {('', 'Relu'): rule, ('own', 'Op'): rule}\n",
    )  # fmt: skip
    found = rules.all_rules()
    assert found["", "Relu"] is rules.RULES["", "Relu"]
    assert ("own", "Op") in found
    rules.all_rules.cache_clear()
    (folder / "own_broken-1.0.dist-info" / "entry_points.txt").write_text(
        "[lwqc.rules]\nown = own_broken:rule\n"
    )
    with pytest.raises(lwqc.InputError, match="rules own: own_broken:rule is a function; expected"):
        rules.all_rules()


def test_recipes_of_lwqc_name_what_there_is_and_are_read_without_it():
    """Names in them are not looked up when they are read, so this test does."""
    for known in named().values():
        assert Recipe.model_validate(known.model_dump()) == known
    loads = "import sys; print('onnxruntime' in sys.modules)"
    code = f"from lwqc.plans.recipe import named; named(); {loads}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"allocator": "unifrom"}, "allocator: Value error, expected one of auto, channels, "),
        ({"allocator": "channels", "prune": {"score": "l3"}}, "prune.score: Value error, expected"),
        ({"allocator": "branches", "drop": {"score": "lime"}}, "drop.score: Value error, expected"),
    ],
)
def test_a_recipe_of_a_user_names_what_there_is(tmp_path, changes, words):
    table = {"name": "own", "description": "", **changes}
    lines = [f"{k} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for key, section in table.items():
        if isinstance(section, dict):
            lines += [f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in section.items())]
    (tmp_path / "own.toml").write_text("\n".join(lines))
    with pytest.raises(lwqc.InputError, match=words):
        find(str(tmp_path / "own.toml"))
