"""Texts as inputs: tokens by a tokenizer that lies beside, or strings."""

import json

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.model import io
from lwqc.runtime.data import open_data
from tests.sources import net

WORDS = ["[PAD]", "[UNK]", "[CLS]", "a", "b", "c"]
BOTH = "int64[n, s] input_ids, int64[n, s] attention_mask"


def bert(inputs=BOTH):
    return net(inputs, "int64[n, s] y", "y = Identity(input_ids)")


def tokenizer(**more):
    """As `tokenizers` saves one that splits at spaces."""
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: number for number, word in enumerate(WORDS)},
                "unk_token": "[UNK]",
            },
        }
        | more
    )


@pytest.fixture
def files(tmp_path):
    pytest.importorskip("tokenizers", reason="tokens need tokenizers, of the extra lwqc[data]")
    (tmp_path / "tokenizer.json").write_text(tokenizer())
    (tmp_path / "t.txt").write_text("a b c\n\nc\nz a\n")
    return tmp_path


def opened(model, path, preprocess=None):
    data = open_data(path, model, preprocess=preprocess)
    return list(data), data


def test_lines_of_a_file(files):
    (feeds,), data = opened(bert(), files / "t.txt")
    assert feeds["input_ids"].tolist() == [[3, 4, 5], [5, 0, 0], [1, 3, 0]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert data.preprocess == f"tokenizer={files / 'tokenizer.json'},padding=longest"
    assert data.labels() is None


def test_a_tokenizer_beside_the_model(files, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "tokenizer.json").write_text(tokenizer())
    io.save(bert(), tmp_path / "m" / "m.onnx")
    _, data = opened(io.load(tmp_path / "m" / "m.onnx"), files / "t.txt")
    assert data.preprocess.startswith(f"tokenizer={tmp_path / 'm' / 'tokenizer.json'}")


def test_files_of_a_folder_with_labels(files):
    for name, text in (("neg/1.txt", "a\nb"), ("pos/1.txt", "c")):
        (files / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (files / "d" / name).write_text(text)
    said = {"tokenizer": files / "tokenizer.json"}
    (feeds,), data = opened(bert(), files / "d", said)
    assert feeds["input_ids"].tolist() == [[3, 4], [5, 0]]
    assert data.labels().names == ("neg", "pos")


def test_fixed_length_and_what_the_tokenizer_says(files):
    fixed = bert("int32[n, 4] input_ids, int32[n, 4] token_type_ids, int32[n, 4] position_ids")
    left = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None}
    left |= {"pad_id": 2, "pad_type_id": 0, "pad_token": "[CLS]"}
    (files / "tokenizer.json").write_text(tokenizer(padding=left))
    (feeds,), data = opened(fixed, files / "t.txt")
    assert feeds["input_ids"].tolist() == [[2, 3, 4, 5], [2, 2, 2, 5], [2, 2, 1, 3]]
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3]] * 3
    assert feeds["input_ids"].dtype == np.int32
    assert "length=4,padding=length" in data.preprocess
    (feeds,), _ = opened(bert(), files / "t.txt", "length=2")
    assert feeds["input_ids"].shape == (3, 2)


def test_without_a_mask_texts_are_not_padded(files):
    batches, _ = opened(net("int64[n, s] x", "int64[n, s] y", "y = Identity(x)"), files / "t.txt")
    assert [b["x"].tolist() for b in batches] == [[[3, 4, 5]], [[5]], [[1, 3]]]


@pytest.mark.parametrize(
    ("model", "said", "pattern"),
    [
        (bert(f"{BOTH}, int64[n, s] other"), None, "of texts there are .*: write fill.other="),
        (bert("int64[n, s] input_ids, float[n, s] f"), None, "input f .* takes no tokens"),
        (bert(), "padding=length", "padding=length: write length=TOKENS too"),
        (bert(), "tokenizer=none.json", "none.json: no such file: write tokenizer=FILE"),
        (bert("int64[n, 4] input_ids"), "length=5", "length=5 does not fit; it takes length=4"),
        (bert(), "size=5", "size: says nothing about texts"),
    ],
)
def test_what_does_not_fit(files, model, said, pattern):
    with pytest.raises(InputError, match=pattern):
        opened(model, files / "t.txt", said)


def test_what_is_no_tokenizer(files):
    (files / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a tokenizer") as caught:
        opened(bert(), files / "t.txt")
    assert "\n" not in str(caught.value)


def test_strings_need_no_tokenizer(tmp_path):
    (tmp_path / "t.txt").write_text("a b\nc\n")
    (feeds,), _ = opened(
        net("string[n, 1] x", "string[n, 1] y", "y = Identity(x)"), tmp_path / "t.txt"
    )
    assert feeds["x"].tolist() == [["a b"], ["c"]]


def test_texts_of_python_are_padded_together(files):
    said = {"tokenizer": files / "tokenizer.json", "columns": "text", "label": "is"}
    rows = [{"text": "a b", "is": 1, "more": 2}, {"text": "c", "is": 0, "more": 2}]
    (feeds,), data = opened(bert(), rows, said)
    assert feeds["input_ids"].tolist() == [[3, 4], [5, 0]]
    assert data.labels().names == ("1", "0")
    batches, _ = opened(
        net("int64[n, s] x", "int64[n, s] y", "y = Identity(x)"), ["a b", "c"], said
    )
    assert [b["x"].tolist() for b in batches] == [[[3, 4]], [[5]]]


def test_strings_of_python():
    model = net("string[n] x", "string[n] y", "y = Identity(x)")
    assert [f["x"].tolist() for f in open_data([("a", 1), ("b", 2)], model)] == [["a", "b"]]
    assert [f["x"].tolist() for f in open_data([{"x": np.array(["a", "b"])}], model)] == [
        ["a", "b"]
    ]
