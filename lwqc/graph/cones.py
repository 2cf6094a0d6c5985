"""What computes a value from one other value and stored numbers, and what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.model.weights import static_shape, stored_tensor

Array = NDArray[np.float64]
T = TypeVar("T")
_MOST = 16  # nodes
_DOMAIN = ""


@dataclass(frozen=True, eq=False)
class Cone:
    """Nodes that nothing else reads from between a value and the only one it is computed from.

    source: the value read. out: the value computed. nodes: in the order in which they run.
    """

    source: ir.Value
    out: ir.Value
    nodes: tuple[ir.Node, ...]

    def key(self) -> tuple[object, ...]:
        """Equal for cones that compute the same in the same way."""
        number = {self.source: 0}
        rows: list[object] = []
        for node in self.nodes:
            operands = tuple(_operand(v, number) for v in node.inputs)
            attributes = sorted((k, repr(a.value)) for k, a in node.attributes.items())
            rows.append((node.op_type, tuple(attributes), operands))
            number[node.outputs[0]] = len(number)
        return tuple(rows)

    def compute(self, x: Array, opset: int) -> Array:
        """What the cone makes of a source, in float64. opset: of the model's default operators."""
        from onnx.reference import ReferenceEvaluator

        names = {self.source: "x"}
        for node in self.nodes:
            names[node.outputs[0]] = f"v{len(names)}"
        protos: list[onnx.NodeProto] = []
        stored: dict[str, NDArray[np.generic]] = {}
        for node in self.nodes:
            proto = ir.to_proto(node)
            del proto.input[:], proto.output[:]
            for value in node.inputs:
                if value is None or value in names:
                    proto.input.append("" if value is None else names[value])
                    continue
                name = f"c{len(stored)}"
                stored[name] = _wide(value)
                proto.input.append(name)
            proto.output.append(names[node.outputs[0]])
            protos.append(proto)
        graph = onnx.helper.make_graph(
            protos,
            "cone",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, x.shape)],
            [onnx.helper.make_tensor_value_info(names[self.out], onnx.TensorProto.DOUBLE, None)],
            [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()],
        )
        identifier = onnx.helper.make_opsetid(_DOMAIN, opset)
        model = onnx.helper.make_model(graph, opset_imports=[identifier])
        with np.errstate(all="ignore"):
            (result,) = ReferenceEvaluator(model).run(None, {"x": x})
        return np.asarray(result, np.float64)


def cones(
    out: ir.Value, order: Mapping[ir.Node, int], takes: Callable[[ir.Node], bool]
) -> Iterator[Cone]:
    """Every cone that ends in a value, the smallest first.

    order: place of each node of the graph. takes: whether a node may belong to a cone.
    """
    nodes: list[ir.Node] = []
    open_: dict[ir.Value, None] = {out: None}
    while len(nodes) < _MOST:
        producers = {v.producer(): v for v in open_}
        last = max(producers, key=lambda n: -1 if n is None else order.get(n, -1))
        if last is None or last not in order or len(last.outputs) != 1 or not takes(last):
            return
        del open_[producers[last]]
        nodes.append(last)
        open_ |= {v: None for v in last.inputs if v is not None and stored_tensor(v) is None}
        if len(open_) == 1 and _is_closed(nodes, out):
            yield Cone(next(iter(open_)), out, tuple(reversed(nodes)))
        if not open_:
            return


def largest(
    graph: ir.Graph, takes: Callable[[ir.Node], bool], told: Callable[[Cone], T | None]
) -> Iterator[tuple[Cone, T]]:
    """The largest cones that are told to be something, from the last node to the first.

    Each is found before anything is asked of those in front of it, so that it may be replaced.
    """
    order = {node: place for place, node in enumerate(graph)}
    gone: set[ir.Node] = set()
    for node in reversed(order):
        if node in gone or not takes(node):
            continue
        found = None
        for cone in cones(node.outputs[0], order, takes):
            known = told(cone)
            found = found if known is None else (cone, known)
        if found is not None:
            gone |= set(found[0].nodes)
            yield found


def is_elementwise(node: ir.Node, operators: Set[str]) -> bool:
    """Whether a node is one of these operators, with single numbers as stored operands.

    operators: of the default domain, that compute element by element.
    """
    if node.domain != "" or node.op_type not in operators:
        return False
    computed = [v for v in node.inputs if v is not None and stored_tensor(v) is None]
    ranks = [len(v.shape) for v in computed if v.shape is not None]
    if len(ranks) < len(computed):
        return False
    stored = [t for v in node.inputs if (t := stored_tensor(v)) is not None]
    return all(t.size == 1 and len(static_shape(t)) <= max(ranks, default=0) for t in stored)


def along_last(x: Array, rank: int) -> Array:
    """Numbers as the last axis of an array of that rank."""
    return x.reshape((1,) * (rank - 1) + x.shape)


def _is_closed(nodes: Sequence[ir.Node], out: ir.Value) -> bool:
    inner = [n.outputs[0] for n in nodes if n.outputs[0] is not out]
    own = set(nodes)
    return all(not v.is_graph_output() and own.issuperset(v.consumers()) for v in inner)


def _operand(value: ir.Value | None, number: Mapping[ir.Value, int]) -> object:
    if value is None or value in number:
        return None if value is None else number[value]
    array = _wide(value)
    return array.shape, array.tobytes()


def _wide(value: ir.Value) -> NDArray[np.generic]:
    """The numbers of a stored value, floats as float64."""
    tensor = stored_tensor(value)
    assert tensor is not None
    array = tensor.numpy()
    return array.astype(np.float64) if tensor.dtype.is_floating_point() else array
