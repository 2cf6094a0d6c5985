"""What every model must be between two passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from lwqc.graph.value_types import light
from lwqc.model.names import bodies, own_values, scopes


def faults(model: ir.Model) -> list[str]:
    """Why a model is not valid, one line each; none where it is.

    Names of values are unique in the whole model. What a node reads was made before it, in its own
    graph or one around it. ONNX's checker, with its inference of shapes, finds nothing.
    """
    own = [*_repeated(model), *_dangling(model.graph, set())]
    return own or list(_checked(model))


def _repeated(model: ir.Model) -> Iterator[str]:
    values = (v for _, graph in scopes(model.graph) for v in own_values(graph))
    count = Counter(value.name for value in values if value.name)
    return (f"{name}: is the name of {n} values" for name, n in count.items() if n > 1)


def _dangling(graph: ir.Graph, around: set[ir.Value]) -> Iterator[str]:
    known = {*around, *graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                yield f"{node.op_type} {node.name}: reads {value.name}, which nothing made before"
        for _, body in bodies(node):
            yield from _dangling(body, known)
        known.update(node.outputs)
    for value in graph.outputs:
        if value not in known:
            yield f"graph {graph.name}: returns {value.name}, which nothing makes"


def _checked(model: ir.Model) -> Iterator[str]:
    try:
        onnx.checker.check_model(light(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        yield " ".join(str(error).split())[:300]
