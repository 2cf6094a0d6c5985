"""Pipelines: their text, what they run, and what looks on."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from lwqc.errors import InputError, UnsoundResult
from lwqc.graph.shapes import declared_shapes
from lwqc.passes import context
from lwqc.passes.base import Pass, apply
from lwqc.passes.bisect import first_moved
from lwqc.passes.context import Context
from lwqc.passes.instruments import Count, Dump, Limit, Timing, Trace, Verify
from lwqc.passes.pipeline import PIPELINES, Pipeline
from lwqc.passes.pipeline_text import Item, parsed
from lwqc.passes.registry import BUILT_IN, find
from lwqc.testing import TRAPS, feeds_of, model_of, outputs_of

TEXTS = [
    "fold-constants",
    "fold-constants{limit=5 copies=false},join-equal",
    "join-equal{only=a,b}",
    'join-equal{only="a b","c,{d}","\\"e=\\""}',
    "raise-opset{version=21},fuse-attention{finite-masks=true}",
    "side-branch,fold-weights",
]
TWICE = "g (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Relu(x)\n z = Relu(x) }"


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_written_as_they_were_read(text):
    assert str(Pipeline.parse(text)) == text


@pytest.mark.parametrize("name", PIPELINES)
def test_named_pipelines_stand_for_their_passes(name):
    pipeline = Pipeline.parse(name)
    assert str(Pipeline.parse(str(pipeline))) == str(pipeline)


def test_options_are_typed():
    (step,) = Pipeline.parse("fold-constants{copies=false limit=7}").steps
    assert (step.copies, step.limit) == (False, 7)
    assert parsed(" a { b = c , d  e = } , f ") == [
        Item("a", {"b": ("c", "d"), "e": ()}),
        Item("f"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-constnats", "no pass is called 'fold-constnats'; did you mean fold-constants?"),
        ("something", "no pass is called 'something'; see `lwqc passes`"),
        ("fold-constants{limt=1}", "no option of fold-constants is called 'limt'; did you mean li"),
        ("fold-constants{limit=x}", "fold-constants: limit=x: Input should be a valid integer"),
        ("fold-constants{limit=1,2}", "fold-constants: limit=1,2: Input should be a valid integer"),
        ("fold-constants{limit=1 limit=2}", "expected limit once"),
        ("raise-opset", "raise-opset: version must be given"),
        ("clean{x=1}", "clean is a pipeline: it has no options of its own"),
        ("a,", "expected a pass after the comma, found its end"),
        ("a{b", "expected =, found its end"),
        ("a b", "expected ,, found 'b'"),
        ('a{b="', "a quotation mark that is not closed"),
        ('a{b="\\x"}', "is no JSON string"),
    ],
)
def test_bad_texts_are_told_in_one_line(text, message):
    with pytest.raises(InputError) as caught:
        Pipeline.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_text_runs_nothing():
    assert Pipeline.parse("").run(model_of(TWICE)) == ()


def test_passes_of_plans_are_told_from_others():
    with pytest.raises(InputError, match="side-branch is run by a step of a plan: it needs"):
        Pipeline.parse("side-branch").run(model_of(TWICE))


@pytest.mark.parametrize("name", BUILT_IN)
def test_names_are_those_of_the_classes(name):
    assert find(name).name == name
    lines = (find(name).__doc__ or "").splitlines()
    assert all(any(line.strip().startswith(k) for line in lines) for k in ("Matches", "Rewrites"))


@dataclass(frozen=True)
class Break(Pass):
    """Write another operator.

    Matches: Relu. Rewrites to: `to`.
    """

    to: str = "Sigmoid"

    def rewrite(self, model, ctx):
        relus = [node for node in model.graph if node.op_type == "Relu"]
        for node in relus:
            node.op_type = self.to
        return len(relus)


class Dangle(Pass):
    """Takes a node away that others read."""

    def rewrite(self, model, ctx):
        model.graph.remove(model.graph[0])
        return 1


class Slope(Break):
    """The same, and says that outputs move."""

    exact: ClassVar[bool] = False


def test_what_a_pass_leaves_behind_is_tidied_up():
    model = model_of("g (float[2] x) => (float[2] y) { a = Relu(x)\n b = Abs(a)\n y = Relu(x) }")
    assert Pipeline((Break(),)).run(model) == ("break",)
    assert [node.op_type for node in model.graph] == ["Sigmoid"]


def test_facts_are_kept_until_a_pass_reports_a_change(monkeypatch):
    asked = []
    monkeypatch.setattr(
        context, "declared_shapes", lambda m, k: asked.append(m) or declared_shapes(m, k)
    )
    model = model_of(TWICE)
    ctx = Context(model)
    quiet = Pipeline.parse("constant-reshape,flat-transpose,identity-gather,late-broadcast")
    quiet.run(model, ctx)
    assert len(asked) == 1
    assert apply(Break(), ctx)
    quiet.run(model, ctx)
    assert len(asked) == 2


def test_sizes_are_kept_by_passes_that_say_so(monkeypatch):
    asked = []
    monkeypatch.setattr(
        context, "declared_shapes", lambda m, k: asked.append(k) or declared_shapes(m, k)
    )
    ctx = Context(TRAPS["symbolic-sizes"].model())
    for step in Pipeline.parse("constant-reshape,join-equal,late-broadcast").steps:
        apply(step, ctx)
    assert [node.op_type for node in ctx.model.graph] == ["MatMul", "Reshape"]
    assert ctx.shapes == declared_shapes(ctx.model)[0]
    first, *later = asked
    assert not first
    # What was there is not inferred again.
    assert later
    assert all(later)


def test_a_pass_is_not_run_again_on_what_it_left(monkeypatch):
    ran = []
    monkeypatch.setattr(Break, "rewrite", lambda self, model, ctx: ran.append(self) or 0)
    Pipeline((Break(), Break("Tanh"), Break())).run(model_of(TWICE))
    assert ran == [Break(), Break("Tanh")]


def test_limit_timing_count_and_trace():
    model, timing, count, trace = model_of(TWICE), Timing(), Count(), Trace()
    pipeline = Pipeline((Break(), Break("Tanh"), Dangle()))
    pipeline.run(model, instruments=[Limit(2), timing, count, trace])
    assert [name for name, _ in timing.rows] == ["break", "break"]
    assert count.rows == [("break", {"Relu": -2, "Sigmoid": 2}), ("break", {})]
    assert [(r["pass"], r["changes"]) for r in trace.rows] == [
        ("break", 2),
        ("break{to=Tanh}", 0),
    ]


def test_dump_writes_what_changed(tmp_path):
    Pipeline((Break("Tanh"), Break())).run(model_of(TWICE), instruments=[Dump(tmp_path / "d")])
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["01-break.onnx"]


def test_verify_names_the_pass_that_broke_the_model():
    with pytest.raises(UnsoundResult, match=r"dangle: made the model invalid: .* which nothing ma"):
        Pipeline((Break(), Dangle())).run(model_of(TWICE), instruments=[Verify()])


def test_every_pipeline_of_a_test_is_verified():
    """As pyproject.toml asks for; a model that comes broken is no fault of a pass."""
    with pytest.raises(UnsoundResult, match="dangle: made the model invalid"):
        Pipeline((Break(), Dangle())).run(model_of(TWICE))
    broken = model_of(TWICE)
    apply(Dangle(), Context(broken))
    Pipeline((Break(),)).run(broken)


def test_verify_names_the_exact_pass_that_moved_the_outputs():
    feeds = feeds_of(model_of(TWICE))
    look = Verify(lambda model: outputs_of(model, feeds))
    with pytest.raises(UnsoundResult, match=r"break\{to=Tanh\}: output . moved by"):
        Pipeline((Break("Tanh"),)).run(model_of(TWICE), instruments=[look])
    Pipeline((Slope("Tanh"), Break())).run(
        model_of(TWICE), instruments=[Verify(lambda model: outputs_of(model, feeds))]
    )


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_bisect_finds_the_pass_that_moves_the_outputs(number):
    class Quiet(Break):
        def rewrite(self, model, ctx):
            return 0

    steps: list[Pass] = [Quiet(str(i)) for i in range(4)]
    steps[number - 1] = Break("Tanh")
    model = model_of(TWICE)
    feeds = feeds_of(model)
    found = first_moved(Pipeline(tuple(steps)), model, lambda m: outputs_of(m, feeds))
    assert found is not None
    assert (found.number, found.step) == (number, "break{to=Tanh}")
    assert {node.op_type for node in model.graph} == {"Relu"}
    steps[number - 1] = Quiet()
    assert first_moved(Pipeline(tuple(steps)), model, lambda m: outputs_of(m, feeds)) is None


def test_any_pass_of_onnx_ir_runs():
    class Functional(ir.passes.FunctionalPass):
        def call(self, model):
            copy = model.clone()
            Break()(copy)
            return ir.passes.PassResult(copy, True)

    model = model_of(TWICE)
    assert Pipeline((Functional(),)).run(model) == ("functional",)
    assert {node.op_type for node in model.graph} == {"Sigmoid"}
