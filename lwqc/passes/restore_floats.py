"""Undoes quantization: the float model that a quantized one approximates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.folded_codes import packed_codes, reshaped_end
from lwqc.graph.weights import static_shape, stored_tensor, trace_weight
from lwqc.passes.edit import (
    Rewrite,
    add_constant,
    add_initializer,
    insert_before,
    lazy_tensor,
    replace_node,
)
from lwqc.passes.stored_codes import StoredCodes
from lwqc.plan import ActivationRange, Clip
from lwqc.quant.formats import ScaleType
from lwqc.quant.grid import unpack
from lwqc.tensor_bytes import read_array
from lwqc.unused import RemoveUnused

Array = NDArray[np.generic]
_MOVES = frozenset(
    {"Transpose", "Reshape", "MaxPool", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity"}
)
_RANGE = {ir.DataType.UINT8: (0, 255), ir.DataType.INT8: (-128, 127)}


class RestoreFloats(Rewrite):
    """Replace quantized operators by float ones, and remember formats.

    Matches: DequantizeLinear of stored codes; QuantizeLinear and DequantizeLinear of activations
        with one stored scale, over operators that only move codes; com.microsoft MatMulNBits,
        GatherBlockQuantized and MatMulIntegerToFloat.
    Rewrites to: stored float weights, decoded when they are needed; the float operators.
    Leaves alone: everything else; `left` says why. After a call `weights` has the codes by the name
        of the new weight, `ranges` what the activations' codes covered, `clipped` the tensors that
        got a Relu or Clip.
    """

    def __init__(self, clips: Mapping[str, Clip] | None = None) -> None:
        """clips: tensors that quantization kept within their range, and how; None for all."""
        super().__init__()
        self._clips = clips
        self._limited: dict[tuple[ir.Value, float, float], ir.Value] = {}
        self.clipped: dict[str, ActivationRange] = {}
        self.weights: dict[str, StoredCodes] = {}
        self.ranges: dict[str, ActivationRange] = {}
        self.left: dict[str, str] = {}
        self._made: dict[str, ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Restore all operators of the main graph."""
        graph = model.graph
        for node in list(graph):
            step = _STEPS.get((node.domain, node.op_type))
            if step is not None:
                reason = step(self, graph, node)
                if reason:
                    self.left[node.outputs[0].name or ""] = f"{node.op_type}: {reason}"
        for value in list(self._made.values()):
            self._turn(graph, value)
        RemoveUnused()(model)
        return ir.passes.PassResult(model, bool(self.weights or self.ranges))

    def _dequantize(self, graph: ir.Graph, node: ir.Node) -> str:
        tensor, scale = stored_tensor(node.inputs[0]), stored_tensor(node.inputs[1])
        if scale is None:
            return "its scale is not stored"
        if tensor is None:
            return self._activation(node)
        if tensor.dtype == ir.DataType.INT32:
            return self._bias(graph, node, tensor, scale)
        if tensor.dtype not in _OFFSETS:
            return f"codes of type {tensor.dtype.name.lower()}"
        zero = stored_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
        codes = node.inputs[0]
        assert codes is not None
        bits, offset = _OFFSETS[tensor.dtype]
        block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        rank = len(tensor.shape)
        many = scale.size > 1
        stored = StoredCodes(
            bits,
            lambda: _unsigned(read_array(tensor), offset),
            lambda: read_array(scale).astype(np.float32),
            # Without a stored zero point, the code 0 means 0.
            (lambda: _unsigned(read_array(zero), offset))
            if zero is not None
            else (lambda: np.full(1, offset, np.uint8)),
            _scale_type(scale),
            axis % rank if many or block else None,
            block or None,
        )
        value = self._weight(graph, f"{codes.name}/float", static_shape(tensor), stored)
        _take_place(node.outputs[0], value)
        return ""

    def _bias(
        self, graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol, scale: ir.TensorProtocol
    ) -> str:
        assert node.inputs[0] is not None

        def values() -> Array:
            return read_array(tensor).astype(np.float32) * read_array(scale).astype(np.float32)

        name = f"{node.inputs[0].name}/float"
        made = lazy_tensor(ir.DataType.FLOAT, static_shape(tensor), name, values)
        node.outputs[0].replace_all_uses_with(add_initializer(graph, made))
        return ""

    def _activation(self, node: ir.Node) -> str:
        """Take out a DequantizeLinear and what leads to it from QuantizeLinear."""
        moved: list[ir.Node] = []
        value = node.inputs[0]
        producer = value.producer() if value is not None else None
        while producer is not None and producer.op_type in _MOVES and producer.domain == "":
            moved.append(producer)
            value = producer.inputs[0]
            producer = value.producer() if value is not None else None
        if producer is None or producer.op_type != "QuantizeLinear":
            return "its codes do not come from QuantizeLinear"
        source = producer.inputs[0]
        found = _observed(producer)
        if isinstance(found, str) or source is None:
            return found if isinstance(found, str) else "has no input"
        source = self._clipped(node, source, found)
        result = self._moved(moved, source) if moved else source
        _take_place(node.outputs[0], result)
        self.ranges.setdefault(source.name or "", found)
        self.ranges.setdefault(result.name or "", found)
        return ""

    def _clipped(self, node: ir.Node, source: ir.Value, found: ActivationRange) -> ir.Value:
        """The tensor limited to what its codes covered; a Relu before it may have been left out."""
        name = source.name or ""
        kind = "clip" if self._clips is None else self._clips.get(name)
        if kind is None:
            return source
        key = (source, found.low, found.high)
        if key not in self._limited:
            graph, producer = node.graph, source.producer()
            assert isinstance(graph, ir.Graph)
            inputs = [source]
            if kind == "clip":
                inputs += [
                    add_constant(graph, f"{name}/{end}", np.float32(number))
                    for end, number in (("low", found.low), ("high", found.high))
                ]
            made = ir.node("Clip" if kind == "clip" else "Relu", inputs, name=f"{name}/{kind}")
            value = made.outputs[0]
            value.name, value.shape, value.type = f"{name}/{kind}", source.shape, source.type
            if producer is not None:
                graph.insert_after(producer, made)
            else:
                graph.insert_before(graph[0], made)
            self._limited[key] = value
            self.clipped[name] = found
        return self._limited[key]

    def _moved(self, moved: list[ir.Node], source: ir.Value) -> ir.Value:
        """The same movement of floats."""
        value = source
        for node in reversed(moved):
            made = ir.Node(
                node.domain, node.op_type, [value, *node.inputs[1:]], node.attributes.values()
            )
            made.name = f"{node.name}/float"
            made.outputs[0].name = f"{node.outputs[0].name}/float"
            made.outputs[0].shape = node.outputs[0].shape
            made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            assert isinstance(node.graph, ir.Graph)
            node.graph.insert_after(node, made)
            value = made.outputs[0]
        return value

    def _nbits(self, graph: ir.Graph, node: ir.Node) -> str:
        number = {n: node.attributes[n].as_int() for n in ("K", "N", "bits", "block_size")
                  if n in node.attributes}  # fmt: skip
        if len(number) < 4 or (len(node.inputs) > 4 and node.inputs[4] is not None):
            return "an unusual form"
        table = self._blocks(
            graph, node, 1, 2, 3, number["N"], number["K"], number["bits"], number["block_size"],
            _int(node, "accuracy_level") == 4,
        )  # fmt: skip
        if isinstance(table, str):
            return table
        name = node.outputs[0].name
        (turned,) = insert_before(node, "Transpose", [table], [f"{name}/weight"])
        turned.shape = ir.Shape((number["K"], number["N"]))
        turned.type = ir.TensorType(ir.DataType.FLOAT)
        bias = node.inputs[5] if len(node.inputs) > 5 else None
        self._product(node, node.inputs[0], turned, bias)
        return ""

    def _product(
        self, node: ir.Node, x: ir.Value | None, weight: ir.Value, bias: ir.Value | None
    ) -> None:
        name = node.outputs[0].name
        (output,) = insert_before(node, "MatMul", [x, weight], [f"{name}/product"])
        if bias is not None:
            output.shape, output.type = node.outputs[0].shape, node.outputs[0].type
            (output,) = insert_before(node, "Add", [output, bias], [f"{name}/biased"])
        replace_node(node, output)

    def _rows(self, graph: ir.Graph, node: ir.Node) -> str:
        scale = stored_tensor(node.inputs[2])
        if scale is None or _int(node, "gather_axis") or _int(node, "quantize_axis", 1) != 1:
            return "an unusual form"
        codes = stored_tensor(node.inputs[0])
        bits, block = _int(node, "bits", 4), _int(node, "block_size", 128)
        if codes is None or codes.dtype != ir.DataType.UINT8:
            return "its codes are not stored as uint8"
        n, width = (int(d) for d in codes.shape if isinstance(d, int))
        table = self._blocks(graph, node, 0, 2, 3, n, width * 8 // bits, bits, block, False)
        if isinstance(table, str):
            return table
        name = node.outputs[0].name
        (output,) = insert_before(
            node, "Gather", [table, node.inputs[1]], [f"{name}/rows"], {"axis": 0}
        )
        replace_node(node, output)
        return ""

    def _blocks(
        self,
        graph: ir.Graph,
        node: ir.Node,
        codes_at: int,
        scale_at: int,
        zero_at: int,
        n: int,
        k: int,
        bits: int,
        block: int,
        dynamic: bool,
    ) -> ir.Value | str:
        """The float matrix [N, K] of packed codes with a scale per block of inputs."""
        traced = [trace_weight(v) for v in node.inputs]
        given = [weight.tensor if weight is not None else None for weight in traced]
        source, codes, scale = traced[codes_at], given[codes_at], given[scale_at]
        zero = given[zero_at] if len(given) > zero_at else None
        if source is None or codes is None or scale is None:
            return "its weight is not stored"
        if zero is not None and zero.dtype != ir.DataType.UINT8:
            return "its zero points are not integers"
        blocks = -(-k // block)

        def unpacked() -> Array:
            packed = read_array(codes).reshape(n, -1)
            return unpack(packed, bits, blocks * block)[:, :k]

        def zeros() -> Array:
            assert zero is not None
            return unpack(read_array(zero).reshape(n, -1), bits, blocks)

        def scales() -> NDArray[np.floating]:
            return read_array(scale).astype(np.float32).reshape(n, blocks)

        stored = StoredCodes(
            bits, unpacked, scales, zeros if zero is not None else None,
            _scale_type(scale), 1, block, "dynamic" if dynamic else "none",
        )  # fmt: skip

        return self._weight(graph, f"{source.name}/float", (n, k), stored)

    def _integer(self, graph: ir.Graph, node: ir.Node) -> str:
        codes, scale = stored_tensor(node.inputs[1]), stored_tensor(node.inputs[3])
        source, static = _quantized_from(node.inputs[0])
        if codes is None or scale is None or codes.dtype != ir.DataType.INT8 or source is None:
            return "an unusual form"
        if len(node.inputs) > 5 and node.inputs[5] is not None:
            return "its weight has zero points"
        k, n = (int(d) for d in codes.shape if isinstance(d, int))
        if static is not None:
            self.ranges.setdefault(source.name or "", static)
        stored = StoredCodes(
            8,
            lambda: _unsigned(read_array(codes), 128),
            lambda: read_array(scale).astype(np.float32),
            None,
            _scale_type(scale),
            1 if scale.size > 1 else None,
            None,
            "none" if static is not None else "dynamic",
        )
        value = self._weight(graph, f"{codes.name}/float", (k, n), stored)
        self._product(node, source, value, node.inputs[6] if len(node.inputs) > 6 else None)
        return ""

    def _weight(
        self,
        graph: ir.Graph,
        name: str,
        shape: tuple[int, ...],
        stored: StoredCodes,
    ) -> ir.Value:
        """The stored float weight; one for all operators that share the codes."""
        if name not in self._made:
            tensor = lazy_tensor(ir.DataType.FLOAT, shape, name, stored.decode)
            self._made[name] = add_initializer(graph, tensor)
            self.weights[self._made[name].name or ""] = stored
        return self._made[name]

    def _turn(self, graph: ir.Graph, value: ir.Value) -> None:
        """Store a matrix as its readers see it, if all of them transpose it."""
        readers = [use.node for use in value.uses()]
        stored = self.weights.get(value.name or "")
        if stored is None or not readers or any(not _turns(node) for node in readers):
            return
        name = value.name or ""
        shape = tuple(int(d) for d in value.shape or () if isinstance(d, int))[::-1]
        turned = stored.turned()
        graph.initializers.pop(name)
        made = add_initializer(graph, lazy_tensor(ir.DataType.FLOAT, shape, name, turned.decode))
        self.weights[made.name or ""] = turned
        for node in readers:
            _take_place(node.outputs[0], made)

    def _folded(self, graph: ir.Graph, node: ir.Node) -> str:
        """Arithmetic that lwqc writes where there is no low-bit kernel, see `FoldWeights`."""
        found = packed_codes(node)
        if found is None:
            return ""
        codes, fields, scale, zero = found
        end, shape = reshaped_end(node)
        n, blocks = static_shape(scale)[:2]
        size = int(np.prod(shape or ()))
        if end is None or shape is None or size % n or (len(shape) == 2 and shape[0] != n):
            return "an unusual form"
        bits, k = 8 // fields, size // n
        block = static_shape(codes)[1] * fields // blocks

        def unpacked() -> Array:
            return unpack(read_array(codes), bits, blocks * block)[:, :k].reshape(shape)

        def zeros() -> Array:
            assert zero is not None
            return np.asarray(read_array(zero).reshape(n, blocks) + 2 ** (bits - 1), np.uint8)

        whole = blocks == 1
        stored = StoredCodes(
            bits,
            unpacked,
            lambda: read_array(scale).astype(np.float32).reshape(n, blocks),
            zeros if zero is not None else None,
            _scale_type(scale),
            0 if whole else 1,
            None if whole else block,
            matrix=None if len(shape) == 2 or (whole and shape[0] == n) else (n, k),
        )
        _take_place(end, self._weight(graph, f"{node.outputs[0].name}/float", shape, stored))
        return ""


def _turns(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and (perm is None or list(perm.as_ints()) == [1, 0])


_OFFSETS = {
    ir.DataType.INT8: (8, 128),
    ir.DataType.UINT8: (8, 0),
    ir.DataType.INT4: (4, 8),
    ir.DataType.UINT4: (4, 0),
}
_STEPS: Mapping[tuple[str, str], Callable[[RestoreFloats, ir.Graph, ir.Node], str]] = {
    ("", "DequantizeLinear"): RestoreFloats._dequantize,
    ("com.microsoft", "DequantizeLinear"): RestoreFloats._dequantize,
    ("", "Mul"): RestoreFloats._folded,
    ("com.microsoft", "MatMulNBits"): RestoreFloats._nbits,
    ("com.microsoft", "GatherBlockQuantized"): RestoreFloats._rows,
    ("com.microsoft", "MatMulIntegerToFloat"): RestoreFloats._integer,
}


def is_quantized(model: ir.Model) -> bool:
    """Whether the main graph has operators that `RestoreFloats` looks at."""
    return any(
        (node.domain, node.op_type) in _STEPS
        and (node.op_type != "Mul" or packed_codes(node) is not None)
        for node in model.graph
    )


def _take_place(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of a value read another one, which also gets its name as a graph output."""
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    name, node = old.name, old.producer()
    if new.producer() is None or new.is_graph_output():
        assert node is not None
        (copy,) = insert_before(node, "Identity", [new], [f"{name}/copy"])
        copy.shape, copy.type = old.shape, old.type
        new = copy
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{name}/dequantized", name


def _unsigned(array: Array, offset: int) -> Array:
    return (array.astype(np.int16) + offset).astype(np.uint8)


def _scale_type(scale: ir.TensorProtocol) -> ScaleType:
    return "float16" if scale.dtype == ir.DataType.FLOAT16 else "float32"


def _observed(quantize: ir.Node) -> ActivationRange | str:
    """What the codes of a QuantizeLinear cover."""
    scale = stored_tensor(quantize.inputs[1])
    zero = stored_tensor(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    if scale is None or scale.size != 1:
        return "its scale is not a single stored number"
    dtype = zero.dtype if zero is not None else ir.DataType.UINT8
    if dtype not in _RANGE:
        return f"codes of type {dtype.name.lower()}"
    step = float(read_array(scale).reshape(()))
    centre = int(read_array(zero).reshape(())) if zero is not None else 0
    low, high = _RANGE[dtype]
    if dtype == ir.DataType.INT8 and centre == 0:
        low = -127  # so that a symmetric grid gets the same step
    return ActivationRange(low=(low - centre) * step, high=(high - centre) * step)


def _quantized_from(value: ir.Value | None) -> tuple[ir.Value | None, ActivationRange | None]:
    """The float tensor behind codes, and its range unless that is found in each run."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return None, None
    if node.op_type == "DynamicQuantizeLinear":
        return node.inputs[0], None
    found = _observed(node)
    return (None, None) if isinstance(found, str) else (node.inputs[0], found)


def _int(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default
