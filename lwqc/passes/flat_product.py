"""Products of matrices whose batch axes are flattened into one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from math import prod

import numpy as np
import onnx_ir as ir

from lwqc.graph.operands import only_reader
from lwqc.graph.sampled import Sampled, Sizes
from lwqc.model.edit import insert_before, replace_node
from lwqc.passes.base import Pass
from lwqc.passes.context import Context

_RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_MOVES = _RESHAPES | {"Transpose"}
_MOST = 1 << 20  # numbers that are moved to see where they go
_LONGEST = 8  # chains of moves


@dataclass(frozen=True)
class _Operand:
    """A tensor of the batch axes and a matrix: `source` with its axes in another order."""

    source: ir.Value
    perm: tuple[int, ...]


@dataclass(frozen=True)
class _Match:
    first: _Operand
    second: _Operand
    last: ir.Node  # whose output has the batch axes again


class FlatProduct(Pass):
    """Multiply matrices with their batch axes as they are.

    Matches: MatMul of two tensors [rest, a, b] and [rest, b, c] that Transpose, Reshape, Squeeze
        and Unsqueeze made of tensors with two batch axes, and whose product becomes [n, m, a, c]
        again, as tf2onnx writes Einsum.
    Rewrites to: MatMul of those tensors, after at most one Transpose each. Exact.
    Refuses: shapes that are not known, values in between that something else reads.
    """

    needs_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        products = [n for n in model.graph if _is_product(n, ctx.shapes)]
        found = [(n, m) for n in products if (m := _match(n, ctx.shapes)) is not None]
        for node, match in found:
            _rewrite(node, match)
        return len(found)


def _is_product(node: ir.Node, shapes: Mapping[str, Sampled]) -> bool:
    if (node.domain, node.op_type) != ("", "MatMul") or None in node.inputs:
        return False
    sizes = [shapes.get(v.name or "") for v in node.inputs if v is not None]
    return all(s is not None and s.rank == 3 for s in sizes)


def _match(node: ir.Node, shapes: Mapping[str, Sampled]) -> _Match | None:
    last = _unflattened(node, shapes)
    if last is None:
        return None
    goal = shapes[last.outputs[0].name or ""]
    operands = []
    for value in node.inputs:
        assert value is not None
        flat = shapes[value.name or ""]
        wanted = Sampled(goal.first[:2] + flat.first[1:], goal.second[:2] + flat.second[1:])
        operand = _operand(value, wanted, shapes)
        if operand is None:
            return None
        operands.append(operand)
    return _Match(operands[0], operands[1], last)


def _unflattened(node: ir.Node, shapes: Mapping[str, Sampled]) -> ir.Node | None:
    """The node behind a product that gives it two batch axes."""
    flat = shapes.get(node.outputs[0].name or "")
    reader = only_reader(node.outputs[0])
    for _ in range(_LONGEST):
        if flat is None or reader is None or reader.domain or reader.op_type not in _RESHAPES:
            return None
        sizes = shapes.get(reader.outputs[0].name or "")
        if sizes is not None and sizes.rank == 4:
            pairs = ((sizes.first, flat.first), (sizes.second, flat.second))
            if all(s[2:] == f[1:] and prod(s[:2]) == f[0] for s, f in pairs):
                return reader
        reader = only_reader(reader.outputs[0])
    return None


def _operand(value: ir.Value, wanted: Sampled, shapes: Mapping[str, Sampled]) -> _Operand | None:
    """The farthest value that an operand is moved from and that has two batch axes."""
    found = None
    chain: list[ir.Node] = []
    for node in _back(value):
        chain.insert(0, node)
        source = node.inputs[0]
        sizes = shapes.get(source.name or "") if source is not None else None
        if source is None or sizes is None:
            break
        perm = _order(sizes, wanted, chain, shapes) if sizes.rank == 4 else None
        found = found if perm is None else _Operand(source, perm)
    return found


def _back(value: ir.Value) -> Iterator[ir.Node]:
    """Nodes that only move numbers, from the last one on."""
    node = value.producer()
    for _ in range(_LONGEST):
        if node is None or node.domain or node.op_type not in _MOVES or node.inputs[0] is None:
            return
        yield node
        node = node.inputs[0].producer()
        if node is None or only_reader(node.outputs[0]) is None:
            return


def _order(
    sizes: Sampled, wanted: Sampled, chain: list[ir.Node], shapes: Mapping[str, Sampled]
) -> tuple[int, ...] | None:
    """How axes have to be ordered so that numbers lie as behind the chain; None for no order."""
    settings = ((sizes.first, wanted.first, 0), (sizes.second, wanted.second, 1))
    for perm in permutations(range(4)):
        if all(tuple(s[axis] for axis in perm) == w for s, w, _ in settings) and all(
            _same(s, perm, chain, shapes, number) for s, _, number in settings
        ):
            return perm
    return None


def _same(
    sizes: Sizes,
    perm: tuple[int, ...],
    chain: list[ir.Node],
    shapes: Mapping[str, Sampled],
    setting: int,
) -> bool:
    if prod(sizes) > _MOST:
        return False
    places = np.arange(prod(sizes)).reshape(sizes)
    moved = places
    for node in chain:
        known = shapes.get(node.outputs[0].name or "")
        if known is None:
            return False
        if node.op_type == "Transpose":
            axes = node.attributes.get("perm")
            moved = moved.transpose(axes.as_ints() if axes is not None else None)
        else:
            moved = moved.reshape((known.first, known.second)[setting])
    return bool((places.transpose(perm).reshape(-1) == moved.reshape(-1)).all())


def _rewrite(node: ir.Node, match: _Match) -> None:
    inputs = []
    for operand, old in zip((match.first, match.second), node.inputs, strict=True):
        value = operand.source
        if operand.perm != (0, 1, 2, 3):
            name = f"{old.name if old else value.name}/batched"
            (value,) = insert_before(node, "Transpose", [value], [name], {"perm": operand.perm})
            value.type = operand.source.type
        inputs.append(value)
    (product,) = insert_before(match.last, "MatMul", inputs, [f"{node.outputs[0].name}/batched"])
    replace_node(match.last, product)
