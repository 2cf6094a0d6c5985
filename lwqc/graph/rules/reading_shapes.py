"""Operators that turn shapes or values into indices."""

from __future__ import annotations

from lwqc.graph.repairs import ReportedShape
from lwqc.graph.rules.context import Context, Rule


def shape(ctx: Context) -> None:
    """Goes on reporting the sizes before pruning; a table of sizes has no channels."""
    dims = ctx.dims()
    if ctx.node.op_type == "Size":
        ctx.give([])
        ctx.repairs.append(ReportedShape(ctx.node, tuple(dims)))
        return
    start = ctx.integer("start", 0)
    end = ctx.integer("end", len(dims))
    chosen = dims[start : end if end < len(dims) else None]
    ctx.give([ctx.fixed(len(chosen), "a list of sizes")])
    ctx.repairs.append(ReportedShape(ctx.node, tuple(chosen)))


RULES: dict[tuple[str, str], Rule] = {("", "Shape"): shape, ("", "Size"): shape}
