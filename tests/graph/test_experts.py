"""Whole experts of a mixture go with their column of the router, where the graph lets them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lwqc
from lwqc.compile.prunable import Prunable
from lwqc.errors import InputError
from lwqc.graph.groups import Groups
from lwqc.model.edit import add_constant, insert_before
from lwqc.model.unused import RemoveUnused
from lwqc.passes.prune_channels import prune_channels
from lwqc.runtime.session import Session, SessionSettings
from tests.small_models import Small
from tests.zoo.materialize import materialize

EXPERTS, WIDTH, HIDDEN, TAKEN = 4, 6, 8, 2
GATE = "model.layers.0.mlp.gate.weight"


def dense() -> tuple[onnx.ModelProto, Small]:
    """Every expert is computed, and weighed by a softmax."""
    small = Small()
    x = small.input(("batch", 5), WIDTH)
    shares = small.op("Softmax", small.linear(x, WIDTH, EXPERTS, name="router"), axis=-1)
    each = small.op("Unsqueeze", x, small.ints(0))
    hidden = small.op("Relu", small.op("MatMul", each, small.weight(EXPERTS, WIDTH, HIDDEN)))
    made = small.op("MatMul", hidden, small.weight(EXPERTS, HIDDEN, WIDTH))
    weighed = small.op("Unsqueeze", small.op("Transpose", shares, perm=[1, 0]), small.ints(2))
    summed = small.op("Mul", made, weighed)
    return small.build(small.op("ReduceSum", summed, small.ints(0), keepdims=0, name="y")), small


def chosen(also: str = "") -> tuple[onnx.ModelProto, Small]:
    """The best two experts of each row, whose weights are gathered. also: who else reads which."""
    small = Small()
    x = small.input(("batch", 5), WIDTH)
    scores = small.op("Softmax", small.linear(x, WIDTH, EXPERTS, name="router"), axis=-1)
    shares, places = small.ops("TopK", scores, small.ints(TAKEN), names=["", ""], axis=-1)
    rows = small.op("Gather", small.weight(EXPERTS, WIDTH, name="experts"), places, axis=0)
    weighed = small.op("Mul", rows, small.op("Unsqueeze", shares, small.ints(2)))
    y = small.op("ReduceSum", weighed, small.ints(1), keepdims=0, name="y")
    outputs = [y]
    if also == "output":
        outputs.append(small.op("Identity", places, name="which"))
    if also == "comparison":
        outputs.append(small.op("Equal", places, small.keep(np.asarray(1)), name="first"))
    return small.build(*outputs), small


@lru_cache(maxsize=1)
def mixtral() -> ir.Model:
    folder = Path(__file__).parents[1] / "zoo"
    return ir.from_proto(materialize(folder / "mixtral.dynamo.onnx"))


def without(model: ir.Model, group: str, experts: list[int]) -> ir.Model:
    """Pruned by the algebra."""
    prunable = Prunable(model)
    prune_channels(prunable.groups, {group: experts})
    RemoveUnused()(prunable.model)
    return prunable.model


def silenced(model: ir.Model, router: str, experts: list[int]) -> ir.Model:
    """The whole model whose router never takes some: their scores are very small."""
    copy = model.clone()
    (softmax,) = (n for n in copy.graph if n.op_type == "Softmax" and n.name == router)
    low = np.zeros(EXPERTS, np.float32)
    low[experts] = -1e4
    inputs = [softmax.inputs[0], add_constant(copy.graph, "low", low)]
    (changed,) = insert_before(softmax, "Add", inputs, ["silenced"])
    softmax.replace_input_with(0, changed)
    return copy


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(Session(model, SessionSettings(optimize=False))(feeds).values())


def router_of(model: ir.Model) -> str:
    """The softmax in front of the first TopK, or the only one."""
    found = [n for n in model.graph if n.op_type == "Softmax"]
    wanted = [n for n in found if any(u.node.op_type == "TopK" for u in n.outputs[0].uses())]
    return (wanted or found)[0].name or ""


@pytest.mark.parametrize("make", [dense, chosen])
def test_what_is_left_is_the_model_that_never_takes_the_others(make) -> None:
    proto, small = make()
    model = ir.from_proto(proto)
    smaller = without(model, "router:1", [1, 2])
    whole = silenced(model, router_of(model), [1, 2])
    for a, b in zip(outputs(smaller, small.feeds), outputs(whole, small.feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    stored = [v.const_value.shape for v in smaller.graph.initializers.values() if v.const_value]
    assert not any(EXPERTS in shape for shape in stored)


def test_experts_of_mixtral_go_with_their_stacked_weights() -> None:
    model, group = mixtral(), f"{GATE}:0"
    (found,) = (g for g in Prunable(model).groups if g.name == group)
    assert found.statistics
    assert [o.axis for o in found.weights] == [0, 0, 0]
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 1000, (2, 7))
    feeds = {v.name or "": np.ones((2, 7), np.int64) for v in model.graph.inputs}
    feeds["input_ids"] = ids
    smaller = without(model, group, [1])
    whole = silenced(model, router_of(model), [1])
    for a, b in zip(outputs(smaller, feeds), outputs(whole, feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_as_many_experts_stay_as_the_router_takes() -> None:
    model = ir.from_proto(chosen()[0])
    with pytest.raises(InputError, match=r"TopK .*takes 2 of 4, 1 would be left"):
        without(model, "router:1", [0, 1, 2])


@pytest.mark.parametrize("also", ["output", "comparison"])
def test_places_that_are_looked_at_otherwise_keep_all(also: str) -> None:
    groups: Groups = Prunable(ir.from_proto(chosen(also)[0])).groups
    assert "router:1" not in groups.by_name
    assert any("sorts along this axis" in f.reason for f in groups.frozen if f.size == EXPERTS)


def test_they_are_pruned_where_they_are_asked_for(tmp_path: Path) -> None:
    proto, small = dense()
    onnx.save(proto, tmp_path / "m.onnx")
    done = lwqc.prune(
        tmp_path / "m.onnx",
        recipe="spa-l2",
        groups={"router:1": 0.5},
        statistics=True,
        data=[small.feeds],
    )
    assert done.plan.prune is not None
    gone = [unit.index for unit in done.plan.prune.units if unit.group == "router:1"]
    assert len(gone) == EXPERTS // 2
    report = done.save(tmp_path / "small.onnx")
    assert report.output_bytes < report.source_bytes
