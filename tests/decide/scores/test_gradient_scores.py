"""Scores of slopes: by hand, by differences, over all that goes with a channel."""

import re

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc  # noqa: E402
from lwqc.compile.prunable import Prunable  # noqa: E402
from lwqc.decide.scores.channels.chita import chita  # noqa: E402
from lwqc.decide.scores.channels.fisher import fisher  # noqa: E402
from lwqc.decide.scores.channels.gates import Gates  # noqa: E402
from lwqc.decide.scores.channels.gradients import Gradients  # noqa: E402
from lwqc.decide.scores.channels.grasp import grasp  # noqa: E402
from lwqc.decide.scores.channels.score import GroupFacts  # noqa: E402
from lwqc.decide.scores.channels.snip import snip  # noqa: E402
from lwqc.errors import InputError  # noqa: E402
from lwqc.learn import needed  # noqa: E402
from lwqc.model import io  # noqa: E402
from lwqc.runtime.rebatched import free_batch, rebatched  # noqa: E402
from lwqc.runtime.session import Session  # noqa: E402
from lwqc.testing import model_of  # noqa: E402
from tests.build import normal  # noqa: E402
from tests.doc_pages import DOCS  # noqa: E402
from tests.learn.test_to_torch import stored  # noqa: E402

MLP = "g (float[N,5] x) => (float[N,3] y) { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, v) }"
# A residual stream that a 1x1 convolution both reads and adds to, and convolutions in groups.
NET = """g (float[N,3,4,4] x) => (float[N,5] y) {
    a = Conv<pads = [1,1,1,1]>(x, w1) b = Tanh(a)
    c = Conv(b, w2) d = Tanh(c) e = Add(b, d)
    f = Conv<pads = [1,1,1,1], group = 4>(e, w3) h = Tanh(f)
    m = GlobalAveragePool(h) n = Flatten(m) y = Gemm<transB = 1>(n, w4, w5) }"""
ATTENTION = """g (float[N,T,6] x) => (float[N,T,6] y) {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    qr = Reshape(q, split) kr = Reshape(k, split) vr = Reshape(v, split)
    qt = Transpose<perm = [0,2,1,3]>(qr) kt = Transpose<perm = [0,2,3,1]>(kr)
    vt = Transpose<perm = [0,2,1,3]>(vr)
    s = MatMul(qt, kt) p = Softmax(s) o = MatMul(p, vt)
    ot = Transpose<perm = [0,2,1,3]>(o) om = Reshape(ot, merge) z = MatMul(om, wo)
    y = Add(x, z) }"""


def mlp(hidden=6):
    return stored(MLP, w=normal(5, hidden, seed=1, scale=0.6), v=normal(hidden, 3, seed=2))


def network():
    return stored(
        NET,
        w1=normal(8, 3, 3, 3, seed=1, scale=0.3), w2=normal(8, 8, 1, 1, seed=2, scale=0.3),
        w3=normal(8, 2, 3, 3, seed=3, scale=0.3), w4=normal(5, 8, seed=4), w5=normal(5, seed=5),
    )  # fmt: skip


def attention():
    return stored(
        ATTENTION,
        wq=normal(6, 8, seed=1), wk=normal(6, 8, seed=2), wv=normal(6, 8, seed=3),
        wo=normal(8, 6, seed=4), split=np.array([0, 0, 2, 4]), merge=np.array([0, 0, 8]),
    )  # fmt: skip


MODELS = {
    "mlp": (mlp, (5,)),
    "network": (network, (3, 4, 4)),
    "attention": (attention, (4, 6)),
}


def feeds(*shape, count=2, rows=3):
    return [{"x": normal(rows, *shape, seed=10 + i)} for i in range(count)]


def by_numpy(outputs):
    return float(np.square(outputs["y"].astype(np.float64) - 0.5).mean())


def by_torch(outputs, given):
    return (outputs["y"] - 0.5).square().mean()


def facts_of(model, data, loss=by_torch, **options):
    """Of each group by name."""
    prunable = Prunable(model)
    readers = {
        g.name: [r for r in prunable.readers if g.factor in set(r.features.leaves())]
        for g in prunable.groups
    }
    gates = {g.name: Gates(g, readers[g.name], io.read_array) for g in prunable.groups}
    gradients = Gradients(prunable.model, data, loss, label="model", gates=gates, **options)
    return {
        g.name: GroupFacts(g, io.read_array, readers[g.name], gradients=gradients)
        for g in prunable.groups
    }


