"""Sensitivities by a product with the Hessian, beside what differences say."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc  # noqa: E402
from lwqc.decide.scores.curvature import curved_sensitivity  # noqa: E402
from lwqc.decide.scores.sensitivity import site_sensitivity  # noqa: E402
from lwqc.learn import needed  # noqa: E402
from lwqc.model import io  # noqa: E402
from lwqc.runtime.session import Session  # noqa: E402
from tests.build import normal  # noqa: E402
from tests.learn.test_to_torch import stored  # noqa: E402

NAMES = ("w", "v", "u")
# A sum of three products: the error is quadratic in the weights. One is read transposed.
SUM = """g (float[N,8] x) => (float[N,1] y) {
    a = MatMul(x, w) b = MatMul(x, v) c = Gemm<transB = 1>(x, u) d = Add(a, b) y = Add(c, d) }"""
CHAIN = """g (float[N,8] x) => (float[N,1] y) {
    a = MatMul(x, w) b = Tanh(a) c = MatMul(b, v) d = Tanh(c) y = Gemm<transB = 1>(d, u) }"""
SHAPES = {SUM: ((8, 1), (8, 1), (1, 8)), CHAIN: ((8, 8), (8, 8), (1, 8))}


def model_of(text):
    arrays = (normal(*s, seed=i, scale=0.4) for i, s in enumerate(SHAPES[text]))
    return stored(text, **dict(zip(NAMES, arrays, strict=True)))


def changed(model, step):
    """Weights [out, in] a step further, by site."""

    def replacement(name):
        weight = model.graph.initializers[name].const_value.numpy()
        matrix = weight if name == "u" else weight.T
        return (matrix + step * normal(*matrix.shape, seed=40 + NAMES.index(name))).astype("f4")

    return replacement


def by_differences(model, replacement, data):
    """What each site has to do with the error alone and beside each other one, halved."""
    pairs = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]
    trials = [*((n,) for n in NAMES), *pairs]
    run = lambda m: Session(m, label="trial")  # noqa: E731
    found = site_sensitivity(model, trials, replacement, data, run, io.read_array)
    alone = {n: found[(n,)] for n in NAMES}
    together = {p: found[p] - alone[p[0]] - alone[p[1]] for p in pairs}
    return {n: alone[n] + sum(t for p, t in together.items() if n in p) / 2 for n in NAMES}


@pytest.mark.parametrize(("text", "step", "tolerance"), [(SUM, 0.1, 1e-3), (CHAIN, 1e-2, 0.03)])
def test_products_say_what_differences_of_all_pairs_do(text, step, tolerance):
    model = model_of(text)
    data = [{"x": normal(64, 8, seed=9 + i)} for i in range(3)]
    replacement = changed(model, step)
    found = curved_sensitivity(model, NAMES, replacement, data, io.read_array)
    wanted = by_differences(model, replacement, data)
    largest = max(map(abs, wanted.values()))
    for name in NAMES:
        assert found[name] == pytest.approx(wanted[name], abs=tolerance * largest)
    if text is SUM:  # they add up to the error of all changes at once
        every = site_sensitivity(
            model, [NAMES], replacement, data, lambda m: Session(m, label="t"), io.read_array
        )
        assert sum(found.values()) == pytest.approx(every[NAMES], rel=1e-3)


@pytest.mark.parametrize("missing", [False, True])
def test_the_recipe_says_how_sensitivities_were_told(missing, monkeypatch):
    if missing:
        monkeypatch.setattr(needed, "find_spec", lambda name: None)
    model = stored(
        "g (float[N,64] x) => (float[N,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }",
        w=normal(64, 64, scale=0.1), v=normal(64, 32, seed=1, scale=0.1),
    )  # fmt: skip
    done = lwqc.compress(model, recipe="aughess", data=[{"x": normal(64, 64)}], max_drop=0.1)
    (told,) = (note for note in done.plan.notes if note.startswith("sensitivity by"))
    assert ("differences: gradients need torch" in told) == missing
    assert ("product with the Hessian" in told) == (not missing)
    assert done.plan.quantize
