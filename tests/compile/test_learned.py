"""Learning as a step of a plan: recipes, replay, and what it does without data."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc  # noqa: E402
from lwqc.errors import InputError  # noqa: E402
from lwqc.model import io  # noqa: E402
from lwqc.plans.recipe import find  # noqa: E402
from lwqc.runtime.rebatched import in_pieces  # noqa: E402
from lwqc.runtime.session import Session  # noqa: E402
from tests.learn.test_to_torch import stored, weights  # noqa: E402

BLOCKS = 3
SIZES = {f"{kind}{i}": (64, 64) for i in range(BLOCKS) for kind in ("up", "down")}
TEXT = (
    "g (float[N,64] x) => (float[N,64] y) { s0 = Identity(x) "
    + " ".join(
        f"a{i} = MatMul(s{i}, up{i}) b{i} = Relu(a{i}) c{i} = MatMul(b{i}, down{i}) "
        f"s{i + 1} = Add(s{i}, c{i})"
        for i in range(BLOCKS)
    )
    + f" y = Identity(s{BLOCKS}) }}"
)


def original():
    scaled = {n: (w * 0.08).astype(np.float32) for n, w in weights(SIZES).items()}
    return stored(TEXT, **scaled)


def feeds(count, rows=16, seed=5):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((64, 64)) / 8
    return [
        {"x": (rng.standard_normal((rows, 64)) @ mixing).astype(np.float32)} for _ in range(count)
    ]


def error(model, given=None):
    given = given or feeds(8, seed=99)
    run, wanted = Session(model), Session(original())
    return float(np.mean([np.square(run(f)["y"] - wanted(f)["y"]).mean() for f in given]))


def quantized(method, bits=2, data=None):
    return lwqc.quantize(original(), bits=bits, method=method, data=data or feeds(40))


@pytest.mark.parametrize("bits", [2, 3])
def test_learned_rounding_beats_the_closed_forms_on_inputs_that_neither_saw(bits):
    closed = min(error(quantized(m, bits).model) for m in ("gptq-order", "descent"))
    done = quantized("brecq", bits)
    assert error(done.model) < 0.8 * closed
    assert io.weight_bytes(done.model) == io.weight_bytes(quantized("descent", bits).model)
    told = next(n for n in done.plan.notes if n.startswith("learned on 32 sets of inputs, 8 held"))
    assert f"{BLOCKS} of {BLOCKS} parts got better" in told


def test_blocks_by_entropy_are_as_many_as_residual_ones():
    done = quantized("qvlm")
    assert error(done.model) < 0.8 * error(quantized("descent").model)
    assert any(f" of {BLOCKS} parts got better" in note for note in done.plan.notes)


@pytest.mark.parametrize("recipe", ["distill", "qvlm"])
def test_a_plan_that_was_made_gives_the_bytes_of_the_recipe(tmp_path, recipe):
    data, known = feeds(30), find(recipe)
    assert known.learn is not None
    few = known.model_copy(update={"learn": known.learn.model_copy(update={"steps": 40})})
    first = lwqc.compress(original(), recipe=few, data=data)
    first.save(tmp_path / "a.onnx", plan=tmp_path / "plan.json")
    plan = lwqc.Plan.load(tmp_path / "plan.json")
    assert plan.learn == few.learn
    lwqc.apply(original(), plan, data=data).save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    with pytest.raises(InputError, match="looks at it again; give the same --data"):
        lwqc.apply(original(), plan, allow_drift=True)


def test_without_data_the_recipe_learns_nothing_and_says_so():
    done = lwqc.compress(original(), recipe="brecq")
    assert done.plan.learn is None
    assert "no data was given: nothing is learned by gradients" in done.plan.notes
    with pytest.raises(InputError, match="learned from data: give --data"):
        lwqc.quantize(original(), bits=4, method="brecq")


def test_too_few_inputs_are_told_and_the_closed_form_stays():
    few = [{"x": f["x"][:3]} for f in feeds(3)]
    done = quantized("brecq", data=few)
    plain = quantized("descent", data=few)
    assert error(done.model) == error(plain.model)
    assert any("held-back inputs are too few" in note for note in done.plan.notes)


def test_large_batches_are_taken_apart_so_that_some_can_be_held_back():
    done = quantized("brecq", data=feeds(2, rows=200))
    assert any(note.startswith("learned on 16 sets of inputs, 4") for note in done.plan.notes)
    fixed = stored(TEXT.replace("N,64", "200,64"), **weights(SIZES))
    assert len(in_pieces(feeds(2, rows=200), fixed)) == 2


def test_any_recipe_may_learn(tmp_path):
    """A section of a recipe file, whatever the rest of it chooses."""
    path = tmp_path / "own.toml"
    text = """name = "own"
