"""The TensorRT target: where Q/DQ go, what its lint finds, options beside the model."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.backends.tensorrt import TensorrtTarget
from lwqc.backends.tensorrt_lint import lint
from lwqc.backends.tensorrt_versions import ELEVEN, RTX, TEN
from lwqc.compile.execute import execute
from lwqc.decide.compress import compress_version, make_plan, open_version
from lwqc.decide.lower import lower_plan
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.goals import Goals
from lwqc.plans.plan import ActivationRange, Floats, Plan, SiteEntry, Source
from lwqc.plans.recipe import uniform_recipe
from lwqc.runtime.session import Session, SessionSettings
from tests.build import model, normal

TARGET = TensorrtTarget()
STATIC = SiteEntry(weight="w8c", activation="static")
FIVE = ActivationRange(low=-5, high=5)


def residual(opset=19, channels=32):
    """conv -> relu -> conv, added to the input, then relu."""
    rows = [
        ("Conv", ["x", "w1"], "a", {"pads": [1] * 4}),
        ("Relu", ["a"], "b", {}),
        ("Conv", ["b", "w2"], "c", {"pads": [1] * 4}),
        ("Add", ["c", "x"], "d", {}),
        ("Relu", ["d"], "y", {}),
    ]
    shape = (channels, channels, 3, 3)
    weights = {"w1": normal(*shape, scale=0.1), "w2": normal(*shape, seed=1, scale=0.1)}
    return model(rows, weights, {"x": ["n", channels, 8, 8]}, ["y"], opset=opset)


def lowered(built, entry=STATIC, floats=None, names=None):
    plan = Plan(
        source=Source(),
        target="tensorrt",
        quantize=dict.fromkeys(names or [s.name for s in find_sites(built).sites], entry),
        activations={v.name: FIVE for n in built.graph for v in n.inputs if v is not None},
        floats=floats,
    )
    done = TARGET.lower(built, plan, EncodedWeights(built, io.read_array)).model
    onnx.checker.check_model(ir.serde.serialize_model(done), full_check=True)
    return done


def names_of(built, op):
    return {n.inputs[0].name for n in built.graph if n.op_type == op}


def test_inputs_and_the_skip_are_quantized_and_outputs_are_not():
    done = lowered(residual())
    assert lint(done) == []
    assert names_of(done, "QuantizeLinear") == {"x", "b"}
    add = next(n for n in done.graph if n.op_type == "Add")
    kinds = [v.producer().op_type for v in add.inputs]
    assert kinds == ["Conv", "DequantizeLinear"]
    first = next(n for n in done.graph if n.op_type == "Conv")
    assert first.inputs[0] is add.inputs[1]  # one pair serves both
    feeds = {"x": normal(2, 32, 8, 8)}
    expected = Session(residual())(feeds)["y"]
    found = Session(done, SessionSettings(optimize=False))(feeds)["y"]
    # Half a step is 0.02; of 288 products with weights of 0.1 each, errors add up to 0.04 a layer.
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.06


def test_half_is_written_into_the_graph_with_its_scales():
    done = lowered(residual(opset=13), floats=Floats(dtype="float16"))
    assert done.opset_imports[""] >= 19
    scales = {n.inputs[1].dtype for n in done.graph if n.op_type == "QuantizeLinear"}
    assert scales == {ir.DataType.FLOAT16}
    convolutions = [n for n in done.graph if n.op_type == "Conv"]
    assert {v.dtype for n in convolutions for v in n.inputs} == {ir.DataType.FLOAT16}
    assert lint(done) == []


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "GemmT"])
def test_products_have_scales_along_their_outputs(op):
    weight = normal(48, 32, scale=0.1)
    attributes = {"transB": 1} if op == "GemmT" else {}
    stored = weight.T.copy() if op == "GemmT" else weight
    rows = [(op.removesuffix("T"), ["x", "w"], "y", attributes)]
    built = model(rows, {"w": stored}, {"x": ["n", 48]}, ["y"])
    done = lowered(built)
    assert lint(done) == []
    x = normal(4, 48)
    found = Session(done, SessionSettings(optimize=False))({"x": x})["y"]
    np.testing.assert_allclose(found, x @ weight, atol=0.1)


def test_int4_weights_in_blocks():
    built = model(
        [("MatMul", ["x", "w"], "y", {})], {"w": normal(128, 32)}, {"x": ["n", 128]}, ["y"]
    )
    entry = SiteEntry(weight="w4b64ph")
    done = lowered(built, entry, Floats(dtype="float16"))
    assert lint(done) == []
    dequantize = next(n for n in done.graph if n.op_type == "DequantizeLinear")
    assert dequantize.inputs[0].dtype == ir.DataType.INT4
    decoded = EncodedWeights(built, io.read_array).get("w", entry).decode()
    x = normal(3, 128)
    found = Session(done, SessionSettings(optimize=False))({"x": x})["y"]
    np.testing.assert_allclose(found, x @ decoded.T, atol=0.1)


def test_float8_codes_and_scales():
    built = residual()
    entry = SiteEntry(weight="fp8c", activation="static")
    done = lowered(built, entry, Floats(dtype="float16"))
    assert lint(done) == []
    codes = {n.inputs[0].dtype for n in done.graph if n.op_type == "DequantizeLinear"}
    assert codes == {ir.DataType.FLOAT8E4M3FN}
    feeds = {"x": normal(2, 32, 8, 8)}
    expected = Session(built)(feeds)["y"]
    found = Session(done, SessionSettings(optimize=False))(feeds)["y"]
    # Three digits: each operand is off by 2.6 % rms, so each of the two layers by 3.7 %.
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.07 * expected.std()


def test_scales_that_float16_cannot_hold_leave_the_site_in_floats():
    rows = [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "v"], "y", {})]
    weights = {"w": normal(32, 32, scale=1e-4), "v": normal(32, 32, seed=1)}
    built = model(rows, weights, {"x": ["n", 32]}, ["y"])
    work = open_version(built, data=[{"x": normal(4, 32)}], target="tensorrt")
    plan = make_plan(work, Goals(), uniform_recipe(8, "static", "minmax"))
    # w has small scales itself, and gives v an input of small numbers.
    assert plan.quantize == {}
    assert "float16" in plan.kept_float["w"]
    assert "float16" in plan.kept_float["v"]


def test_float8_and_integers_do_not_share_a_plan():
    built = residual()
    plan = Plan(
        source=Source(),
        quantize={"w1": STATIC, "w2": SiteEntry(weight="fp8c", activation="static")},
        activations={"x": FIVE, "b": FIVE},
    )
    with pytest.raises(InputError, match="cannot mix int8 and float8"):
        TARGET.lower(built, plan, EncodedWeights(built, io.read_array))


def test_attention_products_of_few_tokens_are_quantized():
    rows = [
        ("MatMul", ["q", "k"], "s", {}),
        ("Softmax", ["s"], "p", {}),
        ("MatMul", ["p", "v"], "o", {}),
        ("MatMul", ["o", "w"], "y", {}),
    ]

    def net(tokens):
        inputs = {"q": ["n", tokens, 64], "k": ["n", 64, tokens], "v": ["n", tokens, 64]}
        return model(rows, {"w": normal(64, 64)}, inputs, ["y"])

    assert names_of(lowered(net(32)), "QuantizeLinear") == {"q", "k", "p", "v", "o"}
    assert names_of(lowered(net(1024)), "QuantizeLinear") == {"o"}
    assert names_of(lowered(net("t")), "QuantizeLinear") == {"o"}


REFUSED = [
    (residual(channels=8), STATIC, "integers pay from 16 on"),
    (residual(), SiteEntry(weight="w8c", activation="dynamic"), "no dynamic ranges"),
    (residual(), SiteEntry(weight="w4b32"), "no weight-only form of Conv"),
    (residual(), SiteEntry(weight="w8b32a"), "symmetric"),
]


@pytest.mark.parametrize(("built", "entry", "reason"), REFUSED, ids=[r[2] for r in REFUSED])
def test_refusals_say_why(built, entry, reason):
    site = find_sites(built).sites[0]
    assert reason in TARGET.form(site, entry, 19)
    with pytest.raises(InputError, match=reason):
        lowered(built, entry)


def spoil(change):
    done = lowered(residual())
    change(done)
    return done


def _node(built, op, index=0):
    return [n for n in built.graph if n.op_type == op][index]


def _zero_point(built):
    _node(built, "QuantizeLinear").inputs[2].const_value = ir.tensor(np.int8(3))


def _uint8(built):
    zero = _node(built, "QuantizeLinear").inputs[2]
    zero.const_value = ir.tensor(np.uint8(0))


def _scale(built):
    _node(built, "QuantizeLinear").inputs[1].const_value = ir.tensor(np.float32(-1))


def _axis(built):
    weight = next(n for n in built.graph if n.name.endswith("weight/DequantizeLinear"))
    weight.attributes["axis"] = ir.AttrInt64("axis", 1)


def _both_operands(built):
    add = _node(built, "Add")
    add.replace_input_with(0, add.inputs[1])


def _float_weight(built):
    conv = _node(built, "Conv")
    conv.replace_input_with(1, conv.inputs[1].producer().inputs[1])


def _useless_pair(built):
    pair = _node(built, "DequantizeLinear")
    softmax = ir.node("Softmax", [pair.outputs[0]])
    softmax.outputs[0].name = "soft"
    softmax.outputs[0].type, softmax.outputs[0].shape = pair.outputs[0].type, pair.outputs[0].shape
    for use in list(pair.outputs[0].uses()):
        if use.node is not softmax:
            use.node.replace_input_with(use.idx, softmax.outputs[0])
    built.graph.insert_after(pair, softmax)


def _dynamic(built):
    _node(built, "Relu").op_type = "DynamicQuantizeLinear"


def _contrib(built):
    _node(built, "Relu").domain = "com.microsoft"


def _untyped(built):
    _node(built, "Relu").outputs[0].shape = None


def _new_opset(built):
    built.graph.opset_imports[""] = 24


SPOILED = [
    (_zero_point, "zero point is not 0"),
    (_uint8, "uint8 codes"),
    (_scale, "not all positive"),
    (_axis, "scales along axis 1"),
    (_both_operands, "both operands are dequantized"),
    (_float_weight, "its weight is not"),
    (_useless_pair, "feeds no operator"),
    (_dynamic, "no such operator"),
    (_contrib, "outside the engine"),
    (_untyped, "has no shape"),
    (_new_opset, "opset 24"),
]


@pytest.mark.parametrize(("change", "line"), SPOILED, ids=[c.__name__ for c, _ in SPOILED])
def test_the_lint_finds_what_breaks_a_rule(change, line):
    assert any(line in found for found in lint(spoil(change)))


def test_a_model_that_the_parser_cannot_read_is_refused():
    with pytest.raises(InputError, match="opsets 9 to 22, the model has 23"):
        lowered(residual(opset=23))


def test_recipes_and_options_beside_the_model(tmp_path):
    data = [{"x": normal(4, 32, 8, 8, seed=i)} for i in range(2)]
    work = open_version(residual(), data=data, target="tensorrt")
    done = compress_version(work, Goals(), uniform_recipe(8, "static", "minmax"))
    assert {e.activation for e in done.plan.quantize.values()} == {"static"}
    report = done.save(tmp_path / "out.onnx")
    assert report.drop < 1e-3
    assert report.latencies == ()
    assert "TensorrtExecutionProvider" in report.unmeasured
    written = json.loads((tmp_path / "out.onnx.options.json").read_text())
    assert written["provider"] == "tensorrt"
    options = written["options"]
    assert (options["trt_int8_enable"], options["trt_fp16_enable"]) == ("1", "1")
    assert options["trt_profile_min_shapes"] == "x:1x32x8x8"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "x:4x32x8x8"


def test_profiles_can_be_given():
    work = open_version(residual(), data=[{"x": normal(2, 32, 8, 8)}], target="tensorrt")
    plan = lower_plan(work, profile={"n": (1, 8, 64)})
    assert plan.profile == {"n": (1, 8, 64)}
    assert execute(work, Goals(), plan).plan.profile == plan.profile
    with pytest.raises(InputError, match="dynamic dimensions are n"):
        lower_plan(work, profile={"batch": (1, 8, 64)})


RELEASES = [(TEN, 22), (ELEVEN, 25), (RTX, 22)]


@pytest.mark.parametrize(("rules", "newest"), RELEASES, ids=lambda r: getattr(r, "name", ""))
def test_a_release_reads_opsets_up_to_its_own(rules, newest):
    target = TensorrtTarget(rules)
    assert target.violations(lowered(residual(opset=19))) == []
    plan = Plan(source=Source(), target=rules.name)
    for opset in (newest, newest + 1):
        built = residual(opset=opset)
        weights = EncodedWeights(built, io.read_array)
        if opset == newest:
            assert target.violations(target.lower(built, plan, weights).model) == []
            continue
        with pytest.raises(InputError, match=f"{rules.release} reads opsets 9 to {newest}"):
            target.lower(built, plan, weights)
        assert f"{rules.release} reads 9 to {newest}" in target.violations(built)[0]


def test_float8_convolutions_are_for_some_releases():
    site = next(s for s in find_sites(residual()).sites if s.name == "w1")
    entry = SiteEntry(weight="fp8c", activation="static")
    assert TensorrtTarget(ELEVEN).form(site, entry, 19) == "QuantizeLinear"
    assert "float8 in products only" in TensorrtTarget(RTX).form(site, entry, 19)


@pytest.mark.parametrize("rules", [ELEVEN, RTX], ids=lambda r: r.name)
def test_other_releases_have_shapes_only_beside_the_model(rules, tmp_path):
    target = TensorrtTarget(rules)
    plan = Plan(source=Source(), target=rules.name, profile={"n": (1, 4, 8)})
    found = target.options(residual(), plan, "m")
    assert set(found.values()) == {"x:1x32x8x8", "x:4x32x8x8", "x:8x32x8x8"}
    assert all("Shapes" in name or name.startswith("nv_profile_") for name in found)
    assert target.unmeasured() == rules.elsewhere
    assert rules.elsewhere


def small_floats(codes, scales, block, axis=0, chained=True):
    """A product whose weight is stored in small floats with scales in blocks."""
    weight = np.zeros((64, 32), codes.numpy())
    shape = tuple(s // block if i == axis else s for i, s in enumerate(weight.shape))
    stored = {"q": ir.tensor(weight, dtype=codes), "s": ir.tensor(np.ones(shape, scales.numpy()))}
    scale = ir.Value(name="s", const_value=stored["s"], type=ir.TensorType(scales))
    scale.shape = ir.Shape(shape)
    nodes = []
    if chained:
        one = ir.Value(name="one", const_value=ir.tensor(np.ones((), np.float32)))
        nodes.append(ir.node("DequantizeLinear", [scale, one]))
        scale = nodes[0].outputs[0]
        scale.name, scale.shape, scale.type = "t", ir.Shape(shape), ir.TensorType(FLOAT)
    q = ir.Value(name="q", const_value=stored["q"], type=ir.TensorType(codes))
    q.shape = ir.Shape(weight.shape)
    nodes.append(ir.node("DequantizeLinear", [q, scale], {"axis": axis, "block_size": block}))
    w = nodes[-1].outputs[0]
    w.name, w.shape, w.type = "w", ir.Shape(weight.shape), ir.TensorType(FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([4, 64]), type=ir.TensorType(FLOAT))
    nodes.append(ir.node("MatMul", [x, w]))
    y = nodes[-1].outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape([4, 32]), ir.TensorType(FLOAT)
    graph = ir.Graph([x], [y], nodes=nodes, opset_imports={"": 23}, name="g")
    for value in {v for node in nodes for v in node.inputs if v.const_value is not None}:
        value.type = ir.TensorType(value.const_value.dtype)
        graph.register_initializer(value)
    return ir.Model(graph, ir_version=11)


FLOAT = ir.DataType.FLOAT
FP4, FP8, POWERS = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E8M0


@pytest.mark.parametrize(
    ("codes", "scales", "block", "chained", "words"),
    [
        (FP4, FP8, 16, True, ""),
        (FP4, FP8, 32, True, "expected 16"),
        (FP8, POWERS, 32, False, ""),
        (FP8, POWERS, 16, False, "expected 32"),
        (FP8, FLOAT, 32, False, "float scales"),
    ],
)
def test_small_floats_in_blocks_are_known_to_release_11(codes, scales, block, chained, words):
    built = small_floats(codes, scales, block, chained=chained)
    found = [line for line in lint(built, ELEVEN) if "its input is quantized" not in line]
    assert bool(found) == bool(words)
    assert words in "".join(found)
    assert len(lint(built, TEN)) > len(lint(built, ELEVEN))
