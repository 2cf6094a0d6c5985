"""Tables as inputs of a model."""

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.runtime.data import open_data
from lwqc.runtime.sources.labels import Labels
from tests.sources import net

ONE = net("float[n, 2] x", "float[n, 2] y", "y = Identity(x)")
BOTH = net("float[n, 1] a, int64[n] b", "float[n, 1] y", "y = Identity(a)")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "t.csv").write_text('\ufeffa,b,"is, it"\n0.5,1,yes\n1.5,2,"no\nnever"\n')
    return tmp_path / "t.csv"


def test_columns_by_name_and_in_order(file):
    said = {"label": "is, it"}
    data = open_data(file, BOTH, preprocess=said)
    (feeds,) = data
    assert feeds["a"].tolist() == [[0.5], [1.5]]
    assert feeds["b"].tolist() == [1, 2]
    assert data.labels().names == ("yes", "no\nnever")
    assert data.labels().numbers.tolist() == [1, 0]
    assert Labels(("10.0", "2.0")).numbers.tolist() == [10, 2]
    (feeds,) = open_data(file, ONE, preprocess=said)
    assert feeds["x"].tolist() == [[0.5, 1], [1.5, 2]]
    (feeds,) = open_data(file, ONE, preprocess="columns=b,a")
    assert feeds["x"].tolist() == [[1, 0.5], [2, 1.5]]


@pytest.mark.parametrize(
    ("model", "said", "pattern"),
    [
        (ONE, None, "has 3 columns, and input x takes 2: write label=NAME for the labels"),
        (BOTH, None, "the model has no input is, it: write label=NAME"),
        (BOTH, "columns=a", "has no column for input b; it has a"),
        (ONE, "columns=a,c", "has no column c; expected one of a, b, is, it"),
        (ONE, {"columns": ["a", "is, it"]}, "column is, it: could not convert string to float"),
        (ONE, "range=0..1", "range: says nothing about tables"),
        (net("float[n, 1, 2] x", "float[n, 1, 2] y", "y = Identity(x)"), "columns=a,b", "no rows"),
    ],
)
def test_what_does_not_fit(file, model, said, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        open_data(file, model, preprocess=said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("a,b\n", "expected a line of names, and rows below it"),
        ("a,a\n1,2\n", "two columns have one name"),
        ("a,b\n1,2\n3\n", "line 3: expected 2 values"),
    ],
)
def test_what_is_no_table(tmp_path, text, pattern):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=pattern):
        open_data(tmp_path / "t.csv", ONE)


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="of the extra lwqc[parquet]")
    import pyarrow

    parquet.write_table(pyarrow.table({"a": [0.5, 1.5], "b": [1, 2]}), tmp_path / "t.parquet")
    (feeds,) = open_data(tmp_path / "t.parquet", BOTH)
    assert feeds["b"].tolist() == [1, 2]
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read as a table"):
        open_data(tmp_path / "t.parquet", BOTH)


def test_mapped_arrays_of_a_folder(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1], [2]], np.float32))
    np.save(tmp_path / "b.npy", np.array([3, 4]))
    data = open_data(tmp_path, BOTH, preprocess="batch=1")
    assert [f["b"].tolist() for f in data] == [[3], [4]]
    np.save(tmp_path / "c.npy", np.array([3, 4]))
    with pytest.raises(InputError, match="the model has no input c"):
        open_data(tmp_path, BOTH)
    (feeds,) = open_data(tmp_path, BOTH, preprocess="label=c")
    assert set(feeds) == {"a", "b"}
    with pytest.raises(InputError, match="size: says nothing about arrays"):
        open_data(tmp_path, BOTH, preprocess="label=c,size=3")