def covered(group, index):
    """A mask by stored matrix over what goes with a channel."""
    masks = {}
    for occurrence, positions in group.slices(index):
        tensor = occurrence.value.const_value
        if occurrence in group.weights and len(tensor.shape) > 1:
            mask = masks.setdefault(occurrence.name, np.zeros(tensor.numpy().shape, bool))
            np.moveaxis(mask, occurrence.axis, 0)[positions] = True
    return masks


@pytest.mark.parametrize("name", MODELS)
def test_snip_is_the_share_of_all_connections_that_go_each_of_which_counts_once(name):
    make, shape = MODELS[name]
    found = facts_of(make(), feeds(*shape))
    assert found
    for facts in found.values():
        weights, slopes = facts.gradients.weights, facts.gradients.mean
        each = {n: np.abs(weights[n].astype(float) * slopes[n]) for n in slopes}
        total = sum(e.sum() for e in each.values())
        wanted = [
            sum(each[n][mask].sum() for n, mask in covered(facts.group, i).items()) / total
            for i in range(facts.group.size)
        ]
        np.testing.assert_allclose(snip(facts), wanted, rtol=1e-4)


def slopes_by_differences(loss, weights, step=1e-4):
    """Gradient of a loss of numpy arrays, by central differences."""
    found = []
    for weight in weights:
        slope = np.zeros_like(weight)
        for place in np.ndindex(weight.shape):
            kept = weight[place]
            weight[place] = kept + step
            above = loss()
            weight[place] = kept - step
            slope[place] = (above - loss()) / (2 * step)
            weight[place] = kept
        found.append(slope)
    return found


def numpy_mlp(data, temperature=1.0):
    """The weights of `mlp` in 64 bits, and its mean loss over the batches."""
    initial = mlp().graph.initializers
    w, v = (initial[n].const_value.numpy().astype(np.float64) for n in ("w", "v"))

    def loss():
        outputs = [np.tanh(f["x"].astype(np.float64) @ w) @ v for f in data]
        return float(np.mean([np.square(y / temperature - 0.5).mean() for y in outputs]))

    return w, v, loss


def test_snip_of_a_perceptron_by_differences():
    data = feeds(5)
    w, v, loss = numpy_mlp(data)
    gw, gv = slopes_by_differences(loss, [w, v])
    sensitive = np.abs(w * gw).sum(0) + np.abs(v * gv).sum(1)
    wanted = sensitive / (np.abs(w * gw).sum() + np.abs(v * gv).sum())
    (facts,) = facts_of(mlp(), data).values()
    np.testing.assert_allclose(snip(facts), wanted, rtol=1e-3)


def test_grasp_is_what_half_of_the_squared_gradient_loses_with_a_channel_by_differences():
    data, step = feeds(5), 1e-3
    w, v, loss = numpy_mlp(data, temperature=200.0)

    def flow(channel, factor):
        kept = w[:, channel].copy(), v[channel].copy()
        w[:, channel], v[channel] = kept[0] * factor, kept[1] * factor
        found = sum(np.square(g).sum() for g in slopes_by_differences(loss, [w, v])) / 2
        w[:, channel], v[channel] = kept
        return found

    slopes = [(flow(c, 1 + step) - flow(c, 1 - step)) / (2 * step) for c in range(6)]
    (facts,) = facts_of(mlp(), data).values()
    ranking = grasp(facts)
    np.testing.assert_array_equal(ranking.order, np.argsort(slopes))
    np.testing.assert_allclose(ranking.cost, np.sort(slopes), rtol=1e-2, atol=1e-3 * np.ptp(slopes))


@pytest.mark.parametrize("name", MODELS)
def test_grasp_adds_up_over_all_that_goes_whatever_its_sign(name):
    (make, shape), gains = MODELS[name], False
    for facts in facts_of(make(), feeds(*shape)).values():
        weights, curved = facts.gradients.weights, facts.gradients.curved(200.0)
        each = {n: weights[n].astype(float) * curved[n] for n in curved}
        wanted = np.array([
            sum(each[n][mask].sum() for n, mask in covered(facts.group, i).items())
            for i in range(facts.group.size)
        ])  # fmt: skip
        ranking = grasp(facts)
        np.testing.assert_allclose(
            ranking.cost, wanted[ranking.order], rtol=1e-4, atol=1e-5 * np.abs(wanted).max()
        )
        gains |= bool(ranking.cost[0] < 0)
    assert gains == (name == "attention")


