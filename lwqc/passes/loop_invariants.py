"""Values that loops carry without changing them, read from outside instead."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.model.edit import insert_before
from lwqc.model.names import unique_name
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

# Where what is carried begins: among the inputs of the node and of its body, among the outputs of
# its body. Scan says nothing of whether it goes on.
_CARRIED = {"Loop": (2, 1), "Scan": (0, 0)}


_LOST = (
    "ONNX Runtime loses a state that the body of a Scan returns as it is: outputs are those of the "
    "standard, not those that it computes of the original"
)


class LoopInvariants(Pass):
    """Let the body of a loop read what never changes in it from the graph around it.

    Converters of frameworks whose loops see only their own variables pass weights through every
    step as state; then no analysis sees that a product in the body is with a weight.
    Matches: Loop and Scan with a carried value that the body returns as it is.
    Rewrites to: the same loop without it; what reads its last value reads its first. Exact.
    Leaves alone: Scan of operator sets before 9, which goes over batches.
    """

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match, inner loops first, which may be all that changed a value."""
        changes = 0
        for node in reversed(list(model.graph.all_nodes())):
            if node.graph is not None and (found := carried_unchanged(node)):
                _read_from_outside(node, found)
                changes += len(found)
        return changes


def carried_unchanged(node: ir.Node) -> list[int]:
    """Which of the values that a loop carries its body returns as they are; by their order."""
    body = body_of(node)
    if body is None or (node.op_type == "Scan" and (node.version or 9) < 9):
        return []
    first_in, first_out = _CARRIED[node.op_type]
    pairs = zip(
        node.inputs[first_in:], body.inputs[first_in:], body.outputs[first_out:], strict=False
    )
    carried = _number_carried(node, body)
    return [
        index
        for index, (outer, own, returned) in enumerate(pairs)
        if index < carried and outer is not None and _root(returned) is own
    ]


def lost_states(model: ir.Model) -> list[str]:
    """What is to be said of each Scan with a state that its body returns as it is."""
    found = []
    for node in model.graph.all_nodes():
        body = body_of(node)
        if body is not None and node.op_type == "Scan":
            same = (body.outputs[i] is body.inputs[i] for i in carried_unchanged(node))
            found += [f"{node.name or node.outputs[0].name}: {_LOST}"] if any(same) else []
    return found


def body_of(node: ir.Node) -> ir.Graph | None:
    """The body of a Loop or Scan; None for other nodes."""
    attribute = node.attributes.get("body")
    if node.domain != "" or node.op_type not in _CARRIED or attribute is None:
        return None
    return attribute.as_graph()


def _number_carried(node: ir.Node, body: ir.Graph) -> int:
    if node.op_type == "Loop":
        return len(body.inputs) - 2
    return len(body.inputs) - node.attributes["num_scan_inputs"].as_int()


def _root(value: ir.Value) -> ir.Value:
    """What a value is a copy of."""
    while (node := value.producer()) is not None and (node.domain, node.op_type) == (
        "",
        "Identity",
    ):
        source = node.inputs[0]
        if source is None:
            break
        value = source
    return value


def _read_from_outside(node: ir.Node, carried: list[int]) -> None:
    body, graph = body_of(node), node.graph
    if body is None or graph is None:
        raise ValueError(f"{node.name} is no loop of a graph")
    first_in, first_out = _CARRIED[node.op_type]
    for index in reversed(carried):
        own, returned = body.inputs[first_in + index], body.outputs[first_out + index]
        body.outputs.pop(first_out + index)
        _drop_copies(returned)
        _copy_at_the_end(body, own)
        own.replace_all_uses_with(_outer(node, index))
        body.inputs.pop(first_in + index)
    for index in carried:
        _replace_last(node, index)
    left = [out for index, out in enumerate(node.outputs) if index not in carried]
    if left:
        graph.insert_before(node, _narrower(node, carried, left))
    graph.remove(node, safe=True)


def _drop_copies(value: ir.Value) -> None:
    """Remove the Identity nodes that made what nothing reads now."""
    node = value.producer()
    while node is not None and node.graph is not None:
        (made,), (source,) = node.outputs, node.inputs
        if made.uses() or made.is_graph_output() or source is None:
            return
        node.graph.remove(node, safe=True)
        node = source.producer()


def _copy_at_the_end(body: ir.Graph, value: ir.Value) -> None:
    """Let the body return copies where it returns the value: it may return no value of outside."""
    for index, returned in enumerate(body.outputs):
        if returned is value:
            copy = ir.Value(name=unique_name(body, f"{value.name}/copy"))
            copy.type, copy.shape = value.type, value.shape
            body.append(ir.node("Identity", [value], outputs=[copy], name=f"{copy.name}/Identity"))
            body.outputs[index] = copy


def _outer(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[_CARRIED[node.op_type][0] + index]
    if value is None:
        raise ValueError(f"{node.name}: nothing is carried at {index}")
    return value


def _replace_last(node: ir.Node, index: int) -> None:
    """Give readers of a last value the first one, which it is."""
    last, first = node.outputs[index], _outer(node, index)
    if last.is_graph_output():
        (copy,) = insert_before(node, "Identity", [first], [f"{last.name}/copy"])
        copy.type, copy.shape = last.type, last.shape
        last.replace_all_uses_with(copy, replace_graph_outputs=True)
        last.name, copy.name = copy.name, last.name
    else:
        last.replace_all_uses_with(first)


def _narrower(node: ir.Node, carried: list[int], left: list[ir.Value]) -> ir.Node:
    """The loop without what is carried there; its outputs take the places of those left."""
    first_in, _ = _CARRIED[node.op_type]
    inputs = [v for i, v in enumerate(node.inputs) if i - first_in not in carried]
    attributes = dict(node.attributes)
    node.attributes.clear()
    new = ir.Node(
        node.domain, node.op_type, inputs, attributes, num_outputs=len(left), name=node.name,
        doc_string=node.doc_string, metadata_props=node.metadata_props,
    )  # fmt: skip
    for old, value in zip(left, new.outputs, strict=True):
        name = old.name
        value.type, value.shape = old.type, old.shape
        value.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        old.name, value.name = None, name
    return new
