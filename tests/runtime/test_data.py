from __future__ import annotations

import itertools
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.runtime.data import Dataset, open_data

VISION = ir.from_onnx_text(
    """<ir_version: 10, opset_import: ["": 21]>
    vision (float[batch, 3, 4, 4] image) => (float[batch, 3, 4, 4] y) { y = Relu(image) }"""
)
FIXED = ir.from_onnx_text(
    """<ir_version: 10, opset_import: ["": 21]>
    fixed (float[4, 3] x) => (float[4, 3] y) { y = Relu(x) }"""
)
TEXT = ir.from_onnx_text(
    """<ir_version: 10, opset_import: ["": 21]>
    text (int64[batch, seq] ids, int64[batch, seq] mask) => (float[batch, seq, 2] y)
    <float[5, 2] table = {0,1,2,3,4,5,6,7,8,9}, int64[1] last = {-1}> {
        wide = Cast<to = 7>(ids)
        rows = Gather(table, wide)
        seen = Cast<to = 1>(mask)
        column = Unsqueeze(seen, last)
        y = Mul(rows, column)
    }"""
)
# `seq` is on axis 0 of one input and on axis 1 of another; axis 0 is not shared.
MIXED = ir.from_onnx_text(
    """<ir_version: 10, opset_import: ["": 21]>
    mixed (float[batch, seq] x, float[seq] scale) => (float[batch, seq] y) { y = Mul(x, scale) }"""
)
IMAGES = np.random.default_rng(0).standard_normal((20, 3, 4, 4)).astype(np.float32)
IDS = np.arange(20).reshape(10, 2) % 5


def feeds(model: ir.Model, spec: Any, **options: Any) -> list[dict[str, np.ndarray]]:
    return list(open_data(spec, model, **options))


def refused(spec: Any, model: ir.Model, pattern: str, **options: Any) -> None:
    with pytest.raises(InputError, match=pattern) as caught:
        feeds(model, spec, **options)
    assert "\n" not in str(caught.value)


def saved(folder: Path, name: str = "d.npz", **arrays: np.ndarray) -> str:
    np.savez(folder / name, **arrays)
    return str(folder / name)


# Files


@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_batches_of_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    np.save(path, IMAGES) if name == "d.npy" else np.savez(path, image=IMAGES)
    data = open_data(path, VISION)
    assert data.kind == "real"
    assert data.description == str(path)
    assert len(data) == 3
    for _ in range(2):  # each iteration starts anew
        batches = [f["image"] for f in data]
        assert [len(b) for b in batches] == [8, 8, 4]
        np.testing.assert_array_equal(np.concatenate(batches), IMAGES)
    assert [len(f["image"]) for f in open_data(path, VISION, shapes={"batch": 5})] == [5] * 4
    assert len(data.limited(2)) == len(list(data.limited(2))) == 2
    assert len(open_data(path, VISION, limit=1)) == len(feeds(VISION, path, limit=1)) == 1


def test_fixed_batch(tmp_path: Path) -> None:
    x = np.ones((12, 3), np.float32)
    assert [f["x"].shape for f in open_data(saved(tmp_path, x=x), FIXED)] == [(4, 3)] * 3
    refused(saved(tmp_path, x=x[:10]), FIXED, "10 samples are not a multiple of the batch size 4")


def test_inputs_without_a_shared_axis_are_one_feed(tmp_path: Path) -> None:
    x, scale = np.ones((2, 6), np.float32), np.ones(6, np.float32)
    (feed,) = feeds(MIXED, saved(tmp_path, x=x, scale=scale))
    assert feed["x"].shape == (2, 6)
    refused(saved(tmp_path, x=x, scale=scale[:5]), MIXED, "dimension seq is 5|seq is 6")


def test_folder_of_ragged_samples(tmp_path: Path) -> None:
    for name, size in (("b.npz", 3), ("a.npz", 2), ("c.npz", 7)):
        ids = np.ones((1, size), np.int64)
        saved(tmp_path, name, ids=ids, mask=ids)
    data = open_data(tmp_path, TEXT)
    assert len(data) == 3
    assert [f["ids"].shape[1] for f in data] == [2, 3, 7]