@pytest.mark.parametrize("name", MODELS)
def test_fisher_is_half_the_mean_square_of_the_slopes_of_samples_by_differences(name):
    make, shape = MODELS[name]
    model, data, step = make(), feeds(*shape), 0.02
    facts = next(f for f in facts_of(model, data).values() if len(f.readers) == max(
        len(g.readers) for g in facts_of(model, data).values()
    ))  # fmt: skip
    samples = list(rebatched(data, 1))
    wanted = np.zeros(facts.group.size)
    for index in range(facts.group.size):
        ends = []
        for factor in (1 + step, 1 - step):
            changed = Prunable(model).model
            for reader in facts.readers:
                name_ = reader.operand.weight.name
                matrix, owners = reader.operand.matrix(io.read_array), reader.owners(facts.group)
                parts = matrix.reshape(len(owners), -1, matrix.shape[1])
                parts = parts * np.where(owners == index, factor, 1.0)[:, None]
                held = changed.graph.initializers[name_]
                held.const_value = reader.operand.stored(parts.reshape(matrix.shape))
            run = Session(changed)
            ends.append(np.array([by_numpy(run(f)) for f in samples]))
        wanted[index] = np.square((ends[0] - ends[1]) / (2 * step)).mean() / 2
    np.testing.assert_allclose(fisher(facts), wanted, rtol=0.02, atol=2e-3 * wanted.max())


def test_chita_is_what_is_left_of_the_slopes_when_the_other_gates_make_up_for_a_channel():
    """Against least squares with a damping of a hundredth of the mean square slope."""
    facts = facts_of(mlp(), feeds(5, count=4, rows=5))["w:1"]
    slopes = facts.gradients.by_sample["w:1"]
    count, size = slopes.shape
    damping = 0.01 * np.square(slopes).mean(0).mean()
    rows = np.vstack([slopes / np.sqrt(count), np.sqrt(damping) * np.eye(size)])
    errors = [np.linalg.lstsq(np.delete(rows, j, 1), rows[:, j])[1][0] / 2 for j in range(size)]
    ranking = chita(facts)
    assert ranking.order[0] == np.argmin(errors)
    assert ranking.cost[0] == pytest.approx(min(errors), rel=1e-6)
    assert sorted(ranking.order) == list(range(size))
    assert all(errors <= fisher(facts) + damping / 2 + 1e-12)
    done = lwqc.prune(attention(), recipe="chita", ratio=0.3, data=feeds(4, 6), loss=by_torch)
    assert done.plan.prune.units


def test_a_gate_is_one_for_all_layers_that_read_a_residual_stream():
    found = facts_of(network(), feeds(3, 4, 4))
    assert max(len(f.readers) for f in found.values()) == 2
    heads = [f for f in facts_of(attention(), feeds(4, 6)).values() if "heads" in f.group.marks]
    assert [len(f.readers) for f in heads] == [1]
    assert np.all(fisher(heads[0]) > 0)


def test_channels_that_no_layer_reads_have_no_fisher_score_and_go_by_magnitude():
    found = facts_of(attention(), feeds(4, 6))
    assert [n for n, f in found.items() if fisher(f) is None] == ["wq:1/1"]
    done = lwqc.prune(attention(), recipe="fisher", ratio=0.3, data=feeds(4, 6), loss=by_torch)
    assert done.plan.prune.units


def test_samples_are_split_where_the_batch_is_free_and_are_whole_runs_elsewhere():
    facts = facts_of(mlp(), feeds(5, count=2, rows=3))["w:1"]
    assert facts.gradients.by_sample["w:1"].shape == (6, 6)
    fixed = stored(MLP.replace("float[N,5]", "float[3,5]"), w=normal(5, 6), v=normal(6, 3))
    facts = facts_of(fixed, feeds(5, count=2, rows=3))["w:1"]
    assert facts.gradients.by_sample["w:1"].shape == (2, 6)


def test_the_same_samples_in_batches_of_another_size():
    rows = [{"a": normal(n, 2, seed=n), "b": normal(n, seed=n)} for n in (3, 5)]
    found = list(rebatched(rows, 4))
    assert [len(f["b"]) for f in found] == [4, 4]
    np.testing.assert_array_equal(
        np.concatenate([f["a"] for f in found]), np.concatenate([r["a"] for r in rows])
    )
    other = [{"a": normal(3, 2)}, {"a": normal(3, 7)}]
    assert [f["a"].shape for f in rebatched(other, 4)] == [(3, 2), (3, 7)]
    assert free_batch(mlp()) == "N"
    assert free_batch(model_of("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")) is None


