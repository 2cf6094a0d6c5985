"""Fitting a small model to its teacher: better on inputs that it never saw, or as it was."""

import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc  # noqa: E402
from lwqc.compile.lesson import as_logits, scale_of, with_outputs  # noqa: E402
from lwqc.compile.matched_channels import matched_channels  # noqa: E402
from lwqc.compile.teacher_outputs import kept_or_recomputed  # noqa: E402
from lwqc.errors import InputError  # noqa: E402
from lwqc.learn.to_torch import module_of, write_back  # noqa: E402
from lwqc.model import io, limits  # noqa: E402
from lwqc.runtime.session import Session  # noqa: E402
from lwqc.runtime.stats.channel_error import ChannelMeter  # noqa: E402
from lwqc.testing import model_of  # noqa: E402
from tests import odd_files  # noqa: E402
from tests.build import normal  # noqa: E402
from tests.learn.test_to_torch import stored, weights  # noqa: E402

TEACHER = """g (float[N,6] x) => (float[N,3] y) {
    h = MatMul(x, w) b = Add(h, bias) r = Relu(b) y = MatMul(r, v) }"""
SIZES = {"w": (6, 12), "bias": (12,), "v": (12, 3)}


def teacher():
    return stored(TEACHER, **weights(SIZES))


def narrow(units=6):
    """The teacher without half of its hidden units, and nothing that makes up for them."""
    full = weights(SIZES)
    kept = {"w": full["w"][:, :units], "bias": full["bias"][:units], "v": full["v"][:units]}
    return stored(TEACHER, **kept)


def feeds(count, rows=16, seed=5):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((rows, 6)).astype(np.float32)} for _ in range(count)]


def outputs(model, given):
    run = Session(model)
    return np.concatenate([run(f)["y"] for f in given])


def test_a_pruned_model_gets_closer_to_its_teacher_on_inputs_that_the_fit_never_saw():
    done = lwqc.recover(narrow(), teacher=teacher(), data=feeds(40), steps=200, lr=0.02)
    assert done.report.held_back == 8
    assert done.report.fitted == 32
    assert done.report.unchanged == ""
    assert done.report.drop_after < 0.5 * done.report.drop_before
    new = feeds(10, seed=9)
    wanted = outputs(teacher(), new)
    before, after = (np.square(outputs(m, new) - wanted).mean() for m in (narrow(), done.model))
    assert after < 0.5 * before


@pytest.mark.parametrize("kept", [0, 20])
def test_outputs_that_memory_does_not_hold_are_computed_again(monkeypatch, kept):
    """With the same bytes; those that are held back are kept first."""
    given = feeds(40)
    size = outputs(teacher(), given[:1]).nbytes
    whole = lwqc.recover(narrow(), teacher=teacher(), data=given, steps=40)
    monkeypatch.setattr("lwqc.compile.teacher_outputs._may_take", lambda: kept * size)
    made = lwqc.recover(narrow(), teacher=teacher(), data=given, steps=40)
    assert io.to_bytes(made.model) == io.to_bytes(whole.model)
    assert made.report.drop_after == whole.report.drop_after
    (note,) = set(made.report.notes) - set(whole.report.notes)
    assert note.startswith(f"teacher runs again for {40 - kept} of 40 sets of inputs whenever")


def test_of_what_is_computed_again_one_is_in_memory():
    runs, given = [], feeds(6)

    def compute(one):
        runs.append(one)
        return {"y": one["x"] + 1}

    room = limits.Limits(traces=2 * given[0]["x"].nbytes)
    with patch.object(limits, "_current", room):
        found = kept_or_recomputed(("y",), compute, given, first=[5])
    assert [type(one) is dict for one in found] == [True, False, False, False, False, True]
    assert len(runs) == 3  # the third did not fit
    assert all(np.array_equal(m["y"], f["x"] + 1) for m, f in zip(found, given, strict=True))
    assert len(runs) == 7
    for _ in range(3):
        assert list(found[2]) == ["y"]
        assert len(found[2]) == 1
        assert found[2]["y"] is found[2]["y"]
    assert len(runs) == 8
    with pytest.raises(KeyError):
        found[2]["z"]