@pytest.mark.parametrize(
    ("arrays", "pattern"),
    [
        ({"ids": IDS}, r"no data for input mask; got \['ids'\]"),
        ({"ids": IDS, "mask": IDS, "x": IDS}, "no input x; expected one of ids, mask"),
        ({"ids": IDS, "mask": IDS[:9]}, "differ in their number of samples"),
        ({"ids": IDS[:0], "mask": IDS[:0]}, "holds no samples"),
        ({"ids": IDS[0], "mask": IDS[:2]}, r"input ids: shape \[2\] does not fit"),
        ({"ids": IDS, "mask": IDS[:, :1]}, "input mask: dimension seq is 1, elsewhere 2"),
        ({"ids": IDS.astype(np.float32), "mask": IDS}, "input ids: type float32 .* int64"),
        ({"ids": IDS.astype(np.uint64) + 2**63, "mask": IDS}, "input ids: type uint64"),
    ],
)
def test_arrays_that_do_not_fit(
    tmp_path: Path, arrays: dict[str, np.ndarray], pattern: str
) -> None:
    refused(saved(tmp_path, **arrays), TEXT, pattern)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, bad: float) -> None:
    image = IMAGES.copy()
    image[13, 0, 1, 2] = bad
    refused(saved(tmp_path, image=image), VISION, "input image: holds NaN or infinity")


def test_fixed_dimension(tmp_path: Path) -> None:
    refused(saved(tmp_path, image=IMAGES[:, :2]), VISION, r"input image: shape \[8, 2, 4, 4\]")


def test_casts_are_lossless_only(tmp_path: Path) -> None:
    path = saved(tmp_path, ids=IDS.astype(np.int32), mask=np.ones_like(IDS, np.uint8))
    assert {a.dtype for f in open_data(path, TEXT) for a in f.values()} == {np.dtype(np.int64)}
    refused(
        saved(tmp_path, image=IMAGES.astype(np.float64)),
        VISION,
        r"type float64 does not fit float32; convert the data with \.astype\('float32'\)",
    )


