"""Ranges of static activations as parameters: what torch computes is what onnxruntime runs."""

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc  # noqa: E402
from lwqc.learn import activation_grids, fitted_scales  # noqa: E402
from lwqc.learn.to_torch import module_of, write_back  # noqa: E402
from lwqc.model import io  # noqa: E402
from lwqc.runtime.session import Session  # noqa: E402
from tests.learn.test_to_torch import stored, x  # noqa: E402

# Asymmetric codes between convolutions, a sum of two, and a hard sigmoid on codes.
CONVS = """g (float[N,3,8,8] x) => (float[N,8] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, u, b) r = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(r, v, b) s = HardSwish(c) t = Add(r, s)
    d = Conv(t, w, b) m = GlobalAveragePool(d) y = Flatten(m) }"""
SIZES = {"u": (8, 3, 3, 3), "v": (8, 8, 3, 3), "w": (8, 8, 1, 1), "b": (8,)}
MATMUL = "g (float[N,96] x) => (float[N,64] y) { y = MatMul(x, w) }"


def floats():
    rng = np.random.default_rng(0)
    made = {n: rng.standard_normal(s) / np.sqrt(np.prod(s[1:])) for n, s in SIZES.items()}
    return stored(CONVS, **{n: w.astype(np.float32) for n, w in made.items()})


