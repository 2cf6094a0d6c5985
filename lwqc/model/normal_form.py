"""What ONNX files may write in several ways, in the one way that everything here expects.

Works on the protobuf, before onnx_ir reads it: the runtime takes all these forms, so a stranger's
file may have any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx

from lwqc.errors import InputError
from lwqc.model.same_padding import write_padding
from lwqc.model.untrusted import graph_protos

_OVERRIDABLE_SINCE = 4  # IR version in which initializers need not be graph inputs
_NO_NAMES = frozenset({"", "?", "*", "-1", "None"})  # what exporters write for "unknown"
Nodes = Sequence[onnx.NodeProto]


def normalise(proto: onnx.ModelProto, *, constant_inputs: bool = False) -> list[str]:
    """Bring a model into normal form, in place; returns what a user should know of it.

    Imports: one per domain, the last one where there are two, as the runtime reads them; the domain
    of ONNX is "". Nodes: in topological order, in every graph. Sizes: unknown ones have no name, so
    that no two of them count as equal. Initializers that are graph inputs too: no inputs in IR 3,
    where that is how constants are written, and with `constant_inputs`. SAME padding of dilated
    convolutions: as numbers.

    Raises InputError for nodes that wait for each other in a circle.
    """
    _merge_imports(proto.opset_import)
    for function in proto.functions:
        _merge_imports(function.opset_import)
        _name_domains(function.node)
        _sort(function.node, [*function.input], f"function {function.name}")
    for graph in graph_protos(proto):
        _name_domains(graph.node)
        given = [v.name for v in graph.input] + [t.name for t in graph.initializer]
        _sort(graph.node, given, f"graph {graph.name}")
        for info in (*graph.input, *graph.output, *graph.value_info):
            _forget_sizes(info.type)
    for function in proto.functions:
        for info in function.value_info:
            _forget_sizes(info.type)
    return [*_constants(proto, constant_inputs), *write_padding(graph_protos(proto))]


def _merge_imports(imports: object) -> None:
    versions: dict[str, int] = {}
    for entry in imports:  # type: ignore[attr-defined]
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        versions.pop(domain, None)
        versions[domain] = entry.version
    del imports[:]  # type: ignore[attr-defined]
    for domain, version in versions.items():
        imports.add(domain=domain, version=version)  # type: ignore[attr-defined]


def _name_domains(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        if node.domain == "ai.onnx":
            node.domain = ""


def _forget_sizes(kind: onnx.TypeProto) -> None:
    """Dimensions without a number or a name of their own become unknown."""
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        _forget_sizes(getattr(kind, which).elem_type)
    elif which == "tensor_type" and kind.tensor_type.HasField("shape"):
        for dim in kind.tensor_type.shape.dim:
            named = dim.HasField("dim_param") and dim.dim_param.strip() in _NO_NAMES
            if named or (dim.HasField("dim_value") and dim.dim_value < 0):
                dim.ClearField("value")


def _sort(nodes: object, given: Iterable[str], where: str) -> None:
    """Order nodes so that each comes after those it reads, else as they are."""
    listed: list[onnx.NodeProto] = list(nodes)  # type: ignore[call-overload]
    if _is_sorted(listed, given):
        return
    order = _order(listed)
    if len(order) < len(listed):
        left = next(i for i in range(len(listed)) if i not in set(order))
        raise InputError(
            f"{where}: {listed[left].op_type} {listed[left].name}: waits for its own result"
        )
    moved = [onnx.NodeProto.FromString(listed[i].SerializeToString()) for i in order]
    del nodes[:]  # type: ignore[attr-defined]
    nodes.extend(moved)  # type: ignore[attr-defined]


def _is_sorted(nodes: Nodes, given: Iterable[str]) -> bool:
    later = {name for node in nodes for name in node.output if name} - set(given)
    for node in nodes:
        if any(name in later for name in _reads(node)):
            return False
        later.difference_update(node.output)
    return True


def _order(nodes: Nodes) -> list[int]:
    """Positions of the nodes in topological order, the earliest possible first."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits = [{maker[n] for n in _reads(node) if n in maker} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, sources in enumerate(waits):
        for source in sources:
            readers[source].append(i)
    ready = [i for i, sources in enumerate(waits) if not sources]
    order: list[int] = []
    for i in ready:  # grows while it is read
        order.append(i)
        for reader in readers[i]:
            waits[reader].discard(i)
            if not waits[reader]:
                ready.append(reader)
    return order


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names a node reads, those that its bodies capture included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            own |= {name for inner in body.node for name in inner.output}
            read = {name for inner in body.node for name in _reads(inner)}
            yield from (read | {v.name for v in body.output}) - own


def _constants(proto: onnx.ModelProto, constant_inputs: bool) -> list[str]:
    """Take initializers out of the graph inputs where they are constants."""
    notes = []
    stored = {t.name for t in proto.graph.initializer}
    shared = sorted(v.name for v in proto.graph.input if v.name in stored)
    old = proto.ir_version < _OVERRIDABLE_SINCE
    if shared and (old or constant_inputs):
        kept = [v for v in proto.graph.input if v.name not in stored]
        inputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in kept]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        if not old:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            notes.append(f"inputs with a default are constants now: {shared[0]}{more}")
    if old:
        notes.append(
            f"IR version {proto.ir_version} became {_OVERRIDABLE_SINCE}: "
            "initializers are no graph inputs there"
        )
        proto.ir_version = _OVERRIDABLE_SINCE
    return notes
