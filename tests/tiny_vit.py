"""Small vision transformers for tests of what happens to their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from tests.small_models import Small

PATCHES, WIDTH, HEADS, CLASSES = 8, 12, 3, 5
SIZE = WIDTH // HEADS


@dataclass
class TinyVit:
    """Layers on patches [batch, 8, 12], with `always` tokens in front of them.

    read: what is done with the last [batch, tokens, width]; by default token 0 is classified.
    bias: of the scores, as a stored tensor has it for each pair of tokens. keep: layer -> how many
    tokens go on from there, those that the first one reads most; written by other operators than
    lwqc's. merge: the last of them is the mean of the others, each as much as it is read. stream:
    type of what layers add to, which compute in float32.
    """

    always: int = 1
    layers: int = 2
    bias: bool = False
    opset: int = 20
    read: Callable[[Small, str], str] | None = None
    keep: Mapping[int, int] = field(default_factory=dict)
    merge: bool = False
    stream: int = 1
    small: Small = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.small = Small(opset=self.opset)
        self.tokens = PATCHES + self.always

    def build(self) -> onnx.ModelProto:
        """The model; branches are `layer0`, `mlp0`, ..."""
        small = self.small
        x = small.linear(small.input(("batch", 2), PATCHES, WIDTH), WIDTH, WIDTH)
        if self.always:
            shape = small.op("Shape", x, start=0, end=1)
            sizes = small.op("Concat", shape, small.ints(self.always, WIDTH), axis=0)
            first = small.op("Expand", small.weight(1, self.always, WIDTH, name="first"), sizes)
            x = small.op("Concat", first, x, axis=1)
        x = small.op("Add", x, small.weight(1, self.tokens, WIDTH, name="places"))
        x = self.cast(x, self.stream)
        for number in range(self.layers):
            x = self.layer(x, number)
        return small.build((self.read or classified)(small, self.norm(x)))

    def cast(self, x: str, kind: int) -> str:
        """To a type, from or to that of the stream."""
        return x if self.stream == 1 else self.small.op("Cast", x, to=kind)

    def layer(self, x: str, number: int) -> str:
        """Attention and a perceptron, normalised first."""
        small = self.small
        read, probabilities = self.attention(self.norm(x))
        x = small.op("Add", x, self.cast(read, self.stream), name=f"layer{number}")
        if number in self.keep:
            x = self.shorter(x, probabilities, self.keep[number])
        hidden = small.op("Relu", small.linear(self.norm(x), WIDTH, 2 * WIDTH))
        made = self.cast(small.linear(hidden, 2 * WIDTH, WIDTH), self.stream)
        return small.op("Add", x, made, name=f"mlp{number}")

    def norm(self, x: str) -> str:
        """Over the features."""
        small, x = self.small, self.cast(x, 1)
        return small.op("LayerNormalization", x, small.gains(WIDTH), small.weight(WIDTH), axis=-1)

    def shorter(self, x: str, probabilities: str, keep: int) -> str:
        """The first token, and those that it reads most."""
        small = self.small
        first = small.op("Gather", probabilities, small.keep(np.asarray(0)), axis=2)
        summed = small.op("ReduceSum", first, small.ints(1), keepdims=0)
        others = small.op("Slice", summed, small.ints(1), small.ints(self.tokens), small.ints(1))
        alone = keep - 1 - self.merge
        _, places = small.ops("TopK", others, small.ints(alone), names=["", ""], axis=1)
        rows = small.op("Unsqueeze", small.op("Add", places, small.ints(1)), small.ints(2))
        spread = small.op("Expand", rows, small.ints(1, 1, WIDTH))
        chosen = small.op("GatherElements", x, spread, axis=1)
        head = small.op("Slice", x, small.ints(0), small.ints(1), small.ints(1))
        merged = [self.mean(x, others, places)] if self.merge else []
        self.tokens = keep
        return small.op("Concat", head, chosen, *merged, axis=1)

    def mean(self, x: str, read: str, places: str) -> str:
        """Of all but the first and those at some places."""
        small = self.small
        nothing = small.op("Mul", small.op("Cast", places, to=1), small.keep(np.float32(0)))
        rest = small.op("ScatterElements", read, places, nothing, axis=1)
        row = small.op("Unsqueeze", rest, small.ints(1))
        free = small.op("Slice", x, small.ints(1), small.ints(self.tokens), small.ints(1))
        total = small.op("ReduceSum", row, small.ints(2), keepdims=1)
        shares = self.cast(small.op("Div", row, total), self.stream)
        return small.op("MatMul", shares, free)

    def attention(self, x: str) -> tuple[str, str]:
        """Of three heads, and its probabilities; sizes are written out, as exporters do."""
        small = self.small
        split = small.ints(0, self.tokens, HEADS, SIZE)
        q, k, v = (small.op("Reshape", small.linear(x, WIDTH, WIDTH), split) for _ in range(3))
        q, v = (small.op("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, v))
        scores = small.op("MatMul", q, small.op("Transpose", k, perm=[0, 2, 3, 1]))
        scores = small.op("Mul", scores, small.keep(np.float32(2.0)))
        if self.bias:
            scores = small.op("Add", scores, small.weight(HEADS, self.tokens, self.tokens))
        probabilities = small.op("Softmax", scores, axis=-1)
        mixed = small.op("MatMul", probabilities, v)
        joined = small.op("Transpose", mixed, perm=[0, 2, 1, 3])
        flat = small.op("Reshape", joined, small.ints(0, self.tokens, WIDTH))
        return small.linear(flat, WIDTH, WIDTH), probabilities


def classified(small: Small, x: str) -> str:
    """The first token alone."""
    first = small.op("Gather", x, small.keep(np.asarray(0)), axis=1)
    return small.linear(first, WIDTH, CLASSES, name="logits")


def pooled(small: Small, x: str) -> str:
    """The mean of all tokens."""
    mean = small.op("ReduceMean", x, small.ints(1), keepdims=0)
    return small.linear(mean, WIDTH, CLASSES, name="logits")


def dense(small: Small, x: str) -> str:
    """Something for each token."""
    return small.linear(x, WIDTH, CLASSES, name="logits")


def flattened(small: Small, x: str) -> str:
    """A layer with a weight for each token."""
    flat = small.op("Flatten", x, axis=1)
    return small.linear(flat, (PATCHES + 1) * WIDTH, CLASSES, name="logits")


def as_image(small: Small, x: str) -> str:
    """Tokens laid out in rows again, of which means are taken one after the other."""
    channels = small.op("Transpose", x, perm=[0, 2, 1])
    image = small.op("Reshape", channels, small.ints(0, WIDTH, 2, PATCHES // 2))
    means = small.op("Relu", small.op("ReduceMean", image, small.ints(3), keepdims=0))
    return small.op("ReduceMean", means, small.ints(2), keepdims=0, name="logits")
