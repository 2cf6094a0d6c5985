"""Branches of an If that the data never runs: nothing shows what their weights may lose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from lwqc.model.weights import stored_tensor
from lwqc.runtime.stats.collector import Array, RunnerFactory


def idle_branches(
    model: ir.Model, data: Iterable[Mapping[str, Array]], make_runner: RunnerFactory
) -> list[str]:
    """A line for each If of the main graph of which only one branch runs.

    data: feeds; of more than a few the first ones tell enough.
    """
    exposed = model.clone()
    choices = {
        node.name or node.outputs[0].name or "": node.inputs[0]
        for node in exposed.graph
        if (node.domain, node.op_type) == ("", "If") and stored_tensor(node.inputs[0]) is None
    }
    asked = {name: value for name, value in choices.items() if value is not None and value.name}
    if not asked:
        return []
    known = set(exposed.graph.outputs)
    exposed.graph.outputs.extend(v for v in dict.fromkeys(asked.values()) if v not in known)
    seen: dict[str, set[bool]] = {name: set() for name in asked}
    run = make_runner(exposed)
    for feeds in data:
        found = run(feeds)
        for name, value in asked.items():
            seen[name].add(bool(found[value.name or ""].all()))
    return [
        f"{name}: its {'else' if True in values else 'then'} branch never runs on the data: "
        "nothing shows what its weights may lose"
        for name, values in seen.items()
        if len(values) == 1
    ]
