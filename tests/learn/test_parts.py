"""Where a module is cut into parts, and what a part computes on its way."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

from lwqc.learn.entropy import entropies  # noqa: E402
from lwqc.learn.parts import joined_parts, parts  # noqa: E402
from lwqc.learn.reconstruction import Walk, shared  # noqa: E402
from lwqc.learn.to_torch import module_of  # noqa: E402
from lwqc.model import limits  # noqa: E402
from tests.learn.test_to_torch import stored, weights  # noqa: E402

# Two residual branches of two matrices each, and a head; `late` is decoded far from its reader.
RESIDUAL = """g (float[N,6] x) => (float[N,3] y) {
    decoded = DequantizeLinear(codes, step)
    a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) s = Add(x, c)
    d = MatMul(s, w3) e = Relu(d) f = MatMul(e, w4) t = Add(s, f)
    y = MatMul(t, decoded) }"""
SIZES = {"w1": (6, 8), "w2": (8, 6), "w3": (6, 8), "w4": (8, 6)}


def residual(seed=3):
    codes = np.random.default_rng(seed).integers(-9, 9, (6, 3)).astype(np.int8)
    return stored(RESIDUAL, codes=codes, step=np.float32(0.1), **weights(SIZES))


def inputs(count=3, rows=4):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((rows, 6)).astype(np.float32)} for _ in range(count)]


def named(module, part):
    return {module.tensors[name] for name in part.trained}


def test_cuts_lie_between_residual_branches():
    module = module_of(residual(), codes=True)
    found = parts(module, shared(module, module_of(residual(), "none"), inputs()[0]))
    assert [part.wanted for part in found] == [("s",), ("y",)]
    assert [named(module, part) for part in found] == [{"w1", "w2"}, {"w3", "w4", "codes"}]
    one_each = parts(module, {"s", "t", "y"}, least=1)
    assert [part.wanted for part in one_each] == [("s",), ("t",), ("y",)]


@pytest.mark.parametrize(("high", "joined"), [("s", [("t",), ("y",)]), ("t", [("s",), ("y",)])])
def test_layers_are_joined_where_the_entropy_is_high(high, joined):
    module = module_of(residual(), codes=True)
    found = joined_parts(module, {"s", "t", "y"}, lambda names: {n: n == high for n in names})
    assert [part.wanted for part in found] == joined
    assert len(found) == len(parts(module, {"s", "t", "y"}))


def test_entropy_is_that_of_256_steps():
    text = """g (float[N,6] x) => (float[N,6] y) { a = Relu(x) b = Sign(x) c = Sub(x, x)
        d = Add(a, b) e = Add(c, d) y = Add(e, w) }"""
    even = np.linspace(-1, 1, 256 * 6, dtype=np.float32).reshape(256, 6)
    found = entropies(
        module_of(stored(text, **weights({"w": (6,)}))), [{"x": even}] * 2, ["x", "a", "b", "c"]
    )
    assert found["b"] == pytest.approx(1)
    assert found["c"] == 0
    assert found["x"] == pytest.approx(8, abs=0.01)
    assert 4 < found["a"] < 5.1  # half of it is 0


def test_a_tensor_that_the_teacher_lacks_is_no_cut():
    module = module_of(residual(), codes=True)
    assert [part.wanted for part in parts(module, {"t", "y"}, least=1)] == [("t",), ("y",)]
    assert parts(module, set()) == []


def test_a_weight_that_two_parts_read_is_trained_in_none():
    text = """g (float[N,6] x) => (float[N,6] y) {
        a = MatMul(x, w) b = MatMul(a, v) c = Add(x, b) d = MatMul(c, w) e = MatMul(d, u)
        y = Add(c, e) }"""
    module = module_of(stored(text, **weights({"w": (6, 6), "v": (6, 6), "u": (6, 6)})))
    trained = [named(module, part) for part in parts(module, {"c", "y"}, least=1)]
    assert trained == [{"v"}, {"u"}]


def test_long_skips_are_cut_where_several_tensors_are_carried():
    """As between the levels of a detector, where no single tensor carries everything."""
    layers = " ".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(12))
    text = f"""g (float[N,6] x) => (float[N,6] y) {{
        h0 = MatMul(x, first) {layers} y = Add(h0, h12) }}"""
    sizes = {"first": (6, 6)} | {f"w{i}": (6, 6) for i in range(12)}
    module = module_of(stored(text, **weights(sizes)))
    found = parts(module, module.places.keys())
    assert len(found) > 3
    assert all("h0" in part.wanted and len(part.wanted) == 2 for part in found[:-1])
    assert sum(len(part.trained) for part in found) == 13


def test_walking_in_steps_gives_what_one_run_does():
    module = module_of(residual(), codes=True)
    found = parts(module, {"s", "t", "y"}, least=1)
    walk = Walk(module, inputs())
    for part in found:
        made = walk.to(part.end, part.wanted)
    for one, given in zip(made, inputs(), strict=True):
        wanted = module(**given)["y"].detach().numpy()
        assert np.array_equal(one["y"], wanted)
    assert all(not scope for scope in walk.scopes)  # nothing is kept that nobody reads


def test_names_that_stand_for_something_else_are_not_shared():
    other = residual()
    for value in (other.graph.initializers["w1"], other.graph.initializers["w2"]):
        array = value.const_value.numpy()
        value.const_value = type(value.const_value)(-array, name=value.name)
    module, teacher = module_of(residual(), codes=True), module_of(other, "none")
    found = shared(module, teacher, inputs()[0])
    assert "a" not in found  # the same size with the other sign
    assert "y" in shared(module, module_of(residual(), "none"), inputs()[0])


def test_what_is_kept_of_all_inputs_has_a_limit(monkeypatch):
    monkeypatch.setattr(limits, "_current", limits.Limits(traces=100))
    walk = Walk(module_of(residual()), inputs())
    with pytest.raises(limits.LimitError, match="what a part of the model reads takes 576 B"):
        walk.to(3)


def test_a_decoded_weight_is_kept_once_for_all_inputs():
    text = """g (int64[N] i) => (float[N,50] y) {
        table = DequantizeLinear(codes, step) h = Gather(table, i) r = Relu(h)
        t = Transpose<perm = [1, 0]>(table) y = MatMul(r, t) }"""
    codes = np.arange(200, dtype=np.int8).reshape(50, 4)
    module = module_of(stored(text, codes=codes, step=np.float32(0.1)))
    walk = Walk(module, [{"i": np.array([n])} for n in range(3)])
    walk.to(walk.end_of(["r"]))
    table = module.places["table"]
    assert len({id(scope[table]) for scope in walk.scopes}) == 1
