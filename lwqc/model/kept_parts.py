"""Parts of a file that the model in memory does not have, put back when it is written.

onnx_ir cannot read map types, so the nodes at the end that make maps (ZipMap of scikit-learn's
classifiers) are cut off. The names of sizes in the signature and the parameters of
`quantization_annotation` get lost on the way. All of them travel with the model as one GraphProto
in its metadata, which clones keep: nodes are the tail, inputs and outputs the signature. Beside it
stands whether the file states the type of any value inside: what it leaves to be inferred, files
made of it leave to be inferred too.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from itertools import chain, count

import onnx
import onnx_ir as ir

from lwqc.errors import InputError, SessionError
from lwqc.model.inference import bare, infer
from lwqc.model.untrusted import graph_protos

KEY = "lwqc.kept_parts"  # of the metadata; never in a file
_BARE = "lwqc.bare"  # the same


def keep_parts(proto: onnx.ModelProto) -> None:
    """Store the parts of a file in its metadata, and cut map values off, in place.

    Call it before sizes are forgotten. Raises InputError for map values that the rest reads.
    """
    graph = proto.graph
    stored = {t.name for t in graph.initializer}
    kept = onnx.GraphProto(name="kept")
    kept.input.extend(v for v in graph.input if v.name not in stored)
    kept.output.extend(graph.output)
    kept.quantization_annotation.extend(graph.quantization_annotation)
    parameters = {
        entry.value
        for annotation in graph.quantization_annotation
        for entry in annotation.quant_parameter_tensor_names
    }
    kept.initializer.extend(
        t
        for t in graph.initializer
        if t.name in parameters and t.data_location != onnx.TensorProto.EXTERNAL
    )
    _cut_maps(proto, kept)
    del graph.quantization_annotation[:]
    entries = [(e.key, e.value) for e in proto.metadata_props if e.key not in (KEY, _BARE)]
    if not any(inner.value_info for inner in graph_protos(proto)):
        entries.append((_BARE, ""))
    text = base64.b64encode(kept.SerializeToString(deterministic=True)).decode("ascii")
    entries.append((KEY, text))
    del proto.metadata_props[:]
    for key, value in entries:
        proto.metadata_props.add(key=key, value=value)


def forget_parts(model: ir.Model) -> None:
    """Let a model be written as it is: for copies that have other outputs."""
    model.metadata_props.pop(KEY, None)
    model.metadata_props.pop(_BARE, None)


def leave_to_inference(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Take the types of inner values out of what is to be written, where the file has none.

    Call it after `put_back`. model: that `proto` was made of.
    """
    if _BARE in model.metadata_props:
        for graph in graph_protos(proto):
            del graph.value_info[:]


def put_back(proto: onnx.ModelProto, stored: Iterable[str]) -> None:
    """Put the parts back into a model that was made from the file, in place.

    stored: names of all initializers, whether they are in `proto` or not.
    """
    text = next((e.value for e in proto.metadata_props if e.key == KEY), None)
    if text is None:
        return
    entries = [(e.key, e.value) for e in proto.metadata_props if e.key not in (KEY, _BARE)]
    del proto.metadata_props[:]
    for key, value in entries:
        proto.metadata_props.add(key=key, value=value)
    kept = onnx.GraphProto.FromString(base64.b64decode(text))
    _put_tail_back(proto, kept)
    _put_sizes_back(proto.graph.input, kept.input)
    _put_sizes_back(proto.graph.output, kept.output)
    _put_annotations_back(proto.graph, kept, set(stored))


def _cut_maps(proto: onnx.ModelProto, kept: onnx.GraphProto) -> None:
    """Move the nodes that make or read maps from the graph to the kept parts."""
    graph = proto.graph
    for value in graph.input:
        if _has_map(value.type):
            raise InputError(f"input {value.name}: is a map; only tensors are supported")
    if not any(_has_map(v.type) for v in (*graph.output, *graph.value_info)):
        return
    types = _types(proto)
    maps = {name for name, kind in types.items() if _has_map(kind)}
    tail = [n for n in graph.node if any(v in maps for v in (*n.input, *n.output))]
    made = {name for n in tail for name in n.output if name}
    rest = [n for n in graph.node if n not in tail]
    read = {name for n in rest for name in n.input}
    if read & made:
        raise InputError(f"value {min(read & made)}: is made of a map; only outputs may be maps")
    kept.node.extend(tail)
    for entry in proto.opset_import:
        if entry.domain in {n.domain for n in tail}:
            kept.metadata_props.add(key=entry.domain, value=str(entry.version))
    outputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in graph.output]
    left = {v.name: v for v in outputs if v.name not in made}
    for name in dict.fromkeys(n for node in tail for n in node.input if n and n not in made):
        left.setdefault(name, onnx.ValueInfoProto(name=name, type=types.get(name)))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in rest]
    infos = [v for v in graph.value_info if v.name not in made and not _has_map(v.type)]
    infos = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in infos]
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.output.extend(left.values())
    graph.value_info.extend(infos)