def test_sequences_are_not_fitted_and_the_report_says_so():
    built = io.from_proto(odd_files.CASES["uneven_sequence"]())
    data = [{"x": normal(2, 64, seed=i)} for i in range(20)]
    done = lwqc.recover(built, teacher=built, data=data, steps=2)
    assert "output t is not fitted: it is no tensor" in done.report.notes


def test_the_same_seed_gives_the_same_bytes():
    one, two, other = (
        lwqc.recover(narrow(), teacher=teacher(), data=feeds(20), steps=30, seed=s).model
        for s in (1, 1, 2)
    )
    assert io.to_bytes(one) == io.to_bytes(two)
    assert io.to_bytes(one) != io.to_bytes(other)


@pytest.mark.parametrize(
    ("count", "rows", "reason"),
    [
        (1, 4, "0 held-back inputs are too few to judge by"),
        (10, 2, "2 held-back inputs are too few"),
    ],
)
def test_tiny_data_ends_with_the_model_as_it_was(count, rows, reason):
    small = narrow()
    done = lwqc.recover(small, teacher=teacher(), data=feeds(count, rows), steps=50)
    assert reason in done.report.unchanged
    assert done.report.drop_after == done.report.drop_before > 0
    assert done.report.loss_after == done.report.loss_before > 0
    assert done.report.trained == 0
    told = any("nothing was held back" in note for note in done.report.notes)
    assert told == (done.report.held_back == 0)
    assert replace(done.report, loss_after=float("nan")).to_dict()["loss_after"] is None
    assert io.to_bytes(done.model) == io.to_bytes(small)


def test_a_fit_that_learns_its_inputs_by_heart_ends_with_the_model_as_it_was():
    """Twenty inputs of one row, for more weights than they could tell: held-back ones say so."""
    rng = np.random.default_rng(0)
    noise = {n: rng.standard_normal(s).astype(np.float32) for n, s in SIZES.items()}
    noisy = stored(
        TEACHER.replace("MatMul(x, w)", "MatMul(s, w)").replace(
            "{", "{ k = Constant<value_float = 99.0>() m = Mul(x, k) s = Sin(m) ", 1
        ),
        **noise,
    )
    small = narrow()
    done = lwqc.recover(noisy, teacher=small, data=feeds(20, 1), steps=300, lr=0.05)
    assert done.report.drop_after <= done.report.drop_before
    assert done.report.unchanged == "it got no better on held-back inputs than by chance"
    assert io.to_bytes(done.model) == io.to_bytes(noisy)


def test_a_model_that_is_its_own_teacher_stays_as_it_is():
    done = lwqc.recover(teacher(), teacher=teacher(), data=feeds(20), steps=20)
    assert done.report.unchanged
    assert io.to_bytes(done.model) == io.to_bytes(teacher())


def coded():
    """The teacher's weights in 3 bits, held as int8 behind DequantizeLinear."""
    full = weights(SIZES)
    scale = np.abs(full["w"]).max(0).astype(np.float32) / 3
    codes = np.clip(np.round(full["w"] / scale), -3, 3).astype(np.int8)
    text = TEACHER.replace("h = ", "d = DequantizeLinear<axis = 1>(q, s) h = ").replace(
        "x, w", "x, d"
    )
    return stored(text, q=codes, s=scale, bias=full["bias"], v=full["v"])


