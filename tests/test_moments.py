"""Moments: the same however the data are cut, and equal to what numpy says of all at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.activations import sums
from converter.activations.moments import Accumulator, Moments
from converter.activations.sums import NotFiniteError, Sums, _compiled
from converter.variable import Array


@pytest.fixture(scope="module", autouse=True, params=["compiled", "numpy"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Add up with numba, and as where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "compiled":
            pytest.importorskip("numba")
        else:
            patch.setitem(sys.modules, "numba", None)
        _compiled.cache_clear()
        assert (_compiled() is None) == (request.param == "numpy")
        yield
    _compiled.cache_clear()


def check(found: Moments, values: Array, rtol: float = 1e-9) -> None:
    """Compare moments with those of (observations, units) in float64."""
    wide = values.astype(np.float64)
    scale = np.abs(wide).max(0)
    assert found.count == len(wide)
    for name, wanted in {
        "mean": wide.mean(0),
        "mean_abs": np.abs(wide).mean(0),
        "second_moment": (wide**2).mean(0),
        "std": wide.std(0),
    }.items():
        assert np.allclose(getattr(found, name), wanted, rtol=rtol, atol=rtol * scale.max()), name
    for name, exact in {"min": wide.min(0), "max": wide.max(0), "max_abs": scale}.items():
        assert (getattr(found, name) == exact).all(), name
    assert (found.zeros == (wide == 0).mean(0)).all()
    if found.covariance is not None:
        wanted = np.cov(wide.T, bias=True).reshape(wide.shape[1], -1)
        assert np.allclose(found.covariance, wanted, rtol=rtol, atol=rtol * scale.max() ** 2)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 900),
    st.sampled_from([1, 2, 3, 30, 256, 300]),
    st.lists(st.integers(0, 900), max_size=8),
    st.sampled_from(["f2", "f4", "f8"]),
    st.booleans(),
    st.integers(0, 1 << 30),
)
def test_however_it_is_cut(
    count: int, size: int, cuts: list[int], dtype: str, covariance: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((count, size)) + rng.standard_normal(size)).astype(dtype)
    values[rng.random(values.shape) < 0.3] = 0
    covariance = covariance and size < 50
    at_once, in_parts, joined = (Moments.of(size, covariance=covariance) for _ in range(3))
    at_once.add(values)
    check(at_once, values)
    for part in np.split(values, sorted(cuts)):
        in_parts.add(part)
        other = Moments.of(size, covariance=covariance)
        other.add(part)
        joined.merge(other)
    check(in_parts, values)
    check(joined, values)
    accumulator = Accumulator(Moments.of(size, covariance=covariance))
    accumulator.add(np.split(values, sorted(cuts)))
    check(accumulator.moments, values)


def test_parts_of_other_dtypes_and_lengths_are_accumulated() -> None:
    rng = np.random.default_rng(0)
    lengths = [3, 5000, 0, 1, 700, 64]
    dtypes = ["f4", "f4", "f4", "f8", "f2", "f4"]
    parts = [rng.standard_normal((n, 7)).astype(d) for n, d in zip(lengths, dtypes, strict=True)]
    accumulator = Accumulator(Moments.of(7))
    for number, part in enumerate(parts):
        accumulator.add([part])
        check(accumulator.moments, np.concatenate(parts[: number + 1]))
    accumulator = Accumulator(accumulator.moments)
    accumulator.add([parts[1]])
    check(accumulator.moments, np.concatenate([*parts, parts[1]]))


def test_more_observations_than_zeros_are_counted_in_one_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sums, "_MAX_COUNT", 1000)
    values = np.random.default_rng(0).standard_normal((4000, 3)).astype("f4")
    rows = Sums(values[:600], np.zeros(3))
    rows.add(values[:600])
    assert rows.takes(values[:400])
    assert not rows.takes(values[:401])


def test_a_first_part_that_is_far_from_all_others() -> None:
    values = 1e4 + np.random.default_rng(0).standard_normal((90_000, 5))
    values[:64] = 0
    accumulator = Accumulator(Moments.of(5))
    for part in np.array_split(values, 300):
        accumulator.add([part])
    check(accumulator.moments, values)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_what_is_not_finite_is_not_accumulated(value: float) -> None:
    values = np.ones((400, 3))
    accumulator = Accumulator(Moments.of(3))
    accumulator.add([values])
    values[321, 1] = value
    with pytest.raises(NotFiniteError, match="of 1,200 values"):
        accumulator.add([values])
    # Nor where other parts follow, which other sums take.
    accumulator = Accumulator(Moments.of(3))
    with pytest.raises(NotFiniteError, match="of 1,203 values"):
        accumulator.add([values, np.ones((1, 3), "f4")])


def test_a_large_mean_takes_nothing_from_the_deviation() -> None:
    rng = np.random.default_rng(0)
    values = 1e6 + rng.standard_normal((70_000, 5))
    found = Moments.of(5, covariance=True)
    for part in np.array_split(values, 300):
        found.add(part)
    check(found, values, rtol=1e-8)
    assert np.allclose(found.std, 1, rtol=0.02)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e15, 1e30, 1e37])
@pytest.mark.parametrize("shift", [0, 5])
@pytest.mark.parametrize("count", [700, 7000])
def test_squares_that_leave_the_range_of_float32(scale: float, shift: float, count: int) -> None:
    values = np.random.default_rng(0).standard_normal((count, 4)) + shift
    values[:, 2] = 0
    values[:, 3] = np.maximum(values[:, 3], 0)
    found = Moments.of(4)
    found.add((values * scale).astype("f4"))
    assert np.allclose(found.std / scale, values.std(0), rtol=1e-5)
    assert np.allclose(found.mean / scale, values.mean(0), rtol=1e-4, atol=1e-6)
    assert np.allclose(found.mean_abs / scale, np.abs(values).mean(0), rtol=1e-5)


@pytest.mark.parametrize("mean", [3, 100, 1e5])
@pytest.mark.parametrize("parts", [1, 7, 300])
def test_a_large_mean_of_float32(mean: float, parts: int) -> None:
    values = (mean + np.random.default_rng(0).standard_normal((30_000, 5))).astype("f4")
    values[:, 3] = mean
    found = Moments.of(5)
    for part in np.array_split(values, parts):
        found.add(part)
    wide = values.astype("f8")
    assert np.allclose(found.std, wide.std(0), rtol=1e-6, atol=1e-12)
    assert np.allclose(found.mean, wide.mean(0), rtol=1e-7)
    assert np.allclose(found.mean_abs, np.abs(wide).mean(0), rtol=1e-7)


@pytest.mark.parametrize("far", [1, 40])
def test_units_that_move_away_from_zero_later(far: int) -> None:
    values = np.random.default_rng(0).standard_normal((40_000, 40)).astype("f4")
    values[10_000:, :far] += 1000
    values[:, far:] *= 1e-3
    found = Moments.of(40)
    for part in np.array_split(values, 4):
        found.add(part)
    wide = values.astype("f8")
    assert np.allclose(found.std, wide.std(0), rtol=1e-6)
    assert np.allclose(found.mean, wide.mean(0), rtol=1e-6, atol=1e-9)
    last = Moments.of(40)
    last.add(values[10_000:])
    assert np.allclose(last.std, wide[10_000:].std(0), rtol=1e-6)


@pytest.mark.parametrize("first", [0, 28.3])
def test_values_that_hardly_differ_from_those_before(first: float) -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(0.57 + 3 * rng.standard_normal((60, 30)), 1000, axis=0).astype("f4")
    values[:100] = first
    found = Moments.of(30)
    found.add(values)
    wide = values.astype("f8")
    assert np.allclose(found.std, wide.std(0), rtol=2e-6)
    assert np.allclose(found.mean, wide.mean(0), rtol=0, atol=3e-6)


def test_observations_that_fill_no_row() -> None:
    values = np.random.default_rng(0).standard_normal((900, 30)).astype("f4")
    values[-16:] *= 30
    found = Moments.of(30, covariance=True)
    found.add(values)
    check(found, values)


def test_more_units_than_a_tile_is_wide() -> None:
    values = np.random.default_rng(0).standard_normal((70, 5000)).astype("f4")
    values[:, ::3] = np.maximum(values[:, ::3], 0)
    values[:, 4000:] = np.abs(values[:, 4000:]) + 50
    found = Moments.of(5000, covariance=False)
    found.add(values)
    check(found, values)


def test_more_rows_than_are_summed_together() -> None:
    values = np.random.default_rng(0).standard_normal((256 * 255 + 7, 2)).astype("f4")
    values[:1000] = 0
    found = Moments.of(2)
    found.add(values)
    check(found, values)
    assert (found.zero == 1000).all()


@pytest.mark.parametrize(("axis", "shape"), [(-1, (4, 5, 6, 3)), (1, (4, 3, 5, 6)), (0, (3, 20))])
def test_units_can_be_on_any_axis(axis: int, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape)
    found = Moments.of(3)
    found.add(values, axis)
    check(found, np.moveaxis(values, axis, -1).reshape(-1, 3))


def test_rows_that_do_not_count() -> None:
    values = np.random.default_rng(0).standard_normal((6, 4, 3))
    values[[1, 5]] = np.nan
    mask = np.array([True, False, True, True, True, False])
    found = Moments.of(3)
    found.add(values, mask=mask)
    check(found, values[mask].reshape(-1, 3))
    found.add(values, mask=np.zeros(6, bool))
    assert found.count == 16


def test_integers_and_what_ml_dtypes_has() -> None:
    import ml_dtypes

    whole = np.random.default_rng(0).integers(-9, 9, (50, 3))
    for dtype in ("i4", "u1", ml_dtypes.bfloat16):
        values = np.abs(whole).astype(dtype)
        found = Moments.of(3)
        found.add(values)
        check(found, values)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "1 NaN"), (-np.inf, "1 infinite")])
@pytest.mark.parametrize("count", [400, 8192])
def test_what_is_not_finite_is_refused(value: float, said: str, count: int) -> None:
    values = np.ones((count, 3), "f4")
    found = Moments.of(3)
    found.add(values)
    values[321, 1] = value
    with pytest.raises(NotFiniteError, match=rf"of [0-9,]+ values {said}"):
        found.add(values)
    assert found.count == count
    assert (found.mean == 1).all()


def test_what_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="3 units, and 4"):
        Moments.of(3).merge(Moments.of(4))
    with pytest.raises(ValueError, match="only one of them has a covariance"):
        Moments.of(3).merge(Moments.of(3, covariance=True))
