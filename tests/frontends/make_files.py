"""Small models of other frameworks, converted; run it where a framework and its converter are.

    python -m tests.frontends.make_files keras jax ...

writes `files/NAME.onnx`, and `files/NAME.npz` with inputs and what the framework makes of them.
Tests run these files wherever they are, and convert anew where the converters are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FILES = Path(__file__).parent / "files"
# A source as `lwqc convert` takes it (a file, a folder or what a function returns), inputs in the
# model's order, and outputs of the framework in theirs.
Made = tuple[Any, list[np.ndarray], list[np.ndarray]]


def _images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 8, 8, 3)).astype(np.float32)


def _keras_net() -> Any:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.ZeroPadding2D(1)(image)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2)(x)))
    x = layers.Conv2D(16, 3, strides=1, padding="same", activation="swish")(x)
    x = layers.ReLU(6)(layers.DepthwiseConv2D(3, strides=2, padding="same")(x))
    x = layers.LayerNormalization()(layers.Reshape((4, 16))(x))
    x = layers.MultiHeadAttention(2, 8)(x, x) + x
    x = layers.Dense(64, activation="gelu")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


def keras(folder: Path) -> Made:
    """A network with most of what Keras writes otherwise than torch: SAME, Pad, channels last."""
    net = _keras_net()
    net.save(folder / "net.keras")
    return folder / "net.keras", [_images()], [net.predict(_images(), verbose=0)]


def saved_model(folder: Path) -> Made:
    """The same as TensorFlow saves it."""
    net = _keras_net()
    net.export(folder / "saved", verbose=False)
    return folder / "saved", [_images()], [net.predict(_images(), verbose=0)]


def tflite(folder: Path) -> Made:
    """The same as a TFLite file."""
    import tensorflow as tf

    net = _keras_net()
    net.export(folder / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "net.tflite").write_bytes(converter.convert())
    return folder / "net.tflite", [_images()], [net.predict(_images(), verbose=0)]


def jax(folder: Path) -> Made:
    """A transformer's block in plain JAX, with a size that varies."""
    import jax as j
    import jax.numpy as jnp

    random = np.random.default_rng(0)
    q, k, v, o = (random.standard_normal((32, 32)).astype(np.float32) * 0.2 for _ in range(4))
    up, down = (random.standard_normal(s).astype(np.float32) * 0.2 for s in ((32, 64), (64, 10)))

    def norm(x: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def block(x: Any) -> Any:
        h = norm(x)
        heads = [(h @ w).reshape(*x.shape[:2], 2, 16).transpose(0, 2, 1, 3) for w in (q, k, v)]
        scores = j.nn.softmax(heads[0] @ heads[1].transpose(0, 1, 3, 2) / 4.0, -1)
        x = x + (scores @ heads[2]).transpose(0, 2, 1, 3).reshape(x.shape) @ o
        return (j.nn.gelu(norm(x) @ up) @ down).mean(1)

    x = random.standard_normal((3, 6, 32)).astype(np.float32)
    return (block, [("batch", 6, 32)]), [x], [np.asarray(block(x))]


def flax(folder: Path) -> Made:
    """Convolutions of Flax, channels last."""
    from flax import nnx

    keys = nnx.Rngs(0)
    net = nnx.Sequential(
        nnx.Conv(3, 16, (3, 3), rngs=keys),
        nnx.relu,
        nnx.Conv(16, 16, (3, 3), strides=2, rngs=keys),
        lambda x: x.mean((1, 2)),
        nnx.Linear(16, 10, rngs=keys),
    )
    x = _images()
    return (net, [("batch", 8, 8, 3)]), [x], [np.asarray(net(x))]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x[:400].astype(np.float32), y[:400]


def sklearn(folder: Path) -> Made:
    """A pipeline that ends in a network."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _digits()
    net = make_pipeline(StandardScaler(), MLPClassifier((48,), max_iter=200, random_state=0))
    net.fit(x, y)
    return (net, x), [x[:50]], [net.predict(x[:50]), net.predict_proba(x[:50])]


def lightgbm(folder: Path) -> Made:
    """Trees, as LightGBM writes them."""
    import lightgbm as package

    x, y = _digits()
    model = package.LGBMClassifier(n_estimators=2, num_leaves=6, verbose=-1).fit(x, y)
    model.booster_.save_model(folder / "trees.txt")
    return folder / "trees.txt", [x[:50]], [model.predict(x[:50]), model.predict_proba(x[:50])]


def xgboost(folder: Path) -> Made:
    """Trees, as XGBoost writes them."""
    import xgboost as package

    x, y = _digits()
    model = package.XGBClassifier(n_estimators=2, max_depth=3).fit(x, y)
    model.save_model(folder / "trees.ubj")
    return folder / "trees.ubj", [x[:50]], [model.predict(x[:50]), model.predict_proba(x[:50])]


def paddle(folder: Path) -> Made:
    """A convolutional network as PaddlePaddle saves it for inference."""
    import paddle as package

    package.seed(0)
    nn = package.nn
    net = nn.Sequential(
        nn.Conv2D(3, 16, 3, padding=1),
        nn.BatchNorm2D(16),
        nn.Hardswish(),
        nn.Conv2D(16, 16, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Linear(16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    net.eval()
    spec = [package.static.InputSpec([None, 3, 8, 8], "float32", "x")]
    package.jit.save(net, str(folder / "paddle" / "net"), input_spec=spec)
    x = np.ascontiguousarray(_images().transpose(0, 3, 1, 2))
    return folder / "paddle", [x], [net(package.to_tensor(x)).numpy()]


def huggingface(folder: Path) -> Made:
    """A small BERT in a folder of Hugging Face's."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    net = transformers.BertForSequenceClassification(config).eval()
    net.save_pretrained(folder / "bert")
    transformers.BertTokenizerFast(_vocabulary(folder)).save_pretrained(folder / "bert")
    ids = np.random.default_rng(0).integers(5, 100, (3, 8))
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    types = np.zeros_like(ids)
    with torch.no_grad():
        given = (torch.from_numpy(a) for a in (ids, mask, types))
        return folder / "bert", [ids, mask, types], [net(*given).logits.numpy()]


def _vocabulary(folder: Path) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(95))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return str(folder / "vocab.txt")