def test_codes_stay_codes_and_torch_computes_what_onnxruntime_does():
    small = coded()
    done = lwqc.recover(small, teacher=teacher(), data=feeds(40), steps=300, lr=0.02)
    assert done.report.unchanged == ""
    before, after = small.graph.initializers, done.model.graph.initializers
    assert after["q"].const_value.dtype is ir.DataType.INT8
    assert (after["q"].const_value.numpy() != before["q"].const_value.numpy()).any()
    shares = after["s"].const_value.numpy() / before["s"].const_value.numpy()
    assert (shares != 1).any()
    assert shares.min() > 0.1
    module = module_of(done.model, codes=True)
    given = feeds(1)[0]
    expected = Session(done.model)(given)["y"]
    np.testing.assert_allclose(module(**given)["y"].detach(), expected, atol=1e-5)
    assert module(**given)["y"].requires_grad


def test_entries_of_codebooks_are_fitted_and_indices_stay():
    rng = np.random.default_rng(0)
    whole = stored(TEACHER, w=normal(6, 512), bias=normal(512), v=normal(512, 3))
    given = [{"x": rng.standard_normal((64, 6)).astype(np.float32)} for _ in range(40)]
    small = lwqc.quantize(whole, format="vq4x2", method="descent", data=given).model
    done = lwqc.recover(small, teacher=whole, data=given, steps=60)
    assert done.report.unchanged == ""
    assert done.report.drop_after < 0.9 * done.report.drop_before
    before, after = (
        {name: value.const_value.numpy() for name, value in m.graph.initializers.items()}
        for m in (small, done.model)
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    books = {name for name, array in before.items() if array.dtype == np.float16}
    indices = {name for name, array in before.items() if array.dtype == np.uint8}
    assert len(books) == 2
    assert indices
    assert books <= changed <= books | {"bias"}


def test_packed_codes_come_back_packed():
    packed = model_of(
        """g (float[N,40] x, uint8[6,2,16] q, float[6,2] s) => (float[N,6] y) {
        y = com.microsoft.MatMulNBits<K = 40, N = 6, bits = 4, block_size = 32>(x, q, s) }""".join(
            ['<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>\n', ""]
        ),
        {
            "q": np.random.default_rng(0).integers(0, 256, (6, 2, 16)).astype(np.uint8),
            "s": np.full((6, 2), 0.1, np.float32),
        },
    )
    module = module_of(packed, codes=True)
    assert {tuple(p.shape) for p in module.parameters()} == {(6, 2, 32)}
    assert io.to_bytes(write_back(module, packed)) == io.to_bytes(packed)
    given = {"x": np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)}
    with torch.no_grad():
        next(module.parameters()).add_(1.4)  # rounded to one more, up to the largest code
    found = Session(write_back(module, packed))(given)["y"]
    np.testing.assert_allclose(module(**given)["y"].detach(), found, atol=1e-5)
    assert np.abs(found - Session(packed)(given)["y"]).max() > 0.1


def test_zeros_of_a_sparse_weight_stay_zero():
    arrays = weights(SIZES)
    arrays["w"][::2] = 0
    small = stored(TEACHER, **arrays)
    done = lwqc.recover(small, teacher=teacher(), data=feeds(40), steps=100)
    found = done.model.graph.initializers["w"].const_value.numpy()
    assert done.report.unchanged == ""
    assert not found[::2].any()
    assert (found[1::2] != arrays["w"][1::2]).any()


def test_inner_tensors_are_fitted_where_both_models_have_them():
    options = {"teacher": teacher(), "data": feeds(40), "steps": 60}
    done = lwqc.recover(narrow(12), inner=["h"], **options)
    assert done.report.unchanged  # nothing is left to be learnt
    with pytest.raises(InputError, match=r"--inner h: its shape is \[16, 12\]"):
        lwqc.recover(teacher(), inner=["h"], **{**options, "teacher": narrow()})
    with pytest.raises(InputError, match="--inner u: teacher has no such tensor"):
        lwqc.recover(narrow(), inner=["u"], **options)


