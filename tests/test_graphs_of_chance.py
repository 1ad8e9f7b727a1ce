"""Graphs whose ops take anything: what is told of them may be wrong, but nothing breaks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from graph_maker import Maker
from structure_maker import Model, N

from converter import ConverterError
from converter.forward.find import find_forward
from converter.graph import ops
from converter.graph.definition import Definition
from converter.graph.written import Graph
from converter.structure.tensors.rules import RULES

SETS = (value for value in vars(ops).values() if isinstance(value, frozenset))
OPS = sorted({*RULES, *(op for found in SETS for op in found)})
NUMBERS = (0, 1, 2, 3, -1, 1 << 40)
KEYS = ("N", "num_split", "axis", "keep_dims", "begin_mask", "transpose_a", "transpose_b")


def of_chance(rng: Random, count: int = 14) -> Model:
    m = Model()
    pool = [
        m.input(3, N),
        m.input(3, name="ids", dtype="int32"),
        m.input(name="is_training", dtype="bool"),
        *(m.variable(name, N, N) for name in ("a", "b")),
        m.strings("a", "b"),
        *(m.constant(value) for value in (float("nan"), 0, -7, [1, 0], [1.0] * N)),
        m.dense("x", "dense"),
    ]
    names = [f"node_{number}" for number in range(count)]
    for name in names:
        inputs = rng.choices([*pool, *pool[-8:] * 2, rng.choice(names)], k=rng.randrange(5))
        numbers: dict[str, Any] = {key: rng.choice(NUMBERS) for key in KEYS if rng.random() < 0.3}
        m.op(rng.choice(OPS), *inputs, name=name, **numbers)
        pool.append(name)
    return m


@pytest.mark.parametrize("seed", range(4))
def test_ops_that_take_anything(seed: int) -> None:
    rng = Random(seed)
    for _ in range(60):
        m = of_chance(rng)
        with contextlib.suppress(ConverterError):
            m.structure()
        with contextlib.suppress(ConverterError):
            find_forward(Graph(Definition(Path("made.meta"), m.definition)), set(m.shapes))


def looked_up(m: Maker, *others: str, op: str) -> str:
    ids = m.placeholder("ids", "int32", (3,))
    if op == "OneHot":
        return m.op(op, ids, *others)
    return m.op(op, "w", ids, *others)


def circling(m: Maker) -> str:
    """A dropout by 1 less a number that is 1 less that."""
    m.op("Sub", m.constant(1.0), "there", name="here")
    m.op("Sub", m.constant(1.0), "here", name="there")
    drawn = m.op("RandomUniform", m.constant([4, 4]))
    return m.op("Mul", "w", m.op("GreaterEqual", drawn, "here"))


@pytest.mark.parametrize(
    "build",
    [
        circling,
        lambda m: looked_up(m, op="OneHot"),
        lambda m: looked_up(m, m.constant(float("nan")), op="OneHot"),
        lambda m: looked_up(m, m.constant(float("nan")), op="GatherV2"),
        lambda m: m.op("Switch", "w", m.op("LogicalNot")),
    ],
    ids=["circle", "no depth", "depth", "axis", "not of nothing"],
)
def test_what_damaged_graphs_take(build: Callable[[Maker], str]) -> None:
    m = Maker()
    m.variable("w", 4, 4)
    m.op("MatMul", m.placeholder("x", "float32", (3, 4)), build(m), name="out")
    forward = find_forward(m.graph(), {"w"}, fetches=["out"])
    kinds = {str(found.tensor): found.kind for found in forward.inputs}
    assert kinds.pop("x") == "data"
    assert set(kinds) <= {"ids"}