def _has_map(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return _has_map(getattr(kind, which).elem_type)
    return bool(which == "map_type")


def _types(proto: onnx.ModelProto) -> Mapping[str, onnx.TypeProto]:
    """Types of the main graph's values, as far as the file and ONNX tell them."""
    try:
        graph = infer(bare(proto, declared=True)).graph
    except SessionError:
        graph = proto.graph
    types = {t.name: onnx.TypeProto() for t in graph.initializer}
    for tensor in graph.initializer:
        types[tensor.name].tensor_type.elem_type = tensor.data_type
    return types | {v.name: v.type for v in (*graph.value_info, *graph.input, *graph.output)}


def _put_tail_back(proto: onnx.ModelProto, kept: onnx.GraphProto) -> None:
    graph = proto.graph
    made = {name for node in kept.node for name in node.output if name}
    feeds = {name for node in kept.node for name in node.input if name and name not in made}
    now = {v.name: onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in graph.output}
    if not kept.node or not feeds <= set(now):
        return
    graph.node.extend(kept.node)
    imported = {entry.domain for entry in proto.opset_import}
    for entry in kept.metadata_props:
        if entry.key not in imported:
            proto.opset_import.add(domain=entry.key, version=int(entry.value))
    signature = [v.name for v in kept.output]
    outputs = [
        v if v.name in made else now[v.name] for v in kept.output if v.name in made | set(now)
    ]
    outputs += [v for name, v in now.items() if name not in feeds and name not in signature]
    inner = [v for name, v in now.items() if name in feeds and name not in signature]
    del graph.output[:]
    graph.output.extend(outputs)
    graph.value_info.extend(inner)


def _put_sizes_back(
    now: Iterable[onnx.ValueInfoProto], kept: Iterable[onnx.ValueInfoProto]
) -> None:
    """Write sizes as the file has them, but for numbers that were changed on purpose."""
    before = {v.name: v.type for v in kept}
    for value in now:
        if value.name in before:
            _put_type_back(value.type, before[value.name])


def _put_type_back(now: onnx.TypeProto, before: onnx.TypeProto) -> None:
    which = before.WhichOneof("value")
    if which != "tensor_type":
        if which is not None:
            now.CopyFrom(before)
        return
    if now.WhichOneof("value") != which:
        return
    own, old = now.tensor_type, before.tensor_type
    if not old.HasField("shape"):
        own.ClearField("shape")
        return
    same_rank = own.HasField("shape") and len(own.shape.dim) == len(old.shape.dim)
    changed = own.shape.dim if same_rank else ()
    dims = [
        a if a.HasField("dim_value") and b.HasField("dim_value") and b.dim_value >= 0 else b
        for a, b in zip(changed, old.shape.dim, strict=False)
    ] or list(old.shape.dim)
    copies = [onnx.TensorShapeProto.Dimension.FromString(d.SerializeToString()) for d in dims]
    own.shape.ClearField("dim")
    own.shape.SetInParent()
    own.shape.dim.extend(copies)


def _put_annotations_back(graph: onnx.GraphProto, kept: onnx.GraphProto, stored: set[str]) -> None:
    """Annotations of tensors that still exist, with the parameters that only they refer to."""
    held = stored | {t.name for t in graph.initializer}
    taken = held | {n for node in graph.node for n in node.output} | {v.name for v in graph.input}
    parameters = {t.name: t for t in kept.initializer}
    renamed: dict[str, str] = {}
    for annotation in kept.quantization_annotation:
        entries = annotation.quant_parameter_tensor_names
        if annotation.tensor_name not in taken:
            continue
        if any(e.value not in held and e.value not in parameters for e in entries):
            continue
        for entry in entries:
            if entry.value not in held and entry.value not in renamed:
                parameter = parameters[entry.value]
                renamed[entry.value] = parameter.name = _free(entry.value, taken)
                taken.add(parameter.name)
                graph.initializer.append(parameter)
            entry.value = renamed.get(entry.value, entry.value)
        graph.quantization_annotation.append(annotation)


def _free(name: str, taken: set[str]) -> str:
    """The name, or with a number where something that was added since has it."""
    numbered = (f"{name}_{i}" for i in count(1))
    return next(n for n in chain([name], numbered) if n not in taken)
