"""Metrics by name, on labels and on the original's own answers."""

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.runtime.data import open_data
from lwqc.runtime.measure import Metric
from lwqc.runtime.metrics.named import NAMED, metric_of
from lwqc.runtime.metrics.transcripts import edits
from tests.sources import classes_net, flat, net, save_image

COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("PIL", reason="images need pillow, of the extra lwqc[data]")
    for name, color in COLORS.items():
        for i in range(2):
            save_image(tmp_path / "images" / name / f"{i}.png", flat(color))
    return tmp_path / "images"


def of_model(model, data, spec="top1", preprocess=None):
    opened = open_data(data, model, preprocess=preprocess)
    return metric_of(spec, model, opened)


def test_top1_of_folders(folder, tmp_path):
    """Channels are red, green and blue; folders are sorted by name."""
    model = classes_net()
    metric = of_model(model, folder, preprocess="range=0..1")
    assert metric.name == "top1 against the labels"
    run = lambda feeds: {"y": feeds["image"].mean((2, 3))}  # noqa: E731
    assert metric(run) == pytest.approx(1 / 3)
    (tmp_path / "c.txt").write_text("red\ngreen\nblue\n")
    said = f"range=0..1,classes={tmp_path / 'c.txt'}"
    assert of_model(model, folder, preprocess=said)(run) == 1
    (tmp_path / "c.txt").write_text("red\ngreen\n")
    with pytest.raises(InputError, match="label 'blue': is none of the 2 classes"):
        of_model(model, folder, preprocess=said)


def test_top1_without_labels_is_agreement(folder):
    metric = of_model(classes_net(), folder / "red", preprocess="range=0..1")
    assert metric.name == "top1 against the original"
    assert metric(lambda feeds: {"y": feeds["image"].mean((2, 3))}) == 1
    assert metric(lambda feeds: {"y": -feeds["image"].mean((2, 3))}) == 0


def test_labels_beyond_the_classes(tmp_path):
    np.savez(tmp_path / "d.npz", image=np.zeros((2, 3, 4, 6), np.float32), y=np.array([1, 7]))
    with pytest.raises(InputError, match="label 7: output y has 3 classes, from 0"):
        of_model(classes_net(), tmp_path / "d.npz", preprocess="label=y")


def test_which_output(folder):
    model = net("float[n, 3] x", "float[n, 3] a, float[n, 3] b", "a = Identity(x)\n b = Neg(x)")
    data = [{"x": np.eye(3, dtype=np.float32)}]
    assert of_model(model, data, "top1=b")(lambda f: {"b": -f["x"]}) == 1
    with pytest.raises(InputError, match=r"output c is not classes .* gives a \[3, 3\], b"):
        of_model(model, data, "top1=c")


def test_top1_of_labels_that_are_texts(tmp_path):
    model = net("string[n] x", "string[n] y", "y = Identity(x)")
    (tmp_path / "d.csv").write_text("x,is\ncat,cat\ndog,cat\n")
    metric = of_model(model, tmp_path / "d.csv", preprocess="label=is")
    assert metric(lambda feeds: {"y": feeds["x"]}) == 0.5


