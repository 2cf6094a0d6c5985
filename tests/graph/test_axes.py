"""The algebra alone: what `unify` makes of atoms, products and sums, and that nothing is invented.

The brute-force model of the properties knows only indices: two dimensions that are unified lose
the same positions, a product loses an index when any of its parts does, a sum is a concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lwqc.graph.axes import (
    STATISTICS,
    Factor,
    Kind,
    Mask,
    Masks,
    fixed,
    freeze,
    is_free,
    mark,
    one,
    positions,
    product,
    regroup,
    split_product,
    split_sum,
    total,
    unify,
)


def atoms(*sizes: int) -> list[Factor]:
    return [Factor(size) for size in sizes]


def same(a: Factor, b: Factor) -> None:
    unify(a, b, "test")


def text(factor: Factor) -> str:
    return repr(factor)


# Construction.


def test_products_and_sums_are_flat_and_see_through_single_kids() -> None:
    a, b, c = atoms(2, 3, 4)
    assert text(product((product((a, b)), c))) == "(2·3·4)"
    assert text(total((total((a, b)), c))) == "(2+3+4)"
    assert product((a,)) is a
    assert total((a, total(()))) is a
    assert total(()).size == 0


def test_frozen_neighbours_join_and_fixed_ones_drop_from_products() -> None:
    a = Factor(5)
    frozen = [fixed(2, "first"), fixed(3, "second")]
    assert text(product((one(), a, one())).find()) == "5"
    assert text(product((*frozen, a)).find()) == "(6|·5)"
    assert text(total((*frozen, a)).find()) == "(5|+5)"
    assert frozen[0].frozen == "first"


def test_a_single_index_that_may_go_stays_in_a_product() -> None:
    assert text(product((Factor(1), Factor(5))).find()) == "(1·5)"


# Unification.


def test_atoms_become_the_same() -> None:
    a, b = atoms(4, 4)
    same(a, b)
    assert a.find() is b.find()


def test_an_atom_becomes_an_expression_everywhere() -> None:
    a, heads, dims = atoms(12, 3, 4)
    twice = total((a, a))
    same(a, product((heads, dims)))
    assert text(twice.find()) == "((3·4)+(3·4))"
    assert list(twice.leaves()) == [heads, dims, heads, dims]


def test_products_refine_each_other() -> None:
    a, b, c, d = atoms(4, 6, 12, 2)
    same(product((a, b)), product((c, d)))
    assert (text(b.find()), text(c.find())) == ("(3·2)", "(4·3)")
    assert text(product((a, b)).find()) == text(product((c, d)).find()) == "(4·3·2)"


def test_sums_refine_each_other() -> None:
    a, b, c, d = atoms(4, 6, 7, 3)
    same(total((a, b)), total((c, d)))
    assert (text(b.find()), text(c.find())) == ("(3+3)", "(4+3)")
    assert next(iter(b.leaves())) is list(c.leaves())[1]


def test_other_sizes_freeze_both() -> None:
    a, b = atoms(4, 5)
    same(a, b)
    assert not is_free(a)
    assert a.frozen == b.frozen == "test: meets a dimension of another size (4 and 5)"


def test_frozen_is_absorbing() -> None:
    a, b = atoms(3, 4)
    same(product((a, b)), fixed(12, "input"))
    assert (a.frozen, b.frozen) == ("input", "input")


def test_what_has_no_common_refinement_is_frozen_with_the_reason() -> None:
    a, b, c, d = atoms(2, 3, 3, 2)
    same(product((a, b)), product((c, d)))
    assert all(not is_free(f) for f in (a, b, c, d))
    assert "cut the same channels differently" in a.frozen
    assert a.frozen.startswith("test: ")


def test_a_factor_in_itself_freezes_the_unit() -> None:
    """`a := u·a`: every index of a exists only while u does."""
    a, unit = atoms(6, 1)
    same(a, product((unit, a)))
    assert not is_free(unit)
    assert is_free(a)
    assert unit.frozen == "a single index that everything depends on"


def test_a_sum_of_a_factor_with_itself_in_turn() -> None:
    a, b = atoms(2, 3)
    same(total((a, b)), total((b, a)))
    leaves = set(total((a, b)).leaves())
    assert {leaf.size for leaf in leaves} == {1}
    assert len(leaves) == 1  # index 0 is 2 is 4 is 1 is 3


def test_marks_are_inherited_by_parts() -> None:
    a = Factor(12)
    mark(a, STATISTICS)
    outer, inner = split_product(a, 4)
    first, rest = split_sum(inner, 1)
    assert all(STATISTICS in f.find().marks for f in (outer, first, rest))
    b = Factor(12)
    same(b, a)
    assert all(STATISTICS in leaf.marks for leaf in b.leaves())


# Cutting.


def test_cutting_an_atom() -> None:
    a = Factor(10)
    first, rest = split_sum(a, 4)
    assert (first.size, rest.size) == (4, 6)
    assert text(a) == "(4+6)"
    assert split_sum(first, 0)[0].size == 0
    assert split_sum(first, 4)[1].size == 0


def test_cutting_between_rows() -> None:
    outer, inner = atoms(4, 3)
    first, rest = split_sum(product((outer, inner)), 6)
    assert (text(first), text(rest)) == ("(2·3)", "(2·3)")
    assert text(outer.find()) == "(2+2)"


def test_cutting_inside_a_row_makes_a_unit() -> None:
    outer, inner = atoms(4, 3)
    first, rest = split_sum(product((outer, inner)), 4)
    assert (first.size, rest.size) == (4, 8)
    assert text(outer.find()) == "(1+1+2)"
    assert text(inner.find()) == "(1+2)"


def test_a_frozen_row_is_cut_without_its_structure() -> None:
    first, rest = split_sum(fixed(10, "input"), 3)
    assert (text(first), text(rest)) == ("3|", "7|")
    outer, inner = split_product(fixed(10, "input"), 5)
    assert (text(outer), text(inner)) == ("2|", "5|")


def test_a_sum_as_rows_makes_the_rows_the_same() -> None:
    a, b = atoms(6, 9)
    outer, row = split_product(total((a, b)), 3)
    assert (outer.size, row.size) == (5, 3)
    assert text(a) == "(2·3)"
    assert list(a.leaves())[1] is list(b.leaves())[1] is next(iter(row.leaves()))


def test_regroup_gives_the_wanted_sizes() -> None:
    a, b = atoms(6, 4)
    dims = regroup([a, b], [2, 12, 1], "test")
    assert [d.size for d in dims] == [2, 12, 1]
    assert text(dims[1]) == "(3·4)"
    assert not is_free(dims[2])


# Masks and positions.


def test_masks_of_products_and_sums() -> None:
    a, b = atoms(2, 3)
    masks = Masks({a: np.asarray([True, False]), b: np.asarray([True, False, True])})
    kept = [True, False, True, False, False, False]
    assert masks.of(product((a, b))).tolist() == kept
    assert masks.of(total((product((a, b)), a))).tolist() == [*kept, True, False]
    assert masks.touches(total((b, fixed(2, "input"))))
    assert not Masks({a: np.ones(2, np.bool_)}).touches(a)
    assert not masks.touches(Factor(4))
    assert masks.of(Factor(4)).all()


def test_positions_of_an_atom() -> None:
    a, b = atoms(2, 3)
    assert positions(product((a, b)), a).tolist() == [0, 0, 0, 1, 1, 1]
    assert positions(product((a, b)), b).tolist() == [0, 1, 2, 0, 1, 2]
    assert positions(total((b, product((a, b)))), a).tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 1]
    assert positions(b, a).tolist() == [-1, -1, -1]


# Properties.

SIZES = (1, 2, 3, 4, 6, 8, 12)


@st.composite
def expressions(draw: st.DrawFn, base: Sequence[Factor]) -> Factor:
    """A random nested product or sum of some base atoms, of up to 60 indices."""
    factor = draw(st.sampled_from(base))
    for _ in range(draw(st.integers(0, 3))):
        other = draw(st.sampled_from(base))
        pair = (factor, other) if draw(st.booleans()) else (other, factor)
        joined = (product if draw(st.booleans()) else total)(pair)
        factor = joined if joined.size <= 60 else factor
    return factor


def brute(expression: Factor, masks: Masks, shape: dict[Factor, tuple[Kind, list[Factor]]]) -> Mask:
    """Mask of an expression from those of the atoms that it was built of."""
    if expression not in shape:
        return masks.of(expression)
    kind, kids = shape[expression]
    parts = [brute(kid, masks, shape) for kid in kids]
    result = parts[0]
    for part in parts[1:]:
        if kind is Kind.SUM:
            result = np.concatenate([result, part])
        else:
            result = np.logical_and.outer(result, part).ravel()
    return result


def remember(factor: Factor, shape: dict[Factor, tuple[Kind, list[Factor]]]) -> None:
    """Note how an expression was built, before unification changes it."""
    if factor.kids and factor not in shape:
        shape[factor] = (factor.kind, list(factor.kids))
        for kid in factor.kids:
            remember(kid, shape)


@given(st.data(), st.lists(st.sampled_from(SIZES), min_size=2, max_size=6), st.integers(0, 2**31))
@settings(max_examples=400, deadline=None)
def test_masks_obey_everything_that_was_stated(
    data: st.DataObject, sizes: list[int], seed: int
) -> None:
    base = atoms(*sizes)
    if data.draw(st.booleans()):
        freeze(base[0], "input")
    shape: dict[Factor, tuple[Kind, list[Factor]]] = {}
    stated: list[tuple[Factor, Factor]] = []
    made: list[tuple[Factor, int]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        left = data.draw(expressions(base))
        right = data.draw(expressions(base))
        if left.size != right.size:  # a reshape: two dimensions of the same indices
            cuts = [d for d in SIZES if left.size % d == 0]
            inner = data.draw(st.sampled_from(cuts))
            right = product(atoms(left.size // inner, inner))
        for side in (left, right):
            remember(side, shape)
            made.append((side, side.size))
        same(left, right)
        stated.append((left, right))
    kept = masks_of_leaves([f for f, _ in made] + base, seed)
    assert [f.find().size for f, _ in made] == [size for _, size in made]
    assert [f.find().size for f in base] == sizes
    for left, right in stated:
        expected = brute(left, kept, shape)
        assert len(kept.of(left)) == len(expected) == left.size
        assert np.array_equal(kept.of(left), expected)
        assert np.array_equal(kept.of(right), brute(right, kept, shape))
        assert np.array_equal(kept.of(left), kept.of(right))


def masks_of_leaves(factors: Sequence[Factor], seed: int) -> Masks:
    rng = np.random.default_rng(seed)
    leaves = dict.fromkeys(leaf for f in factors for leaf in f.leaves() if not leaf.frozen)
    return Masks({leaf: rng.random(leaf.size) < 0.7 for leaf in leaves})


@given(st.data(), st.lists(st.integers(1, 7), min_size=2, max_size=6))
@settings(max_examples=300, deadline=None)
def test_sums_give_the_classes_of_a_union_find_over_indices(
    data: st.DataObject, sizes: list[int]
) -> None:
    """Without products nothing may freeze, and no two indices may meet that need not."""
    base = atoms(*sizes)
    starts = np.cumsum([0, *sizes])
    labels = [np.arange(starts[i], starts[i + 1]) for i in range(len(base))]
    merged = UnionFind(int(starts[-1]))
    for _ in range(data.draw(st.integers(1, 4))):
        left = data.draw(st.permutations(range(len(base))))
        right = data.draw(st.permutations(range(len(base))))
        same(total(base[i] for i in left), total(base[i] for i in right))
        rows = (np.concatenate([labels[i] for i in order]) for order in (left, right))
        for a, b in zip(*rows, strict=True):
            merged.union(int(a), int(b))
    assert all(not leaf.frozen for f in base for leaf in f.leaves())
    assert classes(base) == merged.classes()


def classes(base: Sequence[Factor]) -> set[frozenset[int]]:
    """Which indices of the atoms, numbered through, share an index of a leaf."""
    found: dict[tuple[Factor, int], set[int]] = {}
    start = 0
    for factor in base:
        for leaf in set(factor.leaves()):
            for place, index in enumerate(positions(factor, leaf)):
                if index >= 0:
                    found.setdefault((leaf, int(index)), set()).add(start + place)
        start += factor.size
    return {frozenset(members) for members in found.values()}


class UnionFind:
    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            i = self.parent[i]
        return i

    def union(self, a: int, b: int) -> None:
        self.parent[self.find(a)] = self.find(b)

    def classes(self) -> set[frozenset[int]]:
        found: dict[int, set[int]] = {}
        for i in range(len(self.parent)):
            found.setdefault(self.find(i), set()).add(i)
        return {frozenset(members) for members in found.values()}
