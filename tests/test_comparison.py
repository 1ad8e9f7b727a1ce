"""How like one output is another: every figure against the formula, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from converter.comparison import Distribution, Likeness, compare, likeness, mean
from converter.variable import Array

INF, NAN = np.inf, np.nan
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(2, 6, 5))


def of(x: object, y: object, kind: Distribution | None = None) -> Likeness:
    return likeness(np.asarray(x, float), np.asarray(y, float), kind)


def softmax(values: Array) -> Array:
    found: Array = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    return found


def test_figures_are_those_of_numpy() -> None:
    found = of(X, Y, "logits")
    assert found.relative_error == pytest.approx(np.linalg.norm(X - Y) / np.linalg.norm(X))
    cosine = (X * Y).sum() / np.sqrt((X**2).sum() * (Y**2).sum())
    assert found.cosine == pytest.approx(cosine)
    assert found.agreement == (X.argmax(1) == Y.argmax(1)).mean()
    p, q = softmax(X), softmax(Y)
    divergence = (p * np.log(p / q)).sum(1).mean()
    assert found.divergence == pytest.approx(divergence)
    # Of the second from the first, and not the other way round.
    assert of(Y, X, "logits").divergence != pytest.approx(divergence)
    assert of(p, q, "probabilities").divergence == pytest.approx(divergence)
    # Where some classes are compared only, their shares are.
    assert of(0.3 * p, 0.7 * q, "probabilities").divergence == pytest.approx(divergence)


def test_what_is_identical_is_at_no_distance() -> None:
    assert of(X, X, "logits") == (0, 1, 1, 0)
    p = softmax(X)
    assert of(p, p, "probabilities") == (0, 1, 1, 0)
    assert of(np.zeros((2, 3)), np.zeros((2, 3)), "logits") == (0, 1, 1, 0)
    masked = np.where(X > 1, -INF, X)
    assert of(masked, masked, "logits") == (0, 1, 1, 0)


def test_logits_differ_by_a_constant_without_another_distribution() -> None:
    assert of(X, X + 1000, "logits").divergence == pytest.approx(0, abs=1e-12)
    assert of(X, 3 * X).cosine == pytest.approx(1)
    assert of(X, -X).cosine == pytest.approx(-1)
    assert of(X, 3 * X).relative_error == pytest.approx(2)


def test_nan_and_infinity() -> None:
    broken = X.copy()
    broken[0, 0] = NAN
    found = of(X, broken, "logits")
    assert (found.relative_error, found.cosine, found.divergence) == (INF, None, INF)
    # What both have alike says nothing, and the rest is compared.
    other = Y.copy()
    other[0, 0] = NAN
    found = of(broken, other)
    x, y = X.ravel()[1:], Y.ravel()[1:]
    assert found.relative_error == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x))
    assert of([[NAN, 1.0]], [[NAN, 2.0]], "logits").divergence == INF
    assert of([[NAN, 1.0], [0, 0]], [[NAN, 1.0], [0, 0]], "logits").divergence == 0
    # A class that the first has, and the second never would.
    assert of([[0.5, 0.5]], [[1.0, 0.0]], "probabilities").divergence == INF
    assert of([[1.0, 0.0]], [[0.5, 0.5]], "probabilities").divergence == pytest.approx(np.log(2))


def test_zeros_and_large_numbers() -> None:
    assert of([0.0, 0.0], [1.0, 0.0])[:2] == (INF, None)
    assert of([1.0, 0.0], [0.0, 0.0])[:2] == (1, None)
    found = of([1e300, 1e300], [1e300, -1e300])
    assert found.relative_error == pytest.approx(np.sqrt(2))
    assert found.cosine == pytest.approx(0, abs=1e-12)


def test_only_some_figures_are_said_of_some_outputs() -> None:
    assert of([1.0, 2.0], [2.0, 1.0], "logits")[2:] == (None, None)
    assert of(X, Y).divergence is None
    assert compare("y", np.array([1, 2]), np.array([1, 3])).likeness == Likeness()
    assert compare("y", np.zeros((2, 3)), np.zeros((2, 4))).likeness == Likeness()
    turned = compare("y", np.array([1 + 1j]), np.array([1 - 1j])).likeness
    assert turned.relative_error == pytest.approx(np.sqrt(2))
    assert turned.cosine == pytest.approx(0)


def test_the_mean_is_over_what_is_known() -> None:
    found = mean([Likeness(1.0, None, 0.5), Likeness(3.0, 0.5, 1.0), Likeness(INF, 0.1, 0.0)])
    assert found.cosine == pytest.approx(0.3)
    assert found._replace(cosine=None) == Likeness(INF, None, 0.5, None)
