"""Undoes quantization: the float model that a quantized one approximates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.folded_codes import packed_codes, plain_codes
from lwqc.model.edit import (
    Rewrite,
    add_constant,
    add_initializer,
    insert_before,
    lazy_tensor,
    replace_node,
)
from lwqc.model.names import unique_name
from lwqc.model.tensor_bytes import read_array
from lwqc.model.unused import RemoveUnused
from lwqc.model.weights import (
    scales_fit,
    stored_tensor,
    trace_weight,
)
from lwqc.passes.constant_codes import (
    OFFSETS,
    Codes,
    Constant,
    codes_behind,
    constant,
    number,
    operand,
    scale_type_of,
    unsigned,
)
from lwqc.passes.context import Context
from lwqc.passes.expand_integers import MICROSOFT, ExpandIntegers, is_integer_operator
from lwqc.passes.restored_lstm import float_lstm
from lwqc.passes.stored_codes import StoredCodes
from lwqc.passes.unpacked_weight import unpacked_weight
from lwqc.passes.widen_floats import WidenFloats
from lwqc.plans.plan import ActivationRange, Clip
from lwqc.quant.grid import unpack

Array = NDArray[np.generic]
_MOVES = frozenset(
    {
        "Transpose",
        "Reshape",
        "MaxPool",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Identity",
        "Gather",
        "Tile",
        "Expand",
    }
)
_RANGE = {
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
}


class RestoreFloats(Rewrite):
    """Replace quantized operators by float ones, and remember formats.

    Matches: DequantizeLinear of stored codes, and of stored floats behind QuantizeLinear;
        QuantizeLinear and DequantizeLinear of activations with one stored scale, over operators
        that only move codes; MatMulInteger and ConvInteger whose sums become floats;
        com.microsoft MatMulNBits, GatherBlockQuantized, MatMulIntegerToFloat,
        DynamicQuantizeMatMul and DynamicQuantizeLSTM; what `ExpandIntegers` matches. Models that
        compute in 16-bit floats are widened first, see `WidenFloats`.
    Rewrites to: stored float weights, decoded when they are needed; the float operators.
    Leaves alone: everything else; `left` says why. After a call `weights` has the codes by the name
        of the new weight, `ranges` what the activations' codes covered, `clipped` the tensors that
        got a Relu or Clip, which `limits` has.
    """

    def __init__(self, clips: Mapping[str, Clip] | None = None) -> None:
        """clips: tensors that quantization kept within their range, and how; None for all."""
        super().__init__()
        self._clips = clips
        self._floating: dict[ir.Value, ir.Value] = {}
        self._limited: dict[tuple[ir.Value, float, float], ir.Value] = {}
        self.clipped: dict[str, ActivationRange] = {}
        self.limits: dict[str, ir.Node] = {}
        self.weights: dict[str, StoredCodes] = {}
        self.ranges: dict[str, ActivationRange] = {}
        self.left: dict[str, str] = {}
        self._lstms = 0
        self._made: dict[tuple[str, ir.Value | None, tuple[int, ...]], ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Restore all operators, those of bodies too; weights lie in the main graph."""
        self._main = graph = model.graph
        ctx = Context(model)  # these two share the names, and the tidying below
        widened = WidenFloats().rewrite(model, ctx)
        expanded = ExpandIntegers().rewrite(model, ctx)
        self.left |= {refusal.name: refusal.reason for refusal in ctx.refused.values()}
        for node in list(graph.all_nodes()):
            step = _STEPS.get((node.domain, node.op_type))
            if step is not None and isinstance(node.graph, ir.Graph):
                reason = step(self, node.graph, node)
                if reason:
                    self.left[node.outputs[0].name or ""] = f"{node.op_type}: {reason}"
        for value in list(self._made.values()):
            self._turn(graph, value)
        RemoveUnused()(model)
        self._drop_idle_imports(model)
        modified = bool(widened or expanded or self._lstms or self.weights or self.ranges)
        return ir.passes.PassResult(model, modified)

    def _dequantize(self, graph: ir.Graph, node: ir.Node) -> str:
        codes, scale = codes_behind(node.inputs[0]), constant(node.inputs[1])
        if scale is None:
            return "its scale is not stored"
        if codes is None:
            return self._activation(node)
        if codes.dtype == ir.DataType.INT32:
            return self._bias(graph, node, codes, scale)
        if codes.dtype not in OFFSETS:
            return f"codes of type {codes.dtype.name.lower()}"
        numbers = [c for c in (scale, constant(operand(node, 2))) if c is not None]
        if not all(c.shape is None or scales_fit(node, c.shape, codes.shape) for c in numbers):
            return "its scales or zero points do not fit its codes"
        block = number(node, "block_size")
        rank = len(codes.shape)
        many = scale.size > 1
        stored = self._eight(codes, scale, operand(node, 2))
        axis = number(node, "axis", 1) % max(rank, 1) if many or block else None
        stored = dataclasses.replace(stored, axis=axis, block=block or None)
        value = self._weight(f"{codes.name}/float", codes.shape, stored, node.inputs[1])
        _take_place(node.outputs[0], value)
        return ""

    def _eight(self, codes: Codes, scale: Constant, zero_value: ir.Value | None) -> StoredCodes:
        """Codes that DequantizeLinear and the integer products take, still without an axis."""
        bits, offset = OFFSETS[codes.dtype]
        zero = constant(zero_value)
        # Without a stored zero point, the code 0 means 0.
        return StoredCodes(
            bits,
            lambda: unsigned(codes.read(), offset),
            lambda: scale.read().astype(np.float32),
            (lambda: unsigned(zero.read(), offset))
            if zero is not None
            else (lambda: np.full(1, offset, np.uint8)),
            scale_type_of(scale.tensor),
            None,
            None,
        )

    def _bias(self, graph: ir.Graph, node: ir.Node, codes: Codes, scale: Constant) -> str:
        def values() -> Array:
            return codes.read().astype(np.float32) * scale.read().astype(np.float32)

        name = unique_name(graph, f"{codes.name}/float")
        made = lazy_tensor(ir.DataType.FLOAT, codes.shape, name, values)
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
        if moved and codes_behind(value) is not None:
            return self._moved_weight(node, moved, value)
        if producer is None or producer.op_type != "QuantizeLinear":
            return "its codes do not come from QuantizeLinear"
        source = producer.inputs[0]
        found = _observed(producer)
        if isinstance(found, str) or source is None:
            return found if isinstance(found, str) else "has no input"
        before = source.producer()
        if before is not None and before.op_type == "Relu":
            # A grid of its own, from 0 on, lets kernels absorb the Relu.
            found = found.model_copy(update={"low": max(found.low, 0.0)})
        source = self._clipped(node, source, found)
        result = self._moved(moved, source) if moved else source
        _take_place(node.outputs[0], result)
        if _bits(producer) == 8:  # ranges of 16 bits were not chosen for 8
            self.ranges.setdefault(source.name or "", found)
            self.ranges.setdefault(result.name or "", found)
        return ""

    def _moved_weight(self, node: ir.Node, moved: list[ir.Node], value: ir.Value | None) -> str:
        """Rows, or a transposed copy, of stored codes that are dequantized afterwards."""
        codes, scale = codes_behind(value), constant(node.inputs[1])
        if codes is None or codes.dtype not in OFFSETS:
            return "its codes do not come from QuantizeLinear"
        if scale is None or scale.size != 1:
            return "its codes are moved, and their scale is not a single stored number"
        stored = self._eight(codes, scale, operand(node, 2))
        weight = self._weight(f"{codes.name}/float", codes.shape, stored, node.inputs[1])
        _take_place(node.outputs[0], self._moved(moved, weight))
        return ""

    def _clipped(self, node: ir.Node, source: ir.Value, found: ActivationRange) -> ir.Value:
        """The tensor limited to what its codes covered; a Relu before it may have been left out."""
        name = source.name or ""
        kind = "clip" if self._clips is None else self._clips.get(name)
        if kind is None:
            return source
        key = (source, found.low, found.high)
        if key not in self._limited:
            producer, graph = source.producer(), source.graph  # where all its readers see it
            assert isinstance(graph, ir.Graph)
            inputs = [source]
            if kind == "clip":
                inputs += [
                    add_constant(graph, f"{name}/{end}", np.float32(number))
                    for end, number in (("low", found.low), ("high", found.high))
                ]
            new = unique_name(graph, f"{name}/{kind}")
            made = ir.node("Clip" if kind == "clip" else "Relu", inputs, name=new)
            value = made.outputs[0]
            value.name, value.shape, value.type = new, source.shape, source.type
            if producer is not None:
                graph.insert_after(producer, made)
            else:
                graph.insert_before(graph[0], made)
            self._limited[key] = value
            self.clipped[name], self.limits[name] = found, made
        return self._limited[key]

    def _moved(self, moved: list[ir.Node], source: ir.Value) -> ir.Value:
        """The same movement of floats."""
        value = source
        for node in reversed(moved):
            known = self._floating.get(node.outputs[0])
            if known is not None:
                value = known
                continue
            made = ir.Node(
                node.domain, node.op_type, [value, *node.inputs[1:]], node.attributes.values()
            )
            assert isinstance(node.graph, ir.Graph)
            name = unique_name(node.graph, f"{node.outputs[0].name}/float")
            made.name = made.outputs[0].name = name
            made.outputs[0].shape = node.outputs[0].shape
            made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.graph.insert_after(node, made)
            value = self._floating[node.outputs[0]] = made.outputs[0]
        return value

    def _nbits(self, graph: ir.Graph, node: ir.Node) -> str:
        sizes = {n: node.attributes[n].as_int() for n in ("K", "N", "bits", "block_size")
                  if n in node.attributes}  # fmt: skip
        if len(sizes) < 4:
            return "its sizes or bits are not stated"
        if operand(node, 4) is not None:
            return "its inputs are in an order of their own (g_idx)"
        table = self._blocks(
            node, 1, 2, 3, sizes["N"], sizes["K"], sizes["bits"], sizes["block_size"],
            number(node, "accuracy_level") == 4,
        )  # fmt: skip
        if isinstance(table, str):
            return table
        name = node.outputs[0].name
        (turned,) = insert_before(node, "Transpose", [table], [f"{name}/weight"])
        turned.shape = ir.Shape((sizes["K"], sizes["N"]))
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
        if number(node, "gather_axis") or number(node, "quantize_axis", 1) != 1:
            return "an unusual form"
        codes = stored_tensor(node.inputs[0])
        bits, block = number(node, "bits", 4), number(node, "block_size", 128)
        if codes is None or codes.dtype != ir.DataType.UINT8:
            return "its codes are not stored as uint8"
        n, width = (int(d) for d in codes.shape if isinstance(d, int))
        table = self._blocks(node, 0, 2, 3, n, width * 8 // bits, bits, block, False)
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
            scale_type_of(scale), 1, block, "dynamic" if dynamic else "none",
        )  # fmt: skip

        return self._weight(f"{source.name}/float", (n, k), stored, node.inputs[scale_at])

    def _integer(self, graph: ir.Graph, node: ir.Node) -> str:
        """MatMulIntegerToFloat."""
        source, static = _quantized_from(node.inputs[0])
        if source is None:
            return "its codes do not come from QuantizeLinear"
        if static is not None:
            self.ranges.setdefault(source.name or "", static)
        return self._from_integers(
            node,
            source,
            1,
            operand(node, 3),
            operand(node, 5),
            operand(node, 6),
            static is None,
        )

    def _dynamic(self, graph: ir.Graph, node: ir.Node) -> str:
        """DynamicQuantizeMatMul."""
        return self._from_integers(
            node,
            node.inputs[0],
            1,
            operand(node, 2),
            operand(node, 3),
            operand(node, 4),
            True,
        )

    def _lstm(self, graph: ir.Graph, node: ir.Node) -> str:
        """DynamicQuantizeLSTM; its codes are not remembered."""
        reason = float_lstm(self._main, node)
        self._lstms += not reason
        return reason

    def _from_integers(
        self,
        node: ir.Node,
        source: ir.Value | None,
        codes_at: int,
        scale_value: ir.Value | None,
        zero: ir.Value | None,
        bias: ir.Value | None,
        dynamic: bool,
    ) -> str:
        stored = self._operand(node.inputs[codes_at], scale_value, zero, dynamic)
        if isinstance(stored, str):
            return stored
        self._product(node, source, stored, bias)
        return ""

    def _operand(
        self,
        value: ir.Value | None,
        scale_value: ir.Value | None,
        zero: ir.Value | None,
        dynamic: bool,
        axis: int = 1,
    ) -> ir.Value | str:
        """The stored float weight behind the codes of an integer product."""
        codes, scale = codes_behind(value), constant(scale_value)
        if codes is None or scale is None or codes.dtype not in OFFSETS:
            return "its weight is not stored"
        if zero is not None and constant(zero) is None:
            return "its zero point is not stored"
        numbers = [c for c in (scale, constant(zero)) if c is not None]
        if any(c.size not in (1, codes.shape[axis]) for c in numbers):
            return "its scales or zero points do not fit its weight"
        stored = dataclasses.replace(
            self._eight(codes, scale, zero),
            axis=axis if scale.size > 1 else None,
            activation="dynamic" if dynamic else "none",
        )
        return self._weight(f"{codes.name}/float", codes.shape, stored, scale_value)

    def _sums(self, graph: ir.Graph, node: ir.Node) -> str:
        """MatMulInteger and ConvInteger, as onnxruntime's `quantize_dynamic` writes them."""
        found = _scaled_sums(node)
        if isinstance(found, str):
            return found
        scaled, scale = found
        source, _ = _quantized_from(node.inputs[0])
        convolves = node.op_type == "ConvInteger"
        weight = self._operand(
            node.inputs[1], scale, operand(node, 3), True, axis=0 if convolves else 1
        )
        if isinstance(weight, str):
            return weight
        attributes = node.attributes.values() if convolves else ()
        name = unique_name(graph, f"{scaled.outputs[0].name}/product")
        made = ir.Node("", "Conv" if convolves else "MatMul", [source, weight], attributes)
        made.name = made.outputs[0].name = name
        graph.insert_before(scaled, made)
        replace_node(scaled, made.outputs[0])
        return ""

    def _weight(
        self,
        name: str,
        shape: tuple[int, ...],
        stored: StoredCodes,
        scale: ir.Value | None,
    ) -> ir.Value:
        """The stored float weight; one for all operators that share codes and scales."""
        source = trace_weight(scale)
        key = (name, source.source if source is not None else None, shape)
        if key not in self._made:
            tensor = lazy_tensor(ir.DataType.FLOAT, shape, name, stored.decode)
            self._made[key] = add_initializer(self._main, tensor)
            self.weights[self._made[key].name or ""] = stored
        return self._made[key]

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
        del self.weights[name]
        self.weights[made.name or ""] = turned
        for node in readers:
            _take_place(node.outputs[0], made)

    def _folded(self, graph: ir.Graph, node: ir.Node) -> str:
        """Arithmetic that lwqc writes where there is no low-bit kernel, see `FoldWeights`."""
        found = unpacked_weight(node)
        if isinstance(found, str):
            return found
        name = f"{node.outputs[0].name}/float"
        _take_place(found.value, self._weight(name, found.shape, found.stored, None))
        return ""

    def _drop_idle_imports(self, model: ir.Model) -> None:
        """Forget domains of which no operator is left."""
        used = {node.domain for node in model.graph.all_nodes()}
        for function in model.functions.values():
            used |= {node.domain for node in function}
        for domain in set(model.opset_imports) - used - {""}:
            if domain == MICROSOFT:
                del model.opset_imports[domain]


