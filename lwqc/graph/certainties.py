"""Conditions that hold whatever the inputs and their sizes are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from lwqc.model.weights import stored_tensor

_MOVES = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Expand", "Identity", "Cast", "Transpose"})
_Bounds = tuple[float, float]
_Decide = Callable[[_Bounds, _Bounds], tuple[bool, bool]]  # (always true, always false)
_COMPARE: dict[str, _Decide] = {
    "GreaterOrEqual": lambda a, b: (a[0] >= b[1], a[1] < b[0]),
    "Greater": lambda a, b: (a[0] > b[1], a[1] <= b[0]),
    "LessOrEqual": lambda a, b: (a[1] <= b[0], a[0] > b[1]),
    "Less": lambda a, b: (a[1] < b[0], a[0] >= b[1]),
}
_OPEN = (-np.inf, np.inf)


def always(value: ir.Value | None, wanted: bool) -> bool:
    """Whether all elements of a boolean tensor are known to be `wanted`.

    Follows stored tensors, logic, and comparisons of stored numbers with ranges. What holds only
    for the sizes that were tried, as a window wider than the sequence, does not count.
    """
    tensor = stored_tensor(value)
    if tensor is not None:
        return bool(np.all(tensor.numpy() == wanted))
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or not node.inputs:
        return False
    if node.op_type in _MOVES:
        return always(node.inputs[0], wanted)
    if node.op_type == "Not":
        return always(node.inputs[0], not wanted)
    if node.op_type in ("And", "Or"):
        test = all if (node.op_type == "And") == wanted else any
        return test(always(v, wanted) for v in node.inputs)
    if node.op_type in _COMPARE:
        a, b = (_bounds(v) for v in node.inputs)
        return _COMPARE[node.op_type](a, b)[0 if wanted else 1]
    return False


def _bounds(value: ir.Value | None) -> _Bounds:
    """The least and the largest number that a tensor may hold."""
    tensor = stored_tensor(value)
    if tensor is not None and tensor.size:
        numbers = tensor.numpy()
        return float(numbers.min()), float(numbers.max())
    node = value.producer() if value is not None else None
    if node is None or node.domain != "":
        return _OPEN
    if node.op_type in _MOVES - {"Cast"}:
        return _bounds(node.inputs[0])
    if node.op_type == "Range" and _bounds(node.inputs[2])[0] > 0:
        return _bounds(node.inputs[0])[0], np.inf
    return _OPEN
