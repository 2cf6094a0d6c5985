"""ONNX's own shape inference, in another process: it is native code, and models are strangers."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx

from lwqc.model.child_process import ChildProcess
from lwqc.model.limits import limits

_LEAST_BYTES = 2 << 30  # of the process; weights are left out of what goes there
_SMALL = 1 << 10  # numbers in a tensor that shapes may be computed from
_KEPT, _KEPT_BYTES = 1 << 12, 1 << 14  # requests about nodes whose answers are kept; of one such


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
    plain, names = _renamed(node)
    known = {names[n]: kind.SerializeToString() for n, kind in types.items()}
    arrays = {names[n]: array for n, array in data.items()}
    request = pickle.dumps((plain.SerializeToString(), node.domain, version, known, arrays))
    answer = (_kept if len(request) <= _KEPT_BYTES else _node_outputs)(request)
    return {
        name: onnx.TypeProto.FromString(answer[names[name]])
        for name in node.output
        if name and names[name] in answer
    }


def _node_outputs(request: bytes) -> dict[str, bytes]:
    answer: dict[str, bytes] = _ask("node", *pickle.loads(request))
    return answer


_kept = lru_cache(_KEPT)(_node_outputs)  # what failed is asked again


def _renamed(node: onnx.NodeProto) -> tuple[onnx.NodeProto, dict[str, str]]:
    """The node by numbered names, and these by its own: layers of a network ask the same.

    Bodies use names from around them, which stay.
    """
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    used = dict.fromkeys(n for n in (*node.input, *node.output) if n)
    names = {"": ""} | {name: name for name in used}
    if not any(a.HasField("g") or a.graphs for a in node.attribute):
        names |= {name: str(number) for number, name in enumerate(used)}
        plain.ClearField("name")
        plain.ClearField("doc_string")
        plain.ClearField("metadata_props")
        plain.input[:] = [names[n] for n in node.input]
        plain.output[:] = [names[n] for n in node.output]
    return plain, names


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
