"""Where the channels of a group lie in the stored tensors."""

from __future__ import annotations

from lwqc.graph.consumers import node_name
from lwqc.graph.groups import Group
from lwqc.plans.plan import SlicedAxis


def slices(group: Group, index: int) -> tuple[SlicedAxis, ...]:
    """Every slice that goes with one index of a group, in the original tensors."""
    return tuple(
        SlicedAxis(
            initializer=occurrence.name,
            axis=occurrence.axis,
            indices=tuple(int(i) for i in gone),
            reader=node_name(occurrence.operand.node) if occurrence.operand is not None else "",
        )
        for occurrence, gone in group.slices(index)
        if len(gone)
    )
