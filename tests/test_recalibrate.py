"""Batch statistics that are measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_plugins.recalibrate_batchnorm import RecalibrateBatchnorm
from converter_plugins.scale import Scale
from measured_cases import case

from converter import ConverterError, convert, open_checkpoint
from converter.activations.asked import Question
from converter.activations.measure import measure


def normalised(tf: Any, *, is_training: bool, is_fused: bool) -> list[tuple[Any, Any]]:
    """Build three layers, the third of which takes the first, too; return moments of batches."""
    moments = []
    layer = tf.placeholder("float32", [None, 6, 6, 3], "x")
    first = None
    for number, units in enumerate((4, 5, 4)):
        with tf.variable_scope(f"l{number}"):
            normal = tf.random_normal_initializer(stddev=0.5, seed=number)
            kernel = tf.get_variable("kernel", [3, 3, layer.shape[-1], units], initializer=normal)
            layer = tf.nn.conv2d(layer, kernel, [1, 1, 1, 1], "SAME")
            layer = layer if number < 2 else layer + first
            gamma, beta, mean, variance = (
                tf.get_variable(name, [units], initializer=start)
                for name, start in (
                    ("gamma", tf.random_uniform_initializer(0.5, 1.5, seed=number)),
                    ("beta", normal),
                    ("moving_mean", tf.zeros_initializer()),
                    ("moving_variance", tf.ones_initializer()),
                )
            )
            if is_fused:
                stored = () if is_training else (mean, variance)
                layer, *found = tf.nn.fused_batch_norm(
                    layer, gamma, beta, *stored, epsilon=1e-3, is_training=is_training
                )
            else:
                found = tf.nn.moments(layer, [0, 1, 2]) if is_training else (mean, variance)
                layer = tf.nn.batch_normalization(layer, *found, beta, gamma, 1e-3)
            moments.append(tuple(found))
            layer = tf.nn.relu(layer)
            first = layer if number == 0 else first
    tf.identity(layer, "out")
    return moments


@pytest.mark.slow
@pytest.mark.parametrize("is_fused", [True, False])
def test_recalibrated_as_training_does_on_one_batch(is_fused: bool, tmp_path: Path) -> None:
    """A fused op stores an estimate of the variance, by one less than it has counted."""
    tf = pytest.importorskip("tensorflow").compat.v1
    values = np.random.default_rng(0).normal(size=(7, 6, 6, 3)).astype("f4")
    np.savez(tmp_path / "x.npz", x=values)
    wanted = []
    for is_training in (False, True):
        with tf.Graph().as_default(), tf.Session() as session:
            tf.set_random_seed(0)
            moments = normalised(tf, is_training=is_training, is_fused=is_fused)
            session.run(tf.global_variables_initializer())
            if is_training:
                tf.train.Saver().restore(session, str(tmp_path / "model"))
                wanted = session.run(moments, {"x:0": values})
            else:
                tf.train.Saver().save(session, str(tmp_path / "model"))
    strategy = RecalibrateBatchnorm(data=(tmp_path / "x.npz",), batch_size=3)
    result = convert(tmp_path / "model", tmp_path / "out.safetensors", [strategy])
    found = open_checkpoint(result.output)
    for number, (mean, variance) in enumerate(wanted):
        assert found[f"l{number}/moving_mean"].read() == pytest.approx(mean, rel=1e-4, abs=1e-5)
        stored = found[f"l{number}/moving_variance"].read()
        assert stored == pytest.approx(variance, rel=1e-5)
    assert [line.split(":")[1] for line in result.found] == [f" l{i}/moving_mean" for i in range(3)]
    assert result.plan.notes[0].endswith("moments of the data, which are run 3 times")
    one = RecalibrateBatchnorm(data=(tmp_path / "x.npz",), only=("l1/*",))
    result = convert(tmp_path / "model", tmp_path / "one.safetensors", [one])
    found = open_checkpoint(result.output)
    assert (found["l0/moving_mean"].read() == 0).all()
    assert (found["l1/moving_mean"].read() != 0).all()


@pytest.mark.slow
def test_a_variance_needs_two_observations(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        taken = tf.placeholder(tf.float32, [None, 3], "x")
        made = [
            tf.get_variable(name, [3], initializer=tf.ones_initializer())
            for name in ("n/moving_mean", "n/moving_variance", "n/beta", "n/gamma")
        ]
        tf.identity(tf.nn.batch_normalization(taken, *made, 1e-3), "out")
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(tmp_path / "model"))
    rows = np.array([[1, 2, 5], [1, 4, 9]], "f4")
    strategy = RecalibrateBatchnorm(data=(tmp_path / "x.npz",))
    np.savez(tmp_path / "x.npz", x=rows[:1])
    with pytest.raises(ConverterError, match="n/moving_variance: the data give 1 observation of e"):
        convert(tmp_path / "model", tmp_path / "out.safetensors", [strategy])
    assert not (tmp_path / "out.safetensors").exists()
    np.savez(tmp_path / "x.npz", x=rows)
    result = convert(tmp_path / "model", tmp_path / "out.safetensors", [strategy])
    found = open_checkpoint(result.output)["n/moving_variance"].read()
    assert found.tolist() == [0, 1, 4]
    assert "; 1 of 3 units never changes: a variance of 0, and what " in result.found[-1]


@pytest.mark.slow
def test_recalibrating_mends_what_scaling_has_made_stale(tmp_path: Path) -> None:
    """Of kernels by their names nothing follows; what they give is as before behind the moments."""
    source, batch, feeds = case("tf115_v2_convbn_ema", tmp_path)
    data = RecalibrateBatchnorm(data=(tmp_path / "x.npz",), feed=feeds)
    plain = convert(source, tmp_path / "plain", [data], to="tf")
    scaled = convert(
        source, tmp_path / "scaled", [Scale(scale={"conv1/kernel": 4.0}), data], to="tf"
    )
    name = "conv1/kernel", "produced"
    found = [
        measure(open_checkpoint(r.output), [batch], question=Question(feeds))[name]  # type: ignore[index]
        for r in (plain, scaled)
    ]
    # But for the epsilon.
    assert found[1].mean_abs == pytest.approx(found[0].mean_abs, rel=0.02)
