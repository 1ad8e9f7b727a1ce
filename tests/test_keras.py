"""Keras models in memory, measured and compared with layers that are computed by hand."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_measure import check, sigmoid

from converter import UsageError, measure, open_checkpoint, open_keras
from converter.activations.file import Key, Measured
from converter.activations.probes import find_probes
from converter.session import RunError
from converter.variable import Array

pytestmark = pytest.mark.slow

UNITS = 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 7, 3)).astype("f4")
ROWS = X[:, 0]
DROPOUT = {"dropout": 0.3, "recurrent_dropout": 0.2}


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip("tensorflow")
    pytest.importorskip(request.param)
    return importlib.import_module(request.param)


def chain(keras: Any, *layers: Any, shape: tuple[int | None, ...] = (7, 3), **more: Any) -> Any:
    inputs = outputs = keras.Input(shape, name="x", **more)
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name="chain")


def named(variable: Any) -> str:
    """Return the name that Keras gives a variable."""
    return str(getattr(variable, "path", None) or variable.name.partition(":")[0])


def value(variable: Any) -> Array:
    """Return what a variable holds, whatever becomes of it."""
    return np.array(variable.numpy())


def is_random(name: str) -> bool:
    return "seed_generator" in name


def step(kind: str, x: Array, states: list[Array], weights: list[Array]) -> tuple[Any, Any]:
    """Return the states after a step, and what is made of the input and of the state."""
    kernel, recurrent, bias = (value.astype("f8") for value in weights)
    h = states[0]
    if kind == "GRU":
        given, kept = x @ kernel + bias[0], h @ recurrent + bias[1]
        z, r = (
            sigmoid(a + b)
            for a, b in zip(np.split(given, 3, -1)[:2], np.split(kept, 3, -1)[:2], strict=True)
        )
        new = np.tanh(np.split(given, 3, -1)[2] + r * np.split(kept, 3, -1)[2])
        return [z * h + (1 - z) * new], (given, kept)
    made = x @ kernel + h @ recurrent + bias
    if kind == "SimpleRNN":
        return [np.tanh(made)], (np.tanh(made),) * 2
    i, f, c, o = np.split(made, 4, -1)
    cell = sigmoid(f) * states[1] + sigmoid(i) * np.tanh(c)
    return [sigmoid(o) * np.tanh(cell), cell], (made, made)


def run(
    kind: str, x: Array, weights: list[Array], states: list[Array] | None = None
) -> tuple[Array, Array, Array, Array]:
    """Return the states before each step and after it, and what is made of inputs and states."""
    units = weights[1].shape[0]
    states = states or [np.zeros((len(x), units))] * 2
    before, after, given, kept = [], [], [], []
    for t in range(x.shape[1]):
        before.append(states[0])
        states, made = step(kind, x[:, t].astype("f8"), states, weights)
        after.append(states[0])
        given.append(made[0])
        kept.append(made[1])
    stacked = (np.stack(of, 1) for of in (before, after, given, kept))
    return next(stacked), next(stacked), next(stacked), next(stacked)


def check_cell(
    found: Measured, kind: str, cell: Any, x: Array, states: list[Array] | None = None
) -> Array:
    """Compare all that is measured of a cell; return what it gives."""
    names = [named(variable) for variable in cell.weights[:3]]
    weights = [value(variable) for variable in cell.weights[:3]]
    before, after, given, kept = run(kind, x, weights, states)
    if kind == "GRU" and len(found.tensors[names[0], "produced"]) > 1:
        # Gate by gate what is made of both is summed right away, but for the candidate.
        gates = slice(0, 2 * before.shape[-1])
        given[..., gates] += kept[..., gates]
        kept[..., gates] = given[..., gates]
    for name, taken in zip(names, (x, before), strict=False):
        # tf_keras has a tensor for each gate where dropout would make these differ.
        times, rest = divmod(found[name, "consumed"].count, given[..., 0].size)
        assert not rest
        assert times in (1, given.shape[-1] // UNITS)
        check(found[name, "consumed"], np.concatenate([taken] * times))
    check(found[names[0], "produced"], given)
    check(found[names[1], "produced"], kept)
    return after


def filled(model: Any) -> Any:
    """Give variables of layers values that are not zero."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign(rng.standard_normal(variable.shape) / 2)
    return model


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers_with_dropout(keras: Any, kind: str) -> None:
    layers = keras.layers
    layer = getattr(layers, kind)(UNITS, return_sequences=True, **DROPOUT, name="rnn")
    model = filled(chain(keras, layer, layers.Dense(2, name="head")))
    checkpoint = open_keras(model)
    known = [named(variable) for variable in model.weights]
    assert [name for name in checkpoint if not is_random(name)] == known
    for variable in model.weights:
        assert (checkpoint[named(variable)].read() == value(variable)).all()
    found = measure(checkpoint, [{"x": X[:3]}, {"x": X[3:]}])
    check(found["head/kernel", "consumed"], check_cell(found, kind, layer.cell, X))
    assert not find_probes(checkpoint).unmeasured


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_states_begin_with_what_the_model_holds_in_each_batch(keras: Any, kind: str) -> None:
    layers = keras.layers
    layer = getattr(layers, kind)(UNITS, stateful=True, return_sequences=True, name="rnn")
    model = filled(chain(keras, layer, layers.Dense(2, name="head"), batch_size=4))
    model(X)
    held = {named(variable): value(variable) for variable in model.variables}
    states = [value(state) for state in layer.states]
    found = measure(open_keras(model), [{"x": X}, {"x": X}])
    twice = np.concatenate([X, X])
    again = [np.concatenate([state, state]) for state in states]
    outputs = check_cell(found, kind, layer.cell, twice, again)
    check(found["head/kernel", "consumed"], outputs)
    for variable in model.variables:
        assert (value(variable) == held[named(variable)]).all()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_cells_in_others(keras: Any, kind: str) -> None:
    layers = keras.layers
    cell = getattr(layers, f"{kind}Cell")
    first, second = cell(UNITS, dropout=0.3, name="first"), cell(4, dropout=0.2, name="second")
    stacked = layers.RNN(layers.StackedRNNCells([first, second]), return_sequences=True)
    found = measure(open_keras(filled(chain(keras, stacked))), [X])
    check_cell(found, kind, second, check_cell(found, kind, first, X))


