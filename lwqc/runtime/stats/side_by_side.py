"""Two versions of a model in one graph, so that one run gives statistics of both."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.model.weights import static_shape

PREFIX = "lwqc.pruned/"


def side_by_side(
    original: ir.Model, pruned: ir.Model, prefix: str = PREFIX, own: Collection[str] = ()
) -> ir.Model:
    """One model that feeds its inputs to both graphs and returns the outputs of both.

    Values, nodes and weights of `pruned` get the prefix; weights that are the same object in both
    are stored once. Both models are left alone. The shapes of the pruned model's values keep
    their rank only. `pruned` may lack inputs that the original has.

    own: inputs of `pruned` that are not the original's, whatever their name; they get the prefix.

    Raises InputError when inputs, opsets or functions of the two differ otherwise.
    """
    _check(original, pruned, own)
    both, other = original.clone(), pruned.clone()
    for domain, version in other.opset_imports.items():
        both.opset_imports.setdefault(domain, version)
    both.functions.update({i: f for i, f in other.functions.items() if i not in both.functions})
    outputs = list(other.graph.outputs)
    other.graph.outputs.clear()  # an output may be stored, and belongs to one graph at a time
    moved = _join_inputs(both.graph, other.graph, prefix, own)
    moved |= _move_weights(both.graph, other.graph, prefix)
    _move_nodes(both.graph, other.graph, prefix)
    outputs = [moved.get(v, v) for v in outputs]
    both.graph.outputs.extend(v for v in outputs if v not in both.graph.outputs)
    return both


def other_name(value: ir.Value, prefix: str = PREFIX) -> str:
    """Name of a value of the pruned model in the joint graph; inputs are shared."""
    return (value.name or "") if value.is_graph_input() else f"{prefix}{value.name}"


def _check(original: ir.Model, pruned: ir.Model, own: Collection[str]) -> None:
    left, right = _signature(original.graph), _signature(pruned.graph)
    right = {name: kind for name, kind in right.items() if name not in own}
    if not right.items() <= left.items():
        raise InputError(f"the pruned model's inputs differ: {right}, the original's are {left}")
    for domain, version in pruned.opset_imports.items():
        if original.opset_imports.get(domain, version) != version:
            raise InputError(
                f"the pruned model imports opset {version} of {domain or 'ai.onnx'!r}, "
                f"the original {original.opset_imports[domain]}"
            )
    for identifier, function in pruned.functions.items():
        known = original.functions.get(identifier)
        if known is not None and _bytes(known) != _bytes(function):
            raise InputError(f"function {function.name}: differs between original and pruned model")


def _signature(graph: ir.Graph) -> dict[str, str]:
    """Type and shape of each input that is not a weight."""
    return {
        v.name or "": f"{v.dtype.name if v.dtype else '?'}{'' if v.shape is None else v.shape}"
        for v in graph.inputs
        if v.name not in graph.initializers
    }


def _bytes(function: ir.Function) -> bytes:
    return ir.serde.serialize_function(function).SerializeToString(deterministic=True)


def _join_inputs(
    both: ir.Graph, other: ir.Graph, prefix: str, own: Collection[str]
) -> dict[ir.Value, ir.Value]:
    """Let the other graph read the inputs of this one, and take over its own."""
    named = {v.name: v for v in both.inputs}
    apart = [v for v in other.inputs if v.name in own]
    pairs = {
        v: named[v.name]
        for v in other.inputs
        if v.name not in own and v.name not in other.initializers
    }
    other.inputs.clear()
    for value in apart:
        value.name = f"{prefix}{value.name}"
    both.inputs.extend(apart)
    return _redirect(pairs)


def _move_weights(both: ir.Graph, other: ir.Graph, prefix: str) -> dict[ir.Value, ir.Value]:
    """Take over the other graph's weights; what is stored in both is shared."""
    shared: dict[ir.Value, ir.Value] = {}
    for name, value in list(other.initializers.items()):
        mine = both.initializers.get(name)
        if mine is not None and mine.const_value is value.const_value:
            shared[value] = mine
            del other.initializers[name]
            continue
        _rename_weight(value, prefix)
        del other.initializers[prefix + name]
        both.register_initializer(value)
    return _redirect(shared)


def _redirect(pairs: Mapping[ir.Value, ir.Value]) -> dict[ir.Value, ir.Value]:
    for old, new in pairs.items():
        old.replace_all_uses_with(new, replace_graph_outputs=False)
    return dict(pairs)


def _rename_weight(value: ir.Value, prefix: str) -> None:
    """Rename a value without renaming its tensor, which belongs to the pruned model too."""
    tensor = value.const_value
    if tensor is not None:
        value.const_value = ir.LazyTensor(
            lambda: tensor,
            dtype=tensor.dtype,
            shape=ir.Shape(static_shape(tensor)),
            name=tensor.name,
        )
    value.name = f"{prefix}{value.name}"


def _move_nodes(both: ir.Graph, other: ir.Graph, prefix: str) -> None:
    """Append the other graph's nodes, renamed."""
    for graph in other.subgraphs():
        for value in list(graph.initializers.values()):  # renaming changes the mapping
            _rename_weight(value, prefix)
        for value in graph.inputs:
            value.name = f"{prefix}{value.name}"
    for node in other.all_nodes():
        if node.name:
            node.name = f"{prefix}{node.name}"
        for value in node.outputs:
            _rename(value, prefix)
    nodes = list(other)
    other.remove(nodes)
    both.extend(nodes)


def _rename(value: ir.Value, prefix: str) -> None:
    if value.name:
        value.name = f"{prefix}{value.name}"
    if value.shape is not None:
        value.shape = ir.Shape([None] * value.shape.rank())
