"""Models of usual sizes, made on the spot with random weights: ResNet-50, ViT-B/16, a decoder.

Speed does not depend on the weights' values; divergence is compared between forms of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
Array = NDArray[Any]


@dataclass
class Writer:
    """A graph while it is written; large weights go straight to a data file."""

    path: Path
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[TensorProto] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    parameters: int = 0

    def __post_init__(self) -> None:
        self._data = self.path.with_suffix(".data")
        self._file = self._data.open("wb")

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output, or outputs."""
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        """Stored noise that keeps the size of what it is multiplied with."""
        fan = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
        values = self.rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(gain / np.sqrt(fan))
        name, start = f"w{len(self.stored)}", self._file.tell()
        self._file.write(values.tobytes())
        self.parameters += values.size
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self._data.name), ("offset", start), ("length", values.nbytes)
        ):  # fmt: skip
            tensor.external_data.add(key=key, value=str(value))
        self.stored.append(tensor)
        return name

    def keep(self, values: Array) -> str:
        """A small stored tensor."""
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        """A stored list."""
        return self.keep(np.array(values, np.int64))

    def linear(self, x: str, inner: int, outer: int, gain: float = 1.0) -> str:
        """A product, without a bias."""
        return str(self.op("MatMul", x, self.weight(inner, outer, gain=gain)))

    def heads(self, x: str, count: int, size: int) -> str:
        """[batch, tokens, heads * size] to [batch, heads, tokens, size]."""
        split = self.op("Reshape", x, self.ints(0, 0, count, size))
        return str(self.op("Transpose", split, perm=[0, 2, 1, 3]))

    def save(
        self,
        inputs: Sequence[tuple[str, int, Sequence[int | str]]],
        outputs: Sequence[tuple[str, str, Sequence[int | str]]],
    ) -> int:
        """Write the model; outputs are (value, name, shape). Returns the number of parameters."""
        self._file.close()
        for value, name, _ in outputs:
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self.nodes,
            self.path.stem,
            [helper.make_tensor_value_info(*given) for given in inputs],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for _, n, s in outputs],
            self.stored,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), self.path)
        return self.parameters


@dataclass(frozen=True)
class Sizes:
    """Of all models; `SMALL` only tries the script out."""

    width: int  # of the first ResNet stage
    blocks: tuple[int, ...]
    pixels: int
    vit: tuple[int, int, int]  # layers, width, heads
    decoder: tuple[int, int, int, int, int, int]  # layers, width, heads, key heads, hidden, words


FULL = Sizes(64, (3, 4, 6, 3), 224, (12, 768, 12), (16, 2048, 32, 8, 8192, 32000))
SMALL = Sizes(16, (1, 1), 64, (2, 64, 4), (2, 128, 4, 2, 256, 512))