def test_a_layer_in_both_directions_and_over_time(keras: Any) -> None:
    layers = keras.layers
    both = layers.Bidirectional(layers.LSTM(UNITS, **DROPOUT, return_sequences=True), name="both")
    model = filled(chain(keras, layers.TimeDistributed(both), shape=(2, 7, 3)))
    pairs = np.stack([X, -2 * X], 1)
    found = measure(open_keras(model), [{"x": pairs}])
    rows = pairs.reshape(-1, 7, 3)
    check_cell(found, "LSTM", both.forward_layer.cell, rows)
    check_cell(found, "LSTM", both.backward_layer.cell, rows[:, ::-1])


def test_steps_that_are_masked_do_not_count(keras: Any) -> None:
    layers = keras.layers
    x = X.copy()
    x[0, 4:] = 0
    x[1, 2:] = 0
    layer = layers.LSTM(UNITS, dropout=0.1, name="rnn")
    model = filled(chain(keras, layers.Masking(), layer, layers.Dense(2, name="head")))
    found = measure(open_keras(model), [{"x": x}])
    weights = [value(variable) for variable in layer.cell.weights[:3]]
    kept = (x != 0).any(-1)
    before, after, given, _ = run("LSTM", x, weights)
    names = [named(variable) for variable in layer.cell.weights[:3]]
    check(found[names[0], "consumed"], x[kept])
    check(found[names[1], "consumed"], before[kept])
    check(found[names[2], "produced"], given[kept])
    check(found["head/kernel", "consumed"], after[range(4), kept.sum(1) - 1])


