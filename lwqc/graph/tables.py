"""Tables whose rows are taken by ids: which of them can be held as a product of two factors."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.sites import BOTH_WAYS, Site, Use

_HEADS = frozenset({"MatMul", "Gemm"})
_STEPS = frozenset({"Transpose", "Identity"})


@dataclass(frozen=True)
class Table:
    """A stored table [rows, width].

    takers: nodes that take rows. heads: nodes that multiply by its transpose, as an output
    projection does that shares it.
    """

    site: Site
    takers: tuple[Use, ...]
    heads: tuple[Use, ...]

    @property
    def name(self) -> str:
        """Of the site."""
        return self.site.name

    @property
    def ids(self) -> tuple[str, ...]:
        """Tensors that say which rows are taken."""
        return tuple(u.activation.name or "" for u in self.takers if u.activation is not None)

    def size(self, rank: int) -> int:
        """Numbers that are stored with factors of a rank; a head has its own copy of the second."""
        n, k = self.site.n, self.site.k
        return rank * (n + k * (2 if self.heads else 1))


def as_table(site: Site) -> Table | str | None:
    """A site as a table, None where no rows of it are taken, or why it cannot be one."""
    takers = tuple(use for use in site.uses if use.op == "Gather")
    heads = tuple(use for use in site.uses if use.op != "Gather")
    if not takers:
        return None
    if others := {use.op for use in heads} - _HEADS:
        return f"{'+'.join(sorted(others))} reads it too"
    if site.both_ways:
        return BOTH_WAYS
    if site.in_body:
        return "is read in the body of an If, Loop or Scan"
    if not site.weight.source.is_initializer():
        return "is stored in a Constant node"
    for use in site.uses:
        for step in _between(use, site):
            if step.op_type not in _STEPS:
                return f"{step.op_type} stands between it and what reads it"
            if step.op_type == "Transpose" and use in takers:
                return "is stored transposed"
    return Table(site, takers, heads)


def _between(use: Use, site: Site) -> list[ir.Node]:
    """Constant steps from the stored tensor to the operand."""
    found, value = [], use.node.inputs[use.index]
    while value is not None and value is not site.weight.source:
        node = value.producer()
        if node is None:
            break
        found.append(node)
        value = node.inputs[0]
    return found
