"""The search for the fastest plan, on timings that are given rather than taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.compile import candidates, losses
from lwqc.compile.candidates import evaluate, holds
from lwqc.compile.cleaned import cleanup_for
from lwqc.compile.losses import full_drop
from lwqc.compile.timing import site_times, slow_sites
from lwqc.decide import fastest as module
from lwqc.decide import planning, trials
from lwqc.decide.base import cleaned_base, fused_base
from lwqc.decide.compress import open_version
from lwqc.decide.safest import with_room
from lwqc.errors import InputError
from lwqc.plans.plan import CleanUp
from lwqc.plans.recipe import find
from lwqc.runtime import served as module_served
from lwqc.runtime.served import no_slower, overall, relative_times
from tests.build import Row, model, normal
from tests.graph.test_experts import mixtral
from tests.processor import WHOLE

MODELS = Path(__file__).parents[2] / "models"
RECIPE = find("auto")


@pytest.fixture(scope="module")
def net():
    """Three layers of one size, and one of another."""
    rows: list[Row] = [
        ("MatMul", ["x", "w0"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("MatMul", ["b", "w1"], "c", {}),
        ("Relu", ["c"], "d", {}),
        ("MatMul", ["d", "w2"], "e", {}),
        ("MatMul", ["e", "w3"], "y", {}),
    ]
    weights = {f"w{i}": normal(64, 64 if i < 3 else 32, seed=i, scale=0.1) for i in range(4)}
    return model(rows, weights, {"x": ["batch", 64]}, ["y"])


def work(net, count=4, **options):
    return open_version(net, data=[{"x": normal(8, 64, seed=i)} for i in range(count)], **options)


def by_form(monkeypatch, seconds):
    """Sessions of one site take what `seconds(entry, shape)` says; float takes 1."""
    taken = []

    def timed(work, site, entry, shape):
        taken.append((site.name, str(entry.weight), entry.activation, shape))
        return 1.0, seconds(entry, shape)

    monkeypatch.setattr("lwqc.compile.timing.form_seconds", timed)
    monkeypatch.setenv("LWQC_CACHE", "off")
    return taken


def in_order(monkeypatch, times):
    """The original takes 1, candidates what `times` says in turn, whole graphs a half."""
    seen = []

    def relative(sessions, served, *_, **__):
        seen.append(len(sessions))
        return [[1.0] * len(served)] + [[times(i)] * len(served) for i in range(len(sessions) - 1)]

    monkeypatch.setattr(trials, "relative_times", relative)
    return seen


def by_plan(monkeypatch, times):
    """The original takes 1, the graph of a plan what `times(plan)` says."""
    plans = {}
    loaded = planning.loaded

    def remembered(work, plan):
        found = loaded(work, plan)
        if found is not None:
            plans[found[2]] = found[0]
        return found

    def relative(sessions, served, *_, **__):
        return [[times(plans[s]) if s in plans else 1.0] * len(served) for s in sessions]

    monkeypatch.setattr(planning, "loaded", remembered)
    monkeypatch.setattr(trials, "relative_times", relative)


def kinds(plan):
    return {entry.activation for entry in plan.quantize.values()}


def test_sites_of_one_kind_are_timed_once_at_each_shape(net, monkeypatch):
    taken = by_form(monkeypatch, lambda entry, shape: 0.5)
    job = work(net, shapes=[{"batch": 2}, {"batch": 9}])
    plan = module.planning.uniform(job, 8, "dynamic")
    times = site_times(job, plan)
    assert set(times) == {"w0", "w1", "w2", "w3"}
    assert all(pairs == ((1.0, 0.5), (1.0, 0.5)) for pairs in times.values())
    assert sorted(shape for *_, shape in taken) == [(2, 64), (2, 64), (9, 64), (9, 64)] or len(
        taken
    ) == len(set(taken))


def test_a_form_that_is_slow_where_it_matters_is_dropped_with_both_times(net, monkeypatch):
    by_form(monkeypatch, lambda entry, shape: 0.5 if shape[0] == 2 else 4.0)
    job = work(net, shapes=[{"batch": 2}, {"batch": 9}])
    slow = slow_sites(job, module.planning.uniform(job, 8, "dynamic"))
    assert set(slow) == {"w0", "w1", "w2", "w3"}
    assert "at batch=2" in slow["w0"]
    assert "at batch=9" in slow["w0"]


def test_the_fastest_candidate_wins(net, monkeypatch):
    by_form(monkeypatch, lambda entry, shape: 0.5 if entry.activation == "dynamic" else 2.0)
    by_plan(monkeypatch, lambda plan: 0.5 if kinds(plan) == {"dynamic"} else 0.7)
    assert kinds(module.fastest(work(net), 0.01, RECIPE)[1]) == {"dynamic"}


def losing(monkeypatch, lost):
    """Plans lose what `lost(plan)` says; returns those that were asked, in turn."""
    asked = []

    def measured(work, plan, lowered, session):
        asked.append(plan)
        return candidates.Candidate(plan, lowered, lost(plan))

    for user in (candidates, trials):
        monkeypatch.setattr(user, "measured", measured)
    monkeypatch.setattr(module, "holds", lambda work, candidate, *_: candidate.drop <= 0.01)
    return asked


def test_only_the_fastest_are_asked_what_they_lose(net, monkeypatch):
    by_form(monkeypatch, lambda entry, shape: 0.9 if entry.weight.bits == 4 else 0.5)
    by_plan(monkeypatch, lambda plan: {"dynamic": 0.3, "static": 0.5}.get(*kinds(plan), 0.7))
    asked = losing(monkeypatch, lambda plan: 0.0)
    assert kinds(module.fastest(work(net), 0.01, RECIPE)[1]) == {"dynamic"}
    assert len(asked) == 1
    assert "none" not in set().union(*map(kinds, asked))


def test_what_loses_too_much_makes_room_for_the_next(net, monkeypatch):
    by_form(monkeypatch, lambda entry, shape: 0.5)
    by_plan(monkeypatch, lambda plan: {"dynamic": 0.3, "static": 0.5}.get(*kinds(plan), 0.7))
    asked = losing(monkeypatch, lambda plan: 1.0 if "dynamic" in kinds(plan) else 0.0)
    assert kinds(module.fastest(work(net), 0.01, RECIPE)[1]) == {"static"}
    assert kinds(asked[0]) == {"dynamic"}


def test_what_is_mended_comes_with_the_time_that_it_takes_then(net, monkeypatch):
    """All in dynamic 8 bits is fastest and loses too much; mended, it is behind another."""

    def seconds(plan):
        return {"dynamic": 0.3, "static": 0.5, "none": 0.7}[min(kinds(plan) - {"none"} or ["none"])]

    def mended(plan):
        return any(e.activation == "none" for e in plan.quantize.values())

    by_form(monkeypatch, lambda entry, shape: 0.5)
    by_plan(monkeypatch, lambda plan: 0.6 if mended(plan) else seconds(plan))
    asked = losing(monkeypatch, lambda plan: 1.0 if kinds(plan) == {"dynamic"} else 0.0)
    assert kinds(module.fastest(work(net), 0.01, RECIPE)[1]) == {"static"}
    assert any(map(mended, asked))


def test_what_is_slow_alone_is_tried_on_the_whole(net, monkeypatch):
    by_form(monkeypatch, lambda entry, shape: 0.5 if entry.activation == "dynamic" else 1.2)
    by_plan(monkeypatch, lambda plan: 0.5 if kinds(plan) == {"static"} else 0.7)
    assert kinds(module.fastest(work(net), 0.01, RECIPE)[1]) == {"static"}


@pytest.mark.parametrize(("alone", "bits"), [(0.7, 4), (0.9, WHOLE)])
def test_four_bits_are_tried_on_the_whole_unless_they_are_far_slower_alone(
    net, monkeypatch, alone, bits
):
    def few(plan):
        return all(e.weight.bits == 4 for e in plan.quantize.values())

    by_form(monkeypatch, lambda entry, shape: alone if entry.weight.bits == 4 else 0.5)
    by_plan(monkeypatch, lambda plan: 0.3 if few(plan) else 0.5)
    _, plan = module.fastest(work(net), 1.0, RECIPE)
    assert {entry.weight.bits for entry in plan.quantize.values()} == {bits}


@pytest.mark.parametrize(("bits", "kind"), [(4, "dynamic"), (8, "static")])
def test_merged_layers_keep_the_kind_of_the_best_plan(monkeypatch, bits, kind):
    rows: list[Row] = [("MatMul", ["x", f"w{i}"], f"m{i}", {}) for i in range(3)]
    rows += [("Concat", ["m0", "m1", "m2"], "y", {"axis": 1})]
    weights = {f"w{i}": normal(64, 32, seed=i, scale=0.1) for i in range(3)}
    job = work(model(rows, weights, {"x": ["batch", 64]}, ["y"]))
    by_form(monkeypatch, lambda entry, shape: 0.5)
    best = module.planning.calibrate(
        job, module.planning.uniform(job, bits, kind, recipe="auto"), RECIPE.ranges
    )
    (trial,) = module._merged(trials.Trials(job, 1.0, RECIPE), best)
    (entry,) = trial.plan.quantize.values()
    assert (entry.weight.bits, entry.activation) == (WHOLE if bits == 8 else bits, kind)


def test_first_convolutions_stay_float_where_the_whole_is_faster(monkeypatch):
    rows: list[Row] = []
    for i in range(5):
        rows += [("Conv", [f"r{i}" if i else "x", f"w{i}"], f"c{i}", {"pads": [1, 1, 1, 1]})]
        rows += [("Relu", [f"c{i}"], f"r{i + 1}" if i < 4 else "y", {})]
    weights = {f"w{i}": normal(16, 16, 3, 3, seed=i, scale=0.1) for i in range(5)}
    graph = model(rows, weights, {"x": ["batch", 16, 8, 8]}, ["y"])
    data = [{"x": normal(2, 16, 8, 8, seed=i)} for i in range(3)]
    by_form(monkeypatch, lambda entry, shape: 0.5)

    def static(plan):
        return {n for n, e in plan.quantize.items() if e.activation == "static"}

    by_plan(monkeypatch, lambda plan: 0.4 + 0.01 * abs(len(static(plan)) - 2))
    _, plan = module.fastest(open_version(graph, data=data), 1.0, RECIPE)
    assert static(plan) == {"w2", "w3"}
    assert set(plan.quantize) == set(weights)


def test_a_plan_of_many_sites_is_tried_beside_one_of_a_single_fast_site(monkeypatch):
    """On processors whose matrix products gain far more than their convolutions do."""
    rows: list[Row] = []
    for i in range(5):
        rows += [("Conv", [f"r{i}" if i else "x", f"w{i}"], f"c{i}", {"pads": [1, 1, 1, 1]})]
        rows += [("Relu", [f"c{i}"], f"r{i + 1}", {})]
    rows += [("Flatten", ["r5"], "f", {}), ("MatMul", ["f", "head"], "y", {})]
    weights = {f"w{i}": normal(16, 16, 3, 3, seed=i, scale=0.1) for i in range(5)}
    weights["head"] = normal(1024, 16, seed=9, scale=0.1)
    graph = model(rows, weights, {"x": ["batch", 16, 8, 8]}, ["y"])
    data = [{"x": normal(2, 16, 8, 8, seed=i)} for i in range(3)]
    by_form(monkeypatch, lambda entry, shape: 0.2 if len(shape) == 2 else 0.95)

    def static(plan):
        return {n for n, e in plan.quantize.items() if e.activation == "static"}

    by_plan(monkeypatch, lambda plan: 1.2 - 0.1 * len(static(plan)))
    _, plan = module.fastest(open_version(graph, data=data), 1.0, RECIPE)
    assert static(plan) >= {f"w{i}" for i in range(5)}


@pytest.mark.parametrize("name", ["Conv", "Gather", "LSTM"])
def test_models_of_which_nothing_has_another_kernel(name):
    """Without data convolutions have none; a table and a recurrence have none anyway."""
    rows: list[Row]
    if name == "Conv":
        rows, weights = [("Conv", ["x", "w"], "y", {})], {"w": normal(32, 16, 3, 3)}
        inputs = {"x": ["batch", 16, 8, 8]}
    elif name == "Gather":
        rows, weights = (
            [("Cast", ["x"], "i", {"to": 7}), ("Gather", ["w", "i"], "y", {})],
            {"w": normal(64, 64)},
        )
        inputs = {"x": ["batch", 8]}
    else:
        rows = [("LSTM", ["x", "w", "r"], "y", {"hidden_size": 16})]
        weights = {"w": normal(1, 64, 32), "r": normal(1, 64, 16)}
        inputs = {"x": ["steps", "batch", 32]}
    graph = model(rows, weights, inputs, ["y"])
    _, plan = module.fastest(open_version(graph, data="random:2"), 0.05, RECIPE)
    assert all(entry.activation != "static" for entry in plan.quantize.values())


@pytest.mark.parametrize(("time", "coded"), [(1.3, False), (1.0, True)])
def test_weights_of_bodies_stay_float_where_the_whole_is_slower_with_them(monkeypatch, time, coded):
    def declared(name: str, kind: str, *shape: int) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)

    node, picture = onnx.helper.make_node, ("FLOAT", 1, 8, 8, 8)
    body = onnx.helper.make_graph(
        [
            node("Identity", ["go"], ["more"]),
            node("Conv", ["s", "w"], ["t"], pads=[1, 1, 1, 1]),
        ],
        "body",
        [declared("i", "INT64"), declared("go", "BOOL"), declared("s", *picture)],
        [declared("more", "BOOL"), declared("t", *picture)],
        [onnx.numpy_helper.from_array(normal(8, 8, 3, 3, scale=0.1), "w")],
    )
    loop = onnx.helper.make_graph(
        [node("Loop", ["n", "", "x"], ["y"], body=body)],
        "g",
        [declared("n", "INT64"), declared("x", *picture)],
        [declared("y", *picture)],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    graph = ir.from_proto(onnx.helper.make_model(loop, opset_imports=opsets, ir_version=10))
    feeds = {"n": np.array(2, np.int64), "x": normal(1, 8, 8, 8)}
    job = open_version(graph, data=[feeds])
    monkeypatch.setattr(module, "relative_times", lambda *_, **__: [[1.0], [time]])
    _, plan = module.fastest(job, 0.05, RECIPE)
    assert bool(plan.quantize) is coded
    if not coded:
        (reason,) = plan.kept_float.values()
        assert "1.30 times as long" in reason


def test_each_class_of_sites_gets_its_own_form(net, monkeypatch):
    def seconds(entry, shape):
        return {"dynamic": 0.5, "static": 0.7, "none": 2.0}[entry.activation]

    by_form(monkeypatch, seconds)
    job = work(net)
    plans = [module.planning.uniform(job, 8, kind) for kind in ("static", "dynamic")]
    times = [site_times(job, plan) for plan in plans]
    times[1]["w3"] = ((1.0, 0.9),)
    mixed = module._quickest(job, plans, times)
    assert mixed is not None
    found = {name: entry.activation for name, entry in mixed.quantize.items()}
    assert found == {"w0": "dynamic", "w1": "dynamic", "w2": "dynamic", "w3": "static"}


def test_nothing_faster_keeps_the_kernels(net, monkeypatch):
    by_form(monkeypatch, lambda entry, shape: 0.5)
    in_order(monkeypatch, lambda i: 1.5)
    job = work(net)
    _, plan = module.fastest(job, 0.01, RECIPE)
    assert {job.job.target.form(job.sites[n], e, job.opset) for n, e in plan.quantize.items()} == {
        "Folded"
    }


def test_a_candidate_over_the_limit_on_all_data_is_passed_over(net, monkeypatch):
    by_form(monkeypatch, lambda entry, shape: 0.5)
    in_order(monkeypatch, lambda i: 0.5)
    job = work(net, count=5)  # more than the search looks at
    monkeypatch.setattr(candidates, "_whole_drop", lambda work, candidate, session: 1.0)
    _, plan = module.fastest(job, 0.01, RECIPE)
    assert not plan.quantize
    assert not plan.rewrites


def test_a_graph_that_moves_the_outputs_is_not_taken(monkeypatch):
    job = open_version(MODELS / "glyph_vit.onnx", data="random:1")
    monkeypatch.setattr(losses, "outputs_error", lambda work, session, against: 0.01)
    base = cleaned_base(job, CleanUp(merge=False))
    assert base.clean is None
    assert "outputs would move by 0.1 of their size" in base.left["glyph_vit.onnx"]


def test_a_clean_up_that_fails_is_reported(monkeypatch):
    job = open_version(MODELS / "glyph_vit.onnx", data="random:1")

    def failing(*_, **__):
        raise ir.passes.PassError("a rule broke")

    monkeypatch.setattr("lwqc.compile.cleaned.clean_up", failing)
    base = module.float_base(job, CleanUp(merge=False))
    assert base.work is job
    assert base.left == {"glyph_vit.onnx": "not cleaned up: a rule broke"}


def test_experts_stay_in_a_stack_where_apart_they_are_slower(monkeypatch):
    """As for one token of very many experts; the rest of the clean-up stays."""
    model = mixtral()
    feeds = {v.name or "": np.ones((1, 3), np.int64) for v in model.graph.inputs}
    job = open_version(model, data=[feeds])
    apart = iter([2.0, 0.5])
    monkeypatch.setattr("lwqc.decide.base.relative_times", lambda *_, **__: [[1.0], [next(apart)]])
    base = module.float_base(job, cleanup_for(job, merge=False))
    assert base.clean is not None
    assert not base.clean.experts
    assert "fuse-attention" in base.clean.changes
    assert "grouped-experts" not in base.clean.changes


def test_random_inputs_have_the_sizes_asked_for(net):
    served = work(net, shapes=[{"batch": 8}, {"batch": 3}]).job.data.serve
    assert [s.label for s in served] == ["batch=8", "batch=3"]
    assert np.array_equal(served[0].feeds["x"], normal(8, 64, seed=0))  # the data's own
    assert served[1].feeds["x"].shape == (3, 64)


def test_a_dimension_that_is_not_there(net):
    with pytest.raises(InputError, match="no such dimension"):
        work(net, shapes=[{"batch": 2}, {"length": 3}])


def test_several_shapes_count_alike():
    assert overall([0.5, 2.0]) == pytest.approx(1.0)
    assert no_slower([0.4, 1.04])
    assert not no_slower([0.4, 1.2])
    assert not no_slower([1.01])


def test_times_are_compared_round_by_round(monkeypatch):
    """A machine that slows down by half for all but the first round changes nothing."""
    first = [[2.0, 3.0], [4.5, 4.0], [4.0, 9.0]]
    second = [[1.0, 1.5], [2.0, 2.5], [7.0, 2.0]]
    monkeypatch.setattr("lwqc.runtime.served.time_turns", lambda *_, **__: [first, second])
    served = [module_served.Served("", {})]
    assert relative_times([], served, 1.0) == [[1.0], [0.5]]


def test_masks_get_finite_only_where_the_data_shows_no_difference(monkeypatch):
    from models import stdlib_lm

    feeds = [{k: v[:1, :32] for k, v in next(iter(stdlib_lm.calibration())).items()}]
    path = MODELS / "stdlib_lm.onnx"
    base = fused_base(open_version(path, data=feeds))
    assert base.clean is not None
    assert len(base.clean.relaxed) == 1
    guessed = fused_base(open_version(path, data="random:1"))
    assert guessed.clean is not None
    assert guessed.clean.relaxed == ()
    job = open_version(path, data=feeds)
    errors = iter([0.01, 0.0])
    monkeypatch.setattr("lwqc.decide.base.moved", lambda work, session: next(errors))
    again = fused_base(job)
    assert again.clean is not None
    assert (again.clean.accept, again.clean.relaxed) == ((), ())


def test_a_reference_that_stops_early_is_still_what_times_are_told_in(monkeypatch):
    times = [[[4.0]], [[2.0], [3.0], [2.0]], [[1.0], [1.5], [1.0]], [[8.0]]]
    monkeypatch.setattr("lwqc.runtime.served.time_turns", lambda *_, **__: times)
    served = [module_served.Served("", {})]
    assert relative_times([], served, 1.0, keep=1) == [[1.0], [0.5], [0.25], [2.0]]


def test_a_site_is_timed_once_though_nothing_is_kept_between_runs(net, monkeypatch):
    taken = by_form(monkeypatch, lambda entry, shape: 0.5)  # which turns the file off
    job = work(net)
    plan = planning.uniform(job, 8, "dynamic")
    assert site_times(job, plan) == site_times(job.derived(job.model), plan)
    assert len(taken) == len(set(taken)) > 0


def test_batches_that_a_candidate_was_compared_on_are_not_run_again(net, monkeypatch):
    job = work(net, count=6)
    candidate, session = evaluate(job, planning.uniform(job, 8, "none"))
    runs = []
    real = type(session).__call__
    monkeypatch.setattr(type(session), "__call__", lambda s, f: runs.append(s) or real(s, f))
    whole = full_drop(job, session)
    assert runs.count(session) == 6
    runs.clear()
    assert holds(job, candidate, session, whole)
    assert not holds(job, candidate, session, whole * (1 - 1e-9))
    assert runs.count(session) == 2 * (6 - 4)


def test_what_was_fitted_to_the_data_leaves_room_for_other_data(net):
    job = work(net)
    plain = planning.uniform(job, 8, "none")
    fitted = planning.with_method(job, plain, "gptq-order")
    dynamic = planning.with_method(job, planning.uniform(job, 8, "dynamic"), "gptq-order")
    assert [with_room(plan, 0.01) for plan in (plain, fitted, dynamic)] == [0.01, 0.0025, 0.01]


def test_a_plan_is_tried_once_where_two_kinds_are_the_same(net):
    job = work(net)
    plain, other = planning.uniform(job, 8, "none"), planning.uniform(job, 8, "dynamic")
    again = plain.model_copy(update={"kept_float": {"w9": "for another reason"}})
    assert module._distinct([plain, other, again]) == [plain, other]
