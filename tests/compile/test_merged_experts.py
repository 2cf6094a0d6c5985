"""Experts of a mixture that become fewer: alike ones found and matched, the router as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.decide.compress import open_version
from lwqc.decide.fewer_experts import choose_experts
from lwqc.errors import InputError
from lwqc.graph.mixtures import find_mixtures
from lwqc.plans.plan import MergedExperts, Plan
from lwqc.plans.recipe import ExpertRecipe
from lwqc.runtime.session import Session
from tests.build import model
from tests.graph.test_experts import chosen, mixtral, outputs
from tests.small_models import Small

EXPERTS, WIDTH, HIDDEN, TAKEN = 4, 6, 16, 2
PAIRS = (0, 1, 1, 0)  # experts 0 and 3, and 1 and 2, are the same but for the order of units


def mixture(noise: float = 0.0) -> tuple[onnx.ModelProto, Small]:
    """Two experts of each row, which are two different ones in other orders, with noise."""
    small = Small()
    x = small.input(("rows", 40), WIDTH)
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, HIDDEN, WIDTH)), rng.standard_normal((2, WIDTH, HIDDEN))
    up, down = np.empty((EXPERTS, HIDDEN, WIDTH)), np.empty((EXPERTS, WIDTH, HIDDEN))
    for expert, own in enumerate(PAIRS):
        order = rng.permutation(HIDDEN)
        up[expert], down[expert] = first[own][order], second[own][:, order]
    up += noise * rng.standard_normal(up.shape)
    scores = small.op("Softmax", small.linear(x, WIDTH, EXPERTS, name="router"), axis=-1)
    shares, places = small.ops("TopK", scores, small.ints(TAKEN), names=["", "places"], axis=-1)
    rows = small.op("Unsqueeze", x, small.ints(1, 3))
    hidden = small.op("Gather", small.keep(up.astype(np.float32), "up"), places, axis=0)
    hidden = small.op("Relu", small.op("MatMul", hidden, rows))
    made = small.op("Gather", small.keep(down.astype(np.float32), "down"), places, axis=0)
    made = small.op("Squeeze", small.op("MatMul", made, hidden), small.ints(3))
    weighed = small.op("Mul", made, small.op("Unsqueeze", shares, small.ints(2)))
    return small.build(small.op("ReduceSum", weighed, small.ints(1), keepdims=0, name="y")), small


def error(model: ir.Model, original: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    (a,), (b,) = outputs(model, feeds), outputs(original, feeds)
    return float(np.square(a - b).sum() / np.square(b).sum())


def test_equal_experts_in_other_orders_become_one_and_nothing_changes(tmp_path: Path) -> None:
    proto, small = mixture()
    onnx.save(proto, tmp_path / "m.onnx")
    done = lwqc.compress(tmp_path / "m.onnx", recipe="mc-smoe", data=[small.feeds])
    (entry,) = done.plan.merge
    assert entry.into == PAIRS
    assert sum(entry.shares) == pytest.approx(1)
    report = done.save(tmp_path / "small.onnx", plan=tmp_path / "plan.json")
    small_model = lwqc.load(tmp_path / "small.onnx")
    assert error(small_model, ir.from_proto(proto), small.feeds) < 1e-10
    assert report.output_bytes < 0.85 * report.source_bytes
    plan = Plan.load(tmp_path / "plan.json")
    lwqc.apply(tmp_path / "m.onnx", plan, data=[small.feeds]).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()


def test_merging_similar_experts_beats_taking_them_out(tmp_path: Path) -> None:
    proto, small = mixture(noise=0.3)
    onnx.save(proto, tmp_path / "m.onnx")
    original = ir.from_proto(proto)
    merged = lwqc.compress(
        tmp_path / "m.onnx", recipe="clean", merge_experts="50%", data=[small.feeds]
    )
    removed = lwqc.prune(
        tmp_path / "m.onnx", groups={"router:1": 0.5}, statistics=True, data=[small.feeds]
    )
    losses = [error(done.model, original, small.feeds) for done in (merged, removed)]
    assert losses[0] < 0.5 * losses[1]


def test_fewer_than_the_router_takes_can_be_left(tmp_path: Path) -> None:
    proto, small = mixture()
    work = open_version(ir.from_proto(proto), data=[small.feeds])
    entries, _ = choose_experts(work, ExpertRecipe(keep=1))
    assert entries[0].into == (0, 0, 0, 0)
    done = lwqc.compress(ir.from_proto(proto), recipe="clean", merge_experts=1, data=[small.feeds])
    assert Session(done.model)(small.feeds)["y"].shape == (40, WIDTH)


def test_experts_of_mixtral_are_matched_and_merged() -> None:
    model = mixtral()
    ids = np.random.default_rng(0).integers(0, 1000, (2, 7))
    feeds = {v.name or "": np.ones((2, 7), np.int64) for v in model.graph.inputs}
    feeds["input_ids"] = ids
    done = lwqc.compress(model, recipe="clean", merge_experts=3, data=[feeds])
    routers = find_mixtures(model.graph)[0]
    assert [entry.router for entry in done.plan.merge] == [m.name for m in routers]
    assert all(entry.left == 3 for entry in done.plan.merge)
    assert not any("not matched" in note for note in done.plan.notes)
    assert np.isfinite(next(iter(outputs(done.model, feeds)))).all()


def test_what_cannot_be_is_one_line() -> None:
    proto, small = chosen("output")
    with pytest.raises(InputError, match=r"no experts can be merged: .* pick no rows of stored"):
        lwqc.compress(ir.from_proto(proto), recipe="mc-smoe", data=[small.feeds])
    proto, small = mixture()
    with pytest.raises(InputError, match="places keeps its experts: it has 4"):
        lwqc.compress(ir.from_proto(proto), recipe="clean", merge_experts=4, data=[small.feeds])
    with pytest.raises(InputError, match=r"1\.5.*expected a count or a share"):
        lwqc.compress(ir.from_proto(proto), recipe="clean", merge_experts=1.5, data=[small.feeds])
    plan = Plan.model_validate(
        {"source": {}, "merge": [{"router": "places", "into": [0, 0, 1], "shares": [1, 1, 1]}]}
    )
    with pytest.raises(InputError, match="merges 3 experts of places: the model has no such"):
        lwqc.apply(ir.from_proto(proto), plan, data=[small.feeds], allow_drift=True)
    with pytest.raises(ValueError, match="from 0 on, without a gap"):
        MergedExperts(router="places", into=(0, 2), shares=(1, 1))


def test_without_data_all_count_alike_which_is_told() -> None:
    done = lwqc.compress(ir.from_proto(mixture()[0]), recipe="mc-smoe")
    assert done.plan.merge[0].shares == (0.25,) * EXPERTS
    assert "no data was given: all experts of a mixture count alike" in done.plan.notes


@pytest.mark.parametrize(
    ("axis", "why"),
    [(0, "not along the last axis"), (-1, "pick no rows of stored weights")],
)
def test_routers_that_are_none_say_why(axis: int, why: str) -> None:
    rows = [("TopK", ["x", "k"], "best", {"axis": axis})]
    built = model(rows, {"k": np.array([2])}, {"x": [4, 8]}, ["best"])
    (node,) = built.graph
    node.resize_outputs(2)
    node.outputs[1].name = "places"
    assert [why in one.reason for one in find_mixtures(built.graph)[1]] == [True]