def test_without_a_loss_fisher_is_what_the_outputs_lose_by_channel():
    """Of a linear model that can be told by hand: its second matrix in units of the outputs."""
    text = MLP.replace("Tanh", "Identity")
    w, v = normal(5, 6, seed=1), normal(6, 3, seed=2) * np.array([[100, 1, 0.01]], np.float32)
    data = feeds(5, count=1, rows=2000)
    (facts,) = facts_of(stored(text, w=w, v=v), data, loss=None).values()
    hidden = data[0]["x"] @ w
    lost = np.square(hidden).mean(0) * (np.square(v) / (hidden @ v).var(0)).sum(1)
    ratio = fisher(facts) / lost
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.15)


def test_a_channel_of_the_outputs_that_hardly_moves_is_measured_by_the_others():
    model = mlp()
    held = model.graph.initializers["v"]
    held.const_value = ir.tensor(held.const_value.numpy() * np.float32([1, 1, 1e-32]), name="v")
    (facts,) = facts_of(model, feeds(5, rows=20), loss=None).values()
    assert np.isfinite(snip(facts)).all()
    assert np.isfinite(grasp(facts).cost).all()
    held.const_value = ir.tensor(np.zeros((6, 3), np.float32), name="v")
    with pytest.raises(InputError, match="no output of floats that varies: give a --loss"):
        lwqc.prune(model, recipe="fisher", ratio=0.3, data=feeds(5))


def test_without_a_loss_scores_are_the_same_each_time_and_the_report_says_what_they_are(tmp_path):
    data = feeds(3, 4, 4)
    told = {"lrp": "what is explained is the largest channel"}
    for recipe in ("snip", "grasp", "fisher", "lrp"):
        one, two = (lwqc.prune(network(), recipe=recipe, ratio=0.3, data=data) for _ in range(2))
        assert one.plan.prune.units == two.plan.prune.units
        report = one.save(tmp_path / "small.onnx")
        assert report.met
        note = f"no --loss was given: {told.get(recipe, 'slopes are those of the distance')}"
        assert any(note in line for line in report.notes)


def test_without_data_inputs_are_random_and_the_report_says_so(tmp_path):
    report = lwqc.prune(network(), recipe="snip", ratio=0.3).save(tmp_path / "small.onnx")
    assert report.met
    assert any("statistics for pruning come from random inputs" in n for n in report.notes)


def test_losses_that_say_nothing_are_refused():
    def own_teacher(outputs, given):
        return (outputs["y"] - outputs["y"].detach()).square().mean()

    for recipe in ("snip", "grasp", "fisher", "chita"):
        with pytest.raises(InputError, match="the loss has no slope along any weight"):
            lwqc.prune(mlp(), recipe=recipe, ratio=0.3, data=feeds(5), loss=own_teacher)
    with pytest.raises(InputError, match="--loss: expected a tensor with a gradient"):
        lwqc.prune(
            mlp(), recipe="snip", ratio=0.3, data=feeds(5), loss=lambda o, f: o["y"].detach().sum()
        )
    with pytest.raises(
        InputError,
        match=r"--loss is for --score chita, fisher, .*taylor, snip, not for l2",
    ):
        lwqc.prune(mlp(), recipe="spa-l2", ratio=0.3, data=feeds(5), loss=by_torch)
    labels = stored(
        MLP.replace("float[N,3] y", "int64[N] y").replace("y = M", "z = M").replace("v) }", "v) "
        "y = ArgMax<axis = 1, keepdims = 0>(z) }"), w=normal(5, 6), v=normal(6, 3)
    )  # fmt: skip
    with pytest.raises(InputError, match="no output of floats that varies: give a --loss"):
        lwqc.prune(labels, recipe="snip", ratio=0.3, data=feeds(5))


def test_operators_without_gradients_are_named(run, tmp_path):
    text = MLP.replace("(float[N,5] x)", "(float[N,5] x, float[1,9,4] at, float[1,2,9] of)")
    text = text.replace("y)", "y, int64[M,3] s)").replace(
        "v) }", "v) s = NonMaxSuppression(at, of) }"
    )
    source = tmp_path / "m.onnx"
    lwqc.save(stored(text, w=normal(5, 6), v=normal(6, 3)), source)
    code, _, err = run("prune", source, "-o", tmp_path / "o.onnx", "--recipe", "snip")
    assert code == 2
    assert err.count("\n") == 1
    assert "gradients are not known of the operator NonMaxSuppression" in err
    assert not (tmp_path / "o.onnx").exists()


