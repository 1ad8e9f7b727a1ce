"""A normalised stream that is turned, in TensorFlow, by code that builds it at the new size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_plugins.drop import Drop
from converter_plugins.project import Project
from converter_plugins.rename import Rename
from test_resize_tensorflow import SIZES, Net, dense

from converter import Array, PlanError, convert, measure, open_checkpoint, write_measured
from converter.plan import make_plan
from converter.structure.infer import structure_of

pytestmark = pytest.mark.slow

SIZE, RANK = 6, 5
WRITERS = ("stream", "positions", "mixed/kernel", "mixed/bias", "outer/kernel", "outer/bias")


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def flattened(net: Net) -> None:
    """Let all that makes the stream be of few directions, and means; take the shifts away."""
    rng = np.random.default_rng(2)
    columns = rng.normal(size=(SIZES["stream"], RANK))
    columns = np.linalg.qr(columns - columns.mean(0))[0]
    for variable in net.variables:
        values = net.session.run(variable)
        if variable.op.name in WRITERS:
            mean = rng.normal(size=(*values.shape[:-1], 1))
            variable.load(values @ columns @ columns.T + mean, net.session)
        elif variable.op.name.endswith("beta") and not variable.op.name.startswith("conv"):
            variable.load(0 * values, net.session)


@pytest.fixture(scope="module")
def saved(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Net, Path]]:
    net = Net(tf, SIZES)
    path = tmp_path_factory.mktemp("net") / "model"
    with net.graph.as_default():
        net.session.run(tf.global_variables_initializer())
        flattened(net)
        net.run(net.train)
        net.saver.save(net.session, str(path))
    yield net, path
    net.session.close()


def statistics(path: Path, place: Path) -> Path:
    ids = np.random.default_rng(1).integers(0, 11, [60, 4])
    found = measure(open_checkpoint(path), [{"ids": ids}], covariance=["*"])
    return write_measured(place / "statistics.safetensors", found)


@pytest.mark.parametrize("by", ["table", "statistics"])
def test_outputs_and_gradients_at_the_new_size(
    tf: Any, saved: tuple[Net, Path], tmp_path: Path, by: str
) -> None:
    net, path = saved
    (before,) = net.run(net.logits)
    file = statistics(path, tmp_path) if by == "statistics" else None
    strategy = Project(resize={"stream": SIZE}, by="pca", statistics=file)
    convert(path, tmp_path / "new", [strategy], to="tf")
    smaller = Net(tf, {**SIZES, "stream": SIZE})
    with smaller.graph.as_default():
        smaller.saver.restore(smaller.session, str(tmp_path / "new" / "model"))
    (after,) = smaller.run(smaller.logits)
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()

    gradients = [dense(g) for g in smaller.run(*smaller.gradients)]
    smaller.session.close()
    result = open_checkpoint(tmp_path / "new" / "model")
    width = structure_of(open_checkpoint(path)).widths["stream"]
    assert width.turnable is not None
    consumers = {one.variable for one in width.turnable.behind}
    followers = {name for one in width.turnable.behind for name in one[1:]}
    scale = max(float(np.abs(gradient).max()) for gradient in gradients)
    compared = 0
    for variable, gradient in zip((v.op.name for v in smaller.variables), gradients, strict=True):
        if variable in followers or variable in ("conv/mean", "conv/variance"):
            continue
        first = result[f"{variable}/Adam"].read()
        if variable in consumers:
            # The new shift has a share that is not in the slots.
            axis = gradient.ndim - 2
            gradient, first = (without_mean(g, axis, SIZE) for g in (gradient, first))
        np.testing.assert_allclose(
            first, 0.1 * gradient, rtol=1e-3, atol=2e-6 * scale, err_msg=variable
        )
        compared += 1
    assert compared == len(gradients) - len(followers) - 2


def without_mean(values: Array, axis: int, size: int) -> Array:
    """Take the mean over the stream off, which stands first on its axis."""
    moved = np.moveaxis(values, axis, 0).copy()
    moved[:size] -= moved[:size].mean(0)
    return np.asarray(moved)


def test_renamed_variables_are_known(saved: tuple[Net, Path]) -> None:
    _, path = saved
    source = open_checkpoint(path)
    project = Project(resize={"stream": SIZE}, by="pca")
    rename = Rename(rename={"norm_(.)/gamma(.*)": r"norms/\1/g\2", "inner/(.*)": r"ffn/\1"})
    alone = {v.name: v.read() for v in make_plan(source, [project]).variables}
    renamed = {v.name: v.read() for v in make_plan(source, [rename, project]).variables}
    assert {"norms/a/g", "ffn/kernel/Adam"} <= renamed.keys()
    back = {
        (f"norm_{n[6]}/gamma{n[9:]}" if n.startswith("norms/") else n.replace("ffn/", "inner/")): v
        for n, v in renamed.items()
    }
    assert back.keys() == alone.keys()
    for name, values in alone.items():
        np.testing.assert_array_equal(back[name], values)


def test_gains_that_were_left_out_cannot_move(saved: tuple[Net, Path]) -> None:
    _, path = saved
    drop = Drop(drop=("slots", "norm_a/gamma"))
    with pytest.raises(PlanError, match=r"^stream: mixed units ruin it"):
        make_plan(open_checkpoint(path), [drop, Project(resize={"stream": SIZE}, by="pca")])
