"""Bodies, which are run as eager code: only what is chosen is computed."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from lwqc.errors import InputError
from lwqc.learn.operation import Call, Operation, Table, Tensor


def _if(call: Call, scope: Any, condition: Tensor) -> Any:
    body = call.get("then_branch" if bool(condition.item()) else "else_branch")
    return tuple(body.run_body(scope, ()))


def _loop(call: Call, scope: Any, trips: Tensor | None, going: Tensor | None, *carried: Any) -> Any:
    body = call.get("body")
    most = None if trips is None else int(trips.item())
    state = list(carried)
    scanned: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - 1 - len(state))]
    on, at = going is None or bool(going.item()), 0
    while on and (most is None or at < most):
        made = body.run_body(scope, (torch.tensor(at), torch.tensor(True), *state))
        on, at = bool(made[0].item()), at + 1
        state = list(made[1 : 1 + len(state)])
        for rows, row in zip(scanned, made[1 + len(state) :], strict=True):
            rows.append(row)
    empty = body.empty[1 + len(state) :]
    stacks = [torch.stack(rows) if rows else e for rows, e in zip(scanned, empty, strict=True)]
    if any(stack is None for stack in stacks):
        raise InputError(f"{call.label}: no rounds, and the body does not declare what it stacks")
    return (*state, *stacks)


def _scan(call: Call, scope: Any, *inputs: Tensor) -> Any:
    """Since opset 9, which has no batch."""
    body, count = call.get("body"), call.get("num_scan_inputs")
    state, sequences = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
    axes = call.get("scan_input_axes") or [0] * count
    turned = call.get("scan_input_directions") or [0] * count
    rows = [
        list(reversed(s.unbind(axis))) if backwards else list(s.unbind(axis))
        for s, axis, backwards in zip(sequences, axes, turned, strict=True)
    ]
    outputs: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - len(state))]
    for parts in zip(*rows, strict=True):
        made = body.run_body(scope, (*state, *parts))
        state = list(made[: len(state)])
        for found, row in zip(outputs, made[len(state) :], strict=True):
            found.append(row)
    out_axes = call.get("scan_output_axes") or [0] * len(outputs)
    out_turned = call.get("scan_output_directions") or [0] * len(outputs)
    stacks = [
        torch.stack(found[::-1] if backwards else found, axis)
        for found, axis, backwards in zip(outputs, out_axes, out_turned, strict=True)
    ]
    return (*state, *stacks)


def _why_not_scan(call: Call, node: ir.Node) -> str:
    return "Scan of opset 8 is not known here" if call.opset < 9 else ""


TABLE: Table = {
    ("", "If"): Operation(_if, numbers=(0,), scoped=True),
    ("", "Loop"): Operation(_loop, numbers=(0, 1), scoped=True),
    ("", "Scan"): Operation(_scan, scoped=True, refused=_why_not_scan),
}