CODED = """g (float[N,5] x) => (float[N,3] y) {
    d = DequantizeLinear(w, scale) a = MatMul(x, d) b = Tanh(a) y = MatMul(b, v) }"""


def test_weights_that_are_codes_do_not_count_and_nothing_but_codes_is_refused():
    rng = np.random.default_rng(0)
    codes = {"w": rng.integers(-90, 90, (5, 6)).astype(np.int8), "scale": np.float32([0.01])[0]}
    (facts,) = facts_of(stored(CODED, **codes, v=normal(6, 3)), feeds(5)).values()
    each = np.abs(facts.gradients.weights["v"] * facts.gradients.mean["v"]).sum(1)
    np.testing.assert_allclose(snip(facts), each / each.sum(), rtol=1e-5)
    text = CODED.replace("y = MatMul(b, v)", "e = DequantizeLinear(v, scale) y = MatMul(b, e)")
    coded = stored(text, **codes, v=rng.integers(-90, 90, (6, 3)).astype(np.int8))
    with pytest.raises(InputError, match="it has no weights that a loss could have slopes along"):
        lwqc.prune(coded, recipe="snip", ratio=0.3, data=feeds(5))


def test_without_torch_the_scores_say_what_they_need(monkeypatch):
    monkeypatch.setattr(needed, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="gradients need torch"):
        lwqc.prune(mlp(), recipe="snip", ratio=0.3, data=feeds(5))


NORM = """g (float[N,3,4,4] x) => (float[N,5] y) {
    a = Conv<pads = [1,1,1,1]>(x, w1) b = BatchNormalization(a, s, t, m, u) c = Tanh(b)
    d = GlobalAveragePool(c) e = Flatten(d) y = MatMul(e, w2) }"""


def test_before_training_normalisation_goes_by_the_batch_and_the_file_keeps_its_statistics():
    weights = {"w1": normal(8, 3, 3, 3, seed=1, scale=9), "w2": normal(8, 5, seed=2)}
    norm = {"s": np.ones(8), "t": np.zeros(8), "m": np.zeros(8), "u": np.ones(8)}
    norm = {name: value.astype(np.float32) for name, value in norm.items()}
    model, data = stored(NORM, **weights, **norm), feeds(3, 4, 4, count=2, rows=16)
    torch_weights = {n: torch.tensor(w, requires_grad=True) for n, w in weights.items()}
    x = torch.from_numpy(np.concatenate([f["x"] for f in data]))
    hidden = torch.nn.functional.conv2d(x, torch_weights["w1"], padding=1)
    hidden = torch.nn.functional.batch_norm(hidden, None, None, training=True).tanh()
    by_torch({"y": hidden.mean((2, 3)) @ torch_weights["w2"]}, {}).backward()
    facts = facts_of(model, data, untrained=True)["w1:0"]
    for name, weight in torch_weights.items():
        np.testing.assert_allclose(facts.gradients.mean[name], weight.grad, rtol=1e-3, atol=1e-6)
    kept = lwqc.prune(model, recipe="snip", ratio=0.3, data=data, loss=by_torch).model
    assert not kept.graph.initializers["m"].const_value.numpy().any()
    trained = stored(NORM, **weights, **norm | {"m": norm["m"] + 1})
    facts = facts_of(trained, data, untrained=True)["w1:0"]
    assert np.abs(facts.gradients.mean["w1"] - torch_weights["w1"].grad.numpy()).max() > 1e-4


def test_the_loss_with_labels_of_the_page_finds_them_in_any_batch(tmp_path, monkeypatch):
    page = (DOCS / "pruning.md").read_text()
    (code,) = re.findall(r"```python\n(# own_loss.py\n.*?)```", page, re.DOTALL)
    images, labels = normal(6, 3, 4, 4, seed=1), np.arange(6) % 5
    monkeypatch.chdir(tmp_path)
    np.savez("labelled.npz", image=images, label=labels)
    scope = {}
    exec(compile(code, "own_loss.py", "exec"), scope)
    logits = torch.from_numpy(normal(2, 5, seed=2))
    found = scope["loss"]({"logits": logits}, {"image": images[[4, 1]]})
    torch.testing.assert_close(
        found, torch.nn.functional.cross_entropy(logits, torch.tensor([4, 1]))
    )