def test_perplexity(tmp_path):
    model = net(
        "int64[n, s] input_ids, int64[n, s] attention_mask",
        "float[n, s, 4] y",
        "depth = Constant<value = int64[1] {4}>()\n values = Constant<value = float[2] {0, 9}>()\n"
        "y = OneHot(input_ids, depth, values)",
    )
    ids = np.array([[1, 1, 1, 0], [2, 2, 3, 3]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    metric = of_model(model, [{"input_ids": ids, "attention_mask": mask}], "perplexity")
    assert not metric.higher_is_better
    same, other = -np.log(np.exp(9) / (np.exp(9) + 3)), -np.log(1 / (np.exp(9) + 3))
    logits = np.eye(4)[ids] * 9
    found = metric(lambda feeds: {"y": logits})
    assert found == pytest.approx(np.exp((4 * same + other) / 5))
    for token in (4, -1):
        strange = of_model(
            model, [{"input_ids": np.full((1, 3), token), "attention_mask": mask[:1, :3]}],
            "perplexity",
        )  # fmt: skip
        with pytest.raises(InputError, match=f"token {token}: output y has 4 tokens, from 0"):
            strange(lambda feeds: {"y": logits[:1, :3]})
    with pytest.raises(InputError, match="which input has the tokens"):
        of_model(classes_net(), [{"image": np.zeros((1, 3, 4, 6), np.float32)}], "perplexity")


def circle(degrees):
    angles = np.deg2rad(np.asarray(degrees, np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_embedding_recall():
    """Lengths say nothing. One sample of a circle moves to the other side, away from its own."""
    model = net("float[n, 2] x", "float[n, 2] y", "y = Identity(x)")
    x = circle(range(0, 360, 36))
    data = [{"x": x[:4]}, {"x": x[4:]}]
    metric = of_model(model, data, "embedding-recall,k=2")
    assert metric.name == "embedding-recall,k=2 against the original"
    assert metric(lambda feeds: {"y": 3 * feeds["x"]}) == 1
    moved = np.concatenate([circle([186]), x[1:]])
    parts = iter((moved[:4], moved[4:]))
    found = metric(lambda feeds: {"y": next(parts)})
    near = np.argsort(-(moved @ moved.T) + 9 * np.eye(10), axis=1)[:, :2]
    kept = [len({(i - 1) % 10, (i + 1) % 10} & set(near[i])) for i in range(10)]
    assert found == sum(kept) / 20 < 0.8
    assert metric(lambda feeds: {"y": np.full_like(feeds["x"], np.nan)}) == 0


def test_neighbours_that_are_equally_near_all_count():
    model = net("float[n, 2] x", "float[n, 2] y", "y = Identity(x)")
    metric = of_model(model, [{"x": circle([0] * 5 + [90] * 5)}], "embedding-recall,k=2")
    turned = np.random.default_rng(0).uniform(-1, 1, 10)
    assert metric(lambda feeds: {"y": circle(turned + np.repeat([0, 90], 5))}) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embedding-recall", "10 neighbours need more than 10 samples, the data has 3"),
        ("embedding-recall,k=0", "k=0: expected a count of at least 1"),
        ("embedding-recall,n=3", "'n' is none of it; expected one of k"),
        ("embedding-recall=z", "output z is not embeddings"),
    ],
)
def test_what_recall_cannot_be_taken_on(spec, message):
    model = net("float[n, 2] x", "float[n, 2] y", "y = Identity(x)")
    with pytest.raises(InputError, match=message):
        of_model(model, [{"x": circle([0, 1, 2])}], spec)(lambda feeds: {"y": feeds["x"]})


def ctc():
    return net("float[n, t, 4] x", "float[n, t, 4] y", "y = Identity(x)")


def scores(*rows):
    return np.eye(4, dtype=np.float32)[np.array(rows)]


def test_character_errors_against_the_original():
    x = scores([1, 1, 0, 1, 2], [3, 0, 3, 3, 0])  # 1 1 2 and 3 3
    metric = of_model(ctc(), [{"x": x}], "character-error")
    assert metric(lambda feeds: {"y": feeds["x"]}) == 0
    changed = scores([1, 1, 1, 1, 2], [3, 0, 3, 3, 2])  # 1 2 and 3 3 2
    assert metric(lambda feeds: {"y": changed}) == pytest.approx(2 / 5)
    with pytest.raises(InputError, match="word-error: needs labels=FILE and classes=FILE"):
        of_model(ctc(), [{"x": x}], "word-error")


def test_errors_of_texts_against_labels(tmp_path):
    (tmp_path / "c.txt").write_text("a\nb\n")  # channel 3 is the space behind them
    x = scores([1, 0, 3, 2, 2])  # "a b"
    said = {"label": "t", "classes": str(tmp_path / "c.txt")}
    np.savez(tmp_path / "d.npz", x=x, t=np.array(["a ab"]))
    run = lambda feeds: {"y": feeds["x"]}  # noqa: E731
    model = ctc()
    assert of_model(model, tmp_path / "d.npz", "character-error", said)(run) == 1 / 4
    assert of_model(model, tmp_path / "d.npz", "word-error", said)(run) == 1 / 2
    with pytest.raises(InputError, match="write classes=FILE, a character a line"):
        of_model(model, tmp_path / "d.npz", "character-error", {"label": "t"})


def test_edits():
    assert edits("kitten", "sitting") == 3
    assert edits("", "ab") == edits("ab", "") == 2


def test_detection_agreement():
    """Of two channels of scores, one place is found by both, one by the original alone."""
    model = net("float[n, 2, 80] x", "float[n, 2, 80] y", "y = Identity(x)")
    x = np.full((1, 2, 80), 0.1, np.float32)
    x[0, 0, 3] = x[0, 1, 5] = 0.9
    metric = of_model(model, [{"x": x}], "detection-agreement")
    other = x.copy()
    other[0, 1, 5] = 0.2
    assert metric(lambda feeds: {"y": feeds["x"]}) == 1
    assert metric(lambda feeds: {"y": other}) == 0.5
    weak = of_model(model, [{"x": x * 0.1}], "detection-agreement")
    with pytest.raises(
        InputError, match=r"^detection-agreement: output y detects nothing in this data"
    ):
        weak(lambda feeds: {"y": feeds["x"]})
    late = of_model(model, [{"x": x * 0.1}, {"x": x}], "detection-agreement")
    assert late(lambda feeds: {"y": feeds["x"]}) == 1
    with pytest.raises(InputError, match="no output is scores between 0 and 1"):
        of_model(model, [{"x": x - 5}], "detection-agreement")


def test_names_and_others():
    model, data = classes_net(), [{"image": np.ones((1, 3, 4, 6), np.float32)}]
    with pytest.raises(InputError, match=f"top2: is no metric; .* one of {', '.join(NAMED)}"):
        of_model(model, data, "top2")
    own = metric_of(len, model, open_data(data, model))
    assert isinstance(own, Metric)
    assert metric_of(own, model, open_data(data, model)) is own


def test_names_of_folders_are_no_transcripts(folder):
    model = net(
        "float[n, 3, 4, 6] image",
        "float[n, 3, 24] y",
        "s = Constant<value_ints: ints = [0, 3, 24]>()\n y = Reshape(image, s)",
    )
    metric = of_model(model, folder, "character-error", preprocess="range=0..1")
    assert metric.name == "character-error against the original"
    with pytest.raises(InputError, match="needs labels=FILE"):
        of_model(model, folder, "word-error", preprocess="range=0..1")
