"""Normalisation by the statistics of each batch while a module trains, as torch's own does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from lwqc.learn.operation import Call, Operation
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor

_STATISTICS = (3, 4)  # inputs of BatchNormalization: mean and variance


@dataclass
class Mode:
    """Whether a module trains right now."""

    training: bool = False


@dataclass(frozen=True)
class ByMode:
    """What a node computes: by the batch while the module trains, else by what is stored."""

    operation: Operation
    mode: Mode

    def __call__(self, call: Call, *inputs: Any) -> Any:
        """As `Operation.run`."""
        by_batch = self.operation.by_batch
        run = by_batch if by_batch is not None and self.mode.training else self.operation.run
        return run(call, *inputs)


def claim(owners: dict[ir.Value, str], label: str, node: ir.Node) -> str:
    """Note whose statistics the stored tensors are; or why batches cannot change them, else ""."""
    values = [node.inputs[index] for index in _STATISTICS]
    for value in values:
        if value is None or stored_tensor(value) is None:
            return "its statistics are not stored, so batches cannot change them"
        if value in owners:
            return f"it shares statistics with {owners[value]}, so batches cannot change them"
    owners.update((value, label) for value in values if value is not None)
    return ""


def saw_no_data(model: ir.Model) -> bool:
    """Whether normalisations are as before any training: means 0, variances 1, each its own."""
    nodes = [n for n in model.graph.all_nodes() if n.op_type == "BatchNormalization"]
    found = [
        (n.inputs[i], start) for n in nodes for i, start in zip(_STATISTICS, (0, 1), strict=True)
    ]
    own = len({value for value, _ in found}) == len(found)
    return bool(nodes) and own and all(_all(value, start) for value, start in found)


def _all(value: ir.Value | None, number: int) -> bool:
    tensor = stored_tensor(value)
    return tensor is not None and bool((read_array(tensor) == number).all())