description = "a narrower model that is fitted to the original"
allocator = "channels"
[prune]
ratio = 0.3
score = "l2"
[learn]
steps = 60
parts = "none"
"""
    path.write_text(text)
    bare = tmp_path / "bare.toml"
    bare.write_text(text.partition("[learn]")[0])
    plain, learned = (
        lwqc.compress(original(), recipe=str(p), data=feeds(40)) for p in (bare, path)
    )
    assert learned.pruned is not None
    assert error(learned.model) < 0.7 * error(plain.model)
    assert learned.plan.learn is not None
    report = learned.save(tmp_path / "out.onnx")
    assert any(note.startswith("learned on") for note in report.notes)


def test_the_command_learns(run, tmp_path):
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    io.save(original(), model)
    np.savez(data, x=np.concatenate([f["x"] for f in feeds(30)]))
    base = ["quantize", model, "-o", tmp_path / "o.onnx", "--bits", "3", "--method", "brecq"]
    code, stdout, stderr = run(*base, "--data", data)
    assert code == 0, stderr
    assert "learned on" in " ".join(stdout.split())
    code, _, stderr = run(*base)
    assert code == 2
    assert "looks at the data" in stderr


def test_codes_that_are_sparse_keep_their_zeros_where_parts_are_fitted():
    text = """g (float[N,64] x) => (float[N,64] y) {
        w = DequantizeLinear(codes, step) h = MatMul(x, w) r = Relu(h)
        v = DequantizeLinear(others, step) y = MatMul(r, v) }"""
    rng = np.random.default_rng(4)
    step = np.float32(0.05)
    full = {n: rng.integers(-7, 8, (64, 64)).astype(np.int8) for n in ("codes", "others")}
    sparse = {n: np.where(np.arange(64)[:, None] % 4 < 2, 0, c) for n, c in full.items()}
    large, small = (
        stored(text, step=step, **{n: c.astype(np.int8) for n, c in codes.items()})
        for codes in (full, sparse)
    )
    done = lwqc.recover(small, teacher=large, data=feeds(60), steps=200, parts="layers")
    assert done.report.parts == 2
    assert done.report.unchanged == ""
    changed = 0
    for name, old in sparse.items():
        new = done.model.graph.initializers[name].const_value.numpy()
        assert not new[old == 0].any()
        changed += int((new != old).sum())
    assert changed > 100


def two_outputs(order):
    first, second = order
    return stored(
        "g (float[N,64] x) => (float[N,64] b, float[N,64] z) "
        f"{{ {first} {second} z = MatMul(a, w) }}",
        **{
            n: (w * 0.1).astype(np.float32)
            for n, w in weights(dict.fromkeys("uvw", (64, 64))).items()
        },
    )


def test_a_teacher_may_compute_the_same_in_another_order():
    order = ("a = MatMul(x, u)", "b = MatMul(x, v)")
    small = lwqc.quantize(two_outputs(order), bits=2, data=feeds(40)).model
    done = lwqc.recover(
        small, teacher=two_outputs(order[::-1]), data=feeds(40), steps=100, parts="layers"
    )
    assert done.report.parts > 1
    assert done.report.drop_after < done.report.drop_before


@pytest.mark.parametrize("seconds", [0.001, 0.02])
def test_a_limit_that_leaves_no_time_leaves_the_model(seconds):
    small = quantized("rtn").model
    done = lwqc.recover(small, teacher=original(), data=feeds(40), time_limit=seconds)
    assert done.report.unchanged
    assert error(done.model) == error(small)


def test_an_output_that_never_varies_is_told_and_the_others_are_fitted():
    text = TEXT.replace("float[N,64] y)", "float[N,64] y, float[N,64] z)")
    text = text[:-1] + " n = Abs(y) m = Neg(n) z = Relu(m) }"
    scaled = {n: (w * 0.08).astype(np.float32) for n, w in weights(SIZES).items()}
    done = lwqc.quantize(stored(text, **scaled), bits=2, method="distill", data=feeds(40))
    told = next(note for note in done.plan.notes if note.startswith("learned on"))
    assert "nan" not in told
    assert "output z is not fitted: it does not vary" in done.plan.notes


def test_a_loss_of_ones_own_alone_decides_what_is_kept():
    small = quantized("rtn").model
    wanted = Session(small)

    def stay(outputs, given):
        own = torch.from_numpy(wanted(dict(given))["y"])
        return (outputs["y"] - own).square().mean()

    for parts in (None, "blocks"):
        done = lwqc.recover(
            small, teacher=original(), data=feeds(40), steps=40, loss=stay, parts=parts
        )
        assert done.report.unchanged
        assert error(done.model) == error(small)


def test_what_no_part_trains_is_told():
    text = """g (float[N,64] x) => (float[N,64] y) {
        a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) s = Add(x, c)
        d = MatMul(s, w) e = Relu(d) f = MatMul(e, u) y = Add(s, f) }"""
    scaled = {
        n: (w * 0.08).astype(np.float32) for n, w in weights(dict.fromkeys("uvw", (64, 64))).items()
    }
    done = lwqc.quantize(stored(text, **scaled), bits=2, method="brecq", data=feeds(40))
    assert any("no part reads it alone" in note for note in done.plan.notes)


@pytest.mark.parametrize("parts", ["none", "layers"])
def test_zeros_stay_where_another_code_than_0_stands_for_them(parts):
    """As in MatMulNBits, whose codes have no sign; two of four are zero."""
    rng = np.random.default_rng(7)
    dense = rng.integers(0, 4, (32, 4, 16))
    codes = np.where(np.arange(16) % 4 < 2, 2, dense)
    packed = (codes.reshape(32, 4, 4, 4) << np.array([0, 2, 4, 6])).sum(-1).astype(np.uint8)
    text = """g (float[N,64] x) => (float[N,32] y) { y = com.microsoft.MatMulNBits
        <K = 64, N = 32, bits = 2, block_size = 16>(x, codes, scale) }"""
    small = stored(text, codes=packed, scale=np.full((32, 4), 0.1, np.float32))
    full = (dense.reshape(32, 64) - 2).T.astype(np.float32) * 0.1
    teacher = stored("g (float[N,64] x) => (float[N,32] y) { y = MatMul(x, w) }", w=full)
    done = lwqc.recover(small, teacher=teacher, data=feeds(40), steps=200, lr=0.02, parts=parts)
    new = done.model.graph.initializers["codes"].const_value.numpy()
    found = ((new[..., None] >> np.array([0, 2, 4, 6])) & 3).reshape(32, 4, 16)
    assert (found[codes == 2] == 2).all()


OWN = """name = "own"
description = "narrower, and fitted to the original"
allocator = "channels"
[prune]
ratio = 0.3
score = "l2"
[learn]
steps = 60
parts = "none"
"""


@pytest.mark.parametrize("given", [True, False])
def test_commands_for_structure_learn_what_their_recipe_says(tmp_path, given):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    done = lwqc.prune(original(), recipe=str(path), data=feeds(40) if given else None)
    notes = done.plan.notes
    assert any(note.startswith("learned on") for note in notes) == given
    assert ("no data was given: nothing is learned by gradients" in notes) != given


def test_every_point_of_a_row_learns(run, tmp_path):
    path, model, data = tmp_path / "own.toml", tmp_path / "m.onnx", tmp_path / "d.npz"
    text = 'name = "own"\ndescription = "d"\nallocator = "search"\n[search_in]\nkinds = ["width"]\n'
    path.write_text(text + '[learn]\nsteps = 20\nparts = "none"\n')
    io.save(original(), model)
    np.savez(data, x=np.concatenate([f["x"] for f in feeds(30)]))
    code, _, stderr = run(
        "compress", model, "-o", tmp_path / "row", "--recipe", path, "--data", data,
        "--max-macs", "0.6", "--pareto", "2", "--effort", "low", "--time-limit", "20",
    )  # fmt: skip
    assert code in (0, 3), stderr
    plans = [lwqc.Plan.load(p) for p in tmp_path.rglob("*.plan.json")]
    assert len(plans) == 2
    assert all(plan.learn is not None for plan in plans)