def resnet(path: Path, sizes: Sizes) -> int:
    """ResNet with bottlenecks, BatchNormalization folded."""
    w, width = Writer(path), sizes.width

    def conv(x: str, inner: int, outer: int, kernel: int, stride: int = 1) -> str:
        bias = w.keep(np.zeros(outer, np.float32))
        return str(
            w.op("Conv", x, w.weight(outer, inner, kernel, kernel), bias,
                 strides=[stride] * 2, pads=[kernel // 2] * 4)
        )  # fmt: skip

    x = w.op("Relu", conv("image", 3, width, 7, 2))
    x = w.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inner = width
    for stage, blocks in enumerate(sizes.blocks):
        middle = width << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            skip = x if block else conv(x, inner, middle * 4, 1, stride)
            y = w.op("Relu", conv(x, inner, middle, 1))
            y = w.op("Relu", conv(y, middle, middle, 3, stride))
            x = w.op("Relu", w.op("Add", conv(y, middle, middle * 4, 1), skip))
            inner = middle * 4
    flat = w.op("Flatten", w.op("GlobalAveragePool", x))
    logits = w.linear(flat, inner, 1000)
    image = ["batch", 3, sizes.pixels, sizes.pixels]
    return w.save([("image", TensorProto.FLOAT, image)], [(logits, "logits", ["batch", 1000])])


def vit(path: Path, sizes: Sizes) -> int:
    """A vision transformer with patches of 16 pixels."""
    layers, width, heads = sizes.vit
    tokens, size = (sizes.pixels // 16) ** 2, width // heads
    w = Writer(path)
    ones, zeros = w.keep(np.ones(width, np.float32)), w.keep(np.zeros(width, np.float32))
    x = w.op("Conv", "image", w.weight(width, 3, 16, 16), strides=[16, 16])
    x = w.op("Transpose", w.op("Reshape", x, w.ints(0, width, tokens)), perm=[0, 2, 1])
    x = w.op("Add", x, w.weight(1, tokens, width))
    for _ in range(layers):
        n = w.op("LayerNormalization", x, ones, zeros)
        q, k, v = (w.heads(w.linear(n, width, width), heads, size) for _ in range(3))
        scores = w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = w.op("Mul", scores, w.keep(np.float32(size**-0.5)))
        mixed = w.op("MatMul", w.op("Softmax", scores, axis=-1), v)
        mixed = w.op("Reshape", w.op("Transpose", mixed, perm=[0, 2, 1, 3]), w.ints(0, 0, width))
        x = w.op("Add", x, w.linear(mixed, width, width, 0.5))
        n = w.op("LayerNormalization", x, ones, zeros)
        x = w.op("Add", x, w.linear(w.op("Gelu", w.linear(n, width, width * 4)), width * 4, width))
    n = w.op("LayerNormalization", x, ones, zeros)
    pooled = w.op("ReduceMean", n, w.ints(1), keepdims=0)
    logits = w.linear(pooled, width, 1000)
    image = ["batch", 3, sizes.pixels, sizes.pixels]
    return w.save([("image", TensorProto.FLOAT, image)], [(logits, "logits", ["batch", 1000])])


def decoder(path: Path, sizes: Sizes) -> int:
    """A decoder with grouped-query attention, rotary positions, gated MLP and a cache."""
    layers, width, heads, groups, hidden, words = sizes.decoder
    size = width // heads
    w = Writer(path)
    ones = w.keep(np.ones(width, np.float32))
    rates = 1e4 ** (-np.arange(0, size, 2) / size)
    angle = w.op("Cast", w.op("Unsqueeze", "positions", w.ints(1, 3)), to=TensorProto.FLOAT)
    angle = w.op("Mul", angle, w.keep(rates.astype(np.float32)))
    cos, sin = w.op("Cos", angle), w.op("Sin", angle)
    x = w.op("Gather", w.weight(words, width, gain=np.sqrt(words)), "ids")
    past: list[tuple[str, int, Sequence[int | str]]] = []
    present: list[tuple[str, str, Sequence[int | str]]] = []

    def norm(x: str) -> str:
        square = w.op("Mul", x, x)
        mean = w.op("ReduceMean", square, w.ints(-1), keepdims=1)
        root = w.op("Sqrt", w.op("Add", mean, w.keep(np.float32(1e-5))))
        return str(w.op("Mul", w.op("Div", x, root), ones))

    def rotate(x: str) -> str:
        a, b = w.op("Split", x, outputs=2, axis=-1, num_outputs=2)
        left = w.op("Sub", w.op("Mul", a, cos), w.op("Mul", b, sin))
        right = w.op("Add", w.op("Mul", b, cos), w.op("Mul", a, sin))
        return str(w.op("Concat", left, right, axis=-1))

    def repeated(x: str) -> str:
        wide = w.op("Unsqueeze", x, w.ints(2))
        wide = w.op("Tile", wide, w.ints(1, 1, heads // groups, 1, 1))
        return str(w.op("Reshape", wide, w.ints(0, heads, -1, size)))

    for layer in range(layers):
        n = norm(x)
        q = rotate(w.heads(w.linear(n, width, width), heads, size))
        k = rotate(w.heads(w.linear(n, width, groups * size), groups, size))
        v = w.heads(w.linear(n, width, groups * size), groups, size)
        both = []
        for name, value in (("key", k), ("value", v)):
            given = f"past_{name}_{layer}"
            past.append((given, TensorProto.FLOAT, ["batch", groups, "past", size]))
            joined = w.op("Concat", given, value, axis=2)
            present.append((joined, f"present_{name}_{layer}", ["batch", groups, "total", size]))
            both.append(repeated(joined))
        scores = w.op("MatMul", q, w.op("Transpose", both[0], perm=[0, 1, 3, 2]))
        scores = w.op("Mul", scores, w.keep(np.float32(size**-0.5)))
        mixed = w.op("MatMul", w.op("Softmax", w.op("Add", scores, "mask"), axis=-1), both[1])
        mixed = w.op("Reshape", w.op("Transpose", mixed, perm=[0, 2, 1, 3]), w.ints(0, 0, width))
        x = w.op("Add", x, w.linear(mixed, width, width, 0.5))
        n = norm(x)
        gate = w.linear(n, width, hidden)
        gate = w.op("Mul", gate, w.op("Sigmoid", gate))
        up = w.op("Mul", gate, w.linear(n, width, hidden))
        x = w.op("Add", x, w.linear(up, hidden, width, 0.5))
    logits = w.linear(norm(x), width, words)
    inputs: list[tuple[str, int, Sequence[int | str]]] = [
        ("ids", TensorProto.INT64, ["batch", "seq"]),
        ("positions", TensorProto.INT64, ["batch", "seq"]),
        ("mask", TensorProto.FLOAT, ["batch", 1, "seq", "total"]),
    ]
    return w.save([*inputs, *past], [(logits, "logits", ["batch", "seq", words]), *present])


def decoder_feeds(sizes: Sizes, batch: int, tokens: int, past: int) -> dict[str, Array]:
    """Inputs of a run over `tokens` new tokens after `past` old ones."""
    layers, width, heads, groups, _, words = sizes.decoder
    rng = np.random.default_rng(1)
    seen = np.arange(past + tokens)
    visible = seen[None, :] <= (past + np.arange(tokens))[:, None]
    mask = np.where(visible, 0, np.finfo(np.float32).min).astype(np.float32)
    feeds: dict[str, Array] = {
        "ids": rng.integers(0, words, (batch, tokens)),
        "positions": np.tile(past + np.arange(tokens), (batch, 1)),
        "mask": np.tile(mask, (batch, 1, 1, 1)),
    }
    shape = (batch, groups, past, width // heads)
    for layer in range(layers):
        for name in ("key", "value"):
            feeds[f"past_{name}_{layer}"] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


def image_feeds(sizes: Sizes, batch: int) -> dict[str, Array]:
    """Noise of image size."""
    shape = (batch, 3, sizes.pixels, sizes.pixels)
    return {"image": np.random.default_rng(1).standard_normal(shape, dtype=np.float32)}