def test_what_is_counted_in_inference(keras: Any) -> None:
    class Counting(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.n = self.add_weight(name="n", shape=(), initializer="ones", trainable=False)

        def call(self, x: Any) -> Any:
            self.n.assign_add(1.0)
            return x * self.n

    model = chain(keras, Counting(name="count"), keras.layers.Dense(2, name="head"), shape=(3,))
    checkpoint = open_keras(model)
    assert checkpoint["count/n"].read() == 1
    found = measure(checkpoint, [ROWS, ROWS])
    check(found["head/kernel", "consumed"], np.concatenate([2 * ROWS, 2 * ROWS]))
    assert value(model.get_layer("count").n) == 1


def test_states_in_functions_begin_again_in_each_batch(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.w = tf.Variable(np.ones((3, 2), "f4"), name="w")
    module.n = tf.Variable(1.0, name="n")

    def counted(x: Any) -> Any:
        module.n.assign_add(1.0)
        return {"y": tf.matmul(x * module.n, module.w)}

    spec = tf.TensorSpec((None, 3), tf.float32, "x")
    module.serve = tf.function(tf.function(counted), input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path))
    found = measure(open_checkpoint(tmp_path), [ROWS] * 3)
    check(found["w", "consumed"], np.concatenate([2 * ROWS] * 3))


def test_generators_draw_the_same_in_each_batch(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.w = tf.Variable(np.ones((3, 2), "f4"), name="w")
    module.drawn = tf.random.Generator.from_seed(1)

    def noisy(x: Any) -> Any:
        return {"y": tf.matmul(x * module.drawn.uniform([]), module.w)}

    spec = tf.TensorSpec((None, 3), tf.float32, "x")
    module.serve = tf.function(noisy, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path))
    once, often = (measure(open_checkpoint(tmp_path), [ROWS] * n)["w", "consumed"] for n in (1, 3))
    assert np.allclose(once.mean, often.mean)


def test_one_of_several_branches_is_run(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.held = [tf.Variable(np.ones((3, 2), "f4"), name=name) for name in "ab"]

    def branched(number: Any, x: Any) -> Any:
        def branch(w: Any) -> Any:
            return tf.function(lambda: tf.nn.relu(tf.matmul(tf.gather(x, [0, 1]), w)))

        return {"y": tf.switch_case(number, [branch(w) for w in module.held])}

    specs = [tf.TensorSpec((), tf.int32, "number"), tf.TensorSpec((None, 3), tf.float32, "x")]
    module.serve = tf.function(branched, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path))
    checkpoint = open_checkpoint(tmp_path)
    found = measure(checkpoint, [{"number": np.array(1, "i4"), "x": ROWS}])
    check(found["b", "produced"], np.maximum(ROWS[:2] @ np.ones((3, 2)), 0))
    assert ("a", "produced") not in found
    with pytest.raises(RunError, match=r": it does not run: indices\[1\] = 1 is not in"):
        measure(checkpoint, [{"number": np.array(1, "i4"), "x": ROWS[:1]}])


def test_layers_that_are_random_in_training_alone(keras: Any) -> None:
    layers = keras.layers
    images = RNG.standard_normal((4, 6, 6, 3)).astype("f4")
    drawn = [layers.RandomFlip(), layers.RandomRotation(0.1), layers.GaussianNoise(0.5)]
    convolution = layers.Conv2D(4, 3, activation="relu", name="conv")
    more = [layers.BatchNormalization(name="norm"), layers.Dropout(0.5), layers.Dense(2)]
    model = chain(keras, *drawn, convolution, *more, shape=(6, 6, 3))
    found = measure(open_keras(model), [images[:3], images[3:]])
    check(found["conv/kernel", "consumed"], images)
    check(found["conv/bias", "produced"], np.asarray(convolution(images)))


def test_inputs_in_a_structure(keras: Any) -> None:
    layers = keras.layers
    given = {"b": keras.Input((3,), name="b"), "a": keras.Input((3,), name="a")}
    shared = layers.Dense(UNITS, name="shared")
    both = layers.Concatenate()([shared(given["a"]), 2 * shared(given["b"])])
    model = keras.Model(given, {"y": layers.Dense(2, name="head")(both), "z": given["a"] * 2})
    batch = {"a": ROWS, "b": X[:, 1]}
    found = measure(open_keras(model), [batch])
    check(found["shared/kernel", "consumed"], np.concatenate([ROWS, X[:, 1]]))
    a, b = (np.asarray(shared(batch[name])) for name in "ab")
    check(found["head/kernel", "consumed"], np.concatenate([a, 2 * b], 1))


def test_a_model_in_another(keras: Any) -> None:
    layers = keras.layers
    layer = layers.GRU(3, return_sequences=True, **DROPOUT, name="rnn")
    inner = chain(keras, layer)
    inputs = keras.Input((7, 3), name="x")
    once = inner(inputs)
    model = filled(keras.Model(inputs, layers.Dense(2, name="head")(once + inner(once))))
    found = measure(open_keras(model), [{"x": X}])
    weights = [value(variable) for variable in layer.cell.weights[:3]]
    _, first, _, _ = run("GRU", X, weights)
    _, second, _, _ = run("GRU", first, weights)
    check(found["head/kernel", "consumed"], first + second)
    kernel: Key = (named(layer.cell.kernel), "consumed")
    times = len(found.tensors[kernel]) // 2
    check(found[kernel], np.concatenate([X, first] * times))


def subclassed(keras: Any) -> Any:
    class Model(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="own")
            self.rnn = keras.layers.LSTM(UNITS, dropout=0.3, name="rnn")
            self.head = keras.layers.Dense(2, name="head")

        def call(self, given: Any) -> Any:
            return {"y": self.head(self.rnn(given["p"]) + self.rnn(given["q"]))}

    return Model()


def test_a_model_of_a_class_of_its_own(keras: Any) -> None:
    import tensorflow as tf

    model = subclassed(keras)
    with pytest.raises(UsageError, match="own: it does not know its inputs yet; call it once"):
        open_keras(model)
    spec = tf.TensorSpec([None, 7, 3])
    batch = {"p": X, "q": 2 * X}
    first = measure(open_keras(model, {"p": spec, "q": spec}), [batch])
    model(batch)
    again = measure(open_keras(model), [batch])
    kernel = named(model.head.kernel)
    for found in (first, again):
        taken = np.asarray(model.rnn(X)) + np.asarray(model.rnn(2 * X))
        check(found[kernel, "consumed"], taken)


def test_layers_in_a_row_that_were_never_called(keras: Any) -> None:
    import tensorflow as tf

    model = keras.Sequential([keras.layers.Dense(UNITS, name="hidden"), keras.layers.Dense(2)])
    with pytest.raises(UsageError, match="it does not know its inputs yet; call it once"):
        open_keras(model)
    found = measure(open_keras(model, [tf.TensorSpec((None, 3))]), [ROWS])
    check(found[named(model.layers[0].kernel), "consumed"], ROWS)


def test_activations_of_half_precision(keras: Any) -> None:
    layers = keras.layers
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        hidden = layers.Dense(UNITS, activation="relu", name="hidden")
        layer = layers.LSTM(4, dropout=0.2, name="rnn")
        model = chain(keras, hidden, layer, layers.Dense(2, dtype="float32", name="head"))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    checkpoint = open_keras(model)
    assert checkpoint["hidden/kernel"].read().dtype == np.float32
    found = measure(checkpoint, [{"x": X}])
    check(found["hidden/kernel", "produced"], np.asarray(hidden(X)), 1e-3)
    taken = np.asarray(layer(hidden(X)), "f4")
    check(found["head/kernel", "consumed"], taken, 1e-3)


def test_words_are_looked_up(keras: Any) -> None:
    layers = keras.layers
    words = np.array([["a", "b", "z"], ["b", "b", "a"]], object)
    numbers = np.array([[10, 20, 3], [20, 20, 10]])
    inputs = [
        keras.Input((3,), name="w", dtype="string"),
        keras.Input((3,), name="n", dtype="int64"),
    ]
    of_words, of_numbers = layers.Embedding(4, 2, name="ws"), layers.Embedding(4, 3, name="ns")
    made = [
        of_words(layers.StringLookup(vocabulary=["a", "b"])(inputs[0])),
        of_numbers(layers.IntegerLookup(vocabulary=[10, 20])(inputs[1])),
    ]
    model = keras.Model(inputs, layers.Concatenate()(made))
    found = measure(open_keras(model), [{"w": words, "n": numbers}] * 2)
    ids = np.array([[1, 2, 0], [2, 2, 1]] * 2)
    check(found["ws/embeddings", "produced"], value(of_words.embeddings)[ids])
    check(found["ns/embeddings", "produced"], value(of_numbers.embeddings)[ids])


def test_tables_of_an_export_are_filled(keras: Any, tmp_path: Path) -> None:
    table = keras.layers.Embedding(4, 2)
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    chain(keras, lookup, table, shape=(3,), dtype="string").export(str(tmp_path / "model"))
    words = np.array([["a", "b", "z"], ["b", "b", "a"]], object)
    (moments,) = measure(open_checkpoint(tmp_path / "model"), [words]).values()
    check(moments, value(table.embeddings)[[[1, 2, 0], [2, 2, 1]]])


def test_a_table_that_only_a_saver_fills_is_told(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.w = tf.Variable(np.ones((3, 2), "f4"), name="w")
    module.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, -1.0)
    key = tf.constant([1], tf.int64)
    module.table.insert(key, tf.constant([5.0]))

    def looked_up(x: Any) -> Any:
        return {"y": tf.matmul(x * module.table.lookup(key)[0], module.w)}

    spec = tf.TensorSpec((None, 3), tf.float32, "x")
    module.serve = tf.function(looked_up, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path))
    found = measure(open_checkpoint(tmp_path), [ROWS])
    assert "MutableHashTable is a lookup table that nothing fills, and is empty" in found.notes


