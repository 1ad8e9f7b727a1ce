"""What a plan calls exact is exact, in small models of TensorFlow that make that hard to tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from converter_plugins.project import Project
from model_maker import Maker, N, asked, save

from converter import Checkpoint, PlanError, Resizer, open_checkpoint
from converter.initializer import parse_initializer
from converter.initializers import BUILT_IN
from converter.plan import make_plan
from converter.proof import Question, prove_plan
from converter.structure.infer import structure_of

pytestmark = pytest.mark.slow

LIVE = parse_initializer("glorot_uniform", BUILT_IN)
Build = Callable[[Maker], list[Any]]


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def gathered(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a")
    return [m.dense(m.tf.gather(x, [0, 3, 1, 2, 5, 4], axis=1), "b", 3)]


def every_other(m: Maker) -> list[Any]:
    return [m.dense(m.dense(m.input(4, N), "a")[:, ::2], "b", 3)]


def largest_few(m: Maker) -> list[Any]:
    return [m.dense(m.tf.nn.top_k(m.dense(m.input(4, N), "a"), 4)[0], "b", 3)]


def repeated(m: Maker) -> list[Any]:
    return [m.dense(m.tf.tile(m.dense(m.input(4, N), "a"), [1, 2]), "b", 3)]


def maxout(m: Maker) -> list[Any]:
    x = m.tf.reshape(m.dense(m.input(4, N), "a", 2 * N), [4, N, 2])
    return [m.dense(m.tf.reduce_max(x, -1), "b", 3)]


def divided(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a")
    return [m.dense(m.dense(x, "c") / x, "b", 3)]


def logarithm(m: Maker) -> list[Any]:
    return [m.dense(m.tf.log(m.tf.abs(m.dense(m.input(4, N), "a"))), "b", 3)]


def standardised(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a")
    mean, variance = m.tf.nn.moments(x, [0])
    return [m.dense((x - mean) / m.tf.sqrt(variance), "b", 3)]


def sigmoid_by_hand(m: Maker) -> list[Any]:
    return [m.dense(1 / (1 + m.tf.exp(-m.dense(m.input(4, N), "a"))), "b", 3)]


def averaged_by_hand(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a")
    return [m.dense(m.tf.reduce_sum(x, 1, keepdims=True) / N, "b", 3)]


def products_of_units(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a")
    return [m.dense(m.tf.matmul(x, x, transpose_a=True), "b", 3)]


def attention(m: Maker) -> list[Any]:
    tf = m.tf
    query, key, value = (m.dense(m.input(4, N, N), name) for name in ("q", "k", "v"))
    # All shapes are known, and so the size of the heads is written into a constant.
    size = tf.cast(tf.shape(key)[-1], "float32")
    scores = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) / tf.sqrt(size))
    return [m.dense(tf.matmul(scores, value), "b", 3)]


def root_of_a_gain(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a")
    return [m.dense(x * m.tf.rsqrt(m.tf.abs(m.variable("g", N))), "b", 3)]


def share_of_zeros(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a", act=m.tf.nn.relu)
    return [m.dense(x, "b", 3), m.tf.nn.zero_fraction(x)]


def positive_kernel(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a", act=m.tf.tanh)
    return [m.tf.matmul(x, m.tf.nn.softplus(m.variable("kernel", N, 3)))]


def root_of_positive_numbers(m: Maker) -> list[Any]:
    tf = m.tf
    kernel = tf.get_variable("a/kernel", [N, N], initializer=tf.random_uniform_initializer(0.1, 1))
    return [m.dense(tf.sqrt(tf.matmul(tf.square(m.input(4, N)), kernel)), "b", 3)]


def number_of_units(m: Maker) -> list[Any]:
    x = m.dense(m.tf.placeholder_with_default(m.input(4, N), [None, N]), "a")
    return [m.dense(x * m.tf.rsqrt(m.tf.cast(m.tf.shape(x)[1], "float32")), "b", 3)]


def product_over_units(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a")
    return [m.dense(m.tf.reduce_prod(x, 1, keepdims=True), "b", 3)]


def largest_of_what_is_positive(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a", act=m.tf.nn.relu)
    return [m.dense(m.tf.reduce_max(x, 1, keepdims=True), "b", 3)]


def distances(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a")
    return [m.tf.reduce_sum(m.tf.squared_difference(x, m.tf.tanh(x)), 1)]


def pairs_of_units(m: Maker) -> list[Any]:
    x = m.dense(m.input(4, N), "a", act=m.tf.tanh)
    return [m.dense(m.tf.reduce_sum(x[:, :, None] * x[:, None, :], 2), "b", 3)]


def sum_in_a_loop(m: Maker) -> list[Any]:
    tf = m.tf
    x = m.input(4, N)
    kernel, again = m.variable("kernel", N, N), m.variable("again", N, N)

    def turn(k: Any, h: Any) -> Any:
        total = tf.reduce_sum(h, 1, keepdims=True)
        return k + 1, tf.tanh(tf.matmul(x, kernel) + tf.matmul(h, again)) + total

    _, h = tf.while_loop(lambda k, _: k < 3, turn, [0, tf.zeros([4, N])])
    return [m.dense(h, "b", 3)]


def table_of_which_the_squares_are_summed(m: Maker) -> list[Any]:
    table = m.variable("table", N, N)
    total = m.tf.reduce_sum(m.tf.square(table))
    return [m.dense(m.tf.gather(table, m.ids(4)) * total, "b", 3)]


MODELS: list[Build] = [
    gathered,
    every_other,
    largest_few,
    repeated,
    maxout,
    divided,
    logarithm,
    standardised,
    sigmoid_by_hand,
    averaged_by_hand,
    products_of_units,
    attention,
    root_of_a_gain,
    share_of_zeros,
    positive_kernel,
    root_of_positive_numbers,
    number_of_units,
    product_over_units,
    largest_of_what_is_positive,
    distances,
    pairs_of_units,
    sum_in_a_loop,
    table_of_which_the_squares_are_summed,
]
RESIZERS: dict[str, Callable[[str, int], Resizer]] = {
    "zeros": lambda name, size: Pad(resize={name: size + 3}),
    "live": lambda name, size: Pad(resize={name: size + 3}, fill=LIVE),
    "copies": lambda name, size: Duplicate(resize={name: size + 3}),
    "all copied": lambda name, size: Duplicate(resize={name: 2 * size}),
    "mixed": lambda name, size: Project(resize={name: size + 3}, lossy=True),
}
EXACT: dict[str, dict[str, set[str]]] = {
    "gathered": {},
    "every_other": {},
    "maxout": {
        "a": {"zeros", "live", "copies", "all copied"},
        "a_1": {"copies", "all copied"},
    },
    "divided": {"a": {"copies", "all copied"}},
    "logarithm": {"a": {"copies", "all copied"}},
    "sigmoid_by_hand": {"a": {"zeros", "live", "copies", "all copied"}},
    "products_of_units": {"a": {"zeros", "live", "copies", "all copied"}},
    "root_of_a_gain": {"a": {"copies", "all copied"}},
    "share_of_zeros": {},
    "positive_kernel": {"a": {"zeros", "live"}},
    "number_of_units": {},
    "product_over_units": {},
    "largest_of_what_is_positive": {"a": {"zeros", "live", "copies", "all copied"}},
    "distances": {"a": {"zeros", "live"}},
    "pairs_of_units": {"a": {"zeros", "live"}},
    "sum_in_a_loop": {},
    "attention": {"q": set(RESIZERS), "v": set(RESIZERS)},
}


def exact_ones(checkpoint: Checkpoint, question: Question) -> dict[str, set[str]]:
    """Return how each width can be resized exactly, by the plan, after running every one."""
    found: dict[str, set[str]] = {}
    for name, width in structure_of(checkpoint).widths.items():
        for label, make in RESIZERS.items() if width.resizable else ():
            try:
                plan = make_plan(checkpoint, [make(name, width.size)])
            except PlanError:
                continue
            if plan.is_exact:
                proof = prove_plan(plan, None, question)
                assert proof.passed, (name, label, plan.resized[0].widths[0].verdict.why)
                found.setdefault(name, set()).add(label)
    return found


@pytest.mark.parametrize("build", MODELS)
def test_what_is_called_exact_is(tf: Any, build: Build, tmp_path: Path) -> None:
    maker, outputs = save(tf, build, tmp_path / "model", train=False)
    question = asked(maker.feeds, outputs, tmp_path / "inputs.npz")
    checkpoint = open_checkpoint(tmp_path / "model")
    found = exact_ones(checkpoint, question)
    widths = structure_of(checkpoint).widths
    inner = {n: ways for n, ways in found.items() if "output" not in dict(widths[n].touches)}
    assert inner == EXACT.get(build.__name__, inner)
    assert "b/inputs" not in found


def test_a_scalar_output_is_compared(tf: Any, tmp_path: Path) -> None:
    def build(m: Maker) -> list[Any]:
        return [m.tf.reduce_mean(m.tf.square(m.dense(m.dense(m.input(4, N), "a"), "b", 3)))]

    maker, outputs = save(tf, build, tmp_path / "model", train=False)
    plan = make_plan(open_checkpoint(tmp_path / "model"), [Pad(resize={"a": 9})])
    proof = prove_plan(plan, None, asked(maker.feeds, outputs, tmp_path / "inputs.npz"))
    assert [output.shape for output in proof.outputs] == [()]
    assert proof.passed
