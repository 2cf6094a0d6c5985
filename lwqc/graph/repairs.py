"""What else changes in a node when channels of its tensors go: facts, not edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.axes import Factor


@dataclass(frozen=True)
class Sizes:
    """An operand (or integer-list attribute) holds sizes.

    operand: input index, or the attribute's name. entries: (position, dimension); an entry that is
    -1 or 0 stays, a computed one is scaled by how much its dimension shrinks.
    """

    node: ir.Node
    operand: int | str
    entries: tuple[tuple[int, Factor], ...]


@dataclass(frozen=True)
class Bounds:
    """An operand holds index positions along a dimension (Slice starts and ends).

    entries: (position, dimension, old position, of the list). New position: kept indices before it.
    """

    node: ir.Node
    operand: int | str
    entries: tuple[tuple[int, Factor, int], ...]


@dataclass(frozen=True)
class Indices:
    """An operand holds indices into a dimension; they are renumbered."""

    node: ir.Node
    operand: int
    dimension: Factor


@dataclass(frozen=True)
class Count:
    """An integer attribute equals the size of a dimension (`group`, `num_heads`, `hidden_size`)."""

    node: ir.Node
    attribute: str
    dimension: Factor


@dataclass(frozen=True)
class Pieces:
    """A Split whose pieces may get unequal sizes."""

    node: ir.Node
    pieces: tuple[Factor, ...]


@dataclass(frozen=True)
class ReportedShape:
    """A Shape or Size node goes on reporting the sizes before pruning.

    What is computed from them (an attention scale, say) so keeps its value; operands that hold
    sizes are corrected where they are used.
    """

    node: ir.Node
    dims: tuple[Factor, ...]


@dataclass(frozen=True)
class Pinned:
    """A float attribute whose default depends on a size; written out with its value before."""

    node: ir.Node
    attribute: str
    value: float
    dimension: Factor


@dataclass(frozen=True)
class SqueezedAxes:
    """A Squeeze that drops every axis of size 1; an axis that became 1 must stay."""

    node: ir.Node
    axes: tuple[int, ...]
    dims: tuple[Factor, ...]


@dataclass(frozen=True)
class AtLeast:
    """A node takes that many indices of a dimension, which so many have to be left of."""

    node: ir.Node
    count: int
    dimension: Factor


Repair = Sizes | Bounds | Indices | Count | Pieces | ReportedShape | Pinned | SqueezedAxes | AtLeast


def sizes(node: ir.Node, operand: int | str, dims: Sequence[Factor]) -> Sizes:
    """All dimensions in order."""
    return Sizes(node, operand, tuple(enumerate(dims)))
