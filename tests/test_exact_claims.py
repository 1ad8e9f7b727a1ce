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
    "divided": {"a": {"live", "copies", "all copied"}},
    "logarithm": {"a": {"live", "copies", "all copied"}},
    "sigmoid_by_hand": {"a": {"zeros", "live", "copies", "all copied"}},
    "products_of_units": {"a": {"zeros", "live", "copies", "all copied"}},
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
    found = exact_ones(open_checkpoint(tmp_path / "model"), question)
    assert found == EXACT.get(build.__name__, found)
    assert "b/inputs" not in found


def test_a_scalar_output_is_compared(tf: Any, tmp_path: Path) -> None:
    def build(m: Maker) -> list[Any]:
        return [m.tf.reduce_mean(m.tf.square(m.dense(m.dense(m.input(4, N), "a"), "b", 3)))]

    maker, outputs = save(tf, build, tmp_path / "model", train=False)
    plan = make_plan(open_checkpoint(tmp_path / "model"), [Pad(resize={"a": 9})])
    proof = prove_plan(plan, None, asked(maker.feeds, outputs, tmp_path / "inputs.npz"))
    assert [output.shape for output in proof.outputs] == [()]
    assert proof.passed