def images(count, seed=5):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((16, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


@cache
def convs():
    return lwqc.quantize(floats(), bits=8, activations="static", data=images(4)).model


def product():
    model = stored(MATMUL, w=np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32))
    data = [{"x": x(16, 96) + np.float32(1)}]
    return lwqc.quantize(model, bits=8, activations="static", data=data).model


# As onnxruntime's static quantization writes it: a bias of 32 bits, and a pool on one grid.
BIASED = """g (float[N,3,8,8] x) => (float[N,4,4,4] y) {
    q = QuantizeLinear(x, sx, zx) i = DequantizeLinear(q, sx, zx)
    f = DequantizeLinear<axis = 0>(w, sw, zw) h = DequantizeLinear<axis = 0>(b, sb, zb)
    c = Conv<pads = [1, 1, 1, 1]>(i, f, h)
    qc = QuantizeLinear(c, sc, zc) ic = DequantizeLinear(qc, sc, zc)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(ic)
    qp = QuantizeLinear(p, sp, zp) y = DequantizeLinear(qp, sp, zp) }"""


def biased(**changed):
    rng = np.random.default_rng(0)
    sw = rng.uniform(0.005, 0.01, 4).astype(np.float32)
    sx, sc = np.float32(0.02), np.float32(0.03)
    arrays = {
        "sx": sx, "zx": np.uint8(120), "sw": sw, "zw": np.zeros(4, np.int8),
        "w": rng.integers(-63, 64, (4, 3, 3, 3)).astype(np.int8),  # sums of pairs fit 16 bits
        "b": rng.integers(-3000, 3000, 4).astype(np.int32), "sb": sx * sw,
        "zb": np.zeros(4, np.int32),
        "sc": sc, "zc": np.uint8(130), "sp": sc, "zp": np.uint8(130),
    }  # fmt: skip
    return stored(BIASED, **(arrays | changed))


def fitted(module):
    """Names of what is fitted of activations: scales, and zero points."""
    single = {n: h for n, h in module.held.items() if getattr(module, n).numel() == 1}
    scales = [n for n, h in single.items() if h.base is not None]
    return scales, [n for n, h in single.items() if h.zero is not None]


MODELS = {
    "convolutions": (convs, {"x": images(1, 9)[0]["x"]}, 4, 2),
    "product": (product, {"x": x(5, 96) + np.float32(1)}, 1, 1),
    "bias of 32 bits": (biased, {"x": images(1, 9)[0]["x"]}, 2, 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_moved_grids_are_what_onnxruntime_runs(name):
    make, feeds, least_scales, least_zeros = MODELS[name]
    model = make()
    module = module_of(model, codes=True, scales=True)
    scales, zeros = fitted(module)
    assert len(scales) >= least_scales
    assert len(zeros) >= least_zeros
    assert io.to_bytes(write_back(module, model)) == io.to_bytes(model)
    before = Session(model)(feeds)["y"]
    unit = np.abs(before).max() / 255  # a code of the output may be the next one
    np.testing.assert_allclose(module(**feeds)["y"].detach(), before, atol=1.5 * unit)
    module(**feeds)["y"].square().sum().backward()
    assert all(getattr(module, n).grad.abs() > 0 for n in scales)
    with torch.no_grad():
        for i, n in enumerate([*scales, *zeros]):
            getattr(module, n).mul_(0.7 + 0.1 * (i % 5))
    changed = write_back(module, model)
    after = Session(changed)(feeds)["y"]
    found = module(**feeds)["y"].detach().numpy()
    np.testing.assert_allclose(found, after, atol=1.5 * unit)
    assert np.abs(found - after).mean() < 0.1 * unit
    assert np.abs(after - before).max() > 5 * unit


def test_scales_of_biases_and_of_both_sides_of_a_pool_follow():
    model = biased()
    module = module_of(model, codes=True, scales=True)
    scales, zeros = fitted(module)
    assert {module.tensors[n] for n in (*scales, *zeros)} == {"sx", "zx", "sc", "zc"}
    with torch.no_grad():
        for i, (n, held) in enumerate(module.held.items()):
            if held.base is not None or held.zero is not None:
                getattr(module, n).mul_(1.1 + 0.02 * i)
    stored_now = write_back(module, model).graph.initializers
    now = {n: stored_now[n].const_value.numpy() for n in ("sx", "sw", "sb", "sc", "sp", "zc", "zp")}
    np.testing.assert_allclose(now["sb"], now["sx"] * now["sw"], rtol=1e-6)
    assert now["sp"] == now["sc"] != np.float32(0.03)
    assert now["zp"] == now["zc"] != 130


def test_a_bias_in_other_units_keeps_the_scales():
    model = biased(sb=np.full(4, 1e-3, np.float32))
    module = module_of(model, codes=True, scales=True)
    assert [module.tensors[n] for n in fitted(module)[0]] == ["sc"]
    assert module.untrained["sx"] == fitted_scales.OF_BIAS


def test_slopes_are_those_of_learned_step_sizes():
    """LSQ+: inside a range round(v) - v of the scale and none of zero, beyond it the other way."""
    model = stored(
        "g (float[4] x) => (float[4] y) { q = QuantizeLinear(x, s, z) "
        "y = DequantizeLinear(q, s, z) }",
        s=np.float32(0.5), z=np.uint8(100),
    )  # fmt: skip
    module = module_of(model, codes=True, scales=True)
    values = np.array([1.1, -7.3, 90.0, -70.0], np.float32)
    wanted = [round(2.2) - 2.2, round(-14.6) + 14.6, 155.0, -100.0]
    for i in range(4):
        module.zero_grad()
        module(x=values)["y"][i].backward()
        assert module.s.grad.item() == pytest.approx(0.5 * wanted[i], rel=1e-4)
        assert module.z.grad.item() == pytest.approx(0.0 if i < 2 else -0.5 * 255)


ONE = "g (float[4] x) => (float[4] y) {{ q = QuantizeLinear(x, s, z) {0} }}"
BACK = "y = DequantizeLinear(q, s, z)"


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(0), np.int8(-128)])
def test_zero_points_that_kernels_depend_on_stay(zero):
    module = module_of(stored(ONE.format(BACK), s=np.float32(0.5), z=zero), scales=True)
    assert [list(map(module.tensors.get, names)) for names in fitted(module)] == [["s"], []]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ONE.format(BACK).replace("y) {", "y, uint8[4] q) {"), activation_grids.FROM_OUTSIDE),
        (ONE.format("y = DequantizeLinear(q, s, o)"), activation_grids.OTHER_GRID),
        (ONE.format("d = DequantizeLinear(q, s, z) y = Mul(d, s)"), activation_grids.OTHER_READER),
        (ONE.format("d = DequantizeLinear(q, s, z) f = Cast<to = 1>(q) y = Add(d, f)"),
         activation_grids.OTHER_READER),
    ],
)  # fmt: skip
def test_scales_that_must_stay_are_told(text, reason):
    arrays = {"s": np.float32(0.5), "z": np.uint8(100), "o": np.uint8(3)}
    used = {n: a for n, a in arrays.items() if n in ("s", "z") or ", o)" in text}
    module = module_of(stored(text, **used), codes=True, scales=True)
    assert fitted(module) == ([], [])
    assert module.untrained["s"] == reason


def test_ranges_that_were_set_wrong_are_learned():
    """Too narrow by two fifths."""
    model = convs().clone()
    for name, value in model.graph.initializers.items():
        if name.endswith(("/u8_scale", "/u8_part_scale")):
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.6), name=name)
    done = lwqc.recover(model, teacher=floats(), data=images(40), steps=150, parts="none")
    assert done.report.drop_after < 0.2 * done.report.drop_before
    assert done.report.unchanged == ""
    new = images(4, 77)
    wanted = [Session(floats())(f)["y"] for f in new]
    errors = [
        np.mean(
            [np.square(Session(m)(f)["y"] - w).mean() for f, w in zip(new, wanted, strict=True)]
        )
        for m in (model, done.model)
    ]
    assert errors[1] < 0.2 * errors[0]
