"""Each page on extending lwqc ends in an example that works as it stands."""

import json
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import lwqc
from lwqc.graph import rules
from lwqc.model import extensions, io
from lwqc.passes import registry
from lwqc.plans.recipe import Recipe, find, named
from tests.build import model, normal
from tests.doc_pages import DOCS, Example, example
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


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_a_score_that_looks_at_inputs_is_what_its_page_says(folder, kind):
    """Mean squares of what a layer reads, summed over the kernel of a convolution."""
    page = (DOCS / "writing-a-score.md").read_text()
    (folder / "own_energy.py").write_text(
        page.partition("```python\n# own_energy.py\n")[2].split("```")[0]
    )
    _install(folder, "lwqc.scores.channels", "energy = own_energy:energy\n")
    scale = np.repeat([0.1, 10.0], 8).astype(np.float32)
    weights = {"w1": np.eye(16, dtype=np.float32) * scale, "w2": normal(16, 8)}
    shape = {"x": ["n", 16]}
    if kind == "Conv":
        weights = {"w1": weights["w1"][:, :, None, None], "w2": normal(8, 16, 3, 3)}
        shape = {"x": ["n", 16, 6, 6]}
    nodes = [(kind, ["x", "w1"], "h", {}), ("Relu", ["h"], "r", {}), (kind, ["r", "w2"], "y", {})]
    io.save(model(nodes, weights, shape, ["y"]), folder / "m.onnx")
    options = {"recipe": "spa-l2", "ratio": 0.5, "score": "energy", "calibration": "random"}
    done = lwqc.prune("m.onnx", **options)
    assert {unit.index for unit in done.plan.prune.units} == set(range(8))


BUILD = """
import os, sys
from setuptools import build_meta

for folder in sys.argv[1:]:
    os.chdir(folder)
    print(build_meta.build_wheel("."))
"""


def test_what_the_pages_print_installs(tmp_path):
    """Beside tests and other files; the page on passes prints what `examples/my_pass` holds."""
    shutil.copytree(DOCS.parent / "examples" / "my_pass", tmp_path / "pass")
    for page in PAGES:
        files = example(page).files
        if "pyproject.toml" in files:
            folder = tmp_path / page
            folder.mkdir()
            for name, text in files.items():
                (folder / name).write_text(text)
            (folder / "test_it.py").write_text("")
            (folder / "another.py").write_text("")
    folders = sorted(map(str, tmp_path.iterdir()))
    assert len(folders) == 4
    subprocess.run([sys.executable, "-c", BUILD, *folders], capture_output=True, check=True)
    for wheel in tmp_path.glob("*/*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            modules = [name for name in packed.namelist() if name.endswith(".py")]
            points = next(n for n in packed.namelist() if n.endswith("entry_points.txt"))
            assert f"{modules[0].removesuffix('.py')}:" in packed.read(points).decode()
        assert len(modules) == 1
    assert len(list(tmp_path.glob("*/*.whl"))) == 4


def test_extensions_are_listed_with_where_they_come_from(folder, run, monkeypatch):
    example("writing-a-score.md").install(folder)
    example("writing-a-target.md").install(folder)
    example("writing-a-rule.md").install(folder)
    point = (
        'own-pass"\nversion = "1.0"\n[project.entry-points."lwqc.passes"]\nmine = "own_pass:Mine"'
    )
    Example({"pyproject.toml": f'[project]\nname = "{point}\n'}, "").install(folder)
    monkeypatch.setattr(registry, "from_packages", registry.from_packages.__wrapped__)
    code, text, _ = run("extensions")
    assert code == 0
    assert "channel score, lwqc.scores.channels: cfsp, chita, fisher, fpgm, grasp, lrp, " in text
    assert "spread (own_scores:spread of own-scores)" in text
    assert "allocator, lwqc.allocators: bisect, knapsack, rank, uniform, fine-ends (own_" in text
    assert "pass, lwqc.passes: constant-reshape, convert-floats, " in text
    assert re.search(
        r"rules, lwqc.rules: \d+ operators of lwqc, own \(own_rules:RULES of own-", text
    )
    assert ", web, webgpu, eight-" in text
    found = json.loads(run("extensions", "--json")[1])
    assert found["branch score"]["installed"] == {
        "late": {"object": "own_scores:late", "package": "own-scores"}
    }
    assert found["pass"]["installed"]["mine"]["package"] == "own-pass"
    assert "Relu" in found["rules"]["built_in"]


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


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("prune", "model.onnx", "--recipe", "spa-l2", "--ratio", 0.3, "--score", "wnda"), "wanda"),
        (("drop", "blocks.onnx", "--branches", 1, "--score", "similarty"), "similarity"),
        (("quantize", "model.onnx", "--target", "cpuu"), "cpu"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(folder, models, run, arguments, near):
    code, _, error = run(*arguments, "-o", "o.onnx")
    assert code == 2
    assert f"; did you mean '{near}'?" in error


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
        ({"allocator": "unifrom"}, "expected one of auto, channels, .*; did you mean 'uniform'?"),
        ({"allocator": "channels", "prune": {"score": "wnda"}}, "score: .*; did you mean 'wanda'?"),
        ({"allocator": "none", "activation": "dynamic"}, "no such key; .* mean 'activations'?"),
        ({"allocator": "channels", "prune": {"ratoi": 0.3}}, r"prune\.ratoi: .* mean 'ratio'?"),
        ({"allocator": "none", "ranges": "min-max"}, "ranges: expected one of minmax, .*'minmax'?"),
        (
            {"allocator": "branches", "drop": {"score": "lime"}},
            r"drop\.score: expected one of .*did you mean 'lim'",
        ),
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
