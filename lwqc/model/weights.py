"""Where a node's operand comes from: the stored tensor behind constant data movement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.names import own_values, scopes

Array = NDArray[np.generic]
ReadArray = Callable[[ir.TensorProtocol], Array]
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


@dataclass(frozen=True)
class Weight:
    """A stored tensor and the constant nodes between it and the operand that uses it.

    source: the initializer, or the output of a Constant node.
    steps: nodes from the source to the operand, first applied first.
    """

    source: ir.Value
    steps: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """Name of the stored tensor."""
        return self.source.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The stored tensor, not evaluated."""
        tensor = stored_tensor(self.source)
        if tensor is None:
            raise ValueError(f"{self.name} is not stored in the model")
        return tensor


def stored_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node's output; None for anything else."""
    if value is None:
        return None
    if value.is_initializer() and not value.is_graph_input():
        return value.const_value
    node = value.producer()
    if node is not None and node.domain == "" and node.op_type == "Constant":
        attribute = node.attributes.get("value")
        # Not as_tensor(): its check of the tensor protocol costs more than everything else here.
        return attribute.value if attribute is not None else None
    return None


def trace_weight(value: ir.Value | None) -> Weight | None:
    """Follow an operand back through Transpose, Identity, Cast, Reshape and DequantizeLinear.

    Returns None when it depends on anything that is not stored in the model. An initializer that
    is also a graph input can be overridden by the caller, so it does not count as stored.
    """
    steps: list[ir.Node] = []
    while value is not None:
        if stored_tensor(value) is not None:
            weight = Weight(value, tuple(reversed(steps)))
            return weight if _steps_fit(weight) else None
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in _STEPS:
            return None
        if any(stored_tensor(v) is None for v in node.inputs[1:] if v is not None):
            return None
        steps.append(node)
        value = node.inputs[0]
    return None


def _steps_fit(weight: Weight) -> bool:
    """Whether scales have the sizes that their weight asks for; ONNX does not look at them."""
    for at, node in enumerate(weight.steps):
        if node.op_type == "DequantizeLinear":
            shape = weight_shape(Weight(weight.source, weight.steps[:at]))
            if shape is not None and not all(
                scales_fit(node, _sizes(v), shape) for v in node.inputs[1:]
            ):
                return False
    return True


def _sizes(value: ir.Value | None) -> tuple[int, ...]:
    tensor = stored_tensor(value)
    return () if tensor is None else static_shape(tensor)


