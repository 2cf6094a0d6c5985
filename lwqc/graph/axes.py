"""Axis algebra: every tensor dimension as nested sums and products of factors.

A factor is an index space: 64 channels, 12 heads. `unify` states that two dimensions have the same
indices and refines both where one is finer than the other. What no longer can be told apart from a
fixed index is frozen, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import count
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
STATISTICS = "statistics"


class Kind(Enum):
    """How a factor is built. The last kid of a product varies fastest."""

    ATOM = "atom"
    PRODUCT = "product"
    SUM = "sum"


class _NoRefinementError(Exception):
    """Two dimensions cut the same indices in ways that no finer cut reconciles."""


class _Clock:
    """Counts changes to factors, so that what was simplified since the last one is left alone."""

    now: ClassVar[int] = 0
    _ticks: ClassVar[Iterator[int]] = count(1)  # never repeats, whatever threads do

    @classmethod
    def advance(cls) -> None:
        cls.now = next(cls._ticks)


class Factor:
    """An index space of `size` indices; compare factors after `find`.

    frozen: why no index may go, or "". marks: what rules said about it (`statistics`, ...).
    """

    __slots__ = ("_parent", "_tidy", "frozen", "kids", "kind", "marks", "size")

    def __init__(
        self, size: int, kind: Kind = Kind.ATOM, kids: Sequence[Factor] = (), frozen: str = ""
    ) -> None:
        """A new factor, equal to no other."""
        self.size = size
        self.kind = kind
        self.kids = tuple(kids)
        self.frozen = frozen
        self.marks: set[str] = set()
        self._parent: Factor | None = None
        self._tidy = -1

    def find(self) -> Factor:
        """What this factor was unified with, simplified."""
        root = self
        while root._parent is not None:
            root = root._parent
        while self._parent is not None:
            self._parent, self = root, self._parent
        if not root.kids or root._tidy == _Clock.now:
            return root
        return _simplified(root)

    def bind(self, other: Factor) -> None:
        """From now on this root is `other`."""
        self._parent = other
        _Clock.advance()

    def freeze(self, reason: str) -> None:
        """Keep every index of this atom; the first reason stays."""
        if not self.frozen:
            self.frozen = reason or "fixed"
            _Clock.advance()

    def see_through(self, kids: Sequence[Factor]) -> Factor:
        """Replace this root by its only kid, or its kids by simpler ones, until something moves."""
        if len(kids) < 2:
            self._parent = kids[0] if kids else one()
            return self._parent
        self.kids = tuple(kids)
        self._tidy = _Clock.now
        return self

    def leaves(self) -> Iterator[Factor]:
        """The atoms it is made of, with repetition."""
        stack = [self]
        while stack:
            factor = stack.pop().find()
            if factor.kids:
                stack.extend(reversed(factor.kids))
            else:
                yield factor

    def __repr__(self) -> str:
        """As `12·64` or `(8+8)`; frozen sizes carry a bar."""
        factor = self.find()
        if factor.kind is Kind.ATOM:
            return f"{factor.size}{'|' if factor.frozen else ''}"
        sign = "·" if factor.kind is Kind.PRODUCT else "+"
        return "(" + sign.join(map(repr, factor.kids)) + ")"


def fixed(size: int, reason: str) -> Factor:
    """A frozen factor."""
    return Factor(size, frozen=reason or "fixed")


def one() -> Factor:
    """The only index of an axis of size 1."""
    return fixed(1, "axis of size 1")


def product(kids: Iterable[Factor]) -> Factor:
    """Row-major combination, outermost first."""
    kids = list(kids)
    if len(kids) == 1:
        return kids[0]
    return Factor(math.prod(k.size for k in kids), Kind.PRODUCT, kids) if kids else one()


def total(kids: Iterable[Factor]) -> Factor:
    """Concatenation of the kids that have any index."""
    kids = [k for k in kids if k.size]
    if len(kids) == 1:
        return kids[0]
    return Factor(sum(k.size for k in kids), Kind.SUM, kids) if kids else fixed(0, "empty axis")


def _simplified(root: Factor) -> Factor:
    """Flatten nested products and sums, join fixed neighbours, see through single kids."""
    flat: list[Factor] = []
    for kid in root.kids:
        found = kid.find()
        flat.extend(found.kids if found.kind is root.kind else (found,))
    kids: list[Factor] = []
    for kid in flat:
        if kid.frozen and root.kind is Kind.PRODUCT and kid.size == 1:
            continue
        if kids and kid.frozen and kids[-1].frozen:
            size = (
                kids[-1].size * kid.size if root.kind is Kind.PRODUCT else kids[-1].size + kid.size
            )
            kids[-1] = fixed(size, kids[-1].frozen)
        else:
            kids.append(kid)
    return root.see_through(kids)


def is_free(factor: Factor) -> bool:
    """Whether any index of it may go."""
    return not factor.find().frozen


def freeze(factor: Factor, reason: str) -> None:
    """No index of it may go."""
    for leaf in factor.leaves():
        leaf.freeze(reason)


def mark(factor: Factor, what: str) -> None:
    """Note something on all its atoms; parts that they are split into later inherit it."""
    for leaf in factor.leaves():
        leaf.marks.add(what)


def unify(a: Factor, b: Factor, where: str) -> None:
    """State that a and b have the same indices in the same order.

    where: the node that says so, for the reason if both have to be frozen.
    """
    if a.size != b.size:
        _freeze_both(a, b, f"{where}: meets a dimension of another size ({a.size} and {b.size})")
        return
    try:
        _unify(a, b)
    except _NoRefinementError:
        reason = f"{where}: {a!r} and {b!r} cut the same channels differently"
        _freeze_both(a, b, reason)


def _freeze_both(a: Factor, b: Factor, reason: str) -> None:
    freeze(a, reason)
    freeze(b, reason)


def _unify(a: Factor, b: Factor) -> None:
    a, b = a.find(), b.find()
    if a is b:
        return
    if a.frozen or b.frozen:
        freeze(b, a.frozen) if a.frozen else freeze(a, b.frozen)
    elif not a.kids:
        _bind(a, b)
    elif not b.kids:
        _bind(b, a)
    else:
        if Kind.SUM in (a.kind, b.kind):
            _unify_sums(a, b)
        else:
            _unify_products(a, b)
        _link(a.find(), b.find())


def _bind(atom: Factor, other: Factor) -> None:
    leaves = list(other.leaves())
    if any(leaf is atom for leaf in leaves):  # a := u·a, u of size 1
        for leaf in leaves:
            if leaf is not atom:
                freeze(leaf, "a single index that everything depends on")
        if other.find() is not atom:
            raise _NoRefinementError
        return
    for leaf in leaves:
        leaf.marks |= atom.marks
    atom.bind(other)


def _link(a: Factor, b: Factor) -> None:
    """Let equal structures share a root, unless one is part of the other."""
    if a is not b and a.kids and b.kids and not _contains(a, b) and not _contains(b, a):
        a.bind(b)


def _contains(whole: Factor, part: Factor) -> bool:
    stack = list(whole.kids)
    while stack:
        factor = stack.pop().find()
        if factor is part:
            return True
        stack.extend(factor.kids)
    return False


def _terms(factor: Factor) -> list[Factor]:
    factor = factor.find()
    return list(factor.kids) if factor.kind is Kind.SUM else [factor]


def _kids(factor: Factor) -> list[Factor]:
    factor = factor.find()
    return list(factor.kids) if factor.kind is Kind.PRODUCT else [factor]


def _unify_sums(a: Factor, b: Factor) -> None:
    left, right = _terms(a)[::-1], _terms(b)[::-1]
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size > y.size:
            x, rest = split_sum(x, y.size)
            left.append(rest)
        elif y.size > x.size:
            y, rest = split_sum(y, x.size)
            right.append(rest)
        _unify(x, y)


def _unify_products(a: Factor, b: Factor) -> None:
    left, right = _kids(a), _kids(b)
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size > y.size:
            outer, x = split_product(x, y.size)
            left.append(outer)
        elif y.size > x.size:
            outer, y = split_product(y, x.size)
            right.append(outer)
        _unify(x, y)
    for rest in (*left, *right):  # units
        freeze(rest, "a single index that everything depends on")


def split_sum(factor: Factor, size: int) -> tuple[Factor, Factor]:
    """The first `size` indices and the others."""
    factor = factor.find()
    rest = factor.size - size
    if not rest:
        return factor, total(())
    if not size:
        return total(()), factor
    if factor.frozen:
        return fixed(size, factor.frozen), fixed(rest, factor.frozen)
    if factor.kind is Kind.ATOM:
        head, tail = Factor(size), Factor(rest)
        _bind(factor, total((head, tail)))
        return head, tail
    if factor.kind is Kind.SUM:
        return _cut_terms(factor, size)
    outer, inner = factor.kids[0], product(factor.kids[1:])
    rows, cut = divmod(size, inner.size)
    if not cut:
        first, second = split_sum(outer, rows)
        return product((first, inner)), product((second, inner))
    first, others = split_sum(outer, rows)
    unit, second = split_sum(others, 1)
    left, right = split_sum(inner, cut)
    whole = [product((part, inner)) if part.size else total(()) for part in (first, second)]
    return (
        total((whole[0], product((unit, left)))),
        total((product((unit, right)), whole[1])),
    )


def _cut_terms(factor: Factor, size: int) -> tuple[Factor, Factor]:
    head: list[Factor] = []
    terms = list(factor.kids)
    while size:
        term = terms.pop(0)
        if term.size > size:
            term, rest = split_sum(term, size)
            terms.insert(0, rest)
        head.append(term)
        size -= term.size
    return total(head), total(terms)


def split_product(factor: Factor, inner: int) -> tuple[Factor, Factor]:
    """Outer and inner part of a row-major combination, the inner one of the given size.

    Raises _NoRefinementError (seen by `unify` and `reshape` only) when there is no such cut.
    """
    factor = factor.find()
    if inner == factor.size:
        return one(), factor
    if inner == 1:
        return factor, one()
    if inner < 1 or factor.size % inner:
        raise _NoRefinementError
    if factor.frozen:
        return fixed(factor.size // inner, factor.frozen), fixed(inner, factor.frozen)
    if factor.kind is Kind.ATOM:
        outer, rest = Factor(factor.size // inner), Factor(inner)
        _bind(factor, product((outer, rest)))
        return outer, rest
    return _cut_rows(factor, inner) if factor.kind is Kind.SUM else _cut_kids(factor, inner)


def _cut_kids(factor: Factor, inner: int) -> tuple[Factor, Factor]:
    kids, taken = list(factor.kids), list[Factor]()
    while inner > 1:
        kid = kids.pop()
        if kid.size > inner:
            outer, kid = split_product(kid, inner)
            kids.append(outer)
        elif inner % kid.size:
            raise _NoRefinementError
        taken.insert(0, kid)
        inner //= kid.size
    return product(kids), product(taken)


def _cut_rows(factor: Factor, inner: int) -> tuple[Factor, Factor]:
    """A sum as rows of equal length: all rows get the same indices."""
    outers: list[Factor] = []
    rows: list[Factor] = []
    terms = list(factor.kids)
    while terms:
        term = terms.pop(0)
        whole = term.size // inner * inner
        if whole:
            term, rest = split_sum(term, whole)
            outer, row = split_product(term, inner)
            outers.append(outer)
            rows.append(row)
            if rest.size:
                terms.insert(0, rest)
        else:
            row, rest = split_sum(total((term, *terms)), inner)
            outers.append(one())
            rows.append(row)
            terms = _terms(rest) if rest.size else []
    for row in rows[1:]:
        _unify(rows[0], row)
    return total(outers), rows[0]


def regroup(factors: Sequence[Factor], sizes: Sequence[int], where: str) -> list[Factor]:
    """New dimensions of the given sizes with the indices of `factors`, row-major.

    Both have the same number of elements; without a common refinement all are frozen.
    """
    whole = product(factors)
    dims = [Factor(size) if size != 1 else one() for size in sizes]
    unify(whole, product(dims), where)
    return dims


class Masks:
    """Which indices of an expression stay, given those of its atoms."""

    def __init__(self, kept: Mapping[Factor, Mask]) -> None:
        """kept: atom (as returned by find) -> mask [size]; other atoms stay whole."""
        self._kept = dict(kept)
        self._known: dict[Factor, Mask] = {}
        self._touched: dict[Factor, bool] = {}

    def touches(self, factor: Factor) -> bool:
        """Whether the expression loses any index."""
        factor = factor.find()
        if factor not in self._touched:
            if factor.kids:
                self._touched[factor] = any(self.touches(kid) for kid in factor.kids)
            else:
                self._touched[factor] = factor in self._kept and not self._kept[factor].all()
        return self._touched[factor]

    def of(self, factor: Factor) -> Mask:
        """Mask [size] of the expression; do not write to it."""
        factor = factor.find()
        if factor not in self._known:
            self._known[factor] = self._evaluate(factor)
        return self._known[factor]

    def _evaluate(self, factor: Factor) -> Mask:
        if not self.touches(factor):
            return np.ones(factor.size, np.bool_)
        if not factor.kids:
            return self._kept[factor]
        masks = [self.of(kid) for kid in factor.kids]
        if factor.kind is Kind.SUM:
            return np.concatenate(masks)
        result = masks[0]
        for mask in masks[1:]:
            result = np.logical_and.outer(result, mask).ravel()
        return result


def positions(factor: Factor, atom: Factor) -> NDArray[np.intp]:
    """Index of `atom` at every index of the expression, -1 where it does not take part. [size]

    An index of an expression in which the atom occurs twice on one path is given the innermost.
    """
    factor = factor.find()
    if factor is atom:
        return np.arange(factor.size)
    if not factor.kids:
        return np.full(factor.size, -1)
    parts = [positions(kid, atom) for kid in factor.kids]
    if factor.kind is Kind.SUM:
        return np.concatenate(parts)
    result = parts[0]
    for part in parts[1:]:
        outer = np.repeat(result, part.size)
        inner = np.tile(part, result.size)
        result = np.where(inner >= 0, inner, outer)
    return result
