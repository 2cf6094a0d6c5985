"""Code of other packages that fails is told under its name, kind and package, in one line."""

import sys

import pytest

from lwqc.cli import main
from lwqc.errors import InputError, UserCodeError
from lwqc.graph import rules
from lwqc.graph.axis_analysis import analyse_axes
from lwqc.graph.shapes import declared_shapes
from lwqc.model import extensions, io
from lwqc.passes import registry
from lwqc.passes.pipeline import Pipeline
from lwqc.testing import model_of
from tests.build import model, normal

CODE = """
import lwqc
import numpy as np
from dataclasses import dataclass
from lwqc.passes.base import Pass


class Raises(Pass):
    def rewrite(self, model, ctx):
        return model.graph.nothing


class Exits(Pass):
    def rewrite(self, model, ctx):
        raise SystemExit(3)


class Refuses(Pass):
    def rewrite(self, model, ctx):
        raise lwqc.InputError("needs opset 21")


class Cycle(Pass):
    def rewrite(self, model, ctx):
        node = model.graph[0]
        node.replace_input_with(0, node.outputs[0])
        return 1


@dataclass(frozen=True)
class Picky(Pass):
    size: int = 4

    def __post_init__(self):
        raise ValueError("no size fits")

    def rewrite(self, model, ctx):
        return 0


@dataclass(frozen=True)
class Hints(Picky):
    kind: "Nowhere" = None


raising = lwqc.ChannelScore(lambda facts: facts.nothing)
words = lwqc.ChannelScore(lambda facts: ["a"] * facts.group.size)
matrix = lwqc.ChannelScore.of_weights(lambda member: member.rows)
branch = lwqc.BranchScore(lambda facts: {name: "low" for name in facts.units})
allocator = lwqc.Allocator.of_entries(lambda work, goals, recipe: work.nothing)


def target():
    raise OSError("no driver")


def rule(ctx):
    return [][1]


RULES = {("own", "Op"): rule}
"""
POINTS = """[lwqc.passes]
raises = own_failing:Raises
exits = own_failing:Exits
refuses = own_failing:Refuses
cycle = own_failing:Cycle
picky = own_failing:Picky
hints = own_failing:Hints
unloaded = own_unloaded:Any
[lwqc.scores.channels]
raising = own_failing:raising
words = own_failing:words
matrix = own_failing:matrix
unloaded = own_unloaded:any
[lwqc.scores.branches]
branch = own_failing:branch
[lwqc.allocators]
failing = own_failing:allocator
[lwqc.targets]
driverless = own_failing:target
[lwqc.rules]
own = own_failing:RULES
"""
NET = "g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }"
RECIPE = 'name = "own"\ndescription = ""\nallocator = "failing"\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a package whose code fails, and models to run it on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_failing.py").write_text(CODE)
    (tmp_path / "own_unloaded.py").write_text("import math\nmath.sqrt(-1)\n")
    (tmp_path / "own.toml").write_text(RECIPE)
    info = tmp_path / "own_failing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-failing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    io.save(model_of(NET), tmp_path / "net.onnx")
    weights = {"w1": normal(32, 64, scale=0.1), "w2": normal(64, 32, scale=0.1, seed=1)}
    nodes = [
        ("MatMul", ["x", "w1"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("MatMul", ["r", "w2"], "b", {}),
        ("Add", ["x", "b"], "y", {}),
    ]
    io.save(model(nodes, weights, {"x": ["batch", 32]}, ["y"]), tmp_path / "model.onnx")
    known = [dict(kind._loaded) for kind in extensions.EXTENSIONS]
    rules.all_rules.cache_clear()
    registry.from_packages.cache_clear()
    yield tmp_path
    rules.all_rules.cache_clear()
    registry.from_packages.cache_clear()
    for kind, loaded in zip(extensions.EXTENSIONS, known, strict=True):
        kind._loaded.clear()
        kind._loaded.update(loaded)
    for name in ("own_failing", "own_unloaded"):
        sys.modules.pop(name, None)


PRUNE = ("prune", "model.onnx", "-o", "o.onnx", "--recipe", "spa-l2", "--ratio", 0.3)
OPT = ("opt", "net.onnx", "-o", "o.onnx", "-p")
FAILURES = [
    ((*OPT, "raises"), "pass raises (of own-failing) failed: AttributeError: "),
    ((*OPT, "exits"), "pass exits (of own-failing) failed: SystemExit: 3"),
    ((*OPT, "refuses"), "pass refuses (of own-failing): needs opset 21"),
    ((*OPT, "cycle"), "pass cycle (of own-failing) failed: ValueError: "),
    ((*OPT, "picky"), "pass picky (of own-failing) failed: ValueError: no size fits"),
    ((*OPT, "hints"), "pass hints (of own-failing) failed: NameError: name 'Nowhere' is not"),
    ((*OPT, "unloaded"), "pass unloaded: own_unloaded:Any cannot be loaded: ValueError: "),
    ((*OPT, "raises", "--bisect"), "pass raises (of own-failing) failed: AttributeError: "),
    ((*PRUNE, "--score", "raising"), "score raising (of own-failing) on group w1:1 failed: Attr"),
    ((*PRUNE, "--score", "words"), "score words (of own-failing) on group w1:1 failed: ValueErr"),
    (
        (*PRUNE, "--score", "matrix"),
        "channel score matrix (of own-failing) on group w1:1: gave the shape (64, 32) for weight",
    ),
    ((*PRUNE, "--score", "unloaded"), "own_unloaded:any cannot be loaded: ValueError: "),
    (
        ("drop", "model.onnx", "-o", "o.onnx", "--branches", 1, "--score", "branch"),
        "branch score branch (of own-failing) failed: ValueError: could not convert",
    ),
    (
        ("compress", "model.onnx", "-o", "o.onnx", "--recipe", "own.toml"),
        "allocator failing (of own-failing) failed: AttributeError: ",
    ),
    (
        ("quantize", "model.onnx", "-o", "o.onnx", "--target", "driverless"),
        "target driverless (of own-failing) failed: OSError: no driver",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), FAILURES, ids=lambda v: str(v)[-40:])
def test_a_failure_of_a_package_is_told_under_its_name(folder, run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert "internal error" not in err
    assert "; --debug shows the traceback" in err
    assert not (folder / "o.onnx").exists()


def test_a_rule_that_fails_is_told_under_its_operator(folder):
    odd = model_of(NET)
    odd.graph[0].domain, odd.graph[0].op_type = "own", "Op"
    odd.opset_imports["own"] = 1
    with pytest.raises(UserCodeError, match=r"rule for own.Op \(of own-failing\) failed: IndexEr"):
        analyse_axes(odd, declared_shapes(odd)[0])


def test_debug_shows_where_it_failed(folder, monkeypatch):
    arguments = [*map(str, OPT), "raises", "--debug"]
    monkeypatch.setattr(sys, "argv", ["lwqc", *arguments])
    with pytest.raises(UserCodeError) as caught:
        main()
    assert isinstance(caught.value.__cause__, AttributeError)


def test_passes_of_lwqc_and_of_the_caller_fail_as_they_are(folder, monkeypatch):
    monkeypatch.setattr(registry.find("join-equal"), "rewrite", lambda *_: [][1])
    with pytest.raises(IndexError):
        Pipeline.parse("join-equal").run(model_of(NET))
    from own_failing import Raises

    with pytest.raises(AttributeError):
        Pipeline((Raises(),)).run(model_of(NET))
    with pytest.raises(InputError, match="raises"):
        Pipeline.parse("raises").run(model_of(NET))
