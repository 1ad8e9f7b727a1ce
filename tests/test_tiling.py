"""Slices: what tiles a variable and what does not, and regions put together of slices."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import InputError
from converter.formats.tiling import assemble, check_tiling
from converter.variable import Region, whole


def tilings(shape: tuple[int, ...], draw: random.Random, cuts: int) -> list[Region]:
    """Cut a box in two again and again, at any place of any axis."""
    boxes = [whole(shape)]
    for _ in range(cuts):
        box = boxes.pop(draw.randrange(len(boxes)))
        axes = [axis for axis, s in enumerate(box) if s.stop - s.start > 1]
        if not axes:
            boxes.append(box)
            continue
        axis = draw.choice(axes)
        at = draw.randrange(box[axis].start + 1, box[axis].stop)
        boxes.append((*box[:axis], slice(box[axis].start, at), *box[axis + 1 :]))
        boxes.append((*box[:axis], slice(at, box[axis].stop), *box[axis + 1 :]))
    draw.shuffle(boxes)
    return boxes


def tiles(shape: tuple[int, ...], extents: list[Region]) -> bool:
    """Count how often each element is covered: the definition."""
    covered = np.zeros(shape, int)
    for extent in extents:
        covered[extent] += 1
    return bool((covered == 1).all())


shapes = st.lists(st.integers(1, 7), max_size=4).map(tuple)


@given(shapes, st.randoms(use_true_random=False), st.integers(0, 12))
def test_any_tiling_is_accepted_and_assembled(
    shape: tuple[int, ...], draw: random.Random, cuts: int
) -> None:
    extents = tilings(shape, draw, cuts)
    check_tiling("v", shape, extents, "file")
    values = np.arange(math.prod(shape)).reshape(shape)
    region = tuple(slice(*sorted((draw.randint(0, size), draw.randint(0, size)))) for size in shape)
    pieces = [(extent, values[extent].__getitem__) for extent in extents]
    np.testing.assert_array_equal(assemble(region, values.dtype, pieces), values[region])


@given(st.data())
def test_boxes_are_judged_as_counting_elements_does(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))
    corners = st.tuples(
        *(st.lists(st.integers(0, n), min_size=2, max_size=2).map(sorted) for n in shape)
    )
    extents = [
        tuple(slice(*pair) for pair in pairs) for pairs in data.draw(st.lists(corners, max_size=6))
    ]
    if tiles(shape, extents):
        check_tiling("v", shape, extents, "file")
    else:
        with pytest.raises(InputError, match="slices of v"):
            check_tiling("v", shape, extents, "file")


@pytest.mark.parametrize(
    ("shape", "extents", "message"),
    [
        ((4,), [(slice(0, 2),)], r"f: the slices of v \[4\] leave gaps: they hold 2 of 4 elements"),
        ((4,), [(slice(0, 3),), (slice(2, 4),)], "overlap: they hold 5 elements of 4"),
        ((4,), [(slice(0, 2),), (slice(1, 3),)], "overlap, and leave gaps elsewhere"),
        ((4,), [(slice(2, 5),)], r"is \[2:5\], which reaches outside"),
        ((4,), [(slice(-1, 3),)], "outside"),
        ((4,), [(slice(0, 4), slice(0, 1))], "outside"),
        ((), [], "0 of 1"),
        ((), [(), ()], "overlap: they hold 2 elements of 1"),
    ],
)
def test_faults_are_named(shape: tuple[int, ...], extents: list[Region], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_tiling("v", shape, extents, "f")


def test_empty_variables_need_no_slices() -> None:
    check_tiling("v", (0, 4), [], "file")
    check_tiling("v", (0, 4), [whole((0, 4))], "file")
    assert assemble(whole((0, 4)), np.dtype("f4"), []).shape == (0, 4)


@pytest.mark.usefixtures("must_end")
def test_many_slices_of_many_axes_cost_linear_time() -> None:
    shape = (5_000, *[1000] * 50)
    extents = [(slice(i, i + 1), *whole(shape[1:])) for i in range(5_000)]
    check_tiling("v", shape, extents, "file")


def test_strings_are_assembled() -> None:
    values = np.array([[b"a", b""], [b"ccc", b"d\0"]], object)
    extents = [(slice(i, i + 1), slice(j, j + 1)) for i, j in itertools.product(range(2), range(2))]
    pieces = [(extent, values[extent].__getitem__) for extent in extents]
    assert assemble(whole((2, 2)), values.dtype, pieces).tolist() == values.tolist()
