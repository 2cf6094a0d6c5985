"""Small files under the names that the guides use."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path

import numpy as np

from lwqc.model import io
from lwqc.testing.text import model_of
from tests.build import normal
from tests.cli.test_kv_cache import TEXT, WEIGHTS, feeds
from tests.frontends.make_files import FILES
from tests.sources import save_image

_HEAD = '<ir_version: 10, opset_import: ["" : 21]> g '
_DETECTOR = """
(float[batch, 3, height, width] images, float[8, 3, 32, 32] w1, float[6, 8, 1, 1] w2)
  => (float[batch, 6, places] y)
{
  a = Conv <strides: ints = [32, 32]> (images, w1)
  r = Relu (a)
  b = Conv (r, w2)
  s = Constant <value_ints: ints = [0, 6, -1]> ()
  f = Reshape (b, s)
  g = Sigmoid (f)
  parts = Constant <value_ints: ints = [4, 2]> ()
  corners, scores = Split <axis: int = 1> (g, parts)
  size = Constant <value: tensor = float {300}> ()
  boxes = Mul (corners, size)
  y = Concat <axis: int = 1> (boxes, scores)
}
"""
_READER = """
(float[batch, 3, 48, width] x, float[16, 3, 48, 8] w1, float[16, 12] w2)
  => (float[batch, steps, 12] y)
{
  a = Conv <strides: ints = [48, 8]> (x, w1)
  r = Relu (a)
  axis = Constant <value_ints: ints = [2]> ()
  q = Squeeze (r, axis)
  t = Transpose <perm: ints = [0, 2, 1]> (q)
  l = MatMul (t, w2)
  y = Softmax <axis: int = -1> (l)
}
"""
_SPEECH = """
(float[1, 512] input, float[2, 1, 8] state, int64 sr, float[512, 8] w1, float[8, 8] w2)
  => (float[1, 1] output, float[2, 1, 8] stateN)
{
  a = MatMul (input, w1)
  b = MatMul (state, w2)
  c = Add (a, b)
  stateN = Tanh (c)
  rate = Cast <to: int = 1> (sr)
  zero = Constant <value: tensor = float {0}> ()
  nothing = Mul (rate, zero)
  axes = Constant <value_ints: ints = [0, 2]> ()
  m = ReduceMean <keepdims: int = 0> (stateN, axes)
  s = Sigmoid (m)
  v = Add (s, nothing)
  rows = Constant <value_ints: ints = [1, 1]> ()
  output = Reshape (v, rows)
}
"""
_MLP = "s = Add (x, o)  m = MatMul (s, w_m)  r = Relu (m)  n = MatMul (r, w_n)  y = Add (s, n)"


def detector(folder: Path) -> None:
    """A model with boxes and scores of two classes, images and boxes of one of them."""
    weights = {"w1": normal(8, 3, 32, 32, scale=0.05), "w2": normal(6, 8, 1, 1, seed=1)}
    io.save(model_of(_HEAD + _DETECTOR, weights), folder / "detector.onnx")
    images(folder / "photos", 64, 48)
    rows = "0.png,0,4,4,40,40\n1.png,1,10,0,60,30\n"
    (folder / "boxes.csv").write_text(f"file,label,left,top,right,bottom\n{rows}")
    said = (folder / "preprocess.toml").read_text()
    (folder / "preprocess-boxes.toml").write_text(f'{said}boxes = "boxes.csv"\n')


def images(folder: Path, width: int, height: int) -> None:
    """Noise."""
    random = np.random.default_rng(0)
    for index in range(2):
        pixels = random.integers(0, 255, (height, width, 3)).astype(np.uint8)
        save_image(folder / f"{index}.png", pixels)


def ocr(folder: Path) -> None:
    """A reader of eleven characters, and two lines."""
    weights = {"w1": normal(16, 3, 48, 8, scale=0.1), "w2": normal(16, 12, seed=1)}
    io.save(model_of(_HEAD + _READER, weights), folder / "ocr.onnx")
    images(folder / "lines", 120, 24)
    (folder / "labels.csv").write_text("".join(f"{i}.png,ab c\n" for i in range(2)))
    (folder / "characters.txt").write_text("\n".join("abcdefghij"))


def encoder(folder: Path) -> None:
    """A BERT of one layer."""
    shutil.copy(FILES / "huggingface.onnx", folder / "encoder.onnx")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *"abcdefgh"])}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": {"type": "Whitespace"},
                "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
            }
        )
    )
    (folder / "sentences.txt").write_text("a b c d\nh g f\na c e g b d\nf f f a\n")


def decoder(folder: Path) -> None:
    """One layer of attention and an MLP."""
    text = TEXT.replace(
        "float[32, 32] w_o", "float[32, 32] w_o, float[32, 48] w_m, float[48, 32] w_n"
    )
    more = {"w_m": normal(32, 48, scale=0.1), "w_n": normal(48, 32, scale=0.1, seed=1)}
    made = model_of(text.replace("y = Add (x, o)", _MLP), {**WEIGHTS, **more})
    io.save(made, folder / "decoder.onnx")
    np.savez(folder / "samples.npz", **feeds(6))


def speech(folder: Path) -> None:
    """A layer with a state, and two seconds of noise."""
    weights = {"w1": normal(512, 8, scale=0.05), "w2": normal(8, 8, scale=0.2, seed=1)}
    io.save(model_of(_HEAD + _SPEECH, weights), folder / "speech.onnx")
    random = np.random.default_rng(0)
    (folder / "sounds").mkdir()
    for index in range(2):
        with wave.open(str(folder / "sounds" / f"{index}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(random.integers(-9999, 9999, 2048).astype("<i2").tobytes())


def tensorrt(folder: Path) -> None:
    """What Keras made of its network."""
    proto = io.load(FILES / "keras.onnx")
    io.save(proto, folder / "model.onnx")
    images(folder / "photos", 8, 8)
