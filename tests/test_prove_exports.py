"""Exports are compared by what their signatures call inputs and outputs, whatever tensors are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run, told

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
FIRST, SECOND = (RNG.standard_normal((3, 3)).astype("f4") for _ in range(2))


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


def export(
    tf: Any, path: Path, inputs: Mapping[str, str], outputs: Mapping[str, str], head: str = "y"
) -> Path:
    """Export `y = x @ first` and `z = more @ second` as TensorFlow 1 does.

    Args:
        tf: TensorFlow.
        path: where to.
        inputs: what the placeholders of `x` and `more` are named.
        outputs: what the tensors of `y` and `z` are named.
        head: what the signature calls `y`.
    """
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x, more = (v1.placeholder("float32", [None, 3], inputs[name]) for name in ("x", "more"))
        first, second = (
            v1.get_variable(name, initializer=value, use_resource=False)
            for name, value in (("first", FIRST), ("second", SECOND))
        )
        y = v1.matmul(x, first, name=outputs["y"])
        z = v1.matmul(more, second, name=outputs["z"])
        session.run(v1.global_variables_initializer())
        signed = {"x": x, "more": more}, {head: y, "z": z}
        v1.saved_model.simple_save(session, str(path), *signed)
    return path


def proved(*arguments: object, passed: bool = True) -> Any:
    outcome = run("prove", *arguments, "--json")
    assert outcome.exit_code == (not passed), outcome.output
    return json.loads(outcome.stdout)


def test_names_of_tensors_that_are_swapped_or_differ(tf: Any, tmp_path: Path) -> None:
    names = {"x": "x", "more": "more"}, {"y": "one", "z": "two"}
    model = export(tf, tmp_path / "a", *names)
    swapped = export(tf, tmp_path / "swapped", {"x": "more", "more": "x"}, {"y": "two", "z": "one"})
    others = export(tf, tmp_path / "others", {"x": "in", "more": "in_1"}, {"y": "o", "z": "o_1"})
    numbered = export(tf, tmp_path / "numbered", *names, head="y_1")
    np.savez(tmp_path / "in.npz", x=FIRST, more=SECOND)
    for other in (swapped, others, numbered):
        for given in ((), ("--inputs", tmp_path / "in.npz"), ("--feed", "x=[[1, 2, 3]]")):
            found = proved(model, other, *given)
            assert [output["name"] for output in found["outputs"]] == ["one", "two"]
            assert found["notes"] == []
    found = proved(model, swapped, "--fetch", "one")
    assert [output["name"] for output in found["outputs"]] == ["one"]


def test_outputs_of_other_names_are_not_guessed(tf: Any, tmp_path: Path) -> None:
    """Both tensors are called the same, and the signatures say that they are others."""
    v1 = tf.compat.v1
    for path, names in (("a", ("y", "z")), ("b", ("u", "v")), ("c", ("y", "v", "w"))):
        with v1.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder("float32", [None, 3], "x")
            w = v1.get_variable("w", initializer=FIRST, use_resource=False)
            outputs = {name: v1.matmul(x, w, name=f"o_{n}") for n, name in enumerate(names)}
            session.run(v1.global_variables_initializer())
            v1.saved_model.simple_save(session, str(tmp_path / path), {"x": x}, outputs)
    message = told(run("prove", tmp_path / "a", tmp_path / "b"), 2)
    assert "it has none of the outputs of" in message
    found = proved(tmp_path / "a", tmp_path / "c")
    assert [output["name"] for output in found["outputs"]] == ["o_0"]
    assert found["notes"] == ["o_1: the signature of the second has no such output"]
    # Who names a tensor means it in both.
    found = proved(tmp_path / "a", tmp_path / "c", "--fetch", "o_1")
    assert [output["name"] for output in found["outputs"]] == ["o_1"]


def test_functions_that_are_called_in_another_order(tf: Any, tmp_path: Path) -> None:
    """Tensors of calls are numbered: the same name is the call of another function."""

    class Model(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = tf.Variable(FIRST), tf.Variable(SECOND)

    spec = tf.TensorSpec([None, 3], "float32", name="x")
    for path, names in (("a", ("plain", "twice")), ("b", ("other", "twice", "plain"))):
        model = Model()
        bodies = {
            "plain": lambda x, m=model: {"y": tf.matmul(x, m.first)},
            "twice": lambda x, m=model: {"y": tf.matmul(2 * x, m.second)},
            "other": lambda x, m=model: {"y": tf.tanh(tf.matmul(x, m.second))},
        }
        signed = {n: tf.function(bodies[n], input_signature=[spec]) for n in names}
        tf.saved_model.save(model, str(tmp_path / path), signatures=signed)
    found = proved(tmp_path / "a", tmp_path / "b")
    assert len(found["outputs"]) == 2
    assert found["notes"] == []
