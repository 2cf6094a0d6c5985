"""Which stored tensors are weights, as training sees them, and why others are none."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lwqc.learn.building import operation_of
from lwqc.learn.functions.codes import RANGES
from lwqc.learn.grids import Grid
from lwqc.learn.stored import Stored, stored_tensors
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import static_shape, stored_tensor

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
# What a stored tensor goes through on its way to the operator that uses it.
_MOVES = {
    "Cast", "CastLike", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
_TABLES = {"Gather", "GatherElements", "GatherND"}
_PRODUCTS = {"Conv", "Gemm", "MatMul"}
_SUMS = {"Add", "Div", "Mul", "Sub"}
_FEW = 64  # whole numbers that are hardly codes of a weight
_HIDDEN = -50.0  # what masks add to scores that are not to count; exp(-50) is nothing
Use = tuple[ir.Node, int]


@dataclass
class Uses:
    """Who reads what in a model.

    readers: nodes and indices by value. moving: values that depend on float inputs of the model,
    as activations do, or on products of what is counted with weights. counted: those that depend
    on its integers and on sizes alone.
    """

    readers: dict[ir.Value, list[Use]] = field(default_factory=dict)
    moving: set[ir.Value] = field(default_factory=set)
    counted: set[ir.Value] = field(default_factory=set)
    given: set[ir.Value] = field(default_factory=set)

    @staticmethod
    def of(model: ir.Model) -> Uses:
        """Of all graphs of a model, functions included."""
        uses = Uses(given=set(model.graph.inputs))
        for value in model.graph.inputs:
            floats = value.dtype is None or value.dtype in FLOATS
            (uses.moving if floats else uses.counted).add(value)
        uses._visit(model.graph, model)
        return uses

    def _visit(self, graph: ir.Graph, model: ir.Model) -> None:
        for node in graph:
            for index, value in enumerate(node.inputs):
                if value is not None:
                    self.readers.setdefault(value, []).append((node, index))
            for attribute in node.attributes.values():
                if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
                    body = attribute.as_graph()
                    self.moving |= set(body.inputs)
                    self._visit(body, model)
                    for inside, outside in zip(body.outputs, node.outputs, strict=False):
                        self._pass_on({inside}, outside)
            function = model.functions.get(node.op_identifier())
            if function is not None:
                for given, inside in zip(node.inputs, function.inputs, strict=False):
                    if given is not None:
                        self._pass_on({given}, inside)
                self._visit(function.graph, model)
                for inside, outside in zip(function.outputs, node.outputs, strict=False):
                    self._pass_on({inside}, outside)
                continue
            self._classify(node)

    def _pass_on(self, sources: set[ir.Value], target: ir.Value) -> None:
        if sources & self.moving:
            self.moving.add(target)
        elif sources & self.counted:
            self.counted.add(target)

    def _classify(self, node: ir.Node) -> None:
        read = {v for v in node.inputs if v is not None}
        table = node.inputs[0] if node.inputs else None
        if node.op_type in ("Shape", "Size"):
            self.counted.update(node.outputs)
        elif read & self.moving or (
            node.op_type in _TABLES and table is not None and table not in self.counted
            and (table.dtype is None or table.dtype in FLOATS)
        ):  # fmt: skip
            self.moving.update(node.outputs)
        elif read & self.counted:
            sums = any(_sums_up(node, index) for index in range(len(node.inputs)))
            (self.moving if sums else self.counted).update(node.outputs)


def why_no_weights(model: ir.Model) -> dict[ir.Value, str]:
    """Why a stored float tensor is no weight; nothing for those that are.

    Weights are floats with more than one element that meet activations, or that a table of
    indices takes rows of, but for: statistics, scales, sizes and other operands that say how an
    operator works; masks, whose values are 0 or at most -50; frequencies, which meet positions;
    constants of single channels that are applied to an input of the model.
    """
    uses, found = Uses.of(model), {}
    for stored in stored_tensors(model):
        if stored.tensor.dtype in FLOATS:
            reason = _reason(stored, uses, model)
            if reason:
                found[stored.value] = reason
    return found


def _reason(stored: Stored, uses: Uses, model: ir.Model) -> str:
    shape = static_shape(stored.tensor)
    if int(np.prod(shape)) <= 1:
        return "a single number"
    reached = _reached(stored.value, uses, model)
    if not reached:
        return "nothing reads it"
    if all(_is_fixed(node, index) for node, index in reached):
        return "it says how an operator works"
    if not any(_meets(node, index, uses) for node, index in reached):
        return "it meets no activations"
    vector = sum(d > 1 for d in shape) <= 1
    if vector and all(
        n.op_type in _SUMS and any(v in uses.given for v in n.inputs) for n, _ in reached
    ):
        return "it is applied to an input of the model"
    values = read_array(stored.tensor).astype(np.float32)
    if bool(((values == 0) | (values <= _HIDDEN)).all()) and bool((values < 0).any()):
        return "a mask"
    return ""


def _is_fixed(node: ir.Node, index: int) -> bool:
    operation = operation_of(node)
    return operation is not None and index in (*operation.numbers, *operation.fixed)


def _meets(node: ir.Node, index: int, uses: Uses) -> bool:
    others = [v for i, v in enumerate(node.inputs) if i != index and v is not None]
    table = node.op_type in _TABLES and index == 0
    return table or _sums_up(node, index) or any(v in uses.moving for v in others)


def _sums_up(node: ir.Node, index: int) -> bool:
    """Whether a product sums over several numbers of a stored operand, as frequencies never do."""
    value = node.inputs[index]
    tensor = stored_tensor(value)
    if tensor is None or tensor.dtype not in FLOATS or node.op_type not in _PRODUCTS:
        return False
    shape = static_shape(tensor)
    if node.op_type == "Conv":
        return index == 1 and int(np.prod(shape[1:])) > 1
    turned = node.attributes.get("transB" if index else "transA")
    last = (index == 0) != (turned is not None and turned.as_int() == 1)
    return len(shape) > 1 and shape[-1 if last else -2] > 1


def behind(value: ir.Value, uses: Uses) -> list[Use]:
    """Uses of a value, and of what it becomes by being moved."""
    found: list[Use] = []
    waiting = [value]
    while waiting:
        for node, index in uses.readers.get(waiting.pop(), ()):
            found.append((node, index))
            if moves(node, index):
                waiting += node.outputs
    return found


def moves(node: ir.Node, index: int) -> bool:
    """Whether a node gives that input as it is, but for its shape and type."""
    return node.op_type in _MOVES and index == 0


def unmoved(value: ir.Value | None) -> ir.Value | None:
    """What a value was before it was moved."""
    while value is not None and (node := value.producer()) is not None and moves(node, 0):
        value = node.inputs[0]
    return value


def _reached(value: ir.Value, uses: Uses, model: ir.Model) -> list[Use]:
    """Uses behind movements, and behind arithmetic with other stored tensors."""
    found: list[Use] = []
    seen, waiting = {value}, [value]
    while waiting:
        for node, index in uses.readers.get(waiting.pop(), ()):
            function = model.functions.get(node.op_identifier())
            if function is not None:
                behind = [function.inputs[index]] if index < len(function.inputs) else []
            elif _is_fixed(node, index):
                found.append((node, index))
                continue
            elif moves(node, index) or _of_constants(node, index, uses):
                behind = list(node.outputs)
            else:
                found.append((node, index))
                continue
            new = [v for v in behind if v not in seen]
            seen.update(new)
            waiting += new
    return found


def _of_constants(node: ir.Node, index: int, uses: Uses) -> bool:
    """Whether everything that a node reads is stored, or computed of what is stored."""
    read = {v for v in node.inputs if v is not None}
    table = node.op_type in _TABLES and index == 0
    return not table and not read & (uses.moving | uses.counted)


def code_grids(model: ir.Model) -> dict[ir.Value, Grid | str]:
    """The codes that each stored tensor of codes may hold; or why they cannot be trained.

    Of tensors that a quantized operator reads as codes, and of those of 8 bits that might be codes.
    """
    uses, found = Uses.of(model), dict[ir.Value, Grid | str]()
    for stored in stored_tensors(model):
        readers = uses.readers.get(stored.value, [])
        kind = stored.tensor.dtype
        if kind not in RANGES:
            continue
        if not any(_reads_codes(n, i) for n, i in readers):
            beside = all((o := operation_of(n)) is not None and o.codes for n, _ in readers)
            if (
                kind.bitwidth <= 8
                and int(np.prod(static_shape(stored.tensor))) > _FEW
                and not beside
            ):
                found[stored.value] = "whole numbers that no quantized operator reads"
            continue
        others = sorted({n.op_type for n, i in readers if not _reads_codes(n, i)})
        grids = {_grid(n, kind) for n, i in readers if _reads_codes(n, i)}
        if others:
            found[stored.value] = f"its codes are read by {', '.join(others)} too"
        elif len(grids) > 1:
            found[stored.value] = "its codes are packed in two ways"
        elif int(np.prod(static_shape(stored.tensor))) <= 1:
            found[stored.value] = "a single number"
        else:
            found[stored.value] = grids.pop()
    return found


def _grid(node: ir.Node, kind: ir.DataType) -> Grid:
    operation = operation_of(node)
    if operation is None or not operation.packed or kind is not ir.DataType.UINT8:
        return Grid(kind)
    bits = node.attributes.get("bits")
    return Grid(kind, 4 if bits is None else bits.as_int())


def _reads_codes(node: ir.Node, index: int) -> bool:
    operation = operation_of(node)
    return operation is not None and index in operation.codes
