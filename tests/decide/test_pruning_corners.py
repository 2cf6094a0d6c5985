"""Pruning where scores say nothing, weights sit in odd places or the user errs."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import lwqc
from lwqc.compile.prunable import Prunable
from lwqc.errors import InputError
from lwqc.passes.repair import _computed, _Entry
from lwqc.plans.plan import Plan
from lwqc.runtime.session import Session
from tests.build import model, normal
from tests.decide.test_pruning import feeds, perceptron, shapes


def macs(done):
    report = done.pruned
    before, after = (report.before.cost(feeds()[0]).macs(k) for k in ({}, report.keep))
    return after / before


def constant_weights():
    """A perceptron whose weights are outputs of Constant nodes without a declared type."""
    made = perceptron()
    graph = made.graph
    for name in ("w1", "w2", "w3"):
        value = graph.initializers.pop(name)
        node = ir.node("Constant", [], {"value": value.const_value}, name=f"{name}/constant")
        node.outputs[0].name = name
        value.replace_all_uses_with(node.outputs[0])
        graph.insert_before(graph[0], node)
    return made


@pytest.mark.parametrize("recipe", ["spa-l2", "wanda", "obspa"])
def test_equal_scores_remove_what_was_asked_and_no_more(recipe):
    built = perceptron()
    for name in ("w1", "w2", "w3"):
        value = built.graph.initializers[name]
        value.const_value = ir.tensor(np.zeros(value.shape.numpy(), np.float32), name=name)
    done = lwqc.prune(built, recipe=recipe, ratio=0.3, data=feeds())
    assert 0.6 < macs(done) <= 0.7


def test_weights_with_nan_are_refused():
    built = perceptron()
    weight = built.graph.initializers["w2"].const_value.numpy().copy()
    weight[3, 4] = np.nan
    built.graph.initializers["w2"].const_value = ir.tensor(weight, name="w2")
    for recipe in ("spa-l2", "wanda", "obspa"):
        with pytest.raises(InputError, match="not finite"):
            lwqc.prune(built, recipe=recipe, ratio=0.3, data=feeds())


def test_weights_of_constant_nodes_are_scored_and_refitted():
    done = lwqc.prune(constant_weights(), recipe="obspa", ratio=0.3, data=feeds())
    assert 0.6 < macs(done) <= 0.7
    assert not done.pruned.skipped


@pytest.mark.parametrize("score", ["wanda", "ablation", "obs"])
def test_a_group_that_no_observed_layer_reads_is_priced_like_the_others(score):
    """The middle group feeds a ConvTranspose only."""
    built = model(
        [
            ("Conv", ["x", "w1"], "a", {}),
            ("Relu", ["a"], "b", {}),
            ("Conv", ["b", "w2"], "c", {}),
            ("Relu", ["c"], "d", {}),
            ("ConvTranspose", ["d", "w3"], "e", {"strides": [2, 2]}),
            ("Relu", ["e"], "f", {}),
            ("Conv", ["f", "w4"], "y", {}),
        ],
        {
            "w1": normal(16, 3, 1, 1, scale=0.3),
            "w2": normal(16, 16, 1, 1, seed=1, scale=0.3),
            "w3": normal(16, 16, 2, 2, seed=2, scale=0.3),
            "w4": normal(3, 16, 1, 1, seed=3, scale=0.3),
        },
        {"x": ["batch", 3, 8, 8]},
        ["y"],
    )
    data = [{"x": normal(4, 3, 8, 8, seed=i)} for i in range(2)]
    done = lwqc.prune(built, score=score, normalise="mean", ratio=0.3, data=data)
    left = {g.name: int(done.pruned.keep[g.name].sum()) for g in done.pruned.before.groups
            if g.name in done.pruned.keep}  # fmt: skip
    assert left.get("w2:0", 16) > 4, left


def test_a_loop_with_weights_of_its_own_is_left_alone():
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "wb"], ["state_out"]),
            helper.make_node("Identity", ["go"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", 20]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, ["n", 20]),
        ],
        [numpy_helper.from_array(normal(20, 20, scale=0.2), "wb")],
    )
    weights = {"w1": normal(16, 24), "w2": normal(24, 20, seed=1), "w3": normal(20, 30, seed=2),
               "w4": normal(30, 4, seed=3), "times": np.array(3)}  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["c"]),
            helper.make_node("Loop", ["times", "", "c"], ["d"], body=body),
            helper.make_node("MatMul", ["d", "w3"], ["e"]),
            helper.make_node("Relu", ["e"], ["f"]),
            helper.make_node("MatMul", ["f", "w4"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(proto, full_check=True)
    done = lwqc.prune(proto, recipe="obspa", ratio=0.2, data=feeds())
    assert shapes(done.model)["w2"][1] == 20
    Session(done.model, label="pruned")(feeds()[0])


def test_a_resize_by_stored_factors_passes_channels_on_where_sizes_are_dynamic():
    built = model(
        [
            ("Conv", ["x", "w1"], "a", {}),
            ("Resize", ["a", "", "factors"], "b", {"mode": "nearest"}),
            ("Conv", ["b", "w2"], "y", {}),
        ],
        {
            "w1": normal(24, 3, 1, 1),
            "w2": normal(4, 24, 1, 1),
            "factors": np.array([1, 1, 2, 2], np.float32),
        },
        {"x": ["batch", 3, "height", "width"]},
        ["y"],
    )
    assert [(g.name, g.size) for g in Prunable(built).groups] == [("w1:0", 24)]


def unrolled(steps):
    """The same layers over the inputs of every step; `y` has the rows of all."""
    nodes, inputs = [], {}
    for i in range(steps):
        inputs[f"x{i}"] = ["batch", 16]
        nodes += [
            ("MatMul", [f"x{i}", "w1"], f"a{i}", {}),
            ("Relu", [f"a{i}"], f"b{i}", {}),
            ("MatMul", [f"b{i}", "w2"], f"c{i}", {}),
        ]
    nodes.append(("Concat", [f"c{i}" for i in range(steps)], "y", {"axis": 0}))
    return model(nodes, {"w1": normal(16, 24), "w2": normal(24, 4, seed=1)}, inputs, ["y"])


def test_a_weight_read_in_every_step_is_one_layer_with_the_rows_of_all():
    rows = [normal(300, 16, seed=i) * (np.arange(16) // 5 == i) for i in range(3)]
    apart = {f"x{i}": r for i, r in enumerate(rows)}
    together = {"x0": np.concatenate(rows)}
    found = []
    for steps, data in ((3, apart), (1, together)):
        model_ = unrolled(steps)
        done = lwqc.prune(model_, recipe="obspa", ratio=0.4, data=[data])
        found.append([(u.group, u.index) for u in done.plan.prune.units])
    assert found[0] == found[1] != []


def shared_bias():
    """One vector is the bias of two hidden layers, whose groups are independent."""
    return model(
        [
            ("MatMul", ["x", "w1"], "a", {}),
            ("Add", ["a", "b"], "c", {}),
            ("Relu", ["c"], "d", {}),
            ("MatMul", ["d", "w2"], "e", {}),
            ("Add", ["e", "b"], "f", {}),
            ("Relu", ["f"], "g", {}),
            ("MatMul", ["g", "w3"], "y", {}),
        ],
        {"w1": normal(16, 24), "b": normal(24, seed=1), "w2": normal(24, 24, seed=2),
         "w3": normal(24, 4, seed=3)},
        {"x": ["batch", 16]},
        ["y"],
    )  # fmt: skip


def test_slices_of_a_shared_tensor_name_their_reader(tmp_path):
    done = lwqc.prune(shared_bias(), recipe="spa-l2", ratio=0.3, data=feeds())
    readers = {s.reader for u in done.plan.prune.units for s in u.slices if s.initializer == "b"}
    assert len(readers) == 2
    assert "" not in readers
    done.plan.save(tmp_path / "plan.json")
    again = lwqc.apply(shared_bias(), Plan.load(tmp_path / "plan.json"))
    x = feeds()[0]
    expected, found = (Session(m.model, label="m")(x)["y"] for m in (done, again))
    np.testing.assert_array_equal(found, expected)


def test_a_share_for_one_group_is_kept_to_beyond_the_general_limit():
    done = lwqc.prune(perceptron(), recipe="spa-l2", ratio=0, groups={"w1:1": 0.95}, data=feeds())
    assert shapes(done.model)["w1"][1] == 1


def test_a_plan_that_looked_at_data_asks_for_it_again():
    plan = lwqc.prune(perceptron(), recipe="obspa", ratio=0.2, data=feeds()).plan
    with pytest.raises(InputError, match="--data"):
        lwqc.apply(perceptron(), plan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rouned_to": 8}, "no such option"),
        ({"round_to": "8"}, "whole number"),
        ({"min_channels": 2.5}, "whole number"),
        ({"ratio": "a third"}, "share"),
        ({"groups": {"w1:1": "x"}}, "share"),
        ({"resizable_outputs": "y"}, "tuple"),
        ({"score": "l2", "loss": len}, "taylor"),
        ({"score": "taylor"}, "--loss"),
        ({"score": "l2", "normalise": "output"}, "obs"),
        ({"score": "taylor", "loss": lambda outputs, data: "much"}, "loss"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        lwqc.prune(perceptron(), data=feeds(), **{"ratio": 0.3, **options})


def test_the_plan_may_not_overwrite_the_model(tmp_path, run):
    source = tmp_path / "in.onnx"
    lwqc.save(perceptron(), source)
    before = source.read_bytes()
    common = ("prune", source, "-o", tmp_path / "out.onnx", "--recipe", "spa-l2", "--no-verify")
    code, _, err = run(*common, "--plan-out", source)
    assert (code, source.read_bytes()) == (2, before)
    assert "is read as an input" in err
    assert run(*common, "--plan-out", tmp_path / "out.onnx")[0] == 2
    assert run(*common, "--plan-out", tmp_path / "nowhere" / "p.json")[0] == 2
    assert not (tmp_path / "out.onnx").exists()


def test_a_drop_that_nobody_measures_is_not_promised(tmp_path, run):
    source = tmp_path / "in.onnx"
    lwqc.save(perceptron(), source)
    code, _, err = run("prune", source, "-o", tmp_path / "o.onnx", "--max-drop", "1e-7",
                       "--recipe", "spa-l2", "--no-verify")  # fmt: skip
    assert code == 2
    assert "no-verify" in err


def test_weights_that_callers_may_override_are_named():
    built = perceptron()
    built.graph.inputs.extend(built.graph.initializers.values())
    with pytest.raises(InputError, match="--constant-inputs"):
        lwqc.prune(built, recipe="spa-l2", ratio=0.3)


def test_a_sum_of_exponentials_counts_as_a_normalisation():
    built = model(
        [
            ("MatMul", ["x", "w1"], "a", {}),
            ("Exp", ["a"], "b", {}),
            ("ReduceSum", ["b", "axes"], "c", {}),
            ("Div", ["b", "c"], "d", {}),
            ("MatMul", ["d", "w2"], "y", {}),
        ],
        {"w1": normal(16, 24), "w2": normal(24, 4, seed=1), "axes": np.array([-1])},
        {"x": ["batch", 16]},
        ["y"],
    )
    (group,) = Prunable(built).groups
    assert group.statistics


def test_sizes_that_the_graph_computes_for_fewer_channels_have_types_and_shapes():
    """A list of sizes that another one scales; TensorRT refuses values without either."""
    x = ir.Value(name="x", shape=ir.Shape(["n", 8]), type=ir.TensorType(ir.DataType.FLOAT))
    read = ir.node("Shape", [x])
    graph = ir.Graph([x], read.outputs, nodes=[read], opset_imports={"": 20}, name="sizes")
    entries = [_Entry(0, None, 3, 4), _Entry(1, 6, 3, 4)]
    _computed(read, read.outputs[0], 2, entries)
    made = [n for n in graph if n is not read]
    assert sorted(n.op_type for n in made) == ["Div", "Greater", "Mul", "Where", "Where"]
    for node in made:
        bool_ = node.op_type == "Greater"
        assert node.outputs[0].dtype == (ir.DataType.BOOL if bool_ else ir.DataType.INT64)
        assert node.outputs[0].shape == ir.Shape([2])
