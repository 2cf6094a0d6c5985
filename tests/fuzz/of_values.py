"""Mutations of values: types, shapes, names and initializers."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from tests.fuzz.kinds import (
    ODD_NAMES,
    NothingFits,
    Rng,
    extreme,
    graphs,
    infos,
    mutation,
    nodes,
    pick,
    tensors,
    value_names,
)

SIZES = ("n", "", "?", "-1", "n+1", "2*n", "9**9**9", "__import__('os')", "n/0", "batch size")


@mutation("types")
def other_element_type(rng: Rng, proto: onnx.ModelProto) -> None:
    info = pick(rng, [v for v in infos(proto) if v.type.HasField("tensor_type")])
    info.type.tensor_type.elem_type = int(rng.integers(0, 27))


@mutation("types")
def no_type(rng: Rng, proto: onnx.ModelProto) -> None:
    pick(rng, infos(proto)).ClearField("type")


@mutation("types")
def no_tensor(rng: Rng, proto: onnx.ModelProto) -> None:
    info = pick(rng, infos(proto))
    kind = pick(rng, ("sequence_type", "optional_type", "map_type", "sparse_tensor_type"))
    inner = onnx.TypeProto.FromString(info.type.SerializeToString())
    info.ClearField("type")
    made = getattr(info.type, kind)
    if kind in ("sequence_type", "optional_type"):
        made.elem_type.CopyFrom(inner)
    elif kind == "map_type":
        made.key_type = pick(rng, (7, 8, 0))
        made.value_type.CopyFrom(inner)
    else:
        made.elem_type = 1


@mutation("shapes")
def extreme_size(rng: Rng, proto: onnx.ModelProto) -> None:
    shaped = [v for v in infos(proto) if v.type.tensor_type.shape.dim]
    dim = pick(rng, pick(rng, shaped).type.tensor_type.shape.dim)
    dim.dim_value = extreme(rng)


@mutation("shapes")
def named_size(rng: Rng, proto: onnx.ModelProto) -> None:
    shaped = [v for v in infos(proto) if v.type.tensor_type.shape.dim]
    dim = pick(rng, pick(rng, shaped).type.tensor_type.shape.dim)
    dim.dim_param = pick(rng, SIZES)


@mutation("shapes")
def other_rank(rng: Rng, proto: onnx.ModelProto) -> None:
    shaped = [v for v in infos(proto) if v.type.tensor_type.shape.dim]
    shape = pick(rng, shaped).type.tensor_type.shape
    if rng.random() < 0.5:
        del shape.dim[-1]
    else:
        for _ in range(pick(rng, (1, 1, 2, 70))):
            shape.dim.add().dim_value = pick(rng, (1, 2, 8))


@mutation("shapes")
def no_shape(rng: Rng, proto: onnx.ModelProto) -> None:
    shaped = [v for v in infos(proto) if v.type.tensor_type.HasField("shape")]
    pick(rng, shaped).type.tensor_type.ClearField("shape")


@mutation("names")
def rename_everywhere(rng: Rng, proto: onnx.ModelProto) -> None:
    """A value gets an odd name, or that of another one."""
    old = pick(rng, value_names(proto))
    new = pick(rng, (*ODD_NAMES, *value_names(proto)))
    for node in nodes(proto):
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for named in (*infos(proto), *tensors(proto)):
        if named.name == old:
            named.name = new


@mutation("names")
def rename_one(rng: Rng, proto: onnx.ModelProto) -> None:
    named = pick(rng, [*infos(proto), *tensors(proto), *nodes(proto), *graphs(proto)])
    named.name = pick(rng, (*ODD_NAMES, *value_names(proto)))


@mutation("names")
def list_twice(rng: Rng, proto: onnx.ModelProto) -> None:
    graph = pick(rng, graphs(proto))
    listed = pick(rng, [s for s in (graph.input, graph.output, graph.value_info) if s])
    listed.add().CopyFrom(pick(rng, list(listed)))


@mutation("names")
def unlist(rng: Rng, proto: onnx.ModelProto) -> None:
    graph = pick(rng, graphs(proto))
    listed = pick(rng, [s for s in (graph.input, graph.output, graph.value_info) if s])
    del listed[int(rng.integers(len(listed)))]


@mutation("names")
def output_of_nothing(rng: Rng, proto: onnx.ModelProto) -> None:
    graph = pick(rng, [g for g in graphs(proto) if g.output])
    pick(rng, graph.output).name = pick(rng, ("nowhere", *value_names(proto)))


@mutation("initializers")
def other_dimensions(rng: Rng, proto: onnx.ModelProto) -> None:
    """The data stays as it is."""
    tensor = pick(rng, [t for t in tensors(proto) if t.dims])
    tensor.dims[int(rng.integers(len(tensor.dims)))] = extreme(rng)


@mutation("initializers")
def reshaped(rng: Rng, proto: onnx.ModelProto) -> None:
    """Dimensions that fit the data but not the operator."""
    tensor = pick(rng, [t for t in tensors(proto) if t.dims])
    dims = list(tensor.dims)
    changed = pick(rng, (dims[::-1], [1, *dims], [*dims, 1], [int(numpy_count(dims))]))
    del tensor.dims[:]
    tensor.dims.extend(changed)


def numpy_count(dims: list[int]) -> int:
    count = 1
    for dim in dims:
        count *= dim
    return count


@mutation("initializers")
def other_data_type(rng: Rng, proto: onnx.ModelProto) -> None:
    pick(rng, tensors(proto)).data_type = int(rng.integers(0, 27))


@mutation("initializers")
def converted(rng: Rng, proto: onnx.ModelProto) -> None:
    """The same numbers, soundly, in a type that the operator may not take."""
    tensor = pick(rng, [t for t in tensors(proto) if t.data_type in (1, 7)])
    name, kind = tensor.name, pick(rng, ("float16", "float64", "int64", "int32", "uint8", "bool"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), name))


@mutation("initializers")
def cut_data(rng: Rng, proto: onnx.ModelProto) -> None:
    tensor = pick(rng, [t for t in tensors(proto) if t.raw_data])
    tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data)))]


@mutation("initializers")
def extreme_numbers(rng: Rng, proto: onnx.ModelProto) -> None:
    """Soundly stored numbers that no exporter would write: sizes, axes, indices, weights."""
    tensor = pick(rng, [t for t in tensors(proto) if t.data_type in (1, 7) and t.raw_data])
    array = numpy_helper.to_array(tensor).copy()
    if not array.size:
        raise NothingFits
    where = int(rng.integers(array.size))
    if array.dtype.kind == "i":
        array.ravel()[where] = extreme(rng)
    elif rng.random() < 0.5:
        array.ravel()[where] = pick(rng, (float("nan"), float("inf"), 3e38, 1e-45))
    else:
        array[...] = pick(rng, (float("nan"), float("inf"), 0.0, 1e30))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutation("initializers")
def emptied(rng: Rng, proto: onnx.ModelProto) -> None:
    tensor = pick(rng, [t for t in tensors(proto) if t.dims and t.raw_data])
    tensor.dims[0] = 0
    tensor.raw_data = b""


@mutation("initializers")
def elsewhere(rng: Rng, proto: onnx.ModelProto) -> None:
    """Data in a file that is not there, or that is none of the model's."""
    tensor = pick(rng, tensors(proto))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    location = pick(rng, ("none.data", "/etc/passwd", "../m.onnx", "/dev/zero", "m.onnx", ""))
    entries = {"location": location, "offset": str(extreme(rng)), "length": str(extreme(rng))}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


