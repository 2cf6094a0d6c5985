"""A plan that was made is what is executed: `plan` and `compress` decide in one place."""

from __future__ import annotations

import onnx_ir as ir
import pytest

import lwqc
from lwqc import io, search_control, strategy
from lwqc.compress import compress_workspace, make_plan, open_workspace
from lwqc.errors import InputError
from lwqc.execute import apply_plan
from lwqc.goals import Goals, parse_goals
from lwqc.plan import Plan
from lwqc.recipe import find, named
from lwqc.search.evolutionary import Settings
from lwqc.search_control import SearchControl
from lwqc.workspace import stored_bytes
from tests.build import model, normal

WIDTH, LENGTH = 32, 4
FEEDS = [{"x": normal(8, LENGTH, WIDTH, seed=i)} for i in range(2)]
BUDGETS = {
    "nothing": {},
    "size": {"max_size": 0.4},
    "bits": {"avg_bits": 6},
    "drop": {"max_drop": 0.02},
    "fastest": {"max_drop": 0.02, "fastest": True},
    "macs": {"max_macs": 0.7},
    "latency": {"max_latency": 0.9},
    "memory": {"max_memory": 0.9},
}
CASES = [
    *((n, "size" if r.allocator in ("rank", "search") else "nothing") for n, r in named().items()),
    *(("auto", budget) for budget in BUDGETS if budget != "nothing"),
    ("knapsack", "size"),
    ("obspa", "macs"),
]
REFUSED = {("obspa", "macs"), ("axformer", "nothing")}  # needs a search; needs a metric


@pytest.fixture(scope="module")
def net() -> ir.Model:
    """A block of attention and MLP, each behind a norm."""
    rows, weights = [], {}

    def linear(name: str, read: str, inner: int, outer: int) -> str:
        weights[f"{name}.w"] = normal(inner, outer, seed=len(weights), scale=inner**-0.5)
        rows.append(("MatMul", [read, f"{name}.w"], name, {}))
        return name

    def normed(name: str) -> str:
        weights[f"{name}.gain"] = 1 + normal(WIDTH, seed=len(weights), scale=0.1)
        weights[f"{name}.shift"] = normal(WIDTH, seed=len(weights), scale=0.1)
        used = [stream, f"{name}.gain", f"{name}.shift"]
        rows.append(("LayerNormalization", used, name, {"axis": -1}))
        return name

    stream = linear("in", "x", WIDTH, WIDTH)
    for block in ("a",):
        read = normed(f"{block}.n1")
        q, k, v = (linear(f"{block}.{part}", read, WIDTH, WIDTH) for part in "qkv")
        rows += [
            ("Transpose", [k], f"{block}.kt", {"perm": [0, 2, 1]}),
            ("MatMul", [q, f"{block}.kt"], f"{block}.scores", {}),
            ("Softmax", [f"{block}.scores"], f"{block}.p", {"axis": -1}),
            ("MatMul", [f"{block}.p", v], f"{block}.mixed", {}),
        ]
        rows.append(("Add", [stream, linear(f"{block}.o", f"{block}.mixed", WIDTH, WIDTH)],
                     f"{block}.s1", {}))  # fmt: skip
        stream = f"{block}.s1"
        up = linear(f"{block}.up", normed(f"{block}.n2"), WIDTH, 2 * WIDTH)
        rows.append(("Relu", [up], f"{block}.r", {}))
        down = linear(f"{block}.down", f"{block}.r", 2 * WIDTH, WIDTH)
        rows.append(("Add", [stream, down], f"{block}.s2", {}))
        stream = f"{block}.s2"
    linear("y", normed("n"), WIDTH, 32)
    return model(rows, weights, {"x": ["batch", LENGTH, WIDTH]}, ["y"])


