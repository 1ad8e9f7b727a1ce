"""What the number of units decides, or is computed with: adding units is not called exact then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from model_maker import Maker, N, asked, save

from converter import Resizer, open_checkpoint
from converter.plan import make_plan
from converter.proof import prove_plan
from converter.structure.infer import structure_of

pytestmark = pytest.mark.slow

Build = Callable[[Maker, Any, Any, Any], Any]
"""Makes an output of units, of how many there are, and of what a layer makes of them."""

RESIZERS: list[Resizer] = [Pad(resize={"a": N + 3}), Duplicate(resize={"a": 2 * N})]


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


@pytest.fixture(params=["frames", "functions"])
def flow(tf: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """Have conditions and loops made of switches, or of functions."""
    was = tf.control_flow_v2_enabled()
    (tf.enable_control_flow_v2 if request.param == "functions" else tf.disable_control_flow_v2)()
    yield request.param
    (tf.enable_control_flow_v2 if was else tf.disable_control_flow_v2)()


def model(build: Build) -> Callable[[Maker], list[Any]]:
    def make(m: Maker) -> list[Any]:
        # With a shape that is known the number would be written into a constant.
        h = m.dense(m.tf.placeholder_with_default(m.input(4, N), [None, N]), "a")
        return [build(m, h, m.tf.shape(h)[-1], m.dense(h, "b", 3))]

    return make


def judged(tf: Any, build: Build, path: Path) -> list[tuple[bool, bool]]:
    """Return of each way to add units whether it is called exact, and whether it is."""
    maker, outputs = save(tf, model(build), path / "model", train=False)
    question = asked(maker.feeds, outputs, path / "inputs.npz")
    checkpoint = open_checkpoint(path / "model")
    plans = [make_plan(checkpoint, [resizer]) for resizer in RESIZERS]
    return [(plan.is_exact, prove_plan(plan, None, question).passed) for plan in plans]


def scalar(m: Maker, name: str, value: float) -> Any:
    return m.tf.get_variable(name, [], "float32", m.tf.constant_initializer(value))


def loop(m: Maker, goes_on: Any, turn: Any, *first: Any) -> Any:
    return m.tf.while_loop(goes_on, turn, list(first))[-1]


def fed(m: Maker, value: float) -> Any:
    found = m.tf.placeholder("float32", [], "fed")
    m.feeds[found.name] = value
    return found


def chosen_numbers(m: Maker, h: Any, n: Any, y: Any) -> Any:
    """The branches take nothing, so that in frames nothing goes through a switch."""
    return y * m.tf.cond(n > 7, lambda: m.tf.constant(1.0), lambda: m.tf.constant(3.0))


def chosen_within(m: Maker, h: Any, n: Any, y: Any) -> Any:
    tf = m.tf
    flag = tf.cond(fed(m, 1.0) > 0, lambda: n > 7, lambda: n > 8)
    return tf.cond(flag, lambda: tf.tanh(y), lambda: y * 2)


def called(m: Maker, h: Any, n: Any, y: Any) -> Any:
    is_large = pytest.importorskip("tensorflow").function(lambda n: n > 7)
    return m.tf.cond(is_large(n), lambda: m.tf.tanh(y), lambda: y * 2)


def in_a_loop(m: Maker, h: Any, n: Any, y: Any) -> Any:
    tf = m.tf

    def turn(k: Any, y: Any) -> tuple[Any, Any]:
        return k + 1, tf.cond(n > 7, lambda: y * 2, lambda: tf.tanh(y))

    return loop(m, lambda k, _: k < 3, turn, 0, y)


def until_large(m: Maker, h: Any, n: Any, y: Any) -> Any:
    """What goes round and decides is the units; what comes out is not."""
    tf = m.tf

    def goes_on(h: Any, _: Any) -> Any:
        return tf.reduce_mean(tf.abs(h)) < 5

    return loop(m, goes_on, lambda h, y: (h * 1.1, y * 1.1), h, y)


def turned(m: Maker, h: Any, n: Any, y: Any) -> Any:
    """Nothing but numbers goes round."""
    count, _ = m.tf.while_loop(lambda k, _: k < n, lambda k, i: (k + 4, i), [0, 0])
    return y * m.tf.cast(count, "float32")


def asserted(m: Maker, h: Any, n: Any, y: Any) -> Any:
    with m.tf.control_dependencies([m.tf.assert_less(n, 1000)]):
        return m.tf.identity(y)


DECIDED: dict[str, Build] = {
    "cond": lambda m, h, n, y: m.tf.cond(n > 7, lambda: m.tf.tanh(y), lambda: y * 2),
    "cond of a product": lambda m, h, n, y: m.tf.cond(
        m.tf.size(h) > 30, lambda: m.tf.tanh(y), lambda: y * 2
    ),
    "cond of what is fed": lambda m, h, n, y: m.tf.cond(
        m.tf.cast(n, "float32") > fed(m, 7), lambda: m.tf.tanh(y), lambda: y * 2
    ),
    "cond of what is learned": lambda m, h, n, y: m.tf.cond(
        m.tf.cast(n, "float32") > scalar(m, "limit", 7), lambda: m.tf.tanh(y), lambda: y * 2
    ),
    "cond of numbers": chosen_numbers,
    "cond of conds": chosen_within,
    "cond of a call": called,
    "cond in a loop": in_a_loop,
    "case": lambda m, h, n, y: m.tf.switch_case(n // 4, [lambda: y, lambda: y * 2, lambda: -y]),
    "select": lambda m, h, n, y: m.tf.where_v2(n > 7, m.tf.tanh(y), y * 2),
    "end of a loop": lambda m, h, n, y: loop(
        m, lambda k, _: k < n, lambda k, y: (k + 1, m.tf.tanh(y)), 0, y
    ),
    "begin of a loop": lambda m, h, n, y: loop(
        m, lambda k, _: k > 0, lambda k, y: (k - 1, m.tf.tanh(y)), n, y
    ),
    "step of a loop": lambda m, h, n, y: loop(
        m, lambda k, _: k < 40, lambda k, y: (k + n, m.tf.tanh(y)), 0, y
    ),
    "turns of a loop": turned,
    "learned factor": lambda m, h, n, y: y * (scalar(m, "factor", 0.5) * m.tf.cast(n, "float32")),
    "noise": lambda m, h, n, y: y + (m.tf.random.uniform([], 0, 1e-9) + m.tf.cast(n, "float32")),
    "row of a table": lambda m, h, n, y: y + m.variable("table", 40, 3)[n],
    "looked up": lambda m, h, n, y: y + m.tf.gather(m.variable("table", 40, 3), n),
    "rows of a table": lambda m, h, n, y: (
        y + m.tf.reduce_sum(m.variable("table", 40, 3)[: n - 3], 0)
    ),
    "axis": lambda m, h, n, y: m.tf.reduce_sum(y, m.tf.minimum(n - 6, 1), keepdims=True),
    "repeated": lambda m, h, n, y: m.tf.reduce_sum(m.tf.tile(y[:, :, None], [1, 1, n]), -1),
    "repeated, learned": lambda m, h, n, y: (
        y + m.tf.reduce_sum(m.tf.tile(m.variable("row", 3)[:, None], [1, n]), -1)
    ),
    "repeated less": lambda m, h, n, y: m.tf.reduce_sum(m.tf.tile(y, [1, n - 4]), 1),
    "filled": lambda m, h, n, y: m.tf.reduce_sum(m.tf.concat([y, m.tf.ones([4, n - 3])], 1), 1),
    "range": lambda m, h, n, y: y * m.tf.reduce_sum(m.tf.cast(m.tf.range(n - 3), "float32")),
    "row": lambda m, h, n, y: m.dense(h + m.variable("rows", 40, N)[n - 1], "c", 3) + y,
    "rows": lambda m, h, n, y: (
        y
        + m.dense(
            h + m.tf.reduce_sum(m.tf.slice(m.variable("rows", 40, N), [n - 4, 0], [3, n]), 0),
            "c",
            3,
        )
    ),
    "tiled": lambda m, h, n, y: (
        y + m.dense(m.tf.reduce_sum(m.tf.tile(h[:, None], [1, n // 3, 1]), 1), "c", 3)
    ),
    "segments": lambda m, h, n, y: m.tf.unsorted_segment_sum(
        y, [0, 1, 0, m.tf.minimum(n - 6, 1)], 2
    ),
}
KEPT: dict[str, Build] = {
    "cond of what is fed": lambda m, h, n, y: m.dense(
        m.tf.cond(fed(m, 1) > 0, lambda: m.tf.tanh(h), lambda: h * 2), "c", 3
    ),
    "cond of examples": lambda m, h, n, y: m.dense(
        m.tf.cond(m.tf.shape(h)[0] > 3, lambda: m.tf.tanh(h), lambda: h * 2), "c", 3
    ),
    "loop": lambda m, h, n, y: m.dense(
        loop(m, lambda k, _: k < 3, lambda k, h: (k + 1, m.tf.tanh(h)), 0, h + m.tf.zeros_like(h)),
        "c",
        3,
    ),
    "zeros": lambda m, h, n, y: y + m.dense(h + m.tf.zeros([4, n]), "c", 3),
    "noise": lambda m, h, n, y: y + m.dense(h + m.tf.random.normal([4, n]) * 0, "c", 3),
    "reshaped": lambda m, h, n, y: (
        y + m.dense(m.tf.reshape(m.tf.tanh(m.tf.reshape(h, [-1])), [4, n]) + h, "c", 3)
    ),
    "sliced": lambda m, h, n, y: (
        y + m.dense(m.tf.slice(m.tf.concat([h, h], 0), [0, 0], [4, n]) + h, "c", 3)
    ),
    "assertion": asserted,
}


@pytest.mark.parametrize("name", DECIDED)
def test_what_the_number_of_units_decides_is_not_exact(
    tf: Any, flow: str, name: str, tmp_path: Path
) -> None:
    assert judged(tf, DECIDED[name], tmp_path) == [(False, False)] * 2


@pytest.mark.parametrize("name", KEPT)
def test_what_it_does_not_decide_stays_exact(tf: Any, flow: str, name: str, tmp_path: Path) -> None:
    assert judged(tf, KEPT[name], tmp_path) == [(True, True)] * 2


def test_a_loop_that_the_units_end(tf: Any, flow: str, tmp_path: Path) -> None:
    """Copies of all units have the mean that they had."""
    assert judged(tf, until_large, tmp_path) == [(False, False), (True, True)]


def test_an_output_that_decides_is_one_still(tf: Any, tmp_path: Path) -> None:
    def build(m: Maker) -> list[Any]:
        h = m.dense(m.input(4, N), "a")
        return [loop(m, lambda h: m.tf.reduce_sum(h) < 9, lambda h: [m.tf.abs(h) * 2], h)]

    tf.enable_control_flow_v2()
    save(tf, build, tmp_path / "model", train=False)
    touches = dict(structure_of(open_checkpoint(tmp_path / "model")).widths["a"].touches)
    assert {"output", "sum"} <= touches.keys()
