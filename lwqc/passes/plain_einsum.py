"""Einsum with a stored operand as the matrix product that it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from lwqc.model.edit import add_constant, add_initializer, insert_before, lazy_tensor, replace_node
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import is_float, static_shape, stored_tensor
from lwqc.passes.base import Pass
from lwqc.passes.context import Context


@dataclass(frozen=True)
class _Product:
    """x [rows..., inner...] times weight [inner..., columns...]; letters of each, in that order.

    term, result, weight_term: of the equation.
    """

    x: ir.Value
    weight: ir.Value
    term: str
    weight_term: str
    result: str

    @property
    def inner(self) -> str:
        return "".join(c for c in self.weight_term if c in self.term)

    @property
    def rows(self) -> str:
        return "".join(c for c in self.result if c in self.term)

    @property
    def columns(self) -> str:
        return "".join(c for c in self.result if c in self.weight_term)


class PlainEinsum(Pass):
    """Give Einsum a form that low-bit kernels have.

    Matches: Einsum of a value and a stored float weight that sums over letters of both alone, as
        `abc,cd->abd` or `bthd,hde->bte`, in the main graph. So JAX and Keras write layers.
    Rewrites to: MatMul, between Transpose and Reshape where letters are several or in another
        order. Exact but for the order of sums.
    Leaves alone: ellipses, diagonals, letters that both operands keep or that one of them sums
        over alone, summed sizes that are not known to be the weight's.
    """

    needs_sizes = True

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match."""
        found = [(node, product) for node in model.graph if (product := product_of(node))]
        fits = [(n, p) for n, p in found if _sizes_fit(p, ctx)]
        for node, product in fits:
            _rewrite(model.graph, node, product)
        return len(fits)


def product_of(node: ir.Node) -> _Product | None:
    """The matrix product that an Einsum is, by its equation; None for another node."""
    if (node.domain, node.op_type) != ("", "Einsum") or len(node.inputs) != 2:
        return None
    equation = node.attributes["equation"].as_string().replace(" ", "")
    operands, arrow, result = equation.partition("->")
    terms = operands.split(",")
    if not arrow or "." in equation or any(len(set(t)) < len(t) for t in (*terms, result)):
        return None
    for i in (1, 0):
        x, weight = node.inputs[1 - i], node.inputs[i]
        tensor = stored_tensor(weight)
        if x is None or weight is None or tensor is None or not is_float(tensor):
            continue
        found = _Product(x, weight, terms[1 - i], terms[i], result)
        kept = set(found.rows) | set(found.inner) == set(found.term)
        plain = set(found.inner).isdisjoint(result) and found.inner and found.columns
        if kept and plain and set(found.columns) | set(found.inner) == set(found.weight_term):
            return found
    return None


def _sizes_fit(product: _Product, ctx: Context) -> bool:
    """Sizes of one are repeated by Einsum, and not by MatMul."""
    tensor = stored_tensor(product.weight)
    known = ctx.shapes.get(product.x.name or "")
    if known is None or tensor is None or known.rank != len(product.term):
        return False
    sizes = dict(zip(product.weight_term, static_shape(tensor), strict=True))
    axes = {letter: axis for axis, letter in enumerate(product.term)}
    return all(
        known.static(axes[letter]) and known.first[axes[letter]] == sizes[letter]
        for letter in product.inner
    )


def _rewrite(graph: ir.Graph, node: ir.Node, product: _Product) -> None:
    name, dtype = node.outputs[0].name, node.outputs[0].type
    tensor = stored_tensor(product.weight)
    assert tensor is not None
    sizes = dict(zip(product.weight_term, static_shape(tensor), strict=True))
    rows, inner, columns = product.rows, product.inner, product.columns

    def step(
        op_type: str, inputs: Sequence[ir.Value], what: str, **attributes: list[int]
    ) -> ir.Value:
        (value,) = insert_before(node, op_type, inputs, [f"{name}/{what}"], attributes)
        value.type = dtype or product.x.type
        return value

    def shaped(value: ir.Value, split: Sequence[int], what: str) -> ir.Value:
        target = add_constant(graph, f"{name}/{what}/shape", np.array([*(0 for _ in rows), *split]))
        return step("Reshape", [value, target], what)

    x = product.x
    if product.term != rows + inner:
        x = step("Transpose", [x], "rows", perm=[product.term.index(c) for c in rows + inner])
    if len(inner) > 1:
        x = shaped(x, [prod(sizes[c] for c in inner)], "inner")
    result = step("MatMul", [x, _matrix(graph, product, tensor, sizes)], "product")
    if len(columns) > 1:
        result = shaped(result, [sizes[c] for c in columns], "columns")
    if product.result != rows + columns:
        perm = [(rows + columns).index(c) for c in product.result]
        result = step("Transpose", [result], "order", perm=perm)
    replace_node(node, result)


def _matrix(
    graph: ir.Graph, product: _Product, tensor: ir.TensorProtocol, sizes: dict[str, int]
) -> ir.Value:
    """The weight [inner, columns], in the place of the old one where nothing else reads that."""
    weight, letters = product.weight, product.inner + product.columns
    if product.weight_term == letters and len(letters) == 2:
        return weight
    shape = prod(sizes[c] for c in product.inner), prod(sizes[c] for c in product.columns)
    perm = [product.weight_term.index(c) for c in letters]
    made = lazy_tensor(
        tensor.dtype,
        shape,
        weight.name,
        lambda: np.asarray(read_array(tensor)).transpose(perm).reshape(shape),
    )
    single = len(weight.uses()) == 1 and weight.producer() is None
    if single and not weight.is_graph_output() and not weight.is_graph_input():
        weight.const_value, weight.shape = made, ir.Shape(shape)
        return weight
    made.name = f"{weight.name}/matrix"
    return add_initializer(graph, made)
