"""Of every site that is not quantized as asked, the plan says what it got and why."""

import onnx_ir as ir
import pytest

from lwqc.decide.compress import open_version
from lwqc.decide.planning import uniform
from tests.build import model, normal
from tests.test_odd_places import (
    FEEDS,
    embedding_tied_to_a_product_in_a_loop,
    gemm_as_jax_writes_it,
    recurrent_in_a_branch,
    tied_convolutions_around_a_branch,
)

PLACES = {
    "embedding": embedding_tied_to_a_product_in_a_loop,
    "linear": gemm_as_jax_writes_it,
    "recurrent": recurrent_in_a_branch,
    "convolution": tied_convolutions_around_a_branch,
}


def opened(place, target="cpu-vnni"):
    model = ir.serde.deserialize_model(PLACES[place]())
    data = [{**FEEDS, "c": True}] if len(model.graph.inputs) > 1 else [FEEDS]
    return open_version(model, target=target, data=data)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", ["cpu-vnni", "cpu-avx2", "cpu-arm", "cuda", "tensorrt"])
def test_no_wish_is_dropped_without_a_word(place, target):
    work = opened(place, target)
    for bits, activations in ((8, "static"), (8, "dynamic"), (4, "static"), (4, "dynamic")):
        plan = uniform(work, bits, activations)
        assert plan.quantize.keys() | plan.kept_float.keys() == work.sites.keys()
        for name, entry in plan.quantize.items():
            reason = plan.kept_float.get(name, "")
            granted = entry.activation == activations
            assert granted == (not reason), (name, bits, activations)
            assert granted or reason.startswith(("weight only: ", "dynamic activations: "))


@pytest.mark.parametrize(
    ("place", "bits", "activations", "reason"),
    [
        ("convolution", 8, "dynamic", "convolutions with dynamic activations are slower"),
        ("convolution", 4, "static", "integer kernels need symmetric 8-bit weights"),
        ("linear", 4, "static", "integer kernels need symmetric 8-bit weights"),
        ("embedding", 8, "dynamic", "Gather+MatMul has no integer kernel"),
        ("recurrent", 8, "static", "is read inside the body of an If"),
        ("recurrent", 8, "dynamic", "its LSTM's weight is put together of several"),
    ],
)
def test_the_reason_is_that_of_what_was_asked(place, bits, activations, reason):
    plan = uniform(opened(place), bits, activations)
    assert any(f"weight only: {reason}" in text for text in plan.kept_float.values())


def test_what_stays_float_has_both_reasons():
    rows = [("Conv", ["x", "w"], "y", {"pads": [1] * 4})]
    built = model(rows, {"w": normal(8, 3, 3, 3)}, {"x": ["n", 3, 8, 8]}, ["y"])
    work = open_version(built, data=[{"x": normal(1, 3, 8, 8)}], target="cpu-vnni")
    assert uniform(work, 8, "dynamic").kept_float["w"] == (
        "convolutions with dynamic activations are slower than float (ConvInteger); "
        "has only 216 weights"
    )
    assert uniform(work, 8, "static").kept_float["w"] == (
        "its Conv: its output is a graph output; has only 216 weights"
    )
    assert uniform(work, 8, "none").kept_float["w"] == "has only 216 weights"


def test_the_kind_of_number_too():
    plan = uniform(opened("convolution"), 4, "none", kind="nf4")
    assert plan.kept_float["w"] == "integers: nf4 has no kernel for Conv"
