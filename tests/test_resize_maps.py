"""Maps of widths on axes, against the same written out entry by entry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from converter import Array, Units, Variable
from converter.resize.chosen import choose, new_entries
from converter.resize.dense import multiply
from converter.resize.maps import AxisMap, panels, places_of
from converter.resize.units import MOST_RUNS, Matrix, Run, Taken
from converter.structure.axes import entries as of_axis
from converter.structure.axes.axis import Axis, Blocks, Factor

NAMES = ("a", "b", "c")
Entry = tuple[Any, ...]
"""Where an entry of an axis stands: the place of its term, and a digit for each of its factors."""


def entries(axis: Axis, sizes: Mapping[str, int]) -> list[Entry]:
    """Return all entries of an axis in order; the unit of a width stands as (name, unit)."""
    found: list[Entry] = []
    for place, term in enumerate(axis.terms):
        digits = [_digits(factor, sizes) for factor in term]
        found += [(place, *entry) for entry in itertools.product(*digits)]
    return found


def _digits(factor: Factor, sizes: Mapping[str, int]) -> Sequence[Any]:
    if isinstance(factor, Axis):
        return [("in", entry) for entry in entries(factor, sizes)]
    if isinstance(factor, str):
        return [(factor, unit) for unit in range(sizes[factor])]
    return range(len(factor.labels) if isinstance(factor, Blocks) else factor)


def origin(entry: Entry, units: Mapping[str, Units]) -> tuple[Entry | None, float]:
    """Return the old entry of a new one, and its weight; None where it is new."""
    place, *digits = entry
    found: list[Any] = [place]
    weight = 1.0
    is_new = False
    for digit in digits:
        if not isinstance(digit, tuple):
            found.append(digit)
        elif digit[0] == "in":
            inner, factor = origin(digit[1], units)
            is_new |= inner is None
            weight *= factor
            found.append(("in", inner))
        else:
            name, unit = digit
            old = int(units[name].index[unit]) if name in units else unit
            if name in units and (weights := units[name].weight) is not None:
                weight *= float(weights[unit])
            is_new |= old < 0
            found.append((name, old))
    return (None if is_new else tuple(found)), weight


@st.composite
def axes(draw: st.DrawFn, depth: int = 2) -> Axis:
    """Sums of products of widths, numbers, labelled blocks and sums in brackets."""
    factors: st.SearchStrategy[Factor] = st.sampled_from(
        ["a", "b", "c", 1, 2, 3, Blocks(("i", "j")), Blocks(("q", "k", "v"))]
    )
    if depth:
        factors = factors | axes(depth - 1)
    terms = st.lists(st.lists(factors, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
    found = Axis(tuple(draw(terms)))
    assume(found.size(dict.fromkeys(NAMES, 3)) < 400)
    return found


sizes_of = st.fixed_dictionaries({name: st.integers(1, 3) for name in NAMES})


@st.composite
def unit_maps(
    draw: st.DrawFn, sizes: Mapping[str, int], *, weights: bool = True
) -> dict[str, Units]:
    """Choices of units for some widths: cut, grown, chosen at random, weighed."""
    found = {}
    for name in draw(st.sets(st.sampled_from(NAMES))):
        old, new = sizes[name], draw(st.integers(1, 4))
        if draw(st.booleans()):
            found[name] = Units.first(old, new)
            continue
        index = np.array(draw(st.lists(st.integers(-1, old - 1), min_size=new, max_size=new)))
        weight = None
        if weights and draw(st.booleans()):
            weight = np.array(
                draw(st.lists(st.sampled_from([0.5, 1, 2]), min_size=new, max_size=new))
            )
        found[name] = Units(new, index, weight)
    return found


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_an_axis_map_is_what_it_is_entry_by_entry(data: st.DataObject) -> None:
    axis, sizes = data.draw(axes()), data.draw(sizes_of)
    units = data.draw(unit_maps(sizes))
    new_sizes = {name: units[name].size if name in units else sizes[name] for name in NAMES}
    old = {entry: place for place, entry in enumerate(entries(axis, sizes))}
    wanted = [origin(entry, units) for entry in entries(axis, new_sizes)]
    axis_map = AxisMap(axis, sizes, units)
    assert (axis_map.old_length, axis_map.length) == (len(old), len(wanted))
    index = [-1 if entry is None else old[entry] for entry, _ in wanted]
    orders = {name: found.index for name, found in units.items()}
    assert of_axis.entries(axis, orders, sizes).tolist() == index
    start = data.draw(st.integers(0, len(wanted)))
    stop = data.draw(st.integers(start, len(wanted)))
    found = axis_map.entries(start, stop)
    assert found.old.tolist() == index[start:stop]
    if axis_map.is_weighted:
        assert found.weight is not None
        held = found.old >= 0
        weights = np.array([weight for _, weight in wanted[start:stop]])
        np.testing.assert_array_equal(found.weight[held], weights[held])
    else:
        assert found.weight is None
        _check_runs(axis_map.runs or (), index if axis_map.runs is not None else ())


def _check_runs(runs: Sequence[Run], index: Sequence[int]) -> None:
    told: list[int] = []
    for run in runs:
        assert run.start == len(told) < run.stop
        length = run.stop - run.start
        told += [-1] * length if run.old < 0 else range(run.old, run.old + length)
    assert told == list(index)


def test_units_that_stay_are_one_run() -> None:
    sizes = {"a": 3, "b": 2}
    kept = Units.first(3, 5)
    assert AxisMap(Axis.parse("b + a"), sizes, {"a": kept}).runs == (Run(0, 5, 0), Run(5, 7, -1))
    assert AxisMap(Axis.parse("a*b"), sizes, {"a": kept}).runs == (Run(0, 6, 0), Run(6, 10, -1))
    assert AxisMap(Axis.parse("[i,j]*a"), sizes, {"a": kept}).runs == (
        Run(0, 3, 0), Run(3, 5, -1), Run(5, 8, 3), Run(8, 10, -1),
    )  # fmt: skip


def test_what_is_in_many_pieces_has_no_runs() -> None:
    many = MOST_RUNS + 1
    shuffled = Units(many + 1, np.arange(many + 1)[::-1])
    assert AxisMap(Axis.parse("a"), {"a": many + 1}, {"a": shuffled}).runs is None
    axis_map = AxisMap(Axis.parse("b*a"), {"a": 1, "b": many}, {"a": Units.first(1, 2)})
    assert axis_map.runs is None
    assert axis_map.entries(2, 5).old.tolist() == [1, -1, 2]


def test_no_index_of_a_large_table_is_written_out() -> None:
    units = Units.first(1 << 40, 1 << 41)
    assert units.taken(1 << 40) == Taken(removed=0, most=1, even=True, new=1 << 40)
    axis_map = AxisMap(Axis.parse("a"), {"a": 1 << 40}, {"a": units})
    assert axis_map.entries((1 << 40) - 1, (1 << 40) + 1).old.tolist() == [(1 << 40) - 1, -1]
    assert axis_map.runs == (Run(0, 1 << 40, 0), Run(1 << 40, 1 << 41, -1))


@pytest.mark.parametrize(
    ("units", "old", "taken"),
    [
        (Units.first(3, 2), 3, Taken(1, 1, False, 0)),
        (Units.first(3, 3), 3, Taken(0, 1, True, 0)),
        (Units(4, np.array([0, 1, 0, -1])), 2, Taken(0, 2, False, 1)),
        (Units(4, np.array([0, 1, 0, 1])), 2, Taken(0, 2, True, 0)),
        (Units(1, np.array([-1])), 2, Taken(2, 0, True, 1)),
    ],
)
def test_how_often_units_are_taken(units: Units, old: int, taken: Taken) -> None:
    assert units.taken(old) == taken
    # What a choice that is written out says is the same.
    assert Units(units.size, units.index).taken(old) == taken


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_choosing_along_several_axes(data: st.DataObject) -> None:
    expressions = data.draw(st.lists(axes(depth=1), min_size=0, max_size=3))
    sizes = data.draw(sizes_of)
    units = data.draw(unit_maps(sizes))
    shape = [axis.size(sizes) for axis in expressions]
    if math.prod(shape) > 3000:
        shape, expressions = shape[:1], expressions[:1]
    array = np.arange(1, math.prod(shape) + 1, dtype=np.float32).reshape(shape)
    chosen = [
        AxisMap(axis, sizes, units) if data.draw(st.booleans()) else None for axis in expressions
    ]
    wanted = array.astype(np.float64)
    new = np.zeros(shape, np.bool_)
    for number, axis_map in enumerate(chosen):
        if axis_map is None:
            continue
        index, weight = axis_map.entries(0, axis_map.length)
        wanted = np.take(wanted, np.maximum(index, 0), axis=number)
        new = np.take(new, np.maximum(index, 0), axis=number)
        along = [-1 if k == number else 1 for k in range(len(shape))]
        new = new | (index < 0).reshape(along)
        if weight is not None:
            wanted = wanted * weight.reshape(along)
    wanted[new] = -7
    result = choose(Variable.from_array("x", array), chosen, -7.0)
    np.testing.assert_array_equal(result.read(), wanted.astype(np.float32), strict=True)
    region = tuple(slice(size // 3, size - size // 4) for size in result.shape)
    np.testing.assert_array_equal(result.read(region), wanted.astype(np.float32)[region or ...])
    np.testing.assert_array_equal(new_entries(chosen)(region), new[region or ...])


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_where_units_stand(data: st.DataObject) -> None:
    axis, sizes = data.draw(axes()), data.draw(sizes_of)
    name = data.draw(st.sampled_from(NAMES))
    wanted: list[list[int]] = [[] for _ in range(sizes[name])]
    for place, entry in enumerate(entries(axis, sizes)):
        units = list(_units(entry, name))
        if len(units) > 1:
            # A width twice in one product has no units there.
            return
        for unit in units:
            wanted[unit].append(place)
    assert places_of(axis, sizes, name).tolist() == [list(row) for row in zip(*wanted, strict=True)]


def _units(entry: Entry, name: str) -> Any:
    for digit in entry[1:]:
        if isinstance(digit, tuple) and digit[0] == "in":
            yield from _units(digit[1], name)
        elif isinstance(digit, tuple) and digit[0] == name:
            yield digit[1]


def written_out(axis: Axis, sizes: Mapping[str, int], name: str, matrix: Array) -> Array:
    """Return the matrix of a whole axis: block-diagonal over sums, Kronecker over products."""
    blocks = []
    for term in axis.terms:
        block: Array = np.eye(1)
        for factor in term:
            size = Axis(((factor,),)).size(sizes)
            block = np.kron(block, matrix if factor == name else np.eye(size))
        blocks.append(block)
    rows, columns = (sum(b.shape[k] for b in blocks) for k in (0, 1))
    found = np.zeros((rows, columns))
    at = [0, 0]
    for block in blocks:
        found[at[0] : at[0] + len(block), at[1] : at[1] + block.shape[1]] = block
        at = [at[0] + len(block), at[1] + block.shape[1]]
    return found


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_matrices_act_on_stretches(data: st.DataObject) -> None:
    axis, sizes = data.draw(axes(depth=1)), data.draw(sizes_of)
    matrix = np.random.default_rng(0).standard_normal((sizes["a"], data.draw(st.integers(1, 5))))
    in_brackets = any(isinstance(f, Axis) and "a" in f.widths() for t in axis.terms for f in t)
    if in_brackets or any(term.count("a") > 1 for term in axis.terms):
        with pytest.raises(ValueError, match="a"):
            panels(axis, sizes, {"a": Matrix.of(matrix)})
        return
    cut = panels(axis, sizes, {"a": Matrix.of(matrix)})
    turn = written_out(axis, sizes, "a", matrix)
    number = data.draw(st.integers(0, 1))
    array = np.random.default_rng(1).standard_normal((3, len(turn)))
    wanted = array @ turn
    if number == 0:
        array, wanted = array.T, wanted.T
    result = multiply(Variable.from_array("x", array), number, cut)
    assert result.shape == wanted.shape
    np.testing.assert_allclose(result.read(), wanted, atol=1e-12)
    region = tuple(slice(size // 3, size - size // 4) for size in wanted.shape)
    np.testing.assert_allclose(result.read(region), wanted[region], atol=1e-12)
