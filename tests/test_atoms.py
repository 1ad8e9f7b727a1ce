"""Axes that are merged, cut and factored until they are the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.structure.tensors.atoms import (
    ONE,
    Atom,
    Clash,
    Kind,
    Whole,
    concat,
    cut,
    find,
    leaf,
    leaves,
    product,
    size_of,
    terms,
    unify,
)


def entries(atom: Atom) -> list[tuple[object, ...]]:
    """List the entries of an axis, so that two axes that are the same one have the same list."""
    root = find(atom)
    if root.kind is Kind.LEAF:
        return [()] if root is ONE else [((id(root), i),) for i in range(root.size or 0)]
    parts = [entries(part) for part in root.parts]
    if root.kind is Kind.SUM:
        return list(itertools.chain(*parts))
    return [tuple(itertools.chain(*combined)) for combined in itertools.product(*parts)]


def same(a: Atom, b: Atom) -> bool:
    return entries(a) == entries(b)


def test_equal_sizes_are_merged() -> None:
    a, b, c = leaf(8), leaf(8), leaf(8)
    unify(a, b)
    unify(b, c)
    assert find(a) is find(c)
    assert find(leaf(8)) is not find(a)


def test_gates_of_a_cell() -> None:
    columns, state = leaf(120), leaf(30)
    gates = cut(columns, 30, 60, 90)
    for gate in gates:
        unify(gate, state)
    assert terms(columns) == [(find(state),)] * 4


def test_a_concatenation_cuts_what_it_meets() -> None:
    rows, features, units = leaf(40), leaf(10), leaf(30)
    unify(rows, concat((features, units)))
    assert terms(rows) == [(features,), (units,)]


def test_equal_sizes_do_not_confuse() -> None:
    rows, columns, features, units = leaf(64), leaf(128), leaf(32), leaf(32)
    unify(rows, concat((features, units)))
    for gate in cut(columns, 32, 64, 96):
        unify(gate, units)
    assert terms(rows) == [(features,), (find(units),)]
    assert terms(columns) == [(find(units),)] * 4
    assert find(features) is not find(units)


def test_a_reshape_factors() -> None:
    columns, heads, size = leaf(32), leaf(2), leaf(16)
    unify(columns, product((heads, size)))
    assert terms(columns) == [(heads, size)]
    other = leaf(32)
    unify(other, columns)
    assert terms(other) == [(heads, size)]


def test_a_sum_in_a_product_stays_inside() -> None:
    a, b, places = leaf(3), leaf(5), leaf(4)
    channels = concat((a, b))
    rows = leaf(32)
    unify(rows, product((places, channels)))
    ((outer, inner),) = terms(rows)
    assert outer is places
    assert terms(inner) == [(a,), (b,)]


def test_a_product_is_multiplied_out_from_the_left() -> None:
    a, b, c = leaf(3), leaf(5), leaf(2)
    assert terms(product((concat((a, b)), c))) == [(a, c), (b, c)]


def test_a_product_is_cut_at_its_blocks() -> None:
    blocks, units = leaf(4), leaf(5)
    whole = product((blocks, units))
    first, rest = cut(whole, 5)
    assert size_of(first) == 5
    assert terms(first) == [(units,)]
    assert size_of(rest) == 15
    for piece in cut(rest, 5, 10):
        unify(piece, units)
    assert terms(whole)[0] == (units,)


def test_a_cut_inside_a_block_makes_all_blocks_stand_alone() -> None:
    blocks, units = leaf(2), leaf(6)
    whole = product((blocks, units))
    cut(whole, 2)
    found = terms(whole)
    assert [size_of(term[0]) for term in found] == [2, 4, 2, 4]
    assert found[0] == found[2]


def test_factors_of_factors() -> None:
    a, b = product((leaf(4), leaf(6))), product((leaf(2), leaf(12)))
    unify(a, b)
    assert same(a, b)
    assert [[size_of(f) for f in term] for term in terms(a)] == [[2, 2, 6]]


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(Clash) as clash:
        unify(leaf(8), leaf(9))
    assert clash.value.sizes == (8, 9)
    with pytest.raises(Clash) as clash:
        unify(product((leaf(4), leaf(6))), product((leaf(6), leaf(4))))
    assert clash.value.sizes is None


def test_an_axis_of_one_is_every_axis_of_one() -> None:
    assert leaf(1) is leaf(1) is ONE
    batch = leaf(None)
    unify(batch, ONE)
    assert size_of(batch) == 1
    with pytest.raises(Clash):
        unify(ONE, leaf(2))


def test_unknown_sizes_become_known() -> None:
    batch, time, units = leaf(None), leaf(None), leaf(7)
    rows = leaf(70)
    unify(rows, product((batch, units)))
    assert size_of(batch) == 10
    unify(time, batch)
    assert size_of(time) == 10
    with pytest.raises(Clash):
        unify(leaf(71), product((leaf(None), leaf(7))))


def test_unknown_products_match_at_their_ends() -> None:
    batch, time, units = leaf(None), leaf(None), leaf(7)
    rows, columns = leaf(None), leaf(7)
    unify(product((batch, time, units)), product((rows, columns)))
    assert find(units) is find(columns)
    assert terms(rows) == [(batch, time)]


def test_nothing_is_part_of_itself() -> None:
    time = leaf(None)
    with pytest.raises(Clash):
        unify(time, concat((time, leaf(1))))


def test_slices_that_are_joined_are_one_axis() -> None:
    whole, units = Whole([3, 3, 2]), leaf(8)
    unify(concat(whole.parts), units)
    whole.settle()
    assert leaves(whole.full) == [find(units)]
    assert leaves(whole.parts[1]) == [find(units)]


def test_slices_that_are_used_alone_are_axes() -> None:
    whole, other = Whole([3, 5]), leaf(3)
    unify(whole.parts[0], other)
    whole.settle()
    assert [size_of(a) for a in leaves(whole.full)] == [3, 5]
    assert leaves(other) == leaves(whole.full)[:1]


def test_slices_in_another_order_are_axes() -> None:
    whole = Whole([4, 4])
    units = leaf(8)
    unify(concat(whole.parts[::-1]), units)
    whole.split()
    first, second = terms(whole.full)
    assert terms(units) == [second, first]


def test_an_endless_number_of_pieces_is_refused() -> None:
    axis = leaf(1 << 20)
    with pytest.raises(Clash):
        cut(axis, *range(1, 5000))


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, int, int, int]]:
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["leaf", "concat", "product", "cut", "unify", "unify"]),
                st.integers(0, 40),
                st.integers(0, 40),
                st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]),
            ),
            min_size=3,
            max_size=24,
        )
    )
    return list(steps)


@settings(max_examples=300, deadline=None)
@given(programs())
def test_what_is_unified_has_the_same_entries(steps: list[tuple[str, int, int, int]]) -> None:
    atoms = [leaf(24), leaf(24), leaf(12)]
    merged: list[tuple[Atom, Atom]] = []
    for what, i, j, size in steps:
        a, b = atoms[i % len(atoms)], atoms[j % len(atoms)]
        whole = size_of(a) or 0
        if what == "leaf":
            atoms.append(leaf(size))
        elif what == "concat" and whole + (size_of(b) or 0) <= 96:
            atoms.append(concat((a, b)))
        elif what == "product" and whole * (size_of(b) or 0) <= 96:
            atoms.append(product((a, b)))
        elif what == "cut" and 0 < j < whole:
            try:
                atoms += cut(a, j)
            except Clash:
                return
        elif what == "unify":
            equals = [x for x in atoms if size_of(x) == whole]
            other = equals[j % len(equals)]
            try:
                unify(a, other)
            except Clash:
                return
            merged.append((a, other))
    for a, b in merged:
        assert same(a, b)
    for atom in atoms:
        assert len(entries(atom)) == size_of(atom)
