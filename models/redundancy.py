"""What plain damage costs each model: `python -m models.redundancy [NAME ...]` prints the table.

No model here may be so easy that losing channels, a layer or bits costs nothing.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from models.training import FOLDER, OpenModel, Run

Arrays = dict[str, NDArray[Any]]
# What may stand between a branch's last weight and the place where branches meet.
_TRANSPARENT = frozenset({"Relu", "Reshape"})


@dataclass(frozen=True)
class Subject:
    """A shipped model. branches: how many residual or concatenated branches make one layer."""

    name: str
    path: Path
    metric: str
    branches: int = 1

    def measure(self, run: Run) -> float:
        """Value of the metric."""
        module, function = self.metric.split(":")
        return float(getattr(importlib.import_module(module), function)(run))


SUBJECTS = (
    Subject("digits", FOLDER.parent / "lwqc/cli/demo/digits.onnx", "models.digits:accuracy"),
    Subject("glyph_resnet", FOLDER / "glyph_resnet.onnx", "models.glyphs:accuracy"),
    Subject("glyph_mobilenet", FOLDER / "glyph_mobilenet.onnx", "models.glyphs:accuracy"),
    Subject("glyph_vit", FOLDER / "glyph_vit.onnx", "models.glyphs:accuracy", branches=2),
    Subject("glyph_shufflenet", FOLDER / "glyph_shufflenet.onnx", "models.glyphs:accuracy"),
    Subject("stdlib_lm", FOLDER / "stdlib_lm.onnx", "models.stdlib_lm:bits_per_byte", branches=2),
)


@dataclass(frozen=True)
class Weight:
    """A constant matrix or kernel. axis: the one of its output channels."""

    name: str
    axis: int
    node: NodeProto


def weights(model: ModelProto) -> list[Weight]:
    """Weights of convolutions and matrix products in graph order."""
    constants = {t.name: len(t.dims) for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in {"Conv", "Gemm", "MatMul"} and constants.get(node.input[1], 0) >= 2:
            found.append(Weight(node.input[1], _output_axis(node), node))
    return found


def _output_axis(node: NodeProto) -> int:
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 0 if node.op_type == "Conv" else -1


def round_to_nearest(w: NDArray[Any], axis: int, bits: int) -> NDArray[Any]:
    """Symmetric rounding with one scale per output channel, taken from the largest weight."""
    others = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
    scale = np.abs(w).max(others, keepdims=True) / (2 ** (bits - 1) - 1)
    rounded: NDArray[Any] = np.rint(w / np.maximum(scale, 1e-12)) * scale
    return rounded.astype(w.dtype)


def zero_channels(
    w: NDArray[Any], axis: int, share: float, rng: np.random.Generator
) -> NDArray[Any]:
    """Set a random share of the output channels to zero."""
    count = w.shape[axis]
    kept = np.ones(count, w.dtype)
    kept[rng.choice(count, round(share * count), replace=False)] = 0
    return np.moveaxis(np.moveaxis(w, axis, -1) * kept, -1, axis)


def branch_ends(model: ModelProto) -> list[list[str]]:
    """Weights, and their biases, behind which a branch meets another in an Add or Concat."""
    constants = {t.name for t in model.graph.initializer}
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    ends = []
    for weight in weights(model):
        names, node = [weight.name, *weight.node.input[2:3]], weight.node
        while len(following := users.get(node.output[0], [])) == 1:
            node = following[0]
            biases = [name for name in node.input if name in constants]
            if node.op_type in {"Add", "Concat"} and not biases:
                ends.append(names)
                break
            if node.op_type == "Add":
                names += biases
            elif node.op_type not in _TRANSPARENT:
                break
    return ends


def few_bits(model: ModelProto, arrays: Arrays, bits: int) -> Arrays:
    """All weights rounded; an embedding that is also the last projection by its rows."""
    damaged = {w.name: round_to_nearest(arrays[w.name], w.axis, bits) for w in weights(model)}
    for node in model.graph.node:
        if node.op_type == "Gather" and arrays.get(node.input[0], np.zeros(1)).ndim == 2:
            damaged[node.input[0]] = round_to_nearest(arrays[node.input[0]], 0, bits)
    return damaged


def fewer_channels(model: ModelProto, arrays: Arrays, seed: int) -> Arrays:
    """A quarter of the output channels of every weight but the last zeroed.

    A stand-in for removal: a bias behind a zeroed channel stays.
    """
    rng = np.random.default_rng(seed)
    inner = [w for w in weights(model) if w.node.output[0] != model.graph.output[0].name]
    return {w.name: zero_channels(arrays[w.name], w.axis, 0.25, rng) for w in inner}


def without_layer(model: ModelProto, arrays: Arrays, branches: int) -> Iterator[Arrays]:
    """One variant per layer: its branches end in zeros, only what bypasses them remains."""
    ends = branch_ends(model)
    for start in range(0, len(ends), branches):
        names = [name for end in ends[start : start + branches] for name in end]
        yield {name: np.zeros_like(arrays[name]) for name in names}


def replaced(model: ModelProto, damaged: Arrays) -> OpenModel:
    """Open a copy of the model with other values for some initializers."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in damaged:
            tensor.CopyFrom(numpy_helper.from_array(damaged[tensor.name], tensor.name))
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    names = (
        tuple(i.name for i in session.get_inputs()),
        tuple(o.name for o in session.get_outputs()),
    )
    return OpenModel(session, *names)


def row(subject: Subject) -> dict[str, list[float]]:
    """Metric of the untouched model and of every kind of damage."""
    model = onnx.load(subject.path)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    def after(*variants: Arrays) -> list[float]:
        return [subject.measure(replaced(model, v)) for v in variants]

    return {
        "float": after({}),
        "25 % of channels": after(*(fewer_channels(model, arrays, seed) for seed in range(3))),
        "one layer": after(*without_layer(model, arrays, subject.branches)),
        "4 bit": after(few_bits(model, arrays, 4)),
        "3 bit": after(few_bits(model, arrays, 3)),
    }


def _text(values: list[float]) -> str:
    """Mean, and the range where there are several values."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ({min(values):.4f} … {max(values):.4f}, n = {len(values)})"


def table(subjects: Callable[[str], bool]) -> Iterator[str]:
    """Lines of the table in Markdown, one as soon as it is known."""
    titles = ["float", "25 % of channels", "one layer", "4 bit", "3 bit"]
    yield "| model | metric | " + " | ".join(titles) + " |"
    yield "| --- | --- |" + " --- |" * len(titles)
    for subject in filter(lambda s: subjects(s.name), SUBJECTS):
        values = row(subject)
        cells = " | ".join(_text(values[title]) for title in titles)
        yield f"| {subject.name} | {subject.metric.split(':')[1]} | {cells} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m models.redundancy")
    parser.add_argument("names", nargs="*", help="models; all if none is named")
    names = parser.parse_args().names
    for line in table(lambda name: not names or name in names):
        print(line, flush=True)
