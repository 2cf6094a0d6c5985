"""Means and variances of batch normalisation, estimated anew after the weights changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.model.edit import add_initializer
from lwqc.model.unused import RemoveUnused
from lwqc.model.weights import stored_tensor
from lwqc.runtime.stats.collector import Array, Feeds, RunnerFactory
from lwqc.runtime.stats.emitter import Emitter

_MEAN, _VARIANCE = 3, 4  # operands of BatchNormalization
_DEFAULT_OPSET = 18


@dataclass
class _Sums:
    """Weighted sums of one node: of means and of mean squares, both [channels]."""

    rows: int
    total: NDArray[np.float64]
    squares: NDArray[np.float64]


def reestimate_batch_norm(
    model: ir.Model, data: Iterable[Feeds], make_runner: RunnerFactory
) -> int:
    """Replace the running statistics of every BatchNormalization in the main graph, in place.

    One run over the data in which each node normalises with the statistics of its own batch, so
    that the next one sees the input that it will get. Batches count by their number of values;
    the variance is that about the common mean (population). Batches should hold several samples.

    Returns how many nodes were done: those whose statistics are stored and finite on the data.
    Raises InputError when `data` is empty.
    """
    nodes = [node for node in model.graph if _is_candidate(node)]
    if not nodes:
        return 0
    instrumented, outputs = _instrument(model, nodes)
    run = make_runner(instrumented)
    sums: dict[int, _Sums] = {}
    runs = 0
    for runs, feeds in enumerate(data, 1):  # noqa: B007
        found = run(feeds)
        for i, names in enumerate(outputs):
            _add(sums, i, *(found[name] for name in names))
    if runs == 0:
        raise InputError("the data holds no sample; batch normalisation needs at least one")
    return sum(_update(node, sums[i]) for i, node in enumerate(nodes) if i in sums)


def _is_candidate(node: ir.Node) -> bool:
    training = node.attributes.get("training_mode")
    return (
        (node.domain, node.op_type) == ("", "BatchNormalization")
        and (training is None or training.as_int() == 0)
        and all(stored_tensor(node.inputs[i]) is not None for i in (_MEAN, _VARIANCE))
    )


def _instrument(model: ir.Model, nodes: list[ir.Node]) -> tuple[ir.Model, list[list[str]]]:
    """A copy that normalises with batch statistics and outputs them: shape, mean, variance."""
    wanted = {node.outputs[0].name for node in nodes}
    copy = model.clone()
    graph = copy.graph
    emit = Emitter(graph, copy.opset_imports.setdefault("", _DEFAULT_OPSET))
    graph.outputs.clear()
    names = []
    for node in [n for n in graph if n.outputs and n.outputs[0].name in wanted]:
        outputs = _batch_statistics(emit, node)
        graph.outputs.extend(outputs)
        names.append([v.name or "" for v in outputs])
    graph.sort()
    RemoveUnused()(copy)
    return copy, names


def _batch_statistics(emit: Emitter, node: ir.Node) -> list[ir.Value]:
    """Let one node read the mean and the variance of its input [batch, channels, ...]."""
    x = node.inputs[0]
    assert x is not None
    flat = emit("Reshape", emit.float32(x), emit.constant(np.asarray([0, 0, -1], np.int64)))
    mean = emit.reduce("ReduceMean", flat, [0, 2], keep=True)
    centred = emit("Sub", flat, mean)
    variance = emit.reduce("ReduceMean", emit("Mul", centred, centred), [0, 2], keep=True)
    vectors = []
    for index, value in ((_MEAN, mean), (_VARIANCE, variance)):
        vector = emit("Reshape", value, emit.constant(np.asarray([-1], np.int64)))
        stored = stored_tensor(node.inputs[index])
        dtype = ir.DataType.FLOAT if stored is None else stored.dtype
        same = dtype == ir.DataType.FLOAT
        node.replace_input_with(index, vector if same else emit("Cast", vector, to=int(dtype)))
        vectors.append(vector)
    return [emit("Shape", flat), *vectors]


def _add(sums: dict[int, _Sums], node: int, shape: Array, mean: Array, variance: Array) -> None:
    rows = int(shape[0]) * int(shape[2])
    if rows == 0:
        return
    centre = mean.astype(np.float64)
    total, squares = rows * centre, rows * (variance.astype(np.float64) + centre**2)
    if node in sums:
        before = sums[node]
        rows, total, squares = rows + before.rows, total + before.total, squares + before.squares
    sums[node] = _Sums(rows, total, squares)


def _update(node: ir.Node, sums: _Sums) -> bool:
    mean = sums.total / sums.rows
    variance = np.maximum(sums.squares / sums.rows - mean**2, 0)
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        return False
    _replace(node, _MEAN, mean)
    _replace(node, _VARIANCE, variance)
    return True


def _replace(node: ir.Node, index: int, values: NDArray[np.float64]) -> None:
    """Give the node a vector of its own: nodes may share the old one."""
    value, graph = node.inputs[index], node.graph
    old = stored_tensor(value)
    assert value is not None
    assert old is not None
    assert isinstance(graph, ir.Graph)
    tensor = ir.tensor(values.astype(old.dtype.numpy()), dtype=old.dtype, name=value.name)
    if value.is_initializer() and len(list(value.uses())) == 1 and not value.is_graph_output():
        value.const_value = tensor
        return
    tensor.name = f"{value.name}/{node.name}"
    node.replace_input_with(index, add_initializer(graph, tensor))
