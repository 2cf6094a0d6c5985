"""A plan that was made is what is executed: `plan` and `compress` decide in one place."""

from __future__ import annotations

from inspect import signature

import onnx_ir as ir
import pytest

import lwqc
from lwqc.compile.execute import apply_plan
from lwqc.decide import strategy
from lwqc.decide.allocators.evolutionary import Settings
from lwqc.decide.compress import compress_version, make_plan, open_version
from lwqc.decide.parallel_layers import ParallelOptions, choose_parallel
from lwqc.decide.search import control as search_control
from lwqc.decide.search.control import SearchControl
from lwqc.decide.slice_streams import SliceOptions, choose_slices
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.model.data_files import stored_bytes
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import find, named
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
REFUSED = {
    ("obspa", "macs"): "needs a search",
    ("axformer", "nothing"): "needs a metric",
    ("mc-smoe", "nothing"): "no experts can be merged",
    **dict.fromkeys(
        [(name, "nothing") for name in ("evit", "evit-w8", "zero-tprune")], "no tokens"
    ),
}


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


SHORTER = [2.0, 1.0, 0.5]  # milliseconds of the original, and of what is made of it


def alike(sessions, feeds, **options):
    """Times that do not differ from run to run."""
    return [[[1e-3] * 4] * 6 for _ in sessions]


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Short searches; what is measured is the same every time, so that two runs decide alike."""
    settings = Settings(generations=1, offspring=2, survivors=(2,))
    monkeypatch.setattr(
        "lwqc.decide.search.joint.EFFORTS", dict.fromkeys(search_control.EFFORTS, settings)
    )
    for module in ("runtime.timer", "runtime.served"):
        monkeypatch.setattr(f"lwqc.{module}.time_turns", alike)
    monkeypatch.setattr(
        "lwqc.compile.run_times.medians_ms", lambda sessions, feeds: SHORTER[: len(sessions)]
    )
    monkeypatch.setattr("lwqc.decide.search.times.operator_times", lambda model, feeds: {})
    monkeypatch.setattr(
        "lwqc.decide.budgets.max_memory.peak_memory", lambda model, feeds: stored_bytes(model)
    )


def opened(net, target="cpu", data=FEEDS):
    return open_version(net, target=target, data=data, allow_fallback=True)


def replayed(net, decided, data=FEEDS):
    """The plan of a decision, which gives the bytes of its model."""
    made, done = decided.stamped, decided.make()
    again = apply_plan(opened(net, made.target, data), Plan.model_validate_json(made.text))
    assert io.to_bytes(again.model) == io.to_bytes(done.model)
    return made


CONTROL = SearchControl(processes=1)


@pytest.mark.parametrize(("name", "budget"), CASES, ids=lambda v: v)
def test_a_plan_is_executed_as_it_was_made(net, name, budget):
    work = opened(net, "tensorrt" if find(name).sparse != "none" else "cpu")
    goals = Goals(**BUDGETS[budget])
    if (name, budget) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name, budget]):
            make_plan(work, goals, name)
        return
    replayed(net, strategy.decide(work, goals, name, CONTROL))


@pytest.mark.parametrize("name", ["gptq", "obspa", "slicegpt", "ablation-refit"])
def test_also_without_data(net, name):
    decided = strategy.decide(opened(net, data=None), Goals(), name, CONTROL)
    assert replayed(net, decided, data=None).data.given is False


def same(net, name, goals, target="cpu"):
    """The plan that `plan` and `compress` make, each for itself."""
    made = make_plan(opened(net, target), goals, name, CONTROL)
    assert compress_version(opened(net, target), goals, name, CONTROL).plan == made
    return made


@pytest.mark.parametrize("budget", ["nothing", "size"])
def test_both_commands_decide_alike(net, budget):
    assert same(net, "auto", Goals(**BUDGETS[budget])).recipe == "auto"


STRUCTURAL = ["spa-l2", "finercut", "shallow", "slicegpt-shared"]


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
@pytest.mark.parametrize("name", STRUCTURAL)
def test_also_for_another_target_whose_float_type_and_sizes_the_plan_has(net, name, target):
    made = same(net, name, Goals(), target)
    assert made.target == target
    assert made.floats.dtype == "float16"
    assert bool(made.profile) == (target == "tensorrt")


def test_times_of_the_cpu_decide_nothing_for_another_target(net, monkeypatch):
    def refused(sessions, feeds):
        raise AssertionError("timed")

    monkeypatch.setattr("lwqc.compile.run_times.medians_ms", refused)
    work = opened(net, "cuda")
    assert choose_parallel(work, ParallelOptions(count=1)).plan.parallel
    assert choose_slices(work, SliceOptions(ratio=0.5)).plan.slice


def test_the_commands_take_the_same_options():
    from lwqc.cli.compressing import compress
    from lwqc.cli.planning import plan

    own = {
        "external",
        "plan_out",
        "report",
        "details",
        "as_json",
        "pareto",
        "print_pipeline",
        "dump",
        "width",
    }  # of results
    options = signature(compress).parameters.keys() - own
    assert options <= signature(plan).parameters.keys()
    assert signature(lwqc.compress).parameters.keys() == signature(lwqc.plan).parameters.keys()


def test_widths_that_were_slow_are_rounded_in_the_plan_too(net, monkeypatch):
    monkeypatch.setattr(
        "lwqc.decide.structural.run_ms", lambda work, *models: [1.0, 2.0, 0.5][: len(models)]
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
    assert again.plan.target == opened(net, target).job.target.name
    assert io.to_bytes(again.model) == io.to_bytes(done.model)


def test_a_row_of_models_does_without_data_what_compress_does(net):
    work, goals = opened(net, data=None), Goals(max_size=0.4)
    control = SearchControl(effort="low", processes=1)
    for done in strategy.row(work, goals, "auto", control, 2):
        assert "no data was given: candidates are compared on random inputs" in done.decisions.notes
    with pytest.raises(InputError, match="searches nothing"):
        next(strategy.row(work, goals, "w8", control, 2))