def test_bfloat16_survives_numpy_files(tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        f (bfloat16[batch, 3] x) => (bfloat16[batch, 3] y) { y = Relu(x) }"""
    )
    x = np.array([[1, 2, 3]], ml_dtypes.bfloat16)
    (feed,) = feeds(model, saved(tmp_path, x=x))
    assert feed["x"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(feed["x"], x)
    refused(saved(tmp_path, x=x * ml_dtypes.bfloat16(np.nan)), model, "NaN")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = Path(saved(tmp_path, image=IMAGES)).read_bytes()
    bad = tmp_path / "bad.npz"
    for content in (b"", b"text", whole[:300], whole[:-200], pickle.dumps([1])):
        bad.write_bytes(content)
        refused(bad, VISION, "cannot be read as numpy data")
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    refused(tmp_path / "o.npy", VISION, "cannot be read as numpy data: .*objects")
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("image.npy", pickle.dumps([1]))
    refused(bad, VISION, "cannot be read as numpy data|type")
    refused(tmp_path / "gone.npz", VISION, "no such data file")
    refused("nothing", VISION, "expected data as")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", VISION, r"no \.npz files")


def test_npy_needs_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", IDS)
    refused(tmp_path / "d.npy", TEXT, "one input, not 2")


# Python


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    numbers = itertools.count()

    def make(source: str) -> str:
        name = f"feeds_{tmp_path.name}_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{source}")
        return name

    return make


def test_callable(module: Callable[[str], str]) -> None:
    name = module(
        "def make():\n"
        "    for i in range(3):\n"
        "        yield {'image': np.full((1, 3, 4, 4), i, np.float32)}\n"
    )
    data = open_data(f"{name}:make", VISION)
    for _ in range(2):
        assert [f["image"].flat[0] for f in data] == [0, 1, 2]
    with pytest.raises(TypeError, match="not known"):
        len(data)


@pytest.mark.parametrize(
    ("source", "name", "pattern"),
    [
        ("x = 1", "x", "x is not callable"),
        ("x = 1", "y", "has no attribute y"),
        ("def f(): raise KeyError('a\\nb')", "f", "the call failed: KeyError"),
        ("def f(): return 3", "f", "the call failed: TypeError"),
        ("def f(): return [3]", "f", "gave a int; expected a dict"),
        ("def f(): return []", "f", "holds no samples"),
        ("def f():\n    yield 1 / 0", "f", "failed while yielding data: ZeroDivisionError"),
        ("this is no python", "f", "cannot be imported: SyntaxError"),
        ("raise AttributeError('inside')", "f", "cannot be imported: AttributeError: inside"),
    ],
)
def test_bad_callables(module: Callable[[str], str], source: str, name: str, pattern: str) -> None:
    refused(f"{module(source)}:{name}", VISION, pattern)


def test_missing_module() -> None:
    refused("no_such_module_at_all:f", VISION, "cannot be imported: ModuleNotFoundError")


def test_iterables() -> None:
    def generator() -> Iterator[dict[str, np.ndarray]]:
        yield from ({"image": IMAGES[i : i + 1]} for i in range(5))

    data = open_data(generator(), VISION)
    assert len(data) == len(list(data)) == len(list(data)) == 5
    assert len(open_data(generator(), VISION, limit=2)) == 2
    assert len(list(open_data(data, VISION, limit=3))) == 3
    refused([], VISION, "holds no samples")
    refused(3, VISION, "is a int")
    refused([3], VISION, "gave a int; expected a dict of arrays")
    refused([{"other": IMAGES}], VISION, "no data for input image")


@pytest.mark.parametrize("limit", [0, -1])
def test_limits(limit: int) -> None:
    refused("random", VISION, "at least 1", limit=limit)


def test_halves_share_nothing_and_lose_nothing() -> None:
    feeds = [{"image": IMAGES[:1] + np.float32(i)} for i in range(7)]
    data = open_data(feeds, VISION, limit=5)
    first, second = data.halves()
    drawn = [[float((f["image"] - IMAGES[:1]).mean()) for f in part] for part in (first, second)]
    assert drawn == [pytest.approx([0, 2, 4]), pytest.approx([1, 3])]
    assert [len(list(part.limited(1))) for part in (first, second)] == [1, 1]
    one = open_data(feeds[:1], VISION)
    assert one.halves() == (one, one)


def test_a_limit_draws_no_more_than_it_gives() -> None:
    drawn: list[int] = []

    def generator() -> Iterator[dict[str, np.ndarray]]:
        for i in range(9):
            drawn.append(i)
            yield {"image": IMAGES[:1]}

    open_data(generator(), VISION, limit=2)
    assert drawn == [0, 1]


# Random


def test_random() -> None:
    data = open_data(None, VISION)
    assert isinstance(data, Dataset)
    assert (data.kind, len(data), len(list(data))) == ("random", 8, 8)
    first, second, other = (
        np.stack([f["image"] for f in open_data("random:50", VISION, seed=seed)])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert first.shape == (50, 1, 3, 4, 4)
    assert abs(first.mean()) < 0.1
    assert abs(first.std() - 1) < 0.1


def test_random_integers_follow_their_use() -> None:
    drawn = feeds(TEXT, "random:20")
    ids = np.stack([f["ids"] for f in drawn])
    assert ids.shape == (20, 1, 16)
    assert (ids.min(), ids.max()) == (0, 4)  # rows of the table
    assert all((f["mask"] == 1).all() for f in drawn)


def test_random_sizes_agree_by_name() -> None:
    (feed,) = feeds(MIXED, "random:1")
    assert (feed["x"].shape, feed["scale"].shape) == ((1, 16), (16,))
    (feed,) = feeds(MIXED, "random:1", shapes={"seq": 5, "batch": 2})
    assert (feed["x"].shape, feed["scale"].shape) == ((2, 5), (5,))
    refused("random", MIXED, r"no such dimension; expected one of batch, seq", shapes={"s": 1})
    refused("random", MIXED, "is 0; expected at least 1", shapes={"batch": 0})


@pytest.mark.parametrize("spec", ["random:0", "random:x", "random:-1", "random:²"])
def test_bad_random(spec: str) -> None:
    refused(spec, VISION, "expected random or random:N")


def test_inputs_with_defaults_are_left_out() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        f (float[batch, 3] x, float[3] w) => (float[batch, 3] y)
        <float[3] w = {1, 2, 3}> { y = Mul(x, w) }"""
    )
    (feed,) = feeds(model, "random:1")
    assert set(feed) == {"x"}


def test_random_data_for_one_boolean_that_is_no_flag():
    built = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 17]>
        net (bool go, float[2] x) => (float[2] y) {
            one = Constant<value_int = 1>()
            y = Loop(one, go, x)<body = b (int64 i, bool c, float[2] h) => (bool on, float[2] g) {
                g = Relu(h)
                on = Identity(c)
            }>
        }""")
    assert open_data("random:2", built).first()["go"] == np.True_