def _turns(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and (perm is None or list(perm.as_ints()) == [1, 0])


_STEPS: Mapping[tuple[str, str], Callable[[RestoreFloats, ir.Graph, ir.Node], str]] = {
    ("", "DequantizeLinear"): RestoreFloats._dequantize,
    ("com.microsoft", "DequantizeLinear"): RestoreFloats._dequantize,
    ("", "Mul"): RestoreFloats._folded,
    ("com.microsoft", "MatMulNBits"): RestoreFloats._nbits,
    ("com.microsoft", "GatherBlockQuantized"): RestoreFloats._rows,
    ("com.microsoft", "MatMulIntegerToFloat"): RestoreFloats._integer,
    ("com.microsoft", "DynamicQuantizeMatMul"): RestoreFloats._dynamic,
    ("com.microsoft", "DynamicQuantizeLSTM"): RestoreFloats._lstm,
    ("", "MatMulInteger"): RestoreFloats._sums,
    ("", "ConvInteger"): RestoreFloats._sums,
}


def is_quantized(model: ir.Model) -> bool:
    """Whether the model has operators on codes that `RestoreFloats` looks at."""
    return any(
        is_integer_operator(node)
        or (
            (node.domain, node.op_type) in _STEPS
            and (node.op_type != "Mul" or packed_codes(node) or plain_codes(node))
        )
        for node in model.graph.all_nodes()
    )


def _scaled_sums(node: ir.Node) -> tuple[ir.Node, ir.Value] | str:
    """The product that makes floats of integer sums, and the scale of the weight in it."""
    quantized = node.inputs[0].producer() if node.inputs[0] is not None else None
    if quantized is None or quantized.op_type != "DynamicQuantizeLinear":
        return "its codes do not come from DynamicQuantizeLinear"
    cast = _only_reader(node)
    scaled = _only_reader(cast) if cast is not None and cast.op_type == "Cast" else None
    if cast is None or scaled is None or scaled.op_type != "Mul":
        return "its sums are not scaled by a Mul"
    other = next((v for v in scaled.inputs if v is not cast.outputs[0]), None)
    scales = other.producer() if other is not None else None
    if scales is None or scales.op_type != "Mul" or quantized.outputs[1] not in scales.inputs:
        return "its sums are not scaled by both scales"
    rest = [v for v in scales.inputs if v is not quantized.outputs[1]]
    if len(rest) != 1 or rest[0] is None:
        return "its sums are not scaled by both scales"
    return scaled, rest[0]


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.graph is not node.graph:
        return None
    return uses[0].node


def _take_place(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of a value read another one, which also gets its name as a graph output."""
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    name, node = old.name, old.producer()
    if new.producer() is None or new.is_graph_output() or new.graph is not old.graph:
        assert node is not None
        (copy,) = insert_before(node, "Identity", [new], [f"{name}/copy"])
        copy.shape, copy.type = old.shape, old.type
        new = copy
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.shape, new.type = old.shape, old.type  # as the caller declared them
    graph = old.graph
    assert isinstance(graph, ir.Graph)
    old.name, new.name = unique_name(graph, f"{name}/dequantized"), name


def _observed(quantize: ir.Node) -> ActivationRange | str:
    """What the codes of a QuantizeLinear cover."""
    scale, zero = constant(quantize.inputs[1]), constant(operand(quantize, 2))
    if scale is None or scale.size != 1:
        return "its scale is not a single stored number"
    dtype = _code_type(quantize)
    if dtype not in _RANGE:
        return f"codes of type {dtype.name.lower()}"
    step = float(scale.read().reshape(()))
    centre = int(zero.read().reshape(())) if zero is not None else 0
    low, high = _RANGE[dtype]
    return ActivationRange(low=(low - centre) * step, high=(high - centre) * step)


def _code_type(quantize: ir.Node) -> ir.DataType:
    zero = constant(operand(quantize, 2))
    given = ir.DataType(number(quantize, "output_dtype", int(ir.DataType.UINT8)))
    return zero.tensor.dtype if zero is not None else given


def _bits(quantize: ir.Node) -> int:
    return int(_code_type(quantize).bitwidth)


def _quantized_from(value: ir.Value | None) -> tuple[ir.Value | None, ActivationRange | None]:
    """The float tensor behind codes, and its range unless that is found in each run."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return None, None
    if node.op_type == "DynamicQuantizeLinear":
        return node.inputs[0], None
    found = _observed(node)
    return (None, None) if isinstance(found, str) else (node.inputs[0], found)