def test_texts_are_cut_into_words(keras: Any) -> None:
    layers = keras.layers
    cutting = layers.TextVectorization(output_sequence_length=4)
    cutting.adapt(["the cat sat", "a dog"])
    table = layers.Embedding(10, 2, mask_zero=True, name="table")
    model = chain(keras, cutting, table, layers.LSTM(3), shape=(), dtype="string")
    texts = np.array(["the cat", "a dog sat on"], object)
    found = measure(open_keras(model), [{"x": texts}])
    rows = value(table.embeddings)[np.asarray(cutting(texts))]
    check(found["table/embeddings", "produced"], rows)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_model_that_was_loaded(keras: Any, tmp_path: Path, ending: str) -> None:
    layer = keras.layers.LSTM(UNITS, **DROPOUT, name="rnn")
    saved = filled(chain(keras, layer, keras.layers.Dense(2, name="head")))
    saved.save(tmp_path / f"model{ending}")
    model = keras.models.load_model(tmp_path / f"model{ending}")
    found = measure(open_keras(model), [X])
    check_cell(found, "LSTM", model.get_layer("rnn").cell, X)
    check(found["head/kernel", "consumed"], np.asarray(layer(X)))


def test_what_cannot_be_opened(keras: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UsageError, match="chain: it runs without any variable; there is nothing"):
        open_keras(chain(keras, keras.layers.ReLU()))
    spec = tf.SparseTensorSpec([None, 3], tf.float32)
    with pytest.raises(UsageError, match="chain: it cannot be traced: its input 0 is Sparse"):
        open_keras(chain(keras, keras.layers.Dense(2)), [spec])

    class Failing(keras.layers.Layer):  # type: ignore[misc]
        fails = False

        def call(self, x: Any) -> Any:
            if self.fails:
                raise ValueError("not today")
            return x

    layer = Failing()
    model = chain(keras, layer, keras.layers.Dense(2))
    layer.fails = True
    with pytest.raises(UsageError, match=r"^chain: it cannot be traced: not today$"):
        open_keras(model)
    assert not list(tmp_path.glob("ckpt-converter-*"))


def test_errors_name_the_model_and_not_its_files(keras: Any) -> None:
    shaped = keras.layers.Reshape((-1, 3))
    checkpoint = open_keras(chain(keras, shaped, keras.layers.Dense(2), shape=(None, None)))
    with pytest.raises(RunError, match=r"^chain: it does not run: "):
        measure(checkpoint, [{"x": X[:, :, :2]}])
