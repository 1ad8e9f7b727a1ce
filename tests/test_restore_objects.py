"""TensorFlow 2 and Keras 2 restore object checkpoints whose variables changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import case, needed
from converter_plugins.cast import Cast
from converter_plugins.drop import Drop
from converter_plugins.keep import Keep
from converter_plugins.pad import Pad
from converter_plugins.paths import Paths
from converter_plugins.rename import Rename

from converter import Checkpoint, Strategy, Variable, convert

pytestmark = pytest.mark.slow


class Grow(Strategy):
    """Adds zeros at the end of every axis that has the given size."""

    name = "grow"

    def __init__(self, sizes: dict[int, int]) -> None:
        self.sizes = sizes

    def apply(self, checkpoint: Checkpoint) -> list[Variable]:
        return [self._grown(variable) for variable in checkpoint.values()]

    def _grown(self, variable: Variable) -> Variable:
        shape = tuple(self.sizes.get(size, size) for size in variable.shape)
        if shape == variable.shape:
            return variable
        old = variable

        def load(region: Any) -> Any:
            values = np.zeros(shape, old.dtype.numpy)
            values[tuple(map(slice, old.shape))] = old.read()
            return values[region]

        return variable.derive(load, shape=shape)


def converted(name: str, strategies: Sequence[Strategy], out: Path) -> str:
    import tensorflow as tf

    convert(case(name).path, out, strategies, to="tf")
    prefix: str = tf.train.latest_checkpoint(out)
    return prefix


def tower(layers: str = "layers", scale: str = "scale", width: int = 10) -> Any:
    import tensorflow as tf

    class Dense(tf.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.w = tf.Variable(tf.zeros((inputs, outputs)), name="w")
            self.b = tf.Variable(tf.zeros((outputs,)), name="b")

        def __call__(self, x: Any) -> Any:
            return x @ self.w + self.b

    class Tower(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            setattr(self, layers, [Dense(6, width), Dense(width, width)])
            self.heads = {"mean": Dense(width, 2), "log_var": Dense(width, 2)}
            self.alias = getattr(self, layers)[1]
            setattr(self, scale, tf.Variable(0.0, name=scale))
            self.calls = tf.Variable(0, dtype=tf.int64, name="calls")

        def __call__(self, x: Any) -> Any:
            for layer in getattr(self, layers):
                x = tf.nn.gelu(layer(x))
            return self.heads["mean"](tf.tanh(x @ self.alias.w) * getattr(self, scale))

    return Tower()


def means(net: Any) -> Any:
    one = case("tf221_obj_module")
    with np.load(one.directory / "io.npz") as arrays:
        return net(arrays["in_x"]).numpy(), arrays["out_mean"]


MODEL = Drop(("momentum/*",))


@pytest.mark.parametrize(
    ("strategies", "given", "place"),
    [
        ([], {}, "net"),
        ([Rename({"net/(.*)": r"encoder/\1"})], {}, "encoder"),
        ([Rename({"net/(.*)": r"a/b/\1"})], {}, "a/b"),
        ([Paths({"net/layers/(.*)": r"net/stack/\1"})], {"layers": "stack"}, "net"),
        ([Rename({"scale": "gain"})], {"scale": "gain"}, "net"),
        ([Rename({"scale": "gain"})], {}, "net"),
        ([Grow({10: 16})], {"width": 16}, "net"),
        ([Grow({10: 16}), Rename({"net/(.*)": r"encoder/\1"})], {"width": 16}, "encoder"),
    ],
    ids=["drop", "scope", "deeper", "list", "name", "old", "sizes", "both"],
)
def test_a_model_of_now_is_restored(
    strategies: list[Strategy], given: dict[str, Any], place: str, tmp_path: Path
) -> None:
    import tensorflow as tf

    prefix = converted("tf221_obj_module", [MODEL, *strategies], tmp_path / "out")
    net = tower(**given)
    root = net
    for name in reversed(place.split("/")):
        root = tf.train.Checkpoint(**{name: root})
    root.restore(prefix).assert_consumed()
    found, recorded = means(net)
    np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-5)


def test_an_object_becomes_the_root(tmp_path: Path) -> None:
    import tensorflow as tf

    steps = [Drop(("momentum/*", "save_counter")), Rename({"net/(.*)": r"\1"})]
    prefix = converted("tf221_obj_module", steps, tmp_path / "out")
    net = tower()
    tf.train.Checkpoint(net).read(prefix).assert_consumed()
    found, recorded = means(net)
    np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-5)


def test_a_saved_model_becomes_a_checkpoint(tmp_path: Path) -> None:
    import tensorflow as tf

    steps = [Rename({"layers/(.*)": r"stack/\1"}), Drop(("calls",))]
    prefix = converted("tf221_savedmodel_module", steps, tmp_path / "out")
    net = tower(layers="stack")
    del net.calls
    tf.train.Checkpoint(net).read(prefix).assert_consumed()
    with np.load(case("tf221_savedmodel_module").directory / "io.npz") as arrays:
        np.testing.assert_allclose(net(arrays["in_x"]), arrays["out_mean"], rtol=0, atol=1e-5)


def test_another_dtype(tmp_path: Path) -> None:
    import tensorflow as tf

    prefix = converted("tf221_obj_module", [MODEL, Cast("float64")], tmp_path / "out")
    scale = tf.Variable(0.0, dtype=tf.float64)
    status = tf.train.Checkpoint(net=tf.train.Checkpoint(scale=scale)).restore(prefix)
    status.assert_existing_objects_matched()
    assert scale.numpy() == pytest.approx(1.6306968, abs=1e-6)


def test_recorded_slots_go_with_their_variables(tmp_path: Path) -> None:
    """An optimizer whose slots the graph records finds them under the new paths, and trains on."""
    import tensorflow as tf

    def objects() -> tuple[Any, Any, Any, Any]:
        kernel = tf.Variable([[1.0, 2.0]], name="kernel")
        bias = tf.Variable([3.0], name="bias")
        return kernel, bias, tf.compat.v1.train.MomentumOptimizer(0.1, 0.9), tf.Variable(0)

    def train(kernel: Any, bias: Any, optimizer: Any) -> None:
        gradients = [(kernel * 2, kernel), (bias * 3, bias)]
        optimizer.apply_gradients(gradients)

    kernel, bias, optimizer, _ = objects()
    train(kernel, bias, optimizer)
    net = tf.train.Checkpoint(kernel=kernel, bias=bias)
    source = tf.train.Checkpoint(net=net, opt=optimizer).save(str(tmp_path / "run" / "ckpt"))
    paths = Paths({r"net/(\w*)": r"model/dense/\1"})
    convert(source, tmp_path / "out", [paths], to="tf")
    kernel_2, bias_2, optimizer_2, _ = objects()
    dense = tf.train.Checkpoint(kernel=kernel_2, bias=bias_2)
    root = tf.train.Checkpoint(model=tf.train.Checkpoint(dense=dense), opt=optimizer_2)
    root.restore(tf.train.latest_checkpoint(tmp_path / "out"))
    train(kernel_2, bias_2, optimizer_2)
    train(kernel, bias, optimizer)
    np.testing.assert_array_equal(kernel.numpy(), kernel_2.numpy())
    np.testing.assert_array_equal(bias.numpy(), bias_2.numpy())


def test_tables_move_with_their_objects(tmp_path: Path) -> None:
    import tensorflow as tf

    def table() -> Any:
        return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, default_value=-1)

    words = table()
    words.insert(tf.constant(["a", "b"]), tf.constant([3, 4], tf.int64))
    net = tf.train.Checkpoint(words=words, w=tf.Variable([1.0], name="w"))
    source = tf.train.Checkpoint(net=net).save(str(tmp_path / "run" / "ckpt"))
    convert(source, tmp_path / "out", [Rename({"net/(.*)": r"model/\1"})], to="tf")
    again = table()
    model = tf.train.Checkpoint(words=again, w=tf.Variable([0.0]))
    status = tf.train.Checkpoint(model=model).restore(tf.train.latest_checkpoint(tmp_path / "out"))
    status.assert_consumed()
    assert again.lookup(tf.constant(["b", "a", "c"])).numpy().tolist() == [4, 3, -1]
    assert model.w.numpy() == [1.0]


# -- Keras 2 ---------------------------------------------------------------------------------------


def charlm(keras: Any, units: int = 24, before: int = 0, vocabulary: int = 17) -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Embedding(vocabulary, 7),
            *(layers.Dense(7) for _ in range(before)),
            layers.LSTM(units, return_sequences=True),
            layers.Dense(17),
        ]
    )
    model.build((None, None))
    return model


def logits(model: Any) -> tuple[Any, Any]:
    with np.load(case("tf221_obj_tfkeras_charlm").directory / "io.npz") as arrays:
        return model(arrays["in_x"]).numpy(), arrays["out_logits"]


WHOLE = Drop(("optimizer", "step"))


@pytest.mark.parametrize(
    "strategies",
    [
        [WHOLE],
        [Keep(("model",))],
        [Keep(("model",)), Rename({"softmax/(.*)": r"head/\1", "lstm/(.*)": r"rnn/\1"})],
        [Keep(("model",)), Rename({"softmax/kernel": "softmax/weights"})],
    ],
    ids=["drop", "keep", "scopes", "leaf"],
)
def test_keras_2_loads_weights(strategies: list[Strategy], tmp_path: Path) -> None:
    import tensorflow as tf

    tf_keras = needed("tf_keras")

    prefix = converted("tf221_obj_tfkeras_charlm", strategies, tmp_path / "out")
    model = charlm(tf_keras)
    tf.train.Checkpoint(model=model).read(prefix).assert_consumed()
    found, recorded = logits(model)
    np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-5)
    # load_weights wants the model to be the root.
    rooted = [*strategies, Paths({"model/(.*)": r"\1"})]
    prefix = converted("tf221_obj_tfkeras_charlm", rooted, tmp_path / "rooted")
    model = charlm(tf_keras)
    model.load_weights(prefix).assert_consumed()
    found, recorded = logits(model)
    np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("renamed", [False, True], ids=["names", "renamed"])
def test_keras_2_loads_a_resized_model(renamed: bool, tmp_path: Path) -> None:
    """With its optimizer, whose slots grow, too."""
    import tensorflow as tf

    tf_keras = needed("tf_keras")
    steps: list[Strategy] = [Pad(resize={"lstm/lstm_cell": 32, "embedding/vocabulary": 20})]
    if renamed:
        steps.append(Rename({"lstm/lstm_cell/(.*)": r"rnn/cell/\1"}))
    prefix = converted("tf221_obj_tfkeras_charlm", steps, tmp_path / "out")
    model = charlm(tf_keras, units=32, vocabulary=20)
    optimizer = tf_keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model, optimizer=optimizer).read(prefix).assert_consumed()
    found, recorded = logits(model)
    np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-5)
    assert {tuple(slot.shape) for slot in optimizer.variables} >= {(32, 128), (20, 7)}


def test_keras_2_loads_into_more_layers(tmp_path: Path) -> None:
    tf_keras = needed("tf_keras")

    paths = Paths(
        {
            "model/layer_with_weights-0/(.*)": r"layer_with_weights-0/\1",
            "model/layer_with_weights-1/(.*)": r"layer_with_weights-2/\1",
            "model/layer_with_weights-2/(.*)": r"layer_with_weights-3/\1",
        }
    )
    prefix = converted("tf221_obj_tfkeras_charlm", [Keep(("model",)), paths], tmp_path / "out")
    model = charlm(tf_keras, before=1)
    identity = model.layers[1]
    identity.set_weights([np.eye(7), np.zeros(7)])
    model.load_weights(prefix)
    np.testing.assert_array_equal(identity.get_weights()[0], np.eye(7))
    found, recorded = logits(model)
    np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-5)


def test_keras_2_goes_on_training_a_renamed_model(tmp_path: Path) -> None:
    """The optimizer's state is restored, and follows the names."""
    import tensorflow as tf

    tf_keras = needed("tf_keras")

    def restored(prefix: str) -> list[Any]:
        tf_keras.utils.set_random_seed(1)
        model = charlm(tf_keras)
        optimizer = tf_keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        root = tf.train.Checkpoint(model=model, optimizer=optimizer)
        root.read(prefix).assert_consumed()
        optimizer.apply_gradients([(v * 0.1, v) for v in model.trainable_variables])
        return list(model.get_weights())

    name = "tf221_obj_tfkeras_charlm"
    renamed = converted(name, [Rename({"softmax/(.*)": r"head/\1"})], tmp_path / "out")
    for ours, theirs in zip(restored(renamed), restored(case(name).path), strict=True):
        np.testing.assert_array_equal(ours, theirs)
