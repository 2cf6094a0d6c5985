"""Short-time Fourier transforms as convolutions with a filter for each frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.edit import add_constant, insert_before, replace_node
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_FFT_WINS = 1024  # frames of powers of two from here on
_LARGEST = 1 << 22  # numbers in filters: computing them takes memory and time at load


@dataclass(frozen=True)
class _Transform:
    """rank: of the signal. step: between frames. window: [length]. count: of frequencies."""

    rank: int
    step: int
    window: NDArray[np.float32]
    count: int


class StftConv(Pass):
    """Replace STFT by a convolution.

    Matches: STFT of a real float32 signal [batch, samples] or [batch, samples, 1] whose step,
        window and length are stored.
    Rewrites to: Conv, whose filters are computed of positions and window when the model is loaded,
        so that the file stays small. onnxruntime 1.31.1 sums frames whose length is no power of two
        up number by number: 400 numbers take 30 to 40 times as long as so, with a hundred times the
        error, and its CUDA provider has no STFT. Sums in another order.
    Refuses: complex signals, parameters that are computed, frames of 1024 numbers or a higher power
        of two, whose fast transform wins, and frames whose filters would take more than 16 MB.
    """

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        done = 0
        for node in list(model.graph):
            if (node.domain, node.op_type) == ("", "STFT"):
                found = _matched(node)
                if isinstance(found, str):
                    ctx.refuse(node.name or node.outputs[0].name or "", found)
                else:
                    _rewrite(model.graph, node, found)
                    done += 1
        return done


def _matched(node: ir.Node) -> _Transform | str:
    """What the node computes, or why it stays."""
    operands = [*node.inputs, None, None][:4]
    signal, step, window, length = (operands[0], *map(_numbers, operands[1:]))
    shape = signal.shape if signal is not None else None
    if signal is None or signal.dtype != ir.DataType.FLOAT or shape is None:
        return "its signal is not float32, or of unknown rank"
    if len(shape) != 2 and (len(shape) != 3 or shape[2] != 1):
        return "its signal is not known to be real"
    if step is None or (operands[2] is not None and window is None):
        return "its step or window is not stored"
    if operands[3] is not None and length is None:
        return "the length of its frames is not stored"
    size = int(length) if length is not None else len(window) if window is not None else 0
    if window is None:
        window = np.ones(size, np.float32)
    if window.shape != (size,) or not size:
        return "its window is not as long as its frames"
    if size >= _FFT_WINS and size & (size - 1) == 0:
        return f"frames of {size} numbers have a fast transform"
    sided = node.attributes.get("onesided")
    whole = sided is not None and not sided.as_int()
    count = size if whole else size // 2 + 1
    if 2 * count * size > _LARGEST:
        return f"filters for frames of {size} numbers would take {8 * count * size >> 20} MB"
    return _Transform(len(shape), int(step), window.astype(np.float32), count)


def _numbers(value: ir.Value | None) -> NDArray[np.generic] | None:
    tensor = stored_tensor(value)
    return None if tensor is None else read_array(tensor)


def _rewrite(graph: ir.Graph, node: ir.Node, made: _Transform) -> None:
    signal, name = node.inputs[0], node.outputs[0].name
    filters = _filters(graph, node, made)
    if made.rank == 3:
        attributes = {"perm": (0, 2, 1)}
        (row,) = insert_before(node, "Transpose", [signal], [f"{name}/row"], attributes)
    else:
        axes = add_constant(graph, f"{name}/axes", np.array([1]))
        (row,) = insert_before(node, "Unsqueeze", [signal, axes], [f"{name}/row"])
    strides = {"strides": (made.step,)}
    (parts,) = insert_before(node, "Conv", [row, filters], [f"{name}/parts"], strides)
    behind = {"perm": (0, 2, 1)}
    (frames,) = insert_before(node, "Transpose", [parts], [f"{name}/frames"], behind)
    sizes = add_constant(graph, f"{name}/sizes", np.array([0, 0, 2, made.count]))
    (split,) = insert_before(node, "Reshape", [frames, sizes], [f"{name}/split"])
    last = {"perm": (0, 1, 3, 2)}
    (result,) = insert_before(node, "Transpose", [split], [f"{name}/complex"], last)
    for value in (row, parts, frames, split):
        value.type = ir.TensorType(ir.DataType.FLOAT)
    replace_node(node, result)


def _filters(graph: ir.Graph, node: ir.Node, made: _Transform) -> ir.Value:
    """[2 * frequencies, 1, length]: cosines, then negative sines, each times the window."""
    name, size = node.outputs[0].name, len(made.window)
    plane = (made.count, size)

    def stored(what: str, values: NDArray[np.generic]) -> ir.Value:
        return add_constant(graph, f"{name}/{what}", values)

    def step(
        op_type: str, inputs: list[ir.Value], what: str, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.Value:
        attributes: dict[str, int | float | tuple[int, ...]] = {}
        if op_type == "Cast":
            attributes["to"] = int(dtype)
        elif op_type == "Concat":
            attributes["axis"] = 0
        (value,) = insert_before(node, op_type, inputs, [f"{name}/{what}"], attributes)
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        return value

    whole, real = ir.DataType.INT64, ir.DataType.FLOAT
    frequencies = stored("frequencies", np.arange(made.count).reshape(-1, 1))
    places = stored("places", np.arange(size))
    turns = step("Mul", [frequencies, places], "turns", whole, plane)
    # Angles of whole turns less are small, and exact.
    rest = step("Mod", [turns, stored("length", np.array(size))], "rest", whole, plane)
    number = step("Cast", [rest], "rest/float", real, plane)
    unit = stored("unit", np.array(2 * math.pi / size, np.float32))
    angles = step("Mul", [number, unit], "angles", real, plane)
    window = stored("window", made.window)
    waves = []
    for op_type, factor in (("Cos", window), ("Sin", stored("window/neg", -made.window))):
        wave = step(op_type, [angles], op_type.lower(), real, plane)
        waves.append(step("Mul", [wave, factor], f"{op_type.lower()}/window", real, plane))
    both = step("Concat", waves, "waves", real, (2 * made.count, size))
    shape = stored("filters/shape", np.array([2 * made.count, 1, size]))
    return step("Reshape", [both, shape], "filters", real, (2 * made.count, 1, size))
