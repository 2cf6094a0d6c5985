"""Data makers give the same bytes every time, and no test sample was trained on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from models import digits, glyph_images, glyphs, stdlib_corpus, stdlib_lm
from models.byte_pairs import BytePairs, learn

DIGESTS = {
    "digits": (digits.DATA, "e6041a4b3391ff75"),
    "glyphs": (glyphs.DATA, "751229c98675e1cd"),
    "stdlib_lm": (stdlib_lm.DATA, "a8fd4bafc42ef1c7"),
}


def digest(arrays) -> str:
    """SHA-256 of names, shapes and contents, independent of compression."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        found.update(arrays[name].tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", DIGESTS)
def test_frozen_data_is_what_it_was(name: str) -> None:
    path, expected = DIGESTS[name]
    with np.load(path) as data:
        assert digest({k: data[k] for k in data.files}) == expected


def test_the_digits_maker_gives_the_shipped_data() -> None:
    pytest.importorskip("sklearn", reason="the data set comes with scikit-learn")
    made = digits.make_data()
    with np.load(digits.DATA) as shipped:
        for name in shipped.files:
            assert np.array_equal(made[name], shipped[name])


def test_no_digit_is_in_two_parts() -> None:
    pytest.importorskip("sklearn", reason="the data set comes with scikit-learn")
    made = digits.make_data()
    train = {image.tobytes() for image in made["train_images"]}
    assert not train & {image.tobytes() for image in made["test_images"]}


def test_the_glyph_maker_repeats_itself() -> None:
    pytest.importorskip("matplotlib", reason="its fonts are the source")
    first, second = (glyph_images.make(300, 9, fonts=glyph_images.TEST_FONTS) for _ in range(2))
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()
    other = glyph_images.make(300, 10, fonts=glyph_images.TEST_FONTS)
    assert first.pixels.tobytes() != other.pixels.tobytes()


def test_the_glyph_maker_gives_nearly_the_shipped_data() -> None:
    pytest.importorskip("matplotlib", reason="its fonts are the source")
    made = glyphs.make_data()
    with np.load(glyphs.DATA) as shipped:
        assert np.array_equal(made["test_labels"], shipped["test_labels"])
        # Another FreeType may move an edge by a grey level; the drawing must stay the same.
        same = np.mean(made["test_pixels"] == shipped["test_pixels"])
    assert same > 0.9


def test_small_batches_of_glyphs_reach_every_class() -> None:
    pytest.importorskip("matplotlib", reason="its fonts are the source")
    labels = [glyph_images.make(64, s, fonts=glyph_images.TRAIN_FONTS).labels for s in range(40)]
    assert len(np.unique(np.concatenate(labels))) == len(glyph_images.CHARACTERS) == 180


def test_glyph_fonts_are_split() -> None:
    assert not set(glyph_images.TRAIN_FONTS) & set(glyph_images.TEST_FONTS)
    assert len({glyphs.TRAIN_SEED, glyphs.CALIBRATION_SEED, glyphs.TEST_SEED}) == 3


def test_characters_are_distinct() -> None:
    assert len(set(glyph_images.CHARACTERS)) == len(glyph_images.CHARACTERS)


def test_library_files_are_split_by_name_and_content() -> None:
    files = stdlib_corpus.files()
    held_back = [f for f in files if stdlib_corpus.is_held_back(f)]
    assert 10 < len(held_back) < len(files) / 10
    train = set(stdlib_corpus.texts(held_back=False))
    assert not [t for t in stdlib_corpus.texts(held_back=True) if len(t) > 1000 and t in train]


def test_tokens_spell_the_text_again() -> None:
    vocabulary = BytePairs.load(stdlib_lm.VOCABULARY)
    assert len(vocabulary.spelled) == stdlib_lm.TOKENS
    text = max(stdlib_corpus.texts(held_back=True), key=len) + bytes(range(256))
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    assert len(tokens) < 0.6 * len(text)


def test_learning_a_vocabulary_repeats_itself_and_merges_the_most_frequent_pair() -> None:
    texts = [b"low low low lower lowest", b"new newer newest low"]
    assert learn(texts, 270).merges == learn(list(texts), 270).merges
    assert learn(texts, 257).merges == [(ord("l"), ord("o"))]