def scales_fit(node: ir.Node, sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether scales or zero points of these sizes are for codes: one, one per index, or per block.

    node: DequantizeLinear. shape: of the codes. Not even onnxruntime looks, where it makes one
    operator of the pairs around another.
    """
    axis, block = _int(node, "axis", 1), _int(node, "block_size", 0)
    if math.prod(sizes) == 1 and not block:
        return True
    if not -len(shape) <= axis < len(shape) or block < 0:
        return False
    axis %= len(shape)
    if not block:
        return sizes == (shape[axis],)
    blocks = -(-shape[axis] // block)
    return sizes == (*shape[:axis], blocks, *shape[axis + 1 :])


def weight_shape(weight: Weight) -> tuple[int, ...] | None:
    """Shape of the operand, computed without reading the tensor; None if a step hides it."""
    shape = static_shape(weight.tensor)
    for node in weight.steps:
        if node.op_type == "Transpose":
            perm = _ints(node, "perm") or tuple(range(len(shape)))[::-1]
            shape = tuple(shape[p] for p in perm)
        elif node.op_type == "Reshape":
            target = stored_tensor(node.inputs[1])
            if target is None:
                return None
            shape = _reshaped(shape, target.numpy())
    return shape


def movement(node: ir.Node) -> tuple[str, object] | None:
    """What a constant node does to the order or shape of a tensor; None if it changes neither."""
    if node.op_type == "Transpose":
        return "Transpose", _ints(node, "perm")
    if node.op_type == "Reshape":
        target = stored_tensor(node.inputs[1])
        return "Reshape", None if target is None else tuple(target.numpy().tolist())
    return None


def static_shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Shape of a stored tensor as plain integers."""
    return tuple(int(d) for d in tensor.shape if isinstance(d, int))


def evaluate(weight: Weight, read: ReadArray) -> Array:
    """The operand's values, in the type in which the graph computes with it."""
    return through(weight.steps, read(weight.tensor), read)


def through(steps: tuple[ir.Node, ...], array: Array, read: ReadArray) -> Array:
    """What the constant nodes of a `Weight` make of the stored tensor."""
    for node in steps:
        array = _STEPS[node.op_type](node, array, read)
    return array


def dequantized(value: ir.Value, read: ReadArray) -> Array | None:
    """What a DequantizeLinear with constant scales makes of a stored tensor; None without one."""
    for use in value.uses():
        if use.node.op_type == "DequantizeLinear" and use.idx == 0:
            weight = trace_weight(use.node.outputs[0])
            if weight is not None and weight.source is value:
                return evaluate(weight, read)
    return None


def is_float(tensor: ir.TensorProtocol) -> bool:
    """Whether the stored type is a float type that weights come in."""
    return tensor.dtype in _FLOATS


def stored_float_tensors(graph: ir.Graph) -> Iterator[ir.Value]:
    """Initializers and outputs of Constant nodes that hold floats, if any, bodies included."""
    for value in (v for _, scope in scopes(graph) for v in own_values(scope)):
        tensor = stored_tensor(value)
        if tensor is not None and is_float(tensor) and tensor.size:
            yield value


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def _ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attribute = node.attributes.get(name)
    return tuple(attribute.as_ints()) if attribute is not None else None


def _reshaped(shape: tuple[int, ...], target: Array) -> tuple[int, ...]:
    sizes = [shape[i] if s == 0 else int(s) for i, s in enumerate(target.astype(int))]
    if -1 in sizes:
        known = int(np.prod([s for s in sizes if s != -1]))
        sizes[sizes.index(-1)] = int(np.prod(shape)) // max(known, 1)
    return tuple(sizes)


def _transpose(node: ir.Node, array: Array, read: ReadArray) -> Array:
    return array.transpose(_ints(node, "perm"))


def _identity(node: ir.Node, array: Array, read: ReadArray) -> Array:
    return array


def _cast(node: ir.Node, array: Array, read: ReadArray) -> Array:
    return array.astype(ir.DataType(node.attributes["to"].as_int()).numpy())


def _reshape(node: ir.Node, array: Array, read: ReadArray) -> Array:
    target = stored_tensor(node.inputs[1])
    return array.reshape(_reshaped(array.shape, read(target))) if target is not None else array


def _dequantize(node: ir.Node, array: Array, read: ReadArray) -> Array:
    scale_tensor = stored_tensor(node.inputs[1])
    if scale_tensor is None:
        raise ValueError(f"{node.name}: scale is not constant")
    stored = read(scale_tensor)
    zero_tensor = stored_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    zero = np.zeros((), np.int32)
    if zero_tensor is not None:
        zero = read(zero_tensor).astype(np.int32)
    axis, block = _int(node, "axis", 1), _int(node, "block_size", 0)
    centred: Array = array.astype(np.int32) - spread(zero, array.shape, axis, block)  # type: ignore[operator]
    scale = spread(stored.astype(np.float32), array.shape, axis, block)
    return np.asarray(centred * scale).astype(stored.dtype)  # type: ignore[operator]


def spread(values: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Scales or zero points in a shape that broadcasts with the tensor."""
    if block and values.ndim == len(shape):
        cut = tuple(slice(0, n) for n in shape)
        return np.repeat(values, block, axis)[cut]
    if values.size > 1:
        return values.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    return values.reshape(())


_STEPS: dict[str, Callable[[ir.Node, Array, ReadArray], Array]] = {
    "Transpose": _transpose,
    "Identity": _identity,
    "Cast": _cast,
    "Reshape": _reshape,
    "DequantizeLinear": _dequantize,
}