@mutation("initializers")
def delete_initializer(rng: Rng, proto: onnx.ModelProto) -> None:
    stored = pick(rng, [g for g in graphs(proto) if g.initializer]).initializer
    del stored[int(rng.integers(len(stored)))]


@mutation("initializers")
def double_initializer(rng: Rng, proto: onnx.ModelProto) -> None:
    graph = pick(rng, [g for g in graphs(proto) if g.initializer])
    graph.initializer.add().CopyFrom(pick(rng, list(graph.initializer)))


@mutation("initializers")
def weight_as_input(rng: Rng, proto: onnx.ModelProto) -> None:
    """A stored tensor is an input too, perhaps of another shape."""
    tensor = pick(rng, list(proto.graph.initializer))
    dims = pick(rng, (list(tensor.dims), list(tensor.dims)[1:], None))
    info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, dims)
    proto.graph.input.append(info)


@mutation("initializers")
def weight_from_outside(rng: Rng, proto: onnx.ModelProto) -> None:
    """A stored tensor is no longer stored: callers give it."""
    at = int(rng.integers(max(len(proto.graph.initializer), 1)))
    tensor = pick(rng, list(proto.graph.initializer)[at:])
    dims = list(tensor.dims)
    info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, dims)
    kept = [t for t in proto.graph.initializer if t.name != tensor.name]
    copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(copies)
    proto.graph.input.append(info)
