"""Models that are equalised and folded are run against the originals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
from command_line import run
from conftest import VALID, Case, case
from converter_plugins.equalize import Equalize
from converter_plugins.fold_batchnorm import FoldBatchnorm
from converter_plugins.scale import Scale
from model_maker import Maker, asked, save

from converter import Checkpoint, ConverterError, PlanError, Strategy, open_checkpoint
from converter.plan import make_plan
from converter.proof import Question, prove_plan
from converter.scaling.kinds import Biases

pytestmark = pytest.mark.slow

WITH_GRAPHS = [c for c in VALID if c.record.get("io") and open_checkpoint(c.path).meta]
CHANGED = {
    ("fold-batchnorm", "tf115_v2_convbn_ema"),
    ("equalize", "tf012_v1_charlm_basiclstm"),
    ("equalize", "tf10_v1_sharded"),
    ("equalize", "tf10_v2_multilstm_adagrad"),
    ("equalize", "tf10_v2_partitioned"),
    ("equalize", "tf115_v2_bert_mini"),
    ("equalize", "tf115_v2_convbn_ema"),
    ("equalize", "tf14_v2_charlm_lstm_ema"),
    ("equalize", "tf14_v2_rotation"),
}
CONV = case("tf115_v2_convbn_ema")


def errors(path: str | Path, strategies: list[Strategy], question: Question) -> dict[str, float]:
    pytest.importorskip("tensorflow")
    proof = prove_plan(make_plan(open_checkpoint(str(path)), strategies), None, question)
    return {output.name: output.error for output in proof.outputs}


@pytest.mark.parametrize("one", WITH_GRAPHS, ids=lambda one: one.name)
@pytest.mark.parametrize("strategy", [Equalize(), FoldBatchnorm()], ids=["equalize", "fold"])
def test_what_is_not_refused_is_exact(one: Case, strategy: Strategy) -> None:
    if (strategy.name, one.name) not in CHANGED:
        with pytest.raises(PlanError, match=r"keep the outputs: |there is none"):
            make_plan(open_checkpoint(one.path), [strategy])
        return
    assert max(errors(one.path, [strategy], Question()).values()) < 1e-5


@pytest.mark.parametrize(
    "strategies",
    [[FoldBatchnorm(), Equalize()], [Equalize(), FoldBatchnorm()], [Equalize(), Equalize()]],
    ids=lambda strategies: "+".join(s.name for s in strategies),
)
def test_one_after_the_other(strategies: list[Strategy]) -> None:
    assert max(errors(CONV.path, strategies, Question()).values()) < 1e-5


def test_averages_of_a_folded_model_compute_what_they_did() -> None:
    pytest.importorskip("tensorflow")
    from converter_plugins.ema import Ema

    source = open_checkpoint(CONV.path)
    used = make_plan(source, [Ema(ema="use")]).result
    folded = make_plan(source, [FoldBatchnorm(), Ema(ema="use")]).result
    from converter.model import Model

    with Model(source, Question()) as model:
        before, after = (
            model.run({name: result[name].read() for name in model.values})
            for result in (used, folded)
        )
    for output, values in before.items():
        assert np.allclose(values, after[output], atol=1e-5 * np.abs(values).max())


def test_scaled_convolutions_with_their_statistics() -> None:
    for biases in get_args(Biases):
        scale = Scale(kind={"convolution": 0.7}, biases=biases)
        (error,) = errors(CONV.path, [scale], Question()).values()
        assert error < 1e-5
    plain = Scale(scale={"conv?/kernel": 0.7})
    (error,) = errors(CONV.path, [plain], Question()).values()
    assert error > 0.1


@dataclass(frozen=True)
class Promises(Strategy):
    """Promise the multiple of an output that there is not."""

    name: ClassVar[str] = "promises"

    def multiples(self, checkpoint: Checkpoint) -> Mapping[str, float]:
        return {"out": 2.0}


def test_outputs_are_compared_with_the_multiples_that_are_promised() -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(case("tf10_v1_sharded").path)
    half = Scale(kind={"dense": 0.5}, biases="power")
    ways: list[tuple[list[Strategy], dict[str, float]]] = [
        ([half], {"out": 0.25, "Relu": 0.5}),
        ([half, Scale(kind={"dense": 2.0}, biases="power")], {"out": 1.0, "Relu": 1.0}),
        ([Scale(kind={"dense": 3.0}, biases="power")], {"out": 9.0, "add": 3.0, "MatMul": 3.0}),
    ]
    for strategies, multiples in ways:
        question = Question(fetches=tuple(multiples))
        proof = prove_plan(make_plan(source, strategies), None, question)
        assert {found.name: found.multiple for found in proof.outputs} == multiples
        assert all(found.passed and found.error < 1e-6 for found in proof.outputs)
    wrong: list[list[Strategy]] = [[half, Promises()], [Promises()]]
    for strategies in wrong:
        proof = prove_plan(make_plan(source, strategies), None, Question())
        (found,) = proof.outputs
        assert not proof.passed
        assert found.error == pytest.approx(0.5)


def test_a_multiple_is_told_with_its_output(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    options = ["--scale-kind", "dense=0.5", "--scale-biases", "power", "--prove", "--keep", "model"]
    outcome = run("ckpt", case("tf10_v1_sharded").path, "--plugin", "scale", *options)
    assert outcome.exit_code == 0, outcome.output
    (line,) = [line for line in outcome.stdout.splitlines() if line.startswith("out  ")]
    assert line.endswith("passes: 0.25 times the original's")
    written = tmp_path / "half"
    more = ["-o", written, "--to", "tf", "--json"]
    outcome = run("ckpt", case("tf10_v1_sharded").path, "--plugin", "scale", *options, *more)
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["proof"]["outputs"][0]["multiple"] == 0.25
    # Two checkpoints alone promise nothing.
    outcome = run("prove", case("tf10_v1_sharded").path, written, "--json")
    assert outcome.exit_code == 1
    assert json.loads(outcome.stdout)["outputs"][0]["multiple"] == 1


def layers_of_all_kinds(maker: Maker) -> list[Any]:
    """Convolutions of three kinds, each behind and before normalisations of some kind."""
    tf = maker.tf
    rng = np.random.default_rng(0)

    def normed(x: Any, name: str, channels: int, *, fused: bool = True) -> Any:
        with tf.variable_scope(name):
            gamma, beta, mean, variance = (
                tf.get_variable(
                    n,
                    [channels],
                    initializer=tf.constant_initializer(rng.uniform(low, high, channels)),
                )
                for n, low, high in (
                    ("gamma", -1.5, 1.5),
                    ("beta", -1, 1),
                    ("moving_mean", -1, 1),
                    ("moving_variance", 0.5, 2),
                )
            )
            if fused:
                return tf.nn.fused_batch_norm(
                    x, gamma, beta, mean, variance, epsilon=1e-3, is_training=False
                )[0]
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    x = maker.input(3, 8, 8, 4)
    x = tf.nn.conv2d(x, maker.variable("one", 3, 3, 4, 6), 1, "SAME")
    x = tf.nn.relu(normed(x, "after_one", 6))
    x = tf.nn.depthwise_conv2d(x, maker.variable("deep", 3, 3, 6, 2), [1, 1, 1, 1], "SAME")
    x = tf.nn.relu(normed(x, "after_deep", 12))
    x = tf.nn.conv2d_transpose(x, maker.variable("back", 2, 2, 5, 12), [3, 16, 16, 5], 2)
    x = normed(tf.nn.leaky_relu(x), "after_back", 5, fused=False)
    x = tf.nn.conv2d(x, maker.variable("two", 1, 1, 5, 6), 1, "VALID")
    x = tf.nn.relu6(normed(x, "after_two", 6))
    x = maker.dense(tf.reduce_mean(x, [1, 2]), "dense", 6)
    x = tf.nn.relu(normed(x, "after_dense", 6, fused=False))
    return [maker.dense(x, "out", 3)]


def test_every_kind_of_convolution(tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    tf = tensorflow.compat.v1
    maker, outputs = save(tf, layers_of_all_kinds, tmp_path / "m", train=False)
    question = asked(maker.feeds, outputs, tmp_path / "inputs.npz")
    plan = make_plan(open_checkpoint(tmp_path / "m"), [FoldBatchnorm()])
    (note,) = plan.notes
    assert note.endswith("after_one, after_deep, after_back and 2 more")
    fold, even = FoldBatchnorm(), Equalize()
    chains: list[list[Strategy]] = [[fold], [even], [fold, even], [even, fold]]
    for strategies in chains:
        assert max(errors(tmp_path / "m", strategies, question).values()) < 1e-5
    before, after = open_checkpoint(tmp_path / "m"), plan.result
    factor = before["after_deep/gamma"].read() / np.sqrt(
        before["after_deep/moving_variance"].read() + 1e-3
    )
    assert np.allclose(after["deep"].read(), before["deep"].read() * factor.reshape(6, 2))
    factor = before["after_back/gamma"].read() / np.sqrt(
        before["after_back/moving_variance"].read() + 1e-3
    )
    assert np.allclose(
        after["back"].read(), before["back"].read() * np.abs(factor)[None, None, :, None]
    )
    with pytest.raises(ConverterError, match="two: equalize would change the outputs: Relu6"):
        make_plan(before, [Equalize(widths=("two",))])
