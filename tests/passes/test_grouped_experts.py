"""Tokens of one expert are multiplied with its weight together."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.passes.grouped_experts import GroupedExperts
from lwqc.plans.plan import Plan
from lwqc.runtime.session import Session
from lwqc.testing import applied, assert_harmless, assert_untouched
from tests.graph.test_experts import mixtral, outputs
from tests.small_models import Small

EXPERTS, INPUTS, OUTPUTS, TAKEN, TOKENS = 5, 6, 4, 2, 9
FORMS = ("one row for each place", "copied by an Expand", "one row for all places")


def mixture(
    form: str = FORMS[0],
    *,
    column: bool = False,
    flipped: bool = False,
    nd: bool = False,
    places: str = "TopK",
    shared: bool = False,
) -> tuple[onnx.ModelProto, Small]:
    """Rows of x times matrices of a stored table, at places that scores choose.

    column: the vectors are columns, and the table's matrices the first factor. flipped: these are
    transposed in the graph. nd: GatherND picks them. places: where they come from. shared: the
    table has another reader.
    """
    small = Small()
    flat = form == FORMS[0]
    x = small.input(("n", TOKENS), INPUTS)
    scores = small.rng.standard_normal((TOKENS, EXPERTS)).astype(np.float32)
    scores[:, EXPERTS - 1] -= 9  # the last expert gets no token
    s = small.given("s", scores, (("n", TOKENS), EXPERTS))
    inward = column == flipped
    sizes = (INPUTS, OUTPUTS) if inward else (OUTPUTS, INPUTS)
    table = small.weight(EXPERTS, *sizes, name="w")
    _, best = small.ops("TopK", s, small.ints(TAKEN), names=["", ""], axis=-1)
    if places == "input":
        best = small.given("best", np.zeros((TOKENS, TAKEN), np.int64), (("n", TOKENS), TAKEN))
    elif places == "table":
        best = small.op("Gather", small.ints(4, 3, 2, 1, 0), best)
    elif places == "table from the end":
        best = small.op("Gather", small.ints(4, 3, 2, 1, -1), best)
    elif places == "ArgMax":
        best = small.op("ArgMax", s, axis=-1, keepdims=1)
    elif places == "int32":
        best = small.op("Cast", best, to=onnx.TensorProto.INT32)
    taken = 1 if places == "ArgMax" else TAKEN
    if form == FORMS[2]:
        vectors = small.op("Unsqueeze", x, small.ints(1, 3 if column else 2))
    else:
        each = small.op("Expand", small.op("Unsqueeze", x, small.ints(1)), small.ints(1, taken, 1))
        if flat:
            best = small.op("Reshape", best, small.ints(-1))
            each = small.op("Reshape", each, small.ints(-1, INPUTS))
        axis = (1 if flat else 2) + int(column)
        vectors = small.op("Unsqueeze", each, small.ints(axis))
    if nd:
        picked = small.op("GatherND", table, small.op("Unsqueeze", best, small.ints(-1)))
    else:
        picked = small.op("Gather", table, best, axis=0)
    if flipped:
        picked = small.op("Transpose", picked, perm=[0, 2, 1] if flat else [0, 1, 3, 2])
    factors = (picked, vectors) if column else (vectors, picked)
    made = [small.op("MatMul", *factors, name="y")]
    if shared:
        made.append(small.op("Neg", table, name="z"))
    return small.build(*made), small


@pytest.mark.parametrize(
    ("form", "column", "flipped", "nd"),
    list(product(FORMS, (False, True), (False, True), (False, True))),
)
def test_tokens_of_an_expert_are_multiplied_together(form, column, flipped, nd):
    given, small = mixture(form, column=column, flipped=flipped, nd=nd)
    assert_harmless(GroupedExperts(), given, feeds=small.feeds, tolerance=1e-5)
    done = applied(GroupedExperts(), given).model
    operators = Counter(node.op_type for node in done.graph)
    assert operators["MatMul"] == EXPERTS
    assert not operators["GatherND"]
    weights = done.graph.initializers
    assert "w" not in weights
    assert all(
        list(weights[f"w/{i}"].shape or ()) == [INPUTS, OUTPUTS]  # so that formats know it
        for i in range(EXPERTS)
    )


@pytest.mark.parametrize("places", ["table", "ArgMax", "int32"])
def test_places_that_count_from_the_start(places):
    given, small = mixture(FORMS[1], places=places)
    assert_harmless(GroupedExperts(), given, feeds=small.feeds, tolerance=1e-5)
    assert applied(GroupedExperts(), given).changes == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"places": "input"}, "their numbers may count from the end"),
        ({"places": "table from the end"}, "their numbers may count from the end"),
        ({"shared": True}, "their weights have another use"),
    ],
)
def test_what_is_left_says_why(options, reason):
    given = ir.from_proto(mixture(**options)[0])
    assert_untouched(GroupedExperts(), given, f"experts token by token: {reason}")


def test_an_operator_set_without_empty_sizes():
    small = Small(opset=13)
    x = small.input(("n", TOKENS), 1, INPUTS)
    s = small.input(("n", TOKENS), EXPERTS, name="s")
    best = small.op("ArgMax", s, axis=-1, keepdims=0)
    picked = small.op("Gather", small.weight(EXPERTS, INPUTS, OUTPUTS), best, axis=0)
    given = small.build(small.op("MatMul", x, picked, name="y"))
    assert_untouched(GroupedExperts(), given, "experts token by token: opset 13 is below 14")


def test_weights_that_stay_whole():
    assert_untouched(
        GroupedExperts(whole=("w",)),
        mixture()[0],
        "experts token by token: their weights have another use",
    )


def test_several_vectors_for_each_token_are_not_rows():
    small = Small()
    x = small.input(("n", TOKENS), 3, INPUTS)
    s = small.input(("n", TOKENS), EXPERTS, name="s")
    _, best = small.ops("TopK", s, small.ints(1), names=["", ""], axis=-1)
    best = small.op("Reshape", best, small.ints(-1))
    picked = small.op("Gather", small.weight(EXPERTS, INPUTS, OUTPUTS), best, axis=0)
    assert_untouched(
        GroupedExperts(),
        small.build(small.op("MatMul", x, picked, name="y")),
        "experts token by token: tokens and places do not have the same sizes",
    )


def test_two_products_of_one_choice_share_its_order():
    done = applied(GroupedExperts(), mixtral())
    assert done.changes == 4
    assert Counter(n.op_type for n in done.model.graph)["TopK"] == 2 + 2 * 2


def test_two_products_of_one_value_share_its_rows():
    """As gate and up, where they are stacks of their own."""
    small = Small()
    x = small.input(("n", TOKENS), INPUTS)
    best = small.op("ArgMax", small.input(("n", TOKENS), EXPERTS, name="s"), axis=-1, keepdims=0)
    rows = small.op("Unsqueeze", x, small.ints(1))
    ways = [
        small.op("MatMul", rows, small.op("Gather", small.weight(EXPERTS, INPUTS, 4), best))
        for _ in range(2)
    ]
    given = small.build(small.op("Mul", *ways, name="y"))
    assert_harmless(GroupedExperts(), given, feeds=small.feeds, tolerance=1e-5)
    operators = Counter(n.op_type for n in applied(GroupedExperts(), given).model.graph)
    assert (operators["Split"], operators["TopK"], operators["MatMul"]) == (1, 2, 2 * EXPERTS)


@pytest.mark.parametrize("recipe", ["w4", "gptq", "w8a8-dynamic", "w8a8-static", "smoothquant"])
def test_experts_take_formats_also_where_no_token_comes_to_some(tmp_path: Path, recipe: str):
    model = mixtral()
    feeds = {v.name or "": np.ones((1, 3), np.int64) for v in model.graph.inputs}
    rng = np.random.default_rng(0)
    data = [{**feeds, "input_ids": rng.integers(0, 1000, (1, 3))} for _ in range(3)]
    done = lwqc.compress(model, recipe=recipe, data=data)
    report = done.save(tmp_path / "small.onnx", plan=tmp_path / "plan.json")
    kept = [name for name in done.plan.kept_float if "experts" in name]
    assert not kept
    assert report.output_bytes < 0.3 * report.source_bytes
    (a,), (b,) = outputs(model, data[0]), outputs(lwqc.load(tmp_path / "small.onnx"), data[0])
    assert np.square(a - b).sum() < 0.2 * np.square(a).sum()
    lwqc.apply(model, Plan.load(tmp_path / "plan.json"), data=data).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()


def test_no_token_at_all():
    given, small = mixture()
    none = {name: value[:0] for name, value in small.feeds.items()}
    done = applied(GroupedExperts(), given).model
    assert Session(done)(none)["y"].shape == Session(ir.from_proto(given))(none)["y"].shape


@pytest.mark.parametrize("grouped", [False, True])
def test_what_chooses_experts_stays_float(grouped: bool):
    """Few bits would choose others; a TopK that ends in an output of the graph is no router."""
    small = Small()
    x = small.input(("n", TOKENS), 64)
    hidden = small.linear(x, 64, 64, name="other")
    scores = small.op("Softmax", small.linear(hidden, 64, 32, name="router"), axis=-1)
    _, best = small.ops("TopK", scores, small.ints(1), names=["", ""], axis=-1)
    best = small.op("Reshape", best, small.ints(-1))
    picked = small.op("Gather", small.weight(32, 64, 64, name="experts"), best, axis=0)
    made = small.op("MatMul", small.op("Unsqueeze", x, small.ints(1)), picked, name="y")
    heads = small.op("Softmax", small.linear(x, 64, 32, name="head"), axis=-1)
    _, classes = small.ops("TopK", heads, small.ints(3), names=["", "classes"], axis=-1)
    model = ir.from_proto(small.build(made, classes))
    if grouped:
        model = applied(GroupedExperts(), model).model
    found = find_sites(model)
    assert {"other", "head"} <= {site.name for site in found.sites}
    assert {s.name: s.reason for s in found.skipped}["router"].startswith("chooses experts")


@pytest.mark.parametrize(("target", "grouped"), [("cpu-arm", True), ("web", True), ("cuda", False)])
def test_only_where_sizes_may_be_computed(target: str, grouped: bool):
    plan = lwqc.lower(mixtral(), target=target).plan
    assert plan.clean is not None
    assert ("grouped-experts" in plan.clean.changes) == plan.clean.experts == grouped


@pytest.mark.parametrize("nd", [False, True])
def test_stacks_say_what_becomes_of_them(nd: bool):
    """Before they are weights of their own, which a table of sites would not show."""
    small = Small()
    x = small.input(("n", TOKENS), 1, 64)
    best = small.op("ArgMax", small.input(("n", TOKENS), EXPERTS, name="s"), keepdims=0, axis=-1)
    if nd:
        best = small.op("Unsqueeze", best, small.ints(-1))
    kind, table = ("GatherND" if nd else "Gather"), small.weight(EXPERTS, 64, 64, name="w")
    picked = small.op(kind, table, best)
    found = find_sites(ir.from_proto(small.build(small.op("MatMul", x, picked, name="y"))))
    assert not found.sites
    assert [s.reason for s in found.skipped] == [
        "matrices that are picked by number: weights only where `grouped-experts` can part them"
    ]


def test_a_model_whose_weights_are_all_experts():
    larger = mixture_of(64)
    plan = lwqc.quantize(larger, bits=4).plan
    assert set(plan.quantize) == {f"w/{i}" for i in range(EXPERTS)}


def mixture_of(width: int) -> ir.Model:
    small = Small()
    x = small.input(("n", TOKENS), width)
    s = small.input(("n", TOKENS), EXPERTS, name="s")
    best = small.op("ArgMax", s, axis=-1, keepdims=0)
    picked = small.op("Gather", small.weight(EXPERTS, width, width, name="w"), best, axis=0)
    rows = small.op("Unsqueeze", x, small.ints(1))
    return ir.from_proto(small.build(small.op("MatMul", rows, picked, name="y")))


@pytest.mark.parametrize(
    "options",
    [
        {"max_size": "25%"},
        {"max_drop": 0.05},
        {"avg_bits": 5},
        {"recipe": "w4", "merge_experts": "50%"},
    ],
    ids=["size", "drop", "bits", "merged"],
)
def test_budgets_and_merging_reach_experts_and_leave_routers(options):
    """Layers would go instead, where nothing but them could take fewer bytes."""
    small = Small()
    x = small.input(("n", 32), 64)
    scores = small.op("Softmax", small.linear(x, 64, 12, name="router"), axis=-1)
    shares, best = small.ops("TopK", scores, small.ints(2), names=["", ""], axis=-1)
    rows = small.op("Unsqueeze", x, small.ints(1, 2))
    made = rows
    for name in ("up", "down"):
        picked = small.op("Gather", small.weight(12, 64, 64, name=name), best, axis=0)
        made = small.op("MatMul", small.op("Tanh", made), picked)
    weighed = small.op("Mul", small.op("Squeeze", made, small.ints(2)),
                       small.op("Unsqueeze", shares, small.ints(2)))  # fmt: skip
    summed = small.op("ReduceSum", weighed, small.ints(1), keepdims=0)
    given = ir.from_proto(small.build(small.op("Add", x, summed, name="y")))
    plan = lwqc.compress(given, data=[small.feeds], seed=0, **options).plan
    assert len(plan.quantize) > 1.8 * (6 if "merge_experts" in options else 12)
    assert {name.partition("/")[0] for name in plan.quantize} == {"up", "down"}
    assert not plan.remove


def test_tokens_with_an_axis_of_no_size():
    small = Small()
    x = small.input(("a", 2), ("b", 3), INPUTS)
    s = small.input(("a", 2), ("b", 3), EXPERTS, name="s")
    _, best = small.ops("TopK", s, small.ints(2), names=["", ""], axis=-1)
    picked = small.op("Gather", small.weight(EXPERTS, INPUTS, OUTPUTS), best, axis=0)
    rows = small.op("Unsqueeze", x, small.ints(2, 3))
    given = small.build(small.op("MatMul", rows, picked, name="y"))
    assert_harmless(GroupedExperts(), given, feeds=small.feeds, tolerance=1e-5)
    run = Session(applied(GroupedExperts(), given).model)
    for a, b in ((2, 0), (0, 3), (0, 0), (1, 1)):
        feeds = {
            "x": np.ones((a, b, INPUTS), np.float32),
            "s": np.ones((a, b, EXPERTS), np.float32),
        }
        assert run(feeds)["y"].shape == (a, b, 2, 1, OUTPUTS)


def head(then: str) -> ir.Model:
    """Scores of classes whose best are numbers for something else than experts."""
    small = Small()
    scores = small.linear(small.input(("n", TOKENS), 64), 64, 40, name="head")
    _, best = small.ops("TopK", scores, small.ints(3), names=["", "best"], axis=-1)
    if then == "sorted":
        _, made = small.ops("TopK", best, small.ints(3), names=["", "y"], largest=0, axis=-1)
    elif then == "templates":
        made = small.op("Gather", small.weight(40, 20, 3, name="t"), best, name="y")
    else:
        embedded = small.op("Gather", small.weight(40, 64, name="e"), best)
        made = small.linear(embedded, 64, 64, name="next")
    return ir.from_proto(small.build(made))


@pytest.mark.parametrize("then", ["sorted", "templates", "embedded"])
def test_what_chooses_something_else_is_a_weight_like_any_other(then):
    assert "head" in {site.name for site in find_sites(head(then)).sites}


def test_a_model_of_which_nothing_can_be_grouped_is_refused():
    given = ir.from_proto(mixture(FORMS[1], places="input")[0])
    with pytest.raises(InputError, match="has no weight that could take a number format"):
        lwqc.quantize(given, bits=4)
