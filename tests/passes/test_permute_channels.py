"""Reordering the channels of groups leaves the outputs; reordering one weight does not."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.graph.groups import find_groups
from lwqc.graph.shapes import declared_shapes
from lwqc.model.weights import stored_tensor
from lwqc.passes.permute_channels import PermuteChannels
from lwqc.testing.oracles import Oracle, difference, prepared, session
from tests.build import model, normal
from tests.conftest import ZOO
from tests.zoo.materialize import materialize, sample_inputs

MODELS = [
    "llama.dynamo",
    "gpt2.dynamo",
    "vit_small_patch16_224.legacy",
    "shufflenet_v2_x1_0.dynamo",
]


def shuffled(groups, seed=0):
    rng = np.random.default_rng(seed)
    return {g.name: np.roll(rng.permutation(g.size), 1) for g in groups}


@pytest.mark.parametrize("name", MODELS)
def test_all_groups_of_zoo_models(name):
    path = next(p for p in ZOO if p.stem == name)
    feeds = sample_inputs(path)
    built, groups, _ = prepared(ir.from_proto(materialize(path)))
    oracle = Oracle(built, groups, feeds)
    moved = built.clone()
    assert PermuteChannels(shuffled(groups))(moved).modified
    assert set(built.graph.initializers) <= set(moved.graph.initializers)
    onnx.checker.check_model(ir.to_proto(moved), full_check=True)
    assert difference(oracle.reference, session(moved)(feeds)) <= oracle.tolerance
    # Control: one weight keeps the old order.
    group = next(g for g in groups if g.size > 8)
    kept = group.weights[0].name
    broken = built.clone()
    PermuteChannels({group.name: shuffled([group])[group.name]})(broken)
    old, new = (v for m in (built, broken) for v in values(m) if v.name == kept)
    assert not np.array_equal(stored_tensor(old).numpy(), stored_tensor(new).numpy())
    new.const_value = stored_tensor(old)
    assert difference(oracle.reference, session(broken)(feeds)) > 100 * oracle.tolerance


def values(built):
    yield from built.graph.initializers.values()


def hidden_layers(shift: str) -> ir.Model:
    """y = relu(x a + shift) b, picked apart and put together again; `shift` may be shared."""
    return model(
        [
            ("MatMul", ["x", "a"], "h", {}),
            ("Add", ["h", shift], "s", {}),
            ("Relu", ["s"], "p", {}),
            ("Gather", ["p", "pick"], "r", {"axis": 1}),
            ("MatMul", ["r", "b"], "t", {}),
            ("Add", ["t", "v"], "u", {}),
            ("Relu", ["u"], "q", {}),
            ("MatMul", ["q", "c"], "y", {}),
        ],
        {
            "a": normal(8, 6), "v": normal(6, seed=1), "w": normal(6, seed=2),
            "b": normal(6, 6, seed=3), "c": normal(6, 4, seed=4),
            "pick": np.array([3, 4, 5, 0, 1, 2]),
        },
        {"x": ["m", 8]},
        ["y"],
    )  # fmt: skip


@pytest.mark.parametrize("shift", ["v", "w"])
def test_index_tables_are_renumbered_and_shared_vectors_copied(shift):
    built = hidden_layers(shift)
    groups = find_groups(built, declared_shapes(built)[0])
    orders = {g.name: np.arange(g.size)[::-1] if i else np.roll(np.arange(g.size), 1)
              for i, g in enumerate(groups)}  # fmt: skip
    assert len(orders) == 3
    feeds = {"x": normal(5, 8, seed=9)}
    expected = session(built)(feeds)
    PermuteChannels(orders)(built)
    assert difference(expected, session(built)(feeds)) <= 1e-6
    assert (len(built.graph.initializers) > 6) == (shift == "v")


def test_identity_changes_nothing():
    built = hidden_layers("w")
    assert not PermuteChannels({"b:1": np.arange(6)})(built).modified


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6]])
def test_what_is_no_permutation_is_refused(order):
    with pytest.raises(InputError, match="expected a permutation of its 6 channels"):
        PermuteChannels({"b:1": order})(hidden_layers("w"))


def test_unknown_group_is_refused():
    with pytest.raises(InputError, match="no such group"):
        PermuteChannels({"z:0": [0]})(hidden_layers("w"))