def test_a_narrower_inner_tensor_is_fitted_to_the_channels_it_resembles():
    """Also in another order: channels are found by what they are on the data."""
    order = [7, 2, 11, 0, 5, 8]
    arrays = weights(SIZES)
    arrays["w"] = arrays["w"][:, order] + 0.5 * np.random.default_rng(0).standard_normal((6, 6))
    arrays["v"], arrays["bias"] = arrays["v"][order], arrays["bias"][order]
    small = stored(TEACHER, **{n: a.astype(np.float32) for n, a in arrays.items()})
    given = {"teacher": teacher(), "data": feeds(40), "steps": 300}
    told = "h is fitted to the 6 of the teacher's 12 channels (axis 1) that it resembles most"

    def error(model):
        """Of `h`, beside the channels that it was made of."""
        own, whole = (Session(with_outputs(m, ["h"], "")) for m in (model, teacher()))
        return np.mean([np.square(own(f)["h"] - whole(f)["h"][:, order]).mean() for f in feeds(5)])

    with_inner = lwqc.recover(small, inner=["h"], **given)
    assert any(note.startswith(told) for note in with_inner.report.notes)
    assert error(with_inner.model) < 0.5 * error(small)
    assert error(with_inner.model) < 0.5 * error(lwqc.recover(small, **given).model)


def test_inner_tensors_that_resemble_nothing_are_refused():
    many = TEACHER.replace("N,6", "N,60")
    made = [{n: normal(*size, seed=i) for n, size in sizes.items()} for i, sizes in enumerate((
        {"w": (60, 12), "bias": (12,), "v": (12, 3)}, {"w": (60, 6), "bias": (6,), "v": (6, 3)},
    ))]  # fmt: skip
    large, small = (stored(many, **arrays) for arrays in made)
    data = [{"x": normal(16, 60, seed=i)} for i in range(20)]
    with pytest.raises(
        InputError, match=r"--inner h: it has 6 of the teacher's 12 channels \(axis 1\), and"
    ):
        lwqc.recover(small, teacher=large, data=data, inner=["h"])


def test_channels_that_do_not_vary_are_like_none_and_few_numbers_tell_nothing():
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((343, 40)).astype(np.float32) + 1e3
    narrow_one = wide[:, [3, 20, 7]].copy()
    wide[:, 30:] = rng.standard_normal(10).astype(np.float32)  # constants, as rounding has them
    still = np.concatenate([narrow_one, np.full((343, 2), 0.3, np.float32)], axis=1)
    found = matched_channels([(still[:200], wide[:200]), (still[200:], wide[200:])], 1)
    assert found.index[:3].tolist() == [3, 20, 7]
    assert found.likeness.max() <= 1 + 1e-6
    assert found.likeness[3:].tolist() == [0, 0]
    assert found.left_out.tolist() == [False, False, False, True, True]
    assert found.holds
    made = found.of(wide)
    assert np.array_equal(made[:, :3], narrow_one)
    assert np.isnan(made[:, 3:]).all()
    alone = np.full((343, 5), 0.3, np.float32) * np.arange(5, dtype=np.float32)
    assert not matched_channels([(alone, wide)], 1).holds
    for rows in (2, 8, 64):  # of noise, of which one always finds something
        noise = rng.standard_normal((rows, 256)), rng.standard_normal((rows, 8))
        assert not matched_channels([noise[::-1]], 1).holds


def test_inner_tensors_whose_sizes_vary_are_refused():
    """Wherever among the inputs that shows."""
    text = """g (float[L,6] x) => (float[L,3] y) { h = MatMul(x, w) b = Add(h, bias) r = Relu(b)
        y = MatMul(r, v) t = Transpose<perm=[1,0]>(r) }"""
    large = stored(text, **weights(SIZES))
    fewer = stored(
        text.replace("t = Transpose<perm=[1,0]>(r)",
                     "p = Slice(r, s, e, a, k) t = Transpose<perm=[1,0]>(p)"),
        **weights(SIZES), s=np.array([0]), e=np.array([1000]), a=np.array([0]), k=np.array([2]),
    )  # fmt: skip
    given = [feeds(10, rows=rows)[i] for i in range(10) for rows in (1, 6)]
    for data in (given, given[::-1], [*feeds(10, rows=12), *feeds(10, rows=6)]):
        with pytest.raises(InputError, match="--inner t: "):
            lwqc.recover(fewer, teacher=large, data=data, inner=["t"], steps=2)


