"""Fewer tokens behind a layer: the same numbers as other operators give, at any batch size."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.groups import find_groups
from lwqc.graph.shapes import declared_shapes
from lwqc.model.names import gather_names
from lwqc.passes.cleanup import clean_up
from lwqc.passes.reduce_tokens import reduce_tokens
from lwqc.runtime.session import Session
from tests.tiny_vit import PATCHES, WIDTH, TinyVit, pooled

X = np.random.default_rng(3).standard_normal((5, PATCHES, WIDTH), dtype=np.float32)


def reduced(
    model: onnx.ModelProto | ir.Model, *cuts: tuple[str, int, str], merge: bool = False
) -> ir.Model:
    made = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    gather_names(made)
    for name, keep, kind in cuts:
        reduce_tokens(made, name, keep, kind, merge=merge)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    return made


def logits(model: onnx.ModelProto | ir.Model, x: NDArray[np.float32] = X) -> NDArray[np.float32]:
    made = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    (value,) = Session(made, label="tokens")({"x": x}).values()
    return value


@pytest.mark.parametrize("opset", [17, 18, 23])
def test_tokens_that_the_first_reads_most_stay(opset: int) -> None:
    cuts = (("layer0", 6, "class"), ("layer1", 3, "class"))
    expected = logits(TinyVit(keep={0: 6, 1: 3}).build())
    found = logits(reduced(TinyVit(opset=opset).build(), *cuts))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [17, 18, 23])
def test_those_that_go_become_one_as_much_as_each_is_read(opset: int) -> None:
    cuts = (("layer0", 6, "class"), ("layer1", 3, "class"))
    expected = logits(TinyVit(keep={0: 6, 1: 3}, merge=True).build())
    found = logits(reduced(TinyVit(opset=opset).build(), *cuts, merge=True))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found - logits(reduced(TinyVit(opset=opset).build(), *cuts))).max() > 1e-3


def test_all_that_go_may_become_one_beside_those_that_stay() -> None:
    """Two of nine: the class token and the mean; one of nine is the class token alone."""
    model = TinyVit().build()
    found = logits(reduced(model, ("layer0", 2, "class"), merge=True))
    assert np.abs(found - logits(reduced(model, ("layer0", 2, "class")))).max() > 1e-3
    alone = (logits(reduced(model, ("layer0", 1, "class"), merge=m)) for m in (True, False))
    np.testing.assert_array_equal(*alone)


@pytest.mark.parametrize("sharp", [2.0, 40.0, 80.0, 1e6])
def test_it_is_a_mean_however_little_they_are_read(sharp: float) -> None:
    """Attention may be so sharp that all of it is one token's: then the others count alike."""
    model = ir.from_proto(TinyVit().build())
    for value in model.graph.initializers.values():
        number = value.const_value
        if number is not None and number.shape == ir.Shape([]) and number.numpy() == 2.0:
            value.const_value = ir.tensor(np.float32(sharp), name=value.name)
    made = reduced(model, ("layer0", 4, "class"), merge=True)
    product = [n for n in made.graph if n.op_type == "MatMul" and "kept" in (n.name or "")][-1]
    shares, tokens = product.inputs
    made.graph.outputs.extend([shares, tokens, product.outputs[0]])
    found = list(Session(made, label="tokens")({"x": X}).values())
    assert all(np.isfinite(one).all() for one in found)
    np.testing.assert_allclose(found[1].sum(-1), 1, rtol=1e-5)
    assert (found[1] >= 0).all()
    inside = (found[2].min(1) - 1e-5 <= found[3][:, 0]) & (found[3][:, 0] <= found[2].max(1) + 1e-5)
    assert inside.all()
    if sharp == 1e6:
        unread = found[1][:, 0].max(-1) < 0.5
        assert unread.sum() >= 3
        means = found[2].mean(1)[unread]
        np.testing.assert_allclose(found[3][unread, 0], means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stream", [10, 11])
def test_the_stream_may_be_of_another_type_than_attention(stream: int) -> None:
    """As where a model was traced under autocast: floats of 16 bits or 64 between the layers."""
    model = TinyVit(stream=stream).build()
    cuts = (("layer0", 6, "class"), ("layer1", 3, "class"))
    expected = logits(TinyVit(stream=stream, keep={0: 6, 1: 3}, merge=True).build())
    found = logits(reduced(model, *cuts, merge=True))
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("kind", ["class", "received", "rank"])
def test_each_sample_is_judged_for_itself(kind: str, merge: bool) -> None:
    cuts = (("layer0", 5, kind), ("layer1", 2, kind))
    model = reduced(TinyVit().build(), *cuts, merge=merge)
    whole = logits(model)
    alone = np.concatenate([logits(model, X[i : i + 1]) for i in range(len(X))])
    np.testing.assert_allclose(whole, alone, rtol=1e-5, atol=1e-6)


def test_order_of_the_patches_does_not_matter_once_they_have_their_places() -> None:
    """A stream whose tokens are permuted gives the same: none is told apart by its place."""
    model = reduced(TinyVit(always=0, read=pooled).build(), ("layer0", 4, "rank"))
    model.graph.initializers["places"].const_value = ir.tensor(
        np.zeros((1, PATCHES, WIDTH), np.float32)
    )
    order = np.random.default_rng(0).permutation(PATCHES)
    np.testing.assert_allclose(logits(model), logits(model, X[:, order]), rtol=1e-4, atol=1e-5)


def test_nothing_reads_the_others_behind_the_last_attention() -> None:
    model = TinyVit().build()
    np.testing.assert_allclose(
        logits(reduced(model, ("layer1", 1, "class"))), logits(model), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["class", "received", "rank"])
def test_attention_that_is_one_operator_already(kind: str) -> None:
    cuts = (("layer0", 6, kind), ("layer1", 3, kind))
    fused = clean_up(ir.from_proto(TinyVit(opset=23).build())).model
    assert [n.op_type for n in fused.graph].count("Attention") == 2
    expected = logits(reduced(TinyVit(opset=23).build(), *cuts, merge=True))
    found = logits(reduced(fused, *cuts, merge=True))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_attention_is_still_fused_afterwards() -> None:
    model = reduced(TinyVit(opset=23).build(), ("layer0", 6, "class"), ("layer1", 1, "class"))
    before = logits(model)
    fused = clean_up(model).model
    assert [n.op_type for n in fused.graph].count("Attention") == 2
    np.testing.assert_allclose(logits(fused), before, rtol=1e-4, atol=1e-5)


def test_channels_of_the_stream_can_still_go() -> None:
    model = reduced(TinyVit().build(), ("layer0", 6, "class"))
    groups = find_groups(model, declared_shapes(model)[0])
    assert WIDTH in {group.size for group in groups.groups}


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (("layer0", 9, "class"), "layer0: has 9 tokens of which 1 stay, cannot keep 9"),
        (("layer0", 0, "class"), "layer0: has 9 tokens of which 1 stay, cannot keep 0"),
        (("mlp0", 4, "class"), "mlp0: tokens cannot go: is no self-attention"),
    ],
)
def test_what_does_not_fit_is_told(cut: tuple[str, int, str], why: str) -> None:
    with pytest.raises(InputError, match=why):
        reduced(TinyVit().build(), cut)


def test_without_a_class_token_none_can_judge() -> None:
    with pytest.raises(InputError, match="no token always stays"):
        reduced(TinyVit(always=0, read=pooled).build(), ("layer0", 4, "class"))
