"""What ONNX Runtime executes equals the decoded weights, in every form that the CPU declares."""

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.backends.cpu import CpuTarget
from lwqc.compile.stored_sites import storable
from lwqc.decide.compress import open_version
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import ActivationRange, Plan, SiteEntry, Source
from lwqc.runtime.session import (
    Session,
    SessionSettings,
    optimized_graph,
    statistics_session,
)
from lwqc.runtime.stats.ranges import ranges
from tests.build import model, normal
from tests.processor import INTEGER

TARGET = CpuTarget()


def lower(built, entries, ranges=None, rewrites=()):
    plan = Plan(
        source=Source(digest=""),
        quantize=entries,
        activations={n: ActivationRange(low=a, high=b) for n, (a, b) in (ranges or {}).items()},
        rewrites=rewrites,
    )
    weights = EncodedWeights(built, io.read_array)
    return TARGET.lower(built, plan, weights), weights


def with_decoded(built, weights, name, entry):
    """The float model with the site's weight replaced by what its codes stand for."""
    copy = built.clone()
    site = next(s for s in find_sites(copy).sites if s.name == name)
    decoded = weights.get(name, entry).decode()
    stored = decoded.T if site.uses[0].transposed and not site.weight.steps else decoded
    shape = list(copy.graph.initializers[name].shape)
    tensor = ir.tensor(np.ascontiguousarray(stored).reshape(shape), name=name)
    copy.graph.initializers[name].const_value = tensor
    return copy


def linear(op, k, n, **attributes):
    weight = normal(n, k) if attributes.get("transB") else normal(k, n)
    inputs = ["x", "w", "b"] if op == "Gemm" else ["x", "w"]
    weights = {"w": weight} | ({"b": normal(n, seed=5)} if op == "Gemm" else {})
    return model([(op, inputs, "y", attributes)], weights, {"x": ["m", k]}, ["y"])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("suffix", ["", "a", "h", "ah"])
@pytest.mark.parametrize(("k", "n"), [(256, 64), (250, 66), (33, 35)])
def test_products_compute_with_the_decoded_weights_of_blocks(bits, block, suffix, k, n):
    built = linear("MatMul", k, n)
    entry = SiteEntry(weight=f"w{bits}b{block}{suffix}")
    lowered, weights = lower(built, {"w": entry})
    assert lowered.forms == {"w": "MatMulNBits" if bits == 4 else "Folded"}
    feeds = {"x": normal(5, k, seed=2)}
    expected = Session(with_decoded(built, weights, "w", entry))(feeds)["y"]
    found = Session(lowered.model)(feeds)["y"]
    # Both sum k float32 products, in different orders.
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-5
    assert not TARGET.misplaced(lowered)


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("entry", ["w4b32h", "w8b128"])
def test_gemm_keeps_its_bias(trans, entry):
    built = linear("Gemm", 96, 48, transB=trans)
    chosen = SiteEntry(weight=entry)
    lowered, weights = lower(built, {"w": chosen})
    feeds = {"x": normal(4, 96, seed=2)}
    expected = Session(with_decoded(built, weights, "w", chosen))(feeds)["y"]
    assert np.allclose(Session(lowered.model)(feeds)["y"], expected, atol=1e-4)
    assert not TARGET.misplaced(lowered)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("suffix", ["", "a", "h"])
def test_embedding_rows_are_the_decoded_rows(bits, block, suffix):
    built = model(
        [("Gather", ["w", "i"], "y", {})], {"w": normal(50, 384)}, {"i": ["b", 3]}, ["y"],
        types={"i": 7},
    )  # fmt: skip
    entry = SiteEntry(weight=f"w{bits}b{block}{suffix}")
    lowered, weights = lower(built, {"w": entry})
    assert lowered.forms == {"w": "GatherBlockQuantized"}
    index = np.array([[0, 49, 7]])
    found = Session(lowered.model)({"i": index})["y"]
    expected = weights.get("w", entry).decode()[index]
    # Rows with float16 scales come out rounded to float16.
    tolerance = 2.0**-10 if "h" in suffix else 1e-6
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert not TARGET.misplaced(lowered)


@pytest.mark.parametrize("suffix", ["", "a"])
def test_tied_embedding_stores_its_codes_once(suffix):
    built = model(
        [
            ("Gather", ["w", "i"], "e", {}),
            ("Transpose", ["w"], "t", {"perm": [1, 0]}),
            ("MatMul", ["e", "t"], "y", {}),
        ],
        {"w": normal(500, 128)},
        {"i": ["b", 3]},
        ["y"],
        types={"i": 7},
    )
    entry = SiteEntry(weight=f"w4b32{suffix}")
    lowered, weights = lower(built, {"w": entry})
    size = io.weight_bytes(lowered.model)
    assert size <= entry.weight.size_bytes(500, 128) + 100
    index = np.array([[0, 499, 7]])
    decoded = weights.get("w", entry).decode()
    found = Session(lowered.model)({"i": index})["y"]
    assert np.allclose(found, decoded[index] @ decoded.T, atol=1e-3)
    assert not TARGET.misplaced(lowered)