def test_a_loss_of_ones_own_is_what_is_fitted():
    def loss(outputs, given):
        assert outputs["y"].shape[0] == len(given["x"])
        return outputs["y"].square().mean()

    done = lwqc.recover(narrow(), teacher=teacher(), data=feeds(40), steps=100, loss=loss)
    assert done.report.loss_after < done.report.loss_before
    assert done.report.drop_after > done.report.drop_before
    assert "by --loss the outputs got further from those of teacher" in done.report.notes
    sizes = [np.square(outputs(m, feeds(2))).mean() for m in (done.model, narrow())]
    assert sizes[0] < sizes[1]
    with pytest.raises(InputError, match="--loss: the function failed: KeyError"):
        lwqc.recover(narrow(), teacher=teacher(), data=feeds(40), loss=lambda o, f: o["z"])
    with pytest.raises(InputError, match="--loss: expected a torch tensor with one number"):
        lwqc.recover(narrow(), teacher=teacher(), data=feeds(40), loss=lambda o, f: 1.0)
    with pytest.raises(InputError, match="--loss: expected a tensor with a gradient"):
        lwqc.recover(
            narrow(), teacher=teacher(), data=feeds(40), loss=lambda o, f: o["y"].detach().sum()
        )


def test_what_cannot_be_fitted_is_refused_or_told():
    labels = stored(
        TEACHER.replace("=> (float[N,3] y)", "=> (int64[N] z)").replace(
            "y = MatMul(r, v)", "u = MatMul(r, v) z = ArgMax<axis = 1, keepdims = 0>(u)"
        ),
        **weights(SIZES),
    )
    with pytest.raises(InputError, match="model and teacher share no output of floats"):
        lwqc.recover(labels, teacher=labels, data=feeds(5))
    with pytest.raises(InputError, match="recover needs a teacher"):
        lwqc.recover(narrow(), data=feeds(5))
    for wrong, message in (
        ({"steps": 0}, "--steps 0"), ({"lr": 2.0}, "--lr 2"),
        ({"time_limit": 0.0}, "--time-limit 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            lwqc.recover(narrow(), teacher=teacher(), data=feeds(5), **wrong)


def test_a_time_limit_ends_the_fit_in_words():
    done = lwqc.recover(narrow(), teacher=teacher(), data=feeds(40), time_limit=0.5)
    assert done.report.steps > 0
    assert any("the time was over" in note for note in done.report.notes)


def test_the_command_saves_what_it_fitted_and_takes_no_input_for_its_output(run, tmp_path):
    small, original, out = (tmp_path / f"{n}.onnx" for n in ("small", "teacher", "out"))
    io.save(narrow(), small)
    io.save(teacher(), original)
    data = tmp_path / "data.npz"
    np.savez(data, x=np.concatenate([f["x"] for f in feeds(40)]))
    base = ["recover", small, "--teacher", original, "--data", data, "--steps", "100"]
    code, stdout, _ = run(*base, "-o", out)
    assert code == 0
    assert "100 steps on 16 sets of inputs, 4 held back" in stdout
    assert not np.array_equal(outputs(io.load(out), feeds(1)), outputs(narrow(), feeds(1)))
    code, stdout, _ = run(*base, "-o", out, "--json")
    told = json.loads(stdout)
    assert told["drop_after"] < told["drop_before"]
    assert told["output_bytes"] == out.stat().st_size
    for taken in (small, original, data):
        before = taken.read_bytes()
        code, _, stderr = run(*base, "-o", taken)
        assert code == 2
        assert len(stderr.strip().splitlines()) == 1
        assert taken.read_bytes() == before


def test_a_result_of_another_function_brings_its_teacher_and_data():
    pruned = lwqc.prune(teacher(), ratio=0.4, data=feeds(30))
    done = lwqc.recover(pruned, steps=60)
    assert done.report.fitted + done.report.held_back == 30
    assert done.report.drop_after <= done.report.drop_before
    assert set(done.model.graph.initializers) == set(pruned.model.graph.initializers)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("p = GlobalAveragePool(x) y = InstanceNormalization(p, w, b)", ""),
        (
            "t = Cast<to = 12>(x) u = Sub(t, t) z = Cast<to = 1>(u) "
            "y = InstanceNormalization(z, w, b)",
            "model: Sub u: torch says: ",
        ),
    ],
)
def test_what_torch_knows_is_fitted_and_what_it_does_not_is_one_error(nodes, message):
    arrays = {"w": np.ones(3, np.float32), "b": np.ones(3, np.float32)}
    text = f"g (float[N,3,S,T] x) => (float[N,3,U,V] y) {{ {nodes} }}"
    data = [{"x": np.full((2, 3, 4, 4), i, np.float32)} for i in range(25)]
    one, other = stored(text, **arrays), stored(text, **(arrays | {"b": 2 * arrays["b"]}))
    if message:
        with pytest.raises(InputError, match=message):
            lwqc.recover(one, teacher=other, data=data, steps=2)
    else:
        assert lwqc.recover(one, teacher=other, data=data, steps=2).report.steps == 2


