"""ONNX's own shape inference, in another process: it is native code, and models are strangers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from lwqc.model.child_process import ChildProcess
from lwqc.model.limits import limits

_LEAST_BYTES = 2 << 30  # of the process; weights are left out of what goes there
_SMALL = 1 << 10  # numbers in a tensor that shapes may be computed from


class _Inference(ChildProcess):
    script = Path(__file__).with_name("inference_child.py")


_shared: dict[int, _Inference] = {}


def _process() -> _Inference:
    if os.getpid() not in _shared:  # also after a fork, as pipes are not for two
        _shared.clear()
        _shared[os.getpid()] = _Inference(limits().run)
    return _shared[os.getpid()]


def _ask(name: str, *request: Any) -> Any:
    """An answer within the limits. Raises SessionError."""
    allowed = limits()
    most = max(_LEAST_BYTES, int(allowed.memory))
    return _process().ask(name, most, *request, seconds=allowed.run)


def infer(proto: onnx.ModelProto, *, strict: bool = False, data: bool = False) -> onnx.ModelProto:
    """A copy of a model with the types and shapes that ONNX infers. Leave weights out.

    strict: operands that do not fit an operator are an error; else they end the inference there.
    data: look at the values that shapes are computed from. Raises SessionError.
    """
    answer = _ask("model", proto.SerializeToString(), strict, data)
    return onnx.ModelProto.FromString(answer)


def infer_node(
    node: onnx.NodeProto,
    version: int,
    types: Mapping[str, onnx.TypeProto],
    data: Mapping[str, Any],
) -> dict[str, onnx.TypeProto]:
    """Types of the outputs of one node, by name. Raises SessionError.

    version: of the operator set. types: of the inputs. data: values of some of them, as arrays.
    """
    known = {name: kind.SerializeToString() for name, kind in types.items()}
    answer = _ask("node", node.SerializeToString(), node.domain, version, known, dict(data))
    return {name: onnx.TypeProto.FromString(kind) for name, kind in answer.items()}


def bare(proto: onnx.ModelProto, *, declared: bool = False) -> onnx.ModelProto:
    """The model with weights of its main graph as inputs, which have a type and no data.

    declared: with what it says of outputs and values before them.
    """
    graph = proto.graph
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    light.graph.name = graph.name or "graph"
    light.graph.input.extend(graph.input)
    given = {v.name for v in graph.input}
    for node in graph.node:
        tensor = _weight(node)
        if tensor is None:
            light.graph.node.add().CopyFrom(node)
        else:
            light.graph.input.append(_described(node.output[0], tensor))
    for tensor in graph.initializer:
        if not _is_weight(tensor):
            light.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in given:
            light.graph.input.append(_described(tensor.name, tensor))
    if declared:
        light.graph.output.extend(graph.output)
        light.graph.value_info.extend(graph.value_info)
    else:
        light.graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in graph.output)
    return light


def _weight(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """What a Constant node holds, if that is a weight."""
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name != "value" or not attribute.HasField("t") or not _is_weight(attribute.t):
        return None
    return attribute.t


def _is_weight(tensor: onnx.TensorProto) -> bool:
    """Whether no shape is computed from it."""
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    return external or math.prod(tensor.dims) > _SMALL


def _described(name: str, tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
