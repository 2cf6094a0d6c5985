"""Python objects as inputs: arrays, DataLoaders, rows with labels, what changes each time."""

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.runtime.data import open_data
from tests.sources import classes_net, flat, net

MODEL = net("float[n, 3] x", "float[n, 3] y", "y = Identity(x)")
TWO = net("float[n, 3] x, int64[n] k", "float[n, 3] y", "y = Identity(x)")
X = np.arange(30, dtype=np.float32).reshape(10, 3)


def values(source, model=MODEL, **options):
    return [f["x"] for f in open_data(source, model, **options)]


def test_arrays_and_dicts_of_them():
    assert [v.shape for v in values(X)] == [(8, 3), (2, 3)]
    assert [v.shape for v in values({"x": X, "k": np.arange(10)}, TWO)] == [(8, 3), (2, 3)]
    with pytest.raises(InputError, match="one array for 2 inputs: expected a dict of them"):
        values(X, TWO)


def test_samples_are_put_into_batches():
    rows = [{"x": x.tolist(), "y": 1} for x in X]
    with pytest.raises(InputError, match=r"has no input y; .*: write label=NAME"):
        values([{"x": X, "y": 1}])
    data = open_data([{"x": x, "y": i} for i, x in enumerate(X)], MODEL, preprocess="label=y")
    assert [f["x"].shape for f in data] == [(8, 3), (2, 3)]
    assert data.labels().numbers.tolist() == list(range(10))
    assert len(data) == 2
    np.testing.assert_array_equal(np.concatenate(values(rows, preprocess="label=y")), X)
    with pytest.raises(InputError, match="type float64 does not fit float32"):
        values([{"x": X[0].astype(np.float64)}])
    assert [len(v) for v in values(list(X), preprocess="batch=4,limit=6")] == [4, 2]


def test_tuples_are_inputs_and_a_label():
    data = open_data([(x, np.int64(1), 7) for x in X], TWO)
    assert [sorted(f) for f in data] == [["k", "x"], ["k", "x"]]
    assert data.labels().names == ("7",) * 10
    with pytest.raises(InputError, match="an item has 4 parts; expected the 2 inputs x, k"):
        open_data([(X, X, X, X)], TWO)


def test_loaders_of_torch():
    torch = pytest.importorskip("torch", reason="of the extra lwqc[torch]")
    from torch.utils.data import DataLoader, TensorDataset

    dataset = TensorDataset(torch.from_numpy(X), torch.arange(10))
    data = open_data(DataLoader(dataset, batch_size=4), MODEL)
    assert [len(f["x"]) for f in data] == [4, 4, 2]
    assert len(data) == 3
    assert data.labels().numbers.tolist() == list(range(10))
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in data]), X)
    assert [len(v) for v in values(dataset)] == [8, 2]


def test_what_changes_each_time_is_read_once_and_kept():
    class Shuffled:
        def __init__(self):
            self.order = np.random.default_rng(0)
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([X[i : i + 1] for i in self.order.permutation(10)])

    source = Shuffled()
    data = open_data(source, MODEL)
    passes = source.passes
    first, second = (np.concatenate([f["x"] for f in data]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert sorted(first[:, 0]) == sorted(X[:, 0])
    assert source.passes == passes
    assert len(data) == 10


def test_what_repeats_is_read_as_often_as_asked():
    class Stream:
        live = most = 0

        def __iter__(self):
            for i in range(10):
                yield X[i : i + 1]

    assert len(values(Stream())) == 10
    with pytest.raises(TypeError, match="not known"):
        len(open_data(Stream(), MODEL))


def test_images_and_files_of_them():
    image = pytest.importorskip("PIL.Image", reason="images need pillow, of lwqc[data]")
    pixels = flat((255, 0, 0), 8, 12)
    said = "range=0..1"
    for item in (pixels, image.fromarray(pixels), {"image": pixels}, (pixels, 1)):
        (feeds,) = open_data([item], classes_net(), preprocess=said)
        assert feeds["image"].shape == (1, 3, 4, 6)
        assert feeds["image"][0, 0].min() == 1
    rows = [{"picture": pixels, "is": 2}]
    (feeds,) = open_data(rows, classes_net(), preprocess=f"{said},label=is")
    with pytest.raises(InputError, match="an item has picture, is: write columns=NAME"):
        open_data(rows, classes_net(), preprocess=said)
    with pytest.raises(InputError, match=r"float32 \[3\] is no image: expected uint8"):
        open_data([X[0]], classes_net(), preprocess=said)


def test_frames_of_pandas_are_tables():
    class Frame:  # what a DataFrame has of it; pandas is in no extra
        iloc = None
        columns = ("a", "b", "c")

        def __getitem__(self, name):
            return X[:, self.columns.index(name)]

    (first, second) = values(Frame())
    np.testing.assert_array_equal(np.concatenate([first, second]), X)


class Rows:
    """What a `datasets.Dataset` has of one: numbers of Python, a shape of rows and columns."""

    column_names = ("x", "k", "y")
    shape = (10, 3)

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return {"x": X[i].tolist(), "k": i, "y": i % 3}

    def __iter__(self):
        return (self[i] for i in range(10))


@pytest.mark.parametrize("real", [False, True], ids=["stand-in", "datasets"])
def test_datasets(real):
    source = Rows()
    if real:
        package = pytest.importorskip("datasets", reason="is in no extra")
        source = package.Dataset.from_list(list(source))
    data = open_data(source, TWO, preprocess="label=y")
    assert [(f["x"].dtype, f["k"].dtype, len(f["x"])) for f in data] == [
        (np.float32, np.int64, 8),
        (np.float32, np.int64, 2),
    ]
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in data]), X)
    assert data.labels().numbers.tolist() == [i % 3 for i in range(10)]


def test_numbers_of_python_that_do_not_fit_keep_their_type():
    bytes_ = net("uint8[n, 3] x", "uint8[n, 3] y", "y = Identity(x)")
    assert values([{"x": [1, 2, 255]}], bytes_)[0].dtype == np.uint8
    for numbers in ([1, 2, 256], [1, -1, 0], [0.5, 1, 2]):
        with pytest.raises(InputError, match="does not fit uint8"):
            values([{"x": numbers}], bytes_)


def test_mapped_arrays_are_read_batch_by_batch(tmp_path):
    stored = np.memmap(tmp_path / "x.bin", np.float32, "w+", shape=X.shape)
    stored[:] = X
    for source in (stored, {"x": stored}):
        data = open_data(source, MODEL)
        assert all(np.shares_memory(f["x"], stored) for f in data)
        np.testing.assert_array_equal(np.concatenate([f["x"] for f in data]), X)


def test_functions_may_give_samples(tmp_path, monkeypatch):
    (tmp_path / "own_rows.py").write_text(
        "import numpy as np\n"
        "def rows():\n    return ((np.full(3, i, np.float32), i % 3) for i in range(10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = open_data("own_rows:rows", MODEL)
    assert [f["x"].shape for f in data] == [(8, 3), (2, 3)]
    assert data.labels().names[:4] == ("0", "1", "2", "0")


def test_what_is_no_array():
    with pytest.raises(InputError, match="a list is no array"):
        open_data([{"x": [[1, 2], [3]]}], MODEL)
    with pytest.raises(InputError, match=r"samples of shape \[2\] and \[3\] cannot be one batch"):
        values([np.ones(3, np.float32), np.ones(2, np.float32)])