def test_sizes_that_torch_does_not_take_are_told_with_the_node():
    text = """g (float[N,3,S,8] x) => (float[N,3,T,4] y) { c = Conv(x, w)
        y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c) }"""
    small = stored(text, w=np.ones((3, 3, 1, 1), np.float32))
    data = [{"x": np.ones((2, 3, 1, 8), np.float32)}] * 25
    with pytest.raises(InputError, match="model: MaxPool y: torch says: Given input size"):
        lwqc.recover(small, teacher=small, data=data)


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 3), 1), ((4, 6, 3), 2), ((4, 3, 5, 5), 1)], ids=str
)
def test_classes_of_logits_are_on_the_last_axis_or_on_that_of_channels(shape, axis):
    """And not on the axis whose entries differ most, as positions of an attention sink do."""
    y = normal(*shape)
    y[:, 0] *= 100
    meter = ChannelMeter()
    meter.add(y, y)
    found = as_logits(scale_of(meter), "y", y.ndim)
    assert (found.axis, found.logits) == (axis, True)
    with pytest.raises(InputError, match="it has no axis of classes"):
        as_logits(scale_of(meter), "y", 1)


def test_logits_beside_a_loss_of_ones_own_are_refused():
    with pytest.raises(InputError, match="leave out --logits"):
        lwqc.recover(
            narrow(), teacher=teacher(), data=feeds(40), logits=["y"], loss=lambda *_: 0, steps=2
        )


def test_logits_are_fitted_by_their_probabilities():
    def divergence(model):
        def log_softmax(y):
            return (
                y
                - np.log(np.exp(y - y.max(1, keepdims=True)).sum(1, keepdims=True))
                - y.max(1, keepdims=True)
            )

        own, known = (log_softmax(outputs(m, feeds(10, seed=9))) for m in (model, teacher()))
        return float((np.exp(known) * (known - own)).sum(1).mean())

    options = {"teacher": teacher(), "data": feeds(40), "steps": 200, "lr": 0.02}
    plain = lwqc.recover(narrow(), **options)
    done = lwqc.recover(narrow(), logits=["y"], **options)
    assert done.report.unchanged == ""
    assert divergence(done.model) < divergence(plain.model) < 0.5 * divergence(narrow())
    for wrong, message in (("z", "expected one of y"), ("b", "expected one of y")):
        with pytest.raises(InputError, match=f"--logits {wrong}: {message}"):
            lwqc.recover(narrow(), logits=[wrong], **options)
