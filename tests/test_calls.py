"""Runs that are looked up once give what `Session.run` gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from converter.session.calls import Calls

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[Any, Any, Any, Any]]:
    tf = pytest.importorskip("tensorflow").compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 3], "x")
        yield session, x, tf.reduce_sum(x, 1), tf.multiply(x, 2)


def test_any_number_of_rows_and_the_same_tensor_twice(model: tuple[Any, Any, Any, Any]) -> None:
    session, x, total, twice = model
    calls = Calls(session)
    for rows in (4, 1, 4):
        values = np.arange(rows * 3, dtype="f4").reshape(rows, 3)
        one, two, again = calls.run([total, twice, total], {x: values})
        assert (one == values.sum(1)).all()
        assert (two == values * 2).all()
        assert (again == one).all()


def test_values_of_another_dtype_and_what_is_fed(model: tuple[Any, Any, Any, Any]) -> None:
    session, x, total, _ = model
    values = np.array([[1, 2, 3]])
    fed, found = Calls(session).run([x, total], {x: values.astype("f4")})
    assert fed.tolist() == values.tolist()
    assert found.tolist() == [6]
    assert Calls(session).run([total], {x: values})[0].dtype == np.float32


def test_another_shape_is_refused(model: tuple[Any, Any, Any, Any]) -> None:
    session, x, total, _ = model
    with pytest.raises(ValueError, match=r"x:0 takes \[None, 3\], and was fed \[2, 4\]"):
        Calls(session).run([total], {x: np.zeros((2, 4), "f4")})