# What has to be installed beside lwqc: the framework, and its converter.
NEEDS: Mapping[str, tuple[str, str]] = {
    "keras": ("tensorflow", "tf2onnx"),
    "saved_model": ("tensorflow", "tf2onnx"),
    "tflite": ("tensorflow", "tf2onnx"),
    "jax": ("jax", "jax2onnx"),
    "flax": ("flax", "jax2onnx"),
    "sklearn": ("sklearn", "skl2onnx"),
    "lightgbm": ("lightgbm", "onnxmltools"),
    "xgboost": ("xgboost", "onnxmltools"),
    "paddle": ("paddle", "paddle2onnx"),
    "huggingface": ("transformers", "optimum.exporters.onnx"),
}
MODELS: Mapping[str, Callable[[Path], Made]] = {name: globals()[name] for name in NEEDS}


def main(names: list[str]) -> None:
    """Write the files of some models."""
    import tempfile

    from lwqc.frontends.convert import convert, of_object
    from lwqc.model import io

    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            source, inputs, outputs = MODELS[name](Path(folder))
            model = of_object(*source) if isinstance(source, tuple) else convert(os.fspath(source))
            io.save(model, FILES / f"{name}.onnx")
        arrays = {f"input{i}": a for i, a in enumerate(inputs)}
        arrays |= {f"output{i}": a for i, a in enumerate(outputs)}
        np.savez_compressed(FILES / f"{name}.npz", **arrays)
        print(name, (FILES / f"{name}.onnx").stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1:])
