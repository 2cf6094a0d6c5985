"""Behind which attention tokens can go, by what the axis algebra says of the rest of the model."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from lwqc.graph.token_cuts import find_token_cut, find_token_cuts
from tests.tiny_vit import TinyVit, as_image, dense, flattened, pooled
from tests.zoo.materialize import materialize

ZOO = Path(__file__).parents[1] / "zoo"


def cuts(model: onnx.ModelProto) -> list[tuple[str, int, int]]:
    found = find_token_cuts(ir.from_proto(model))
    return [(c.name, c.tokens, c.always) for c in found.cuts]


def reasons(model: onnx.ModelProto) -> set[str]:
    found = find_token_cuts(ir.from_proto(model))
    assert not found.cuts
    return {r.reason for r in found.refused}


def test_a_class_token_always_stays() -> None:
    assert cuts(TinyVit().build()) == [(f"layer{i}", 9, 1) for i in range(2)]


def test_no_token_is_special_where_their_mean_is_taken() -> None:
    assert cuts(TinyVit(always=0, read=pooled).build()) == [(f"layer{i}", 8, 0) for i in range(2)]


def test_outputs_for_each_token_need_all_of_them() -> None:
    assert reasons(TinyVit(read=dense).build()) == {"graph output MatMul53_0"}


def test_a_layer_with_a_weight_for_each_token_needs_all_of_them() -> None:
    (reason,) = reasons(TinyVit(read=flattened).build())
    assert reason.endswith("logits has something of its own for each token")


def test_tokens_that_become_an_image_again_stay() -> None:
    assert reasons(TinyVit(always=0, read=as_image).build()) == {"tokens are laid out as (2·4)"}


def test_positions_that_are_added_to_scores_need_all_tokens() -> None:
    assert reasons(TinyVit(bias=True).build()) == {"its scores are masked"}


def test_branches_without_self_attention_are_told() -> None:
    model = ir.from_proto(TinyVit().build())
    assert find_token_cut(model, "mlp0") == "is no self-attention"
    assert str(find_token_cut(model, "nothing")).startswith("is no branch")


@pytest.mark.parametrize(
    ("name", "tokens", "always"),
    [
        ("vit_small_patch16_224.legacy", 197, 1),
        ("deit_tiny_distilled_patch16_224.dynamo", 198, 2),
    ],
)
def test_vision_transformers_of_the_zoo(name: str, tokens: int, always: int) -> None:
    found = cuts(materialize(ZOO / f"{name}.onnx"))
    assert len(found) == 6
    assert {(t, a) for _, t, a in found} == {(tokens, always)}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bert.dynamo", "its number of tokens is not fixed"),
    ],
)
def test_others_of_the_zoo_say_why_not(name: str, why: str) -> None:
    assert why in reasons(materialize(ZOO / f"{name}.onnx"))