@pytest.mark.parametrize("activation", ["dynamic", "static"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_integer_matmul_is_within_the_activation_grid(activation, op):
    built = linear(op, 64, 48)
    entry = SiteEntry(weight=INTEGER, activation=activation)
    lowered, weights = lower(built, {"w": entry}, {"x": (-4, 4)})
    feeds = {"x": np.clip(normal(5, 64, seed=2), -4, 4)}
    reference = with_decoded(built, weights, "w", entry)
    expected = Session(reference)(feeds)["y"]
    decoded = weights.get("w", entry).decode()
    # Each activation is off by at most half a step of its grid of 255 steps.
    bound = np.abs(decoded).sum(axis=1) * (8 / 255 / 2) + 1e-4
    assert (np.abs(Session(lowered.model)(feeds)["y"] - expected) <= bound).all()
    assert not TARGET.misplaced(lowered)


def conv_net(group=1, opset=20):
    return model(
        [
            ("Conv", ["x", "w1"], "c1", {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c1"], "r1", {}),
            ("Conv", ["r1", "w2"], "c2", {"pads": [1, 1, 1, 1], "group": group}),
            ("Add", ["c2", "r1"], "a", {}),
            ("Relu", ["a"], "r2", {}),
            ("GlobalAveragePool", ["r2"], "p", {}),
            ("Flatten", ["p"], "f", {}),
            ("Gemm", ["f", "w3"], "y", {}),
        ],
        {
            "w1": normal(16, 8, 3, 3, scale=0.2),
            "w2": normal(16, 16 // group, 3, 3, scale=0.2),
            "w3": normal(16, 40),
        },
        {"x": [1, 8, 12, 12]},
        ["y"],
        opset=opset,
    )


def measured_ranges(built, feeds):
    names = [
        v.name
        for node in built.graph
        for v in (*node.inputs, *node.outputs)
        if not v.is_initializer()
    ]
    found = ranges(built, names, [feeds], statistics_session, "minmax")
    return {name: (r.low, r.high) for name, r in found.items()}


RANGES = {"x": (-4, 4), "r1": (0, 6), "c2": (-9, 9), "r2": (0, 10), "p": (0, 3), "f": (0, 3)}


@pytest.mark.parametrize("group", [1, 4, 16])
def test_static_convolutions_run_on_integers_from_end_to_end(group):
    built = conv_net(group)
    entries = {n: SiteEntry(weight=INTEGER, activation="static") for n in ("w1", "w2", "w3")}
    feeds = {"x": normal(1, 8, 12, 12, seed=3)}
    lowered, _ = lower(built, entries, measured_ranges(built, feeds))
    assert lowered.forms == {"w1": "QLinearConv", "w2": "QLinearConv", "w3": "MatMulInteger"}
    assert not TARGET.misplaced(lowered)
    executed = [node.op_type for node in optimized_graph(lowered.model).node]
    assert executed.count("QLinearConv") == 2
    assert "QLinearAdd" not in executed  # no convolution reads what comes of the sum
    assert "Conv" not in executed
    a, b = Session(built)(feeds)["y"], Session(lowered.model)(feeds)["y"]
    assert (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


@pytest.mark.parametrize("entry", ["w8c", "w4b16h", "w4b64ah", "w2b32"])
@pytest.mark.parametrize("opset", [11, 13, 20])
def test_folded_convolutions_run_the_float_kernel_with_the_decoded_weights(entry, opset):
    built = conv_net(opset=opset)
    chosen = SiteEntry(weight=entry)
    lowered, weights = lower(built, {"w2": chosen})
    assert lowered.forms == {"w2": "Folded"}
    assert not TARGET.misplaced(lowered)
    feeds = {"x": normal(1, 8, 12, 12, seed=3)}
    expected = Session(with_decoded(built, weights, "w2", chosen))(feeds)["y"]
    assert np.allclose(Session(lowered.model)(feeds)["y"], expected, atol=1e-4)
    executed = {n.op_type for n in optimized_graph(lowered.model).node}
    assert not executed & {"BitShift", "DequantizeLinear", "Mul", "Cast"}


def test_residual_sum_is_exact():
    built = model(
        [
            ("MatMul", ["x", "w"], "h", {}),
            ("Add", ["x", "h"], "s", {}),
            ("LayerNormalization", ["s", "g"], "y", {}),
        ],
        {"w": normal(32, 32), "g": normal(32)},
        {"x": ["batch", "sequence", 32]},
        ["y"],
    )
    lowered, _ = lower(built, {}, rewrites=("residual-sum",))
    assert [n.op_type for n in lowered.model.graph] == ["MatMul", "Sum", "LayerNormalization"]
    assert "SkipLayerNormalization" in {n.op_type for n in optimized_graph(built).node}
    assert "SkipLayerNormalization" not in {n.op_type for n in optimized_graph(lowered.model).node}
    feeds = {"x": normal(2, 3, 32, seed=1)}
    plain = Session(built)(feeds)["y"]
    assert np.abs(Session(lowered.model)(feeds)["y"] - plain).max() <= 1e-6


def test_a_bias_addition_is_left_to_the_runtime():
    built = model(
        [("Add", ["x", "b"], "s", {}), ("LayerNormalization", ["s", "g"], "y", {})],
        {"b": normal(32), "g": normal(32)},
        {"x": ["m", 32]},
        ["y"],
    )
    lowered, _ = lower(built, {}, rewrites=("residual-sum",))
    assert [n.op_type for n in lowered.model.graph] == ["Add", "LayerNormalization"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (SiteEntry(weight=INTEGER, activation="dynamic"), "slower than float"),
        (SiteEntry(weight="w4b32", activation="dynamic"), "no kernel for Conv"),
        (SiteEntry(weight="w4c", activation="static"), "symmetric 8-bit"),
    ],
)
def test_plans_for_forms_that_do_not_exist_are_refused(entry, reason):
    with pytest.raises(InputError, match=f"w1 .*{reason}"):
        lower(conv_net(), {"w1": entry}, RANGES)


def test_old_opsets_are_refused_with_both_numbers():
    entry = SiteEntry(weight=INTEGER, activation="static")
    with pytest.raises(InputError, match="needs opset 13, the model has 12"):
        lower(conv_net(opset=12), {"w1": entry}, RANGES)


def test_a_kernel_that_is_not_chosen_is_reported():
    """A DequantizeLinear that several nodes read is not fused: the check must say so."""
    built = linear("MatMul", 64, 48)
    lowered, _ = lower(built, {"w": SiteEntry(weight="w4b32")})
    node = next(n for n in lowered.model.graph if n.op_type == "MatMulNBits")
    node.op_type, node.domain = "Identity", ""
    node.resize_inputs(1)
    for name in list(node.attributes):
        del node.attributes[name]
    assert "a float kernel" in TARGET.misplaced(lowered)["w"]


def test_model_around_the_weights_is_unchanged():
    built = conv_net()
    built.graph.inputs[0].shape = ir.Shape(["batch", 8, 12, 12])
    built.metadata_props["author"] = "someone"
    built.graph.doc_string = "a net"
    entries = {n: SiteEntry(weight="w8c") for n in ("w1", "w2", "w3")}
    lowered, _ = lower(built, entries)
    assert [v.name for v in lowered.model.graph.inputs] == ["x"]
    assert lowered.model.graph.inputs[0].shape == built.graph.inputs[0].shape
    assert [v.name for v in lowered.model.graph.outputs] == ["y"]
    assert lowered.model.metadata_props == {"author": "someone"}
    assert lowered.model.graph.doc_string == "a net"
    assert lowered.model.opset_imports[""] == 20
    assert lowered.model.ir_version == built.ir_version
    assert set(built.graph.initializers) == {"w1", "w2", "w3"}


def test_a_site_whose_name_starts_like_anothers_is_judged_by_its_own_codes():
    rows = [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "w_qkv"], "y", {})]
    weights = {"w": normal(64, 64), "w_qkv": normal(64, 64, seed=1)}
    built = model(rows, weights, {"x": ["m", 64]}, ["y"])
    quantize = {"w": SiteEntry(weight="w8c"), "w_qkv": SiteEntry(weight="w4b32")}
    plan = Plan(source=Source(digest=""), quantize=quantize)
    lowered = TARGET.lower(built, plan, EncodedWeights(built, io.read_array))
    assert lowered.forms == {"w": "Folded", "w_qkv": "MatMulNBits"}
    assert not TARGET.misplaced(lowered)


@pytest.mark.parametrize("kept", [False, True], ids=["as chosen", "as an older plan has it"])
@pytest.mark.parametrize("weight", ["w2b32h", "w3b64h", "w4b32h", "w4b16ah", "w8b128h"])
def test_blocks_with_integer_activations_are_right_without_optimizations(weight, kept):
    """onnxruntime 1.31.1 takes scales that a Cast makes for zeros there: they are float32."""
    built = linear("MatMul", 256, 64)
    work = open_version(built, data=[{"x": normal(8, 256, seed=1)}])
    entry = SiteEntry(weight=weight, activation="dynamic")
    stored = entry if kept else storable(work, "w", entry)
    assert isinstance(stored, SiteEntry)
    assert (stored.weight.scale == "float32") != kept
    lowered, _ = lower(built, {"w": stored})
    feeds = {"x": normal(8, 256, seed=2)}
    fused, plain = (
        Session(lowered.model, SessionSettings(optimize=optimize))(feeds)["y"]
        for optimize in (True, False)
    )
    assert np.abs(fused - plain).max() < 1e-3 * np.abs(fused).max()
    expected = Session(built)(feeds)["y"]
    assert np.abs(plain - expected).max() < 0.9 * np.abs(expected).max()
