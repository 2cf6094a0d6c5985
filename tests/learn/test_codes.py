"""Codes of weights as parameters: what torch computes with them is what onnxruntime runs."""

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc  # noqa: E402
from lwqc.learn.to_torch import module_of, write_back  # noqa: E402
from lwqc.model import io  # noqa: E402
from lwqc.runtime.session import Session  # noqa: E402
from tests.learn.test_to_torch import stored, x  # noqa: E402

CONV = "g (float[1,16,8,8] x) => (float[1,24,8,8] y) { y = Conv<pads = [1, 1, 1, 1]>(x, w) }"
MATMUL = "g (float[5,96] x) => (float[5,64] y) { y = MatMul(x, w) }"
GATHER = "g (int64[5] x) => (float[5,64] y) { y = Gather(w, x) }"


def quantized(text, shape, **how):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    return lwqc.quantize(stored(text, w=weight), **how).model


def moved(model, by):
    """The module with every code that many further, the model that it gives, and the first one."""
    module = module_of(model, codes=True)
    with torch.no_grad():
        for name in module.codes:
            getattr(module, name).add_(by)
    return module, write_back(module, model)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("text", "shape"), [(CONV, (24, 16, 3, 3)), (MATMUL, (96, 64)), (GATHER, (70, 64))],
    ids=["Conv", "MatMul", "Gather"],
)  # fmt: skip
def test_codes_that_lwqc_writes_are_trained_whatever_form_they_have(text, shape, bits):
    model = quantized(text, shape, bits=bits)
    feeds = {"x": x(*model.graph.inputs[0].shape.numpy()) if text != GATHER else np.arange(5)}
    module = module_of(model, codes=True)
    (codes,) = module.codes
    assert getattr(module, codes).numel() >= np.prod(shape)
    assert not any("whole numbers" in reason for reason in module.untrained.values())
    assert io.to_bytes(write_back(module, model)) == io.to_bytes(model)
    before = Session(model)(feeds)["y"]
    np.testing.assert_allclose(module(**feeds)["y"].detach(), before, atol=1e-4)
    module(**feeds)["y"].square().sum().backward()
    assert getattr(module, codes).grad.abs().sum() > 0
    for by in (0.6, 1e3):  # a code further; then all at the end of the range
        module, changed = moved(model, by)
        after = Session(changed)(feeds)["y"]
        np.testing.assert_allclose(module(**feeds)["y"].detach(), after, rtol=1e-4, atol=1e-3)
        assert np.abs(after - before).max() > 0.01


def test_scales_are_fitted_as_shares_and_stay_what_the_file_can_hold():
    """float16, through a Cast to MatMulNBits."""
    given = {"x": x(5, 96)}
    model = quantized(MATMUL, (96, 64), bits=4)
    module = module_of(model, codes=True, scales=True)
    (name,) = [n for n, held in module.held.items() if held.base is not None]
    assert io.to_bytes(write_back(module, model)) == io.to_bytes(model)
    module(**given)["y"].square().sum().backward()
    share = getattr(module, name)
    assert share.grad.abs().min() > 0
    with torch.no_grad():
        share.mul_(torch.linspace(0.05, 1.5, share.numel()).reshape(share.shape))
    changed = write_back(module, model)
    before, after = (
        m.graph.initializers[module.tensors[name]].const_value for m in (model, changed)
    )
    assert after.dtype is before.dtype
    shares = after.numpy().astype(np.float64) / before.numpy()
    assert shares.min() == pytest.approx(0.1, rel=1e-3)
    found = Session(changed)(given)["y"]
    np.testing.assert_allclose(module(**given)["y"].detach(), found, atol=1e-4)
    assert np.abs(found - Session(model)(given)["y"]).max() > 1


def test_a_scale_that_a_bias_of_32_bits_is_in_units_of_stays():
    text = """g (float[5,6] x) => (float[5,4] y) { w = DequantizeLinear(codes, s)
        b = DequantizeLinear(whole, t) y = Gemm(x, w, b) }"""
    rng = np.random.default_rng(0)
    codes, whole = rng.integers(-9, 9, (6, 4)).astype(np.int8), np.arange(4, dtype=np.int32)
    scales = {"s": np.float32(0.1), "t": np.float32(0.01)}
    module = module_of(stored(text, codes=codes, whole=whole, **scales), codes=True, scales=True)
    assert all(held.base is None for n, held in module.held.items() if module.tensors[n] == "s")


def test_dynamic_activations_pass_gradients_to_codes():
    model = quantized(MATMUL, (96, 64), bits=8, activations="dynamic")
    module, changed = moved(model, 1.0)
    feeds = {"x": x(5, 96)}
    found = module(**feeds)["y"]
    np.testing.assert_allclose(found.detach(), Session(changed)(feeds)["y"], atol=1e-3)
    found.square().sum().backward()
    assert all(getattr(module, name).grad.abs().sum() > 0 for name in module.codes)


def test_codes_that_something_else_reads_too_are_told():
    model = stored(
        "g (float[2,3] x) => (float[2,4] y, int8[4,3] z) { d = DequantizeLinear(q, s) "
        "y = MatMul(x, d) z = Transpose(q) }",
        q=np.ones((3, 4), np.int8), s=np.float32(0.1),
    )  # fmt: skip
    module = module_of(model, codes=True)
    assert module.untrained["q"] == "its codes are read by Transpose too"
    assert not module.codes


def test_whole_numbers_that_nobody_knows_as_codes_are_told():
    model = stored(
        "g (float[2,16] x) => (float[2,16] y) { f = Cast<to = 1>(q) y = MatMul(x, f) }",
        q=np.ones((16, 16), np.int8),
    )
    reason = module_of(model, codes=True).untrained["q"]
    assert reason == "whole numbers that no quantized operator reads"


def test_weights_of_16_bits_are_fitted_in_32():
    weight = x(6, 4).astype(np.float16)
    text = "g (float[2,6] x) => (float[2,4] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    model = stored(text, w=weight)
    module = module_of(model, widen=True)
    assert module.w.dtype is torch.float32
    assert io.to_bytes(write_back(module, model)) == io.to_bytes(model)
    with torch.no_grad():
        module.w.add_(1e-5)  # less than what 16 bits tell of most of them
    given = {"x": x(2, 6)}
    changed = write_back(module, model)
    assert changed.graph.initializers["w"].const_value.dtype is ir.DataType.FLOAT16
    expected = Session(changed)(given)["y"]
    np.testing.assert_allclose(module(**given)["y"].detach(), expected, atol=1e-6)


@pytest.mark.parametrize("inner", [1, 256, 257, 1000])
def test_sums_of_byte_products_are_exact_however_many(inner):
    """More than 256 of the largest products are no whole number of float32 any more."""
    from lwqc.learn.functions.integer_products import _matmul_integer

    rng = np.random.default_rng(inner)
    a = np.where(rng.random((2, 3, inner)) < 0.9, 255, 0).astype(np.uint8)
    b = np.where(rng.random((inner, 4)) < 0.9, -128, 127).astype(np.int8)
    low, high = torch.tensor(0, dtype=torch.uint8), torch.tensor(127, dtype=torch.int8)
    found = _matmul_integer(None, torch.from_numpy(a), torch.from_numpy(b), low, high)
    exact = a.astype(np.int64) @ (b.astype(np.int64) - 127)
    assert found.dtype is torch.int32
    np.testing.assert_array_equal(found.numpy(), exact)