def alike(sessions, feeds, **options):
    """Times that do not differ from run to run."""
    return [[[1e-3] * 4] * 6 for _ in sessions]


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Short searches; what is measured is the same every time, so that two runs decide alike."""
    settings = Settings(generations=1, offspring=2, survivors=(2,))
    monkeypatch.setattr("lwqc.joint.EFFORTS", dict.fromkeys(search_control.EFFORTS, settings))
    for module in ("backends.session", "served"):
        monkeypatch.setattr(f"lwqc.{module}.time_turns", alike)
    for module in ("parallel_layers", "slice_streams"):
        monkeypatch.setattr(f"lwqc.{module}.medians_ms", lambda models, feeds: [2.0, 1.0])
    monkeypatch.setattr("lwqc.search_times.operator_times", lambda model, feeds: {})
    for module in ("search_memory", "whole_search"):
        monkeypatch.setattr(f"lwqc.{module}.peak_memory", lambda model, feeds: stored_bytes(model))


def opened(net, target="cpu", data=FEEDS):
    work = open_workspace(net, target=target, data=data)
    work.allow_fallback = True
    return work


def outcome(work):
    """What a job gives: bytes of a model, or the reason why not."""

    def of(job):
        try:
            return job()
        except InputError as error:
            return str(error)

    return of(work)


def same(net, name, goals, target="cpu", data=FEEDS):
    """`plan` and `compress` refuse alike, or the plan gives the bytes of the model."""
    control = SearchControl(processes=1)
    made = outcome(lambda: make_plan(opened(net, target, data), goals, name, control))
    done = outcome(lambda: compress_workspace(opened(net, target, data), goals, name, control))
    if isinstance(made, str) or isinstance(done, str):
        assert made == done
        return None
    assert Plan.model_validate_json(made.text) == made
    replayed = apply_plan(opened(net, made.target, data), made)
    assert io.to_bytes(replayed.model) == io.to_bytes(done.model)
    return made


@pytest.mark.parametrize(("name", "budget"), CASES, ids=lambda v: v)
def test_the_plan_that_is_made_is_what_compress_does(net, name, budget):
    target = "tensorrt" if find(name).sparse != "none" else "cpu"
    made = same(net, name, parse_goals(**BUDGETS[budget]), target)
    assert (made is None) == ((name, budget) in REFUSED)


@pytest.mark.parametrize("name", ["gptq", "obspa", "slicegpt", "ablation-refit", "auto"])
def test_also_without_data(net, name):
    assert same(net, name, Goals(), data=None)


STRUCTURAL = ["spa-l2", "finercut", "shallow", "slicegpt-shared"]


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
@pytest.mark.parametrize("name", STRUCTURAL)
def test_also_for_another_target_whose_float_type_and_sizes_the_plan_has(net, name, target):
    made = same(net, name, Goals(), target)
    assert made.target == target
    assert made.floats.dtype == "float16"
    assert bool(made.profile) == (target == "tensorrt")


def test_widths_that_were_slow_are_rounded_in_the_plan_too(net, monkeypatch):
    monkeypatch.setattr(
        "lwqc.structural.medians_ms", lambda models, feeds: [1.0, 2.0, 0.5][: len(models)]
    )
    made = same(net, "spa-l2", Goals())
    widths = {unit.group: 0 for unit in made.prune.units}
    for unit in made.prune.units:
        widths[unit.group] += 1
    assert {count % 8 for count in widths.values()} == {0}


@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorrt"])
@pytest.mark.parametrize(
    "job",
    [
        lambda net, t: lwqc.quantize(net, bits=8, activations="static", target=t, data=FEEDS),
        lambda net, t: lwqc.prune(net, ratio=0.4, target=t, data=FEEDS),
        lambda net, t: lwqc.drop_layers(net, branches=1, target=t, data=FEEDS),
        lambda net, t: lwqc.lower(net, target=t, data=FEEDS, allow_fallback=True),
    ],
    ids=["quantize", "prune", "drop", "lower"],
)
def test_the_plan_of_every_command_gives_its_bytes_again(net, job, target):
    done = job(net, target)
    again = lwqc.apply(net, done.plan, data=FEEDS, allow_fallback=True)
    assert again.plan.target == opened(net, target).target.name
    assert io.to_bytes(again.model) == io.to_bytes(done.model)


def test_a_row_of_models_does_without_data_what_compress_does(net):
    work, goals = opened(net, data=None), parse_goals(max_size=0.4)
    control = SearchControl(effort="low", processes=1)
    for done in strategy.row(work, goals, "auto", control, 2):
        assert "no data was given: candidates are compared on random inputs" in done.decisions.notes
    with pytest.raises(InputError, match="searches nothing"):
        next(strategy.row(work, goals, "w8", control, 2))
