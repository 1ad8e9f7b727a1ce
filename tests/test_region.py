"""Regions of arrays that lie in files: the values, and how much is read for them."""

from __future__ import annotations

import math
import random
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import InputError
from converter.formats import region as module
from converter.formats.region import DataFile, read_region

shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)
dtypes = st.sampled_from([np.dtype(t) for t in ("u1", "<f4", ">f8", "<c16", ml_dtypes.bfloat16)])


@given(shapes, dtypes, st.randoms(use_true_random=False), st.integers(16, 300), st.integers(0, 99))
def test_any_region_of_any_shape(
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    draw: random.Random,
    block_bytes: int,
    gap_bytes: int,
) -> None:
    values = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    region = tuple(slice(*sorted((draw.randint(0, n), draw.randint(0, n)))) for n in shape)
    raw = values.tobytes()

    def read(start: int, size: int) -> bytes:
        assert 0 <= start <= start + size <= len(raw)
        return raw[start : start + size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", block_bytes)
        patch.setattr(module, "GAP_BYTES", gap_bytes)
        found = read_region(read, shape, dtype, region)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values[region])


@pytest.mark.parametrize(
    ("shape", "region", "reads", "read_bytes"),
    [
        # A panel of columns: whole spans, and not one read for each row.
        ((30_000, 1000), (slice(0, 30_000), slice(100, 200)), 29, 120_000_000),
        # Rows so long that the way between two pieces is not worth reading.
        ((100, 1_000_000), (slice(0, 100), slice(5, 10)), 100, 2000),
        # One run, however large.
        ((10_000, 1000), (slice(10, 9000), slice(0, 1000)), 1, 35_960_000),
        ((1, 10_000_000), (slice(0, 1), slice(5, 8)), 1, 12),
        ((5, 0), (slice(0, 5), slice(0, 0)), 0, 0),
        ((), (), 1, 4),
    ],
)
def test_how_much_is_read(
    shape: tuple[int, ...],
    region: tuple[slice, ...],
    reads: int,
    read_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 << 20)
    sizes = []

    def read(start: int, size: int) -> bytes:
        sizes.append(size)
        return bytes(size)

    read_region(read, shape, np.dtype("f4"), region)
    assert len(sizes) == reads
    assert sum(sizes) == pytest.approx(read_bytes, rel=0.01)
    assert len(sizes) <= 1 or max(sizes) <= 4 << 20


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "data"
    file = DataFile(path)
    assert file.read(99, 0) == b""
    with pytest.raises(InputError, match="data: the file is missing"):
        file.read(0, 1)
    path.write_bytes(b"0123456789")
    assert file.read(3, 4) == b"3456"
    for offset, size in [(8, 3), (-1, 2), (11, 1), (0, 1 << 60)]:
        with pytest.raises(InputError, match="the file has 10 bytes where"):
            file.read(offset, size)
    path.write_bytes(b"012")
    with pytest.raises(InputError, match="data: "):
        file.read(2, 4)
    with pytest.raises(InputError, match="cannot be read"):
        DataFile(tmp_path).read(0, 1)
