"""A model as a module: what is trained of it, and what comes back."""

import copy

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

from lwqc.errors import InputError  # noqa: E402
from lwqc.learn.to_torch import module_of, write_back  # noqa: E402
from lwqc.model import io  # noqa: E402
from lwqc.runtime.session import Session  # noqa: E402
from lwqc.testing import model_of  # noqa: E402

MLP = """g (float[N,4] x) => (float[N,2] y) {
    h = MatMul(x, w) b = Add(h, bias) r = Relu(b) s = Mul(r, half) y = MatMul(s, v) }"""
SIZES = {"w": (4, 8), "bias": (8,), "v": (8, 2), "half": ()}


def weights(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


def stored(text, **arrays):
    """A model whose weights are given: they stand in the text as inputs without sizes."""
    declared = ", ".join(
        f"{_kind(a)}{list(a.shape) if a.ndim else ''} {n}" for n, a in arrays.items()
    )
    return model_of(text.replace(") =>", f", {declared}) =>", 1), arrays)


def _kind(array):
    return {"float32": "float"}.get(array.dtype.name, array.dtype.name)


@pytest.fixture
def mlp():
    return stored(MLP, **weights(SIZES))


def x(*size, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_a_model_is_trained_by_a_loop_of_ones_own_and_runs_as_it_was_trained(mlp):
    module = module_of(mlp)
    given, wanted = torch.from_numpy(x(16, 4)), torch.from_numpy(x(16, 2, seed=1))
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (module(given)["y"] - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    trained = write_back(module, mlp)
    found = Session(trained)({"x": given.numpy()})["y"]
    np.testing.assert_allclose(found, module(x=given)["y"].detach().numpy(), atol=1e-5)


def test_any_number_of_rows_goes_through_the_same_module(mlp):
    module = module_of(mlp)
    assert [tuple(module(x(n, 4))["y"].shape) for n in (1, 3)] == [(1, 2), (3, 2)]


def test_weights_and_biases_are_parameters_and_single_numbers_are_not(mlp):
    module = module_of(mlp)
    assert {name for name, _ in module.named_parameters()} == {"w", "bias", "v"}
    assert module.untrained == {"half": "a single number"}


def test_the_user_chooses_what_is_trained(mlp):
    def trained(chosen):
        module = module_of(mlp, chosen)
        return {module.tensors[name] for name, _ in module.named_parameters()}

    assert trained("all") == set(SIZES)
    assert trained("none") == set()
    assert trained(["v"]) == {"v"}
    assert trained(lambda name: name != "v") == {"w", "bias", "half"}
    with pytest.raises(InputError, match="trainable u: the model stores no floats of that name"):
        module_of(mlp, ["u"])
    with pytest.raises(InputError, match="trainable some: expected weights"):
        module_of(mlp, "some")


def test_what_did_not_change_is_written_back_byte_by_byte(mlp):
    module = module_of(mlp)
    before = io.to_bytes(mlp)
    assert io.to_bytes(write_back(module, mlp)) == before
    with torch.no_grad():
        module.v.add_(1)
    changed = write_back(module, mlp)
    assert io.to_bytes(mlp) == before
    arrays = {n: v.const_value.numpy() for n, v in changed.graph.initializers.items()}
    np.testing.assert_array_equal(arrays["v"], mlp.graph.initializers["v"].const_value.numpy() + 1)
    np.testing.assert_array_equal(arrays["w"], mlp.graph.initializers["w"].const_value.numpy())
    changed.graph.initializers["v"].const_value = mlp.graph.initializers["v"].const_value
    assert io.to_bytes(changed) == before


def test_another_model_than_the_modules_is_refused(mlp):
    module = module_of(mlp)
    narrow = stored(MLP, **weights(SIZES | {"w": (4, 6), "bias": (6,), "v": (6, 2)}))
    with pytest.raises(InputError, match=r"w: is float\[4, 8\] in the module, float\[4, 6\]"):
        write_back(module, narrow)
    other = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(InputError, match="the model stores no such tensor"):
        write_back(module, other)


def test_names_that_torch_does_not_allow_are_kept_beside(mlp):
    for old, new in (("w", "layer.weight"), ("bias", "layer_weight"), ("v", "forward")):
        mlp.graph.initializers[old].name = new
    module = module_of(mlp)
    names = {name for name, _ in module.named_parameters()}
    assert sorted(module.tensors[n] for n in names) == ["forward", "layer.weight", "layer_weight"]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    changed = write_back(module, mlp).graph.initializers
    assert not any(changed[n].const_value.numpy().any() for n in ("layer.weight", "forward"))


def test_a_weight_that_is_read_twice_is_one_parameter():
    text = "g (int64[N] i) => (float[N,6] y) { e = Gather(t, i) u = Transpose(t) y = MatMul(e, u) }"
    tied = stored(text, t=x(6, 3))
    module = module_of(tied)
    (parameter,) = module.parameters()
    module(np.array([1, 2]))["y"].sum().backward()
    assert parameter.grad.abs().sum(1).min() > 0  # by the product also rows that no index takes


def test_frequencies_masks_and_constants_of_inputs_are_no_weights():
    mask = np.triu(np.full((3, 3), -1e9, np.float32), 1)
    model = stored(
        """g (int64[1,3] p, float[3,4] x) => (float[3,3] y) {
        c = Cast<to = 1>(p) l = Transpose(c) a = MatMul(l, freq) s = Sin(a)
        n = Div(x, std) t = Mul(n, s) h = MatMul(t, w) g = Transpose(h) m = MatMul(h, g)
        y = Add(m, mask) }""",
        freq=x(1, 4), std=np.abs(x(4)), w=x(4, 5), mask=mask,
    )  # fmt: skip
    module = module_of(model)
    assert [name for name, _ in module.named_parameters()] == ["w"]
    assert module.untrained == {
        "freq": "it meets no activations",
        "std": "it is applied to an input of the model",
        "mask": "a mask",
    }


def test_weights_that_meet_whole_numbers_are_weights():
    model = stored(
        "g (int64[2,3] i) => (float[2,4] y) { c = Cast<to = 1>(i) h = MatMul(c, w) y = Add(h, b) }",
        w=x(3, 4), b=x(4),
    )  # fmt: skip
    assert {n for n, _ in module_of(model).named_parameters()} == {"w", "b"}


def test_statistics_of_a_normalisation_are_no_weights_whatever_the_mode():
    model = stored(
        "g (float[N,3,5] x) => (float[N,3,5] y) { c = Conv(x, w) "
        "y = BatchNormalization(c, s, b, m, v) }",
        w=x(3, 3, 1), s=x(3), b=x(3), m=x(3), v=np.abs(x(3)),
    )  # fmt: skip
    module = module_of(model).train()
    before = module(x(2, 3, 5))["y"]
    assert {n for n, _ in module.named_parameters()} == {"w", "s", "b"}
    torch.testing.assert_close(module.eval()(x(2, 3, 5))["y"], before)


def test_a_scaled_weight_is_a_weight():
    model = stored(
        "g (float[2,3] x) => (float[2,4] y) { n = ReduceL2(w) d = Div(w, n) t = Mul(d, g) "
        "y = MatMul(x, t) }",
        w=x(3, 4), g=x(4),
    )  # fmt: skip
    assert {n for n, _ in module_of(model).named_parameters()} == {"w", "g"}


def test_weights_in_constants_and_bodies_are_trained_and_written_back():
    text = """g (bool c, float[2,2] x) => (float[2,2] y) {
        k = Constant<value = float[2,2] {1, 2, 3, 4}>() h = MatMul(x, k)
        y = If(c) <then_branch = t () => (float[2,2] a) {
            w = Constant<value = float[2,2] {1, 0, 0, 1}>() a = MatMul(h, w) },
          else_branch = e () => (float[2,2] b) {
            w2 = Constant<value = float[2,2] {2, 0, 0, 2}>() b = MatMul(h, w2) }> }"""
    model = model_of(text)
    module = module_of(model)
    assert sorted(module.tensors.values()) == ["k", "w", "w2"]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    feeds = {"c": np.array(False), "x": x(2, 2)}
    found = Session(write_back(module, model))(feeds)["y"]
    np.testing.assert_allclose(found, 9 * Session(model)(feeds)["y"], rtol=1e-6)


def test_functions_are_called_with_the_attributes_of_each_call():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 20, "local": 1]>
        g (float[2,3] x) => (float[2,3] y) {
            a = local.leaky<slope = 0.5>(x) y = local.leaky<slope = 0.1>(a) }
        <opset_import: ["": 20], domain: "local"> leaky <slope> (v) => (o) {
            o = LeakyRelu<alpha: float = @slope>(v) }""")
    np.testing.assert_allclose(
        module_of(model)(x(2, 3))["y"].numpy(), Session(model)({"x": x(2, 3)})["y"], rtol=1e-6
    )


def test_operators_without_a_function_are_named_before_anything_runs():
    model = model_of(
        "g (float[1,3,4] b, float[1,1,3] s) => (int64 y) { n = Constant<value_int = 2>() "
        "y = NonMaxSuppression(b, s, n) }"
    )
    with pytest.raises(InputError, match="gradients are not known of the operator NonMaxSuppr"):
        module_of(model)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_are_trained_and_come_back_in_their_type(kind, mlp):
    for value in mlp.graph.initializers.values():
        array = value.const_value.numpy().astype(kind)
        value.const_value = ir.tensor(array, name=value.name)
        value.dtype = value.const_value.dtype
    mlp.graph.inputs[0].dtype = mlp.graph.initializers["w"].dtype
    module = module_of(mlp)
    assert io.to_bytes(write_back(module, mlp)) == io.to_bytes(mlp)
    with torch.no_grad():
        module.v.mul_(2)
    changed = write_back(module, mlp).graph.initializers["v"].const_value
    assert changed.dtype is mlp.graph.initializers["v"].const_value.dtype
    before = mlp.graph.initializers["v"].const_value.numpy()
    np.testing.assert_array_equal(changed.numpy(), before * kind(2))
    made = module(torch.zeros(2, 4, dtype=module.v.dtype))["y"]
    assert made.dtype is module.v.dtype


def test_inputs_that_are_missing_or_not_there_are_one_error(mlp):
    module = module_of(mlp)
    with pytest.raises(InputError, match="x: the input is missing"):
        module()
    with pytest.raises(InputError, match="z: no input; expected x"):
        module(x=x(1, 4), z=x(1, 4))
    with pytest.raises(InputError, match="2 inputs; the model has 1"):
        module(x(1, 4), x(1, 4))
    with pytest.raises(InputError, match=r"^MatMul h: torch says: mat1 and mat2"):
        module(x(1, 5))


def test_an_input_with_a_default_need_not_be_given(mlp):
    value = mlp.graph.initializers["half"]
    mlp.graph.inputs.append(value)
    module = module_of(mlp)
    assert "it is an input of the model too" in module.untrained["half"]
    one = module(x(2, 4))["y"]
    two = module(x(2, 4), half=2 * value.const_value.numpy())["y"]
    torch.testing.assert_close(two, 2 * one)


def test_inner_tensors_are_read_by_name(mlp):
    module = module_of(mlp)
    values = module.values({"x": x(2, 4)}, ["r"])
    assert list(values) == ["r", "y"]
    assert values["r"].min() >= 0
    with pytest.raises(InputError, match="q: the graph has no such tensor"):
        module.values({"x": x(2, 4)}, ["q"])


def test_a_copy_is_a_module_of_its_own(mlp):
    module = module_of(mlp)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.v.zero_()
    assert module(x(1, 4))["y"].abs().sum() > 0
    assert other(x(1, 4))["y"].abs().sum() == 0


def test_numbers_that_are_drawn_are_told():
    model = model_of(
        "g (float[64] x) => (float[64] y) { n = RandomNormalLike(x) "
        "t = Constant<value = bool {1}>() d, m = Dropout(x, , t) y = Add(n, d) }"
    )
    module = module_of(model)
    assert [label.split()[0] for label in module.drawn] == ["RandomNormalLike", "Dropout"]
    torch.manual_seed(3)
    one = module(x(64))["y"]
    torch.manual_seed(3)
    torch.testing.assert_close(module(x(64))["y"], one)
    assert not torch.equal(module(x(64))["y"], one)


def test_dropout_of_a_file_for_inference_does_nothing_in_either_mode():
    module = module_of(model_of("g (float[64] x) => (float[64] y) { y, m = Dropout(x) }")).train()
    assert module.drawn == ()
    torch.testing.assert_close(module(x(64))["y"], torch.from_numpy(x(64)))


def test_autocast_computes_in_bfloat16(mlp):
    module = module_of(mlp)
    with torch.autocast("cpu", torch.bfloat16):
        made = module(x(4, 4))["y"]
    made.float().sum().backward()
    assert made.dtype is torch.bfloat16
    assert module.v.grad.dtype is torch.float32


def test_sizes_that_a_body_only_declares_are_no_error():
    model = model_of(
        """g (float[3] x) => (float[N,3] y) {
        n = Constant<value_int = 2>() z, y = Loop(n, , x)
        <body = b (int64 i, bool c, float[3] s) => (bool d, float[3] t, float[3] u) {
            d = Identity(c) t = Add(s, s) u = Identity(t) }> }"""
    )
    body = next(n for n in model.graph if n.op_type == "Loop").attributes["body"].as_graph()
    body.outputs[2].shape = ir.Shape([2**40, 2**40])
    found = module_of(model)(x=np.ones(3, np.float32))["y"]
    assert found.tolist() == [[2.0] * 3, [4.0] * 3]


def test_codes_of_a_type_that_is_not_known_are_one_error():
    model = model_of(
        "g (float[3] x, float s, int64 z) => (int64[3] y) { y = QuantizeLinear(x, s, z) }"
    )
    given = {"x": np.ones(3, np.float32), "s": np.float32(1), "z": np.int64(0)}
    with pytest.raises(InputError, match="QuantizeLinear y: codes of this type are not known"):
        module_of(model)(**given)
