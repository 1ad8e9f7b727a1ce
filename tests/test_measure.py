"""Activations of real graphs, measured on the way and compared with what is computed naively."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import case
from test_session import made, run

from converter import Checkpoint, UsageError, open_checkpoint, open_keras
from converter.activations.asked import Question
from converter.activations.measure import measure
from converter.activations.moments import Moments
from converter.activations.probes import Probe, Side
from converter.activations.run import Taken
from converter.graph.node import tensor
from converter.graph.ordered import read_ordered
from converter.variable import Array

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def probe(
    name: str,
    size: int,
    variable: str,
    side: Side = "produced",
    *,
    axis: int = -1,
    mask: str | None = None,
    keeps: bool = False,
) -> Probe:
    masked = None if mask is None else tensor(mask)
    return Probe(tensor(name), axis, size, masked, keeps, ((variable, side),))


def check(found: Moments, rows: Array, rtol: float = 1e-5) -> None:
    """Compare with the moments of (observations, units) that were computed in another way."""
    wide = rows.reshape(-1, found.size).astype(np.float64)
    scale = np.abs(wide).max()
    assert found.count == len(wide)
    for name, wanted in {
        "mean": wide.mean(0),
        "mean_abs": np.abs(wide).mean(0),
        "std": wide.std(0),
        "second_moment": (wide**2).mean(0),
        "min": wide.min(0),
        "max": wide.max(0),
    }.items():
        assert np.abs(getattr(found, name) - wanted).max() <= rtol * scale, name
    assert (found.zeros == (wide == 0).mean(0)).all()


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm(x: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """Return what TensorFlow's LSTMCell takes, and its gates before they are activated."""
    units = bias.size // 4
    h = c = np.zeros((len(x), units))
    taken, gates = [], []
    for step in range(x.shape[1]):
        taken.append(np.concatenate([x[:, step], h], 1))
        gates.append(taken[-1] @ kernel + bias)
        i, j, f, o = np.split(gates[-1], 4, 1)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
        h = sigmoid(o) * np.tanh(c)
    return np.stack(taken), np.stack(gates)


CELL = "charlm/rnn/lstm_cell"
INSIDE = "charlm/rnn/while/rnn/lstm_cell"
CHARLM = [
    probe(f"{INSIDE}/BiasAdd", 120, f"{CELL}/kernel"),
    probe(f"{INSIDE}/concat", 38, f"{CELL}/kernel", "consumed"),
    probe("charlm/embedding_lookup", 8, "charlm/embedding"),
    probe("charlm/softmax/BiasAdd", 14, "charlm/softmax/kernel"),
]


def charlm() -> tuple[Checkpoint, Array, dict[tuple[str, Side], Array]]:
    checkpoint = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    ids = np.random.default_rng(0).integers(0, 14, (40, 9)).astype("i4")
    rows = checkpoint["charlm/embedding"].read()[ids]
    kernel, bias = (checkpoint[f"{CELL}/{n}"].read().astype("f8") for n in ("kernel", "bias"))
    taken, gates = lstm(rows, kernel, bias)
    wanted: dict[tuple[str, Side], Array] = {
        (f"{CELL}/kernel", "produced"): gates,
        (f"{CELL}/kernel", "consumed"): taken,
        ("charlm/embedding", "produced"): rows,
    }
    return checkpoint, ids, wanted


def test_inside_a_loop_however_the_data_are_cut() -> None:
    checkpoint, ids, wanted = charlm()
    runs = [
        measure(checkpoint, [{"x": ids}], probes=CHARLM),
        measure(checkpoint, ({"x": part} for part in np.array_split(ids, 17)), probes=CHARLM),
    ]
    for found in runs:
        assert set(found) == {*wanted, ("charlm/softmax/kernel", "produced")}
        for key, rows in wanted.items():
            check(found[key], rows)
        assert found.notes == ()
    assert [found.batches for found in runs] == [1, 17]
    assert runs[0].tensors[f"{CELL}/kernel", "consumed"] == (f"{INSIDE}/concat",)
    for key in runs[0]:
        for name in ("mean", "std", "mean_abs"):
            one, other = (getattr(found[key], name) for found in runs)
            assert np.abs(one - other).max() <= 1e-6 * np.abs(one).max()


def test_what_is_added_up_together_is_the_same_every_time() -> None:
    checkpoint, ids, wanted = charlm()
    batch = {"x": np.tile(ids, (10, 1))}
    one, other = (measure(checkpoint, [batch] * 25, probes=CHARLM) for _ in range(2))
    for key, rows in wanted.items():
        assert one[key].count == 250 * rows.reshape(-1, one[key].size).shape[0]
        assert np.abs(one[key].std - rows.reshape(-1, one[key].size).std(0)).max() <= 1e-6
    for key in one:
        for name in ("mean", "squares", "absolute", "min", "max", "zero"):
            assert (getattr(one[key], name) == getattr(other[key], name)).all()


def test_what_is_wanted_alone_and_its_covariance() -> None:
    checkpoint, ids, wanted = charlm()
    found = measure(
        checkpoint,
        [{"x": ids[:20]}, {"x": ids[20:]}],
        probes=CHARLM,
        variables=["*kernel"],
        covariance=["*lstm_cell*"],
    )
    assert {name for name, _ in found} == {f"{CELL}/kernel", "charlm/softmax/kernel"}
    rows = wanted[f"{CELL}/kernel", "consumed"].reshape(-1, 38)
    covariance = found[f"{CELL}/kernel", "consumed"].covariance
    assert covariance is not None
    assert np.abs(covariance - np.cov(rows.T, bias=True)).max() <= 1e-6
    assert found["charlm/softmax/kernel", "produced"].covariance is None


def test_steps_behind_the_end_of_a_sequence_do_not_count() -> None:
    some = case("tf012_v2_gru_seqlen")
    arrays = np.load(some.directory / "io.npz")
    checkpoint = open_checkpoint(some.path)
    x, h, lengths = (arrays[f"in_{name}"] for name in ("x", "h0", "lengths"))
    gates, candidate = (
        [
            checkpoint[f"RNN/GRUCell/{part}/Linear/{name}"].read().astype("f8")
            for name in ("Matrix", "Bias")
        ]
        for part in ("Gates", "Candidate")
    )
    taken, made_of = [], []
    for step in range(x.shape[1]):
        lives = step < lengths
        both = np.concatenate([x[:, step], h], 1)
        r, u = np.split(sigmoid(both @ gates[0] + gates[1]), 2, 1)
        new = np.tanh(np.concatenate([x[:, step], r * h], 1) @ candidate[0] + candidate[1])
        taken.append(both[lives])
        made_of.append(new[lives])
        h = np.where(lives[:, None], u * h + (1 - u) * new, h)
    assert min(lengths) < x.shape[1]
    inside = "RNN/while/GRUCell"
    over = "RNN/while/GreaterEqual"
    name = "RNN/GRUCell/Candidate/Linear/Matrix"
    gate = "RNN/GRUCell/Gates/Linear/Matrix"
    probes = [
        probe(f"{inside}/Candidate/Tanh", 18, name, mask=over),
        probe(f"{inside}/Gates/Linear/concat", 25, gate, "consumed", mask=over),
    ]
    feeds = {"x": x, "h0": arrays["in_h0"], "lengths": lengths}
    found = measure(checkpoint, [feeds], probes=probes)
    check(found[name, "produced"], np.concatenate(made_of))
    check(found[gate, "consumed"], np.concatenate(taken))


def test_a_batch_without_rows_adds_nothing() -> None:
    checkpoint, ids, _ = charlm()
    found, wanted = (
        measure(checkpoint, [{"x": part} for part in parts], probes=CHARLM)
        for parts in ((ids[:0], ids), (ids,))
    )
    for key in wanted:
        assert found[key].count == wanted[key].count
        assert np.allclose(found[key].std, wanted[key].std, rtol=1e-9)
    images = probe("x", 6, "w", axis=-1)
    assert Taken(images, np.zeros((0, 7, 7, 4)), -1).rows().shape == (0, 6)


def test_data_without_rows() -> None:
    checkpoint, ids, _ = charlm()
    for batches in ([], [{"x": ids[:0]}], [ids[:0], ids[:0]]):
        with pytest.raises(UsageError, match=r"^the data: it holds no data$"):
            measure(checkpoint, batches, probes=CHARLM)
    assert measure(checkpoint, [ids[:0], ids]).batches == 1


def test_one_glob_alone() -> None:
    checkpoint, ids, _ = charlm()
    found = measure(checkpoint, [ids], variables="*embedding", covariance="*embedding")
    assert list(found) == [("charlm/embedding", "produced")]
    assert found["charlm/embedding", "produced"].covariance is not None


@pytest.mark.parametrize("odd", [None, "model.ckpt", {}])
def test_what_is_no_checkpoint(odd: Any) -> None:
    with pytest.raises(UsageError, match=r"^measure: a .* is no checkpoint; open it"):
        measure(odd, [{"x": np.zeros(3)}])


@pytest.mark.parametrize("length", [0, -1])
def test_sequences_without_any_step(length: int) -> None:
    some = case("tf012_v2_gru_seqlen")
    arrays = np.load(some.directory / "io.npz")
    feeds = {name: arrays[f"in_{name}"] for name in ("x", "h0", "lengths")}
    feeds["lengths"] = np.full_like(feeds["lengths"], length)
    found = measure(open_checkpoint(some.path), [feeds])
    assert {name for name, _ in found} == {"head/b", "head/w"}
    assert found.notes[-1].startswith("not measured, as all sequences are empty: RNN/GRUCell/")
    assert found.notes[-1].endswith("; give data with longer ones")
    with pytest.raises(UsageError, match=r"the data: not measured, as all sequences are empty: R"):
        measure(open_checkpoint(some.path), [feeds], variables="RNN/*")


class Cell:
    """A recurrent cell as TensorFlow takes it."""

    output_size = state_size = 5

    def __init__(self, tf: Any) -> None:
        self.tf = tf

    def zero_state(self, batch: Any, dtype: Any) -> Any:
        return self.tf.zeros([batch, 5], dtype)

    def get_initial_state(
        self, inputs: Any = None, batch_size: Any = None, dtype: Any = None
    ) -> Any:
        return self.zero_state(
            self.tf.shape(inputs)[0] if inputs is not None else batch_size, dtype
        )

    def __call__(self, x: Any, h: Any, scope: Any = None) -> tuple[Any, Any]:
        tf = self.tf
        with tf.variable_scope("cell", reuse=tf.AUTO_REUSE):
            w = tf.get_variable("w", [8, 5], initializer=tf.glorot_normal_initializer(1))
        taken = tf.concat([x, h], 1, name="taken")
        new = tf.tanh(tf.matmul(taken, w), name="made")
        return new, new


def rnn(x: Array, w: Array, lengths: Array | None = None) -> tuple[list[Array], list[Array]]:
    """Return what the cell takes and makes at each step, of the sequences that go on."""
    h = np.zeros((len(x), 5))
    takes, makes = [], []
    for step in range(x.shape[1]):
        lives = np.full(len(x), True) if lengths is None else step < lengths
        taken = np.concatenate([x[:, step], h], 1)
        new = np.tanh(taken @ w)
        takes.append(taken[lives])
        makes.append(new[lives])
        h = np.where(lives[:, None], new, h)
    return takes, makes


SEQUENCES = np.random.default_rng(1).standard_normal((6, 7, 3)).astype("f4")


def names_of(path: Path, op: str, part: str = "") -> list[str]:
    """Return the nodes of a graph by the names that the structure gives them."""
    graph = read_ordered(open_checkpoint(path))
    assert graph is not None
    found = [node.name for node in graph.nodes if node.op == op and part in node.name]
    return [name for name in found if "gradients" not in name]


def masks_of(path: Path, made_by: str) -> dict[str, str]:
    """Return what selects between each node of an op and an older state, by its name."""
    graph = read_ordered(open_checkpoint(path))
    assert graph is not None
    found = {}
    for node in graph.nodes:
        if node.op in ("Select", "SelectV2"):
            mask, before = node.inputs[0], node.inputs[2].node
            while before.op in ("Switch", "Identity"):
                before = before.inputs[0].node
            if before.op == made_by:
                found[before.name] = f"{mask.node.name}:{mask.port}"
    return found


def test_a_loop_of_its_own(tf: Any, tmp_path: Path, flow: str) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 7, 3], "x")
        steps = tf.transpose(x, [1, 0, 2])
        cell = Cell(tf)

        def body(i: Any, h: Any) -> tuple[Any, Any]:
            return i + 1, cell(tf.gather(steps, i), h)[1]

        first = cell.zero_state(tf.shape(x)[0], tf.float32)
        tf.identity(tf.while_loop(lambda i, _: i < 7, body, [0, first])[1], "out")

    made(tf, tmp_path, build, feeds={"x": SEQUENCES}, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    (taken,), (new,) = names_of(tmp_path, "ConcatV2", "taken"), names_of(tmp_path, "Tanh")
    probes = [probe(taken, 8, "cell/w", "consumed"), probe(new, 5, "cell/w")]
    parts = [{"x": SEQUENCES[:2]}, {"x": SEQUENCES[2:]}]
    found = measure(checkpoint, parts, probes=probes)
    takes, makes = rnn(SEQUENCES, checkpoint["cell/w"].read().astype("f8"))
    check(found["cell/w", "consumed"], np.concatenate(takes))
    check(found["cell/w", "produced"], np.concatenate(makes))


def test_loops_in_loops_and_units_that_are_not_last(tf: Any, tmp_path: Path, flow: str) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 4], "x")
        w = tf.get_variable("w", [4, 4], initializer=tf.glorot_normal_initializer(1))

        def inner(j: Any, i: Any, h: Any) -> tuple[Any, Any, Any]:
            # One more row in each turn, and the units come first.
            grown = tf.pad(tf.matmul(w, h, transpose_a=True, transpose_b=True), [[0, 0], [0, i]])
            return j + 1, i, tf.tanh(tf.transpose(tf.identity(grown, "grown")))

        def outer(i: Any, h: Any) -> tuple[Any, Any]:
            shapes = [tf.TensorShape([]), tf.TensorShape([]), tf.TensorShape([None, 4])]
            return i + 1, tf.while_loop(lambda j, *_: j < 2, inner, [0, i, h], shapes)[2]

        shapes = [tf.TensorShape([]), tf.TensorShape([None, 4])]
        tf.identity(tf.while_loop(lambda i, _: i < 3, outer, [0, x], shapes)[1], "out")

    x = SEQUENCES[:, 0, :1] + np.arange(4, dtype="f4")
    made(tf, tmp_path, build, feeds={"x": x}, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    (name,) = names_of(tmp_path, "Identity", "grown")
    found = measure(checkpoint, [{"x": x}], probes=[probe(name, 4, "w", axis=0)])
    w, h, rows = checkpoint["w"].read().astype("f8"), x.astype("f8"), []
    for turn in range(6):
        rows.append(np.concatenate([h @ w, np.zeros((turn // 2, 4))]))
        h = np.tanh(rows[-1])
    check(found["w", "produced"], np.concatenate(rows))


@pytest.mark.parametrize("is_positive", [True, False])
def test_branches_that_are_not_taken(tf: Any, tmp_path: Path, flow: str, is_positive: bool) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 3], "x")
        w = [tf.get_variable(n, [3, 3], initializer=tf.glorot_normal_initializer(1)) for n in "ab"]
        said = tf.reduce_sum(x) > 0
        chosen = tf.cond(
            said,
            lambda: tf.nn.relu(tf.matmul(x, w[0]), name="one"),
            lambda: tf.cond(
                said,
                lambda: x,
                lambda: tf.nn.relu(tf.matmul(x, w[1]), name="other"),
            ),
        )
        tf.identity(tf.tanh(chosen), "out")

    x = np.abs(SEQUENCES[:, 0]) * (1 if is_positive else -1)
    wanted = made(tf, tmp_path, build, feeds={"x": x}, fetches=["out"])
    assert np.abs(wanted["out"]).max() > 0
    checkpoint = open_checkpoint(tmp_path)
    (one,), (other,) = (names_of(tmp_path, "Relu", part) for part in ("one", "other"))
    probes = [probe(one, 3, "a"), probe(other, 3, "b"), probe("out", 3, "b", "consumed")]
    found = measure(checkpoint, [{"x": x}, {"x": x}], probes=probes)
    name = "a" if is_positive else "b"
    assert [key for key in found if key[1] == "produced"] == [(name, "produced")]
    rows = np.maximum(x @ checkpoint[name].read(), 0)
    check(found[name, "produced"], np.concatenate([rows, rows]))
    assert found["b", "consumed"].count == 12
    assert "not measured" in found.notes[-1]
    assert f"{'b' if is_positive else 'a'} (produced)" in found.notes[-1]


def test_an_unrolled_cell_and_lengths(tf: Any, tmp_path: Path, flow: str) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [6, 7, 3], "x")
        lengths = tf.placeholder(tf.int32, [6], "lengths")
        steps = tf.unstack(x, axis=1)
        _, h = tf.nn.static_rnn(Cell(tf), steps, dtype=tf.float32, sequence_length=lengths)
        tf.identity(h, "out")

    lengths = np.array([2, 5, 3, 5, 2, 4], "i4")
    feeds = {"x": SEQUENCES, "lengths": lengths}
    made(tf, tmp_path, build, feeds=feeds, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    variable = "rnn/cell/w" if "rnn/cell/w" in checkpoint else "cell/w"
    found = measure(checkpoint, [feeds, feeds])
    takes, makes = rnn(SEQUENCES, checkpoint[variable].read().astype("f8"), lengths)
    check(found[variable, "produced"], np.concatenate(makes * 2))
    check(found[variable, "consumed"], np.concatenate(takes * 2))
    assert found.tensors[variable, "produced"] == tuple(names_of(tmp_path, "Tanh"))


def test_a_raw_rnn(tf: Any, tmp_path: Path, flow: str) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [6, 7, 3], "x")
        inputs = tf.TensorArray(tf.float32, 7).unstack(tf.transpose(x, [1, 0, 2]))
        cell = Cell(tf)

        def loop(time: Any, output: Any, state: Any, _: Any) -> Any:
            state = cell.zero_state(6, tf.float32) if output is None else state
            done = time >= tf.constant([7, 3, 5, 7, 1, 2])
            following = tf.cond(
                tf.reduce_all(done), lambda: tf.zeros([6, 3]), lambda: inputs.read(time)
            )
            return done, following, state, output, None

        _, state, _ = tf.nn.raw_rnn(cell, loop)
        tf.identity(state, "out")

    made(tf, tmp_path, build, feeds={"x": SEQUENCES}, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    masks = masks_of(tmp_path, "Tanh")
    ((name, mask),) = masks.items()
    (taken,) = names_of(tmp_path, "ConcatV2", "taken")
    probes = [
        probe(name, 5, "rnn/cell/w", mask=mask),
        probe(taken, 8, "rnn/cell/w", "consumed", mask=mask),
    ]
    found = measure(checkpoint, [{"x": SEQUENCES}], probes=probes)
    lengths = np.array([7, 3, 5, 7, 1, 2])
    takes, makes = rnn(SEQUENCES, checkpoint["rnn/cell/w"].read().astype("f8"), lengths)
    check(found["rnn/cell/w", "produced"], np.concatenate(makes))
    check(found["rnn/cell/w", "consumed"], np.concatenate(takes))


QUERY = "bert/encoder/layer_1/attention/self/query"
EQUAL: dict[str, list[Probe]] = {
    "tf115_v2_convbn_ema": [
        probe("conv1/Conv2D", 6, "conv1/kernel"),
        probe("images", 2, "conv1/kernel", "consumed"),
        probe("conv2/BiasAdd", 8, "conv2/kernel"),
        probe("max_pooling2d/MaxPool", 6, "conv2/kernel", "consumed"),
    ],
    "tf115_v2_bert_mini": [
        probe(f"{QUERY}/BiasAdd", 32, f"{QUERY}/kernel"),
        probe(f"{QUERY}/Tensordot/Reshape", 32, f"{QUERY}/kernel", "consumed"),
        probe("bert/encoder/layer_1/attention/self/transpose", 16, f"{QUERY}/bias"),
    ],
}


@pytest.mark.parametrize("name", EQUAL)
def test_it_equals_what_is_fetched(name: str) -> None:
    """Convolutions and attention: each tensor that was measured is fetched, and told by numpy."""
    some = case(name)
    io, arrays = some.record["io"], np.load(some.directory / "io.npz")
    batch = {entry["tensor"]: arrays[key] for key, entry in io["inputs"].items()}
    feeds = tuple(f"{key}={str(value).lower()}" for key, value in io["feeds"].items())
    probes = EQUAL[name]
    found = measure(
        open_checkpoint(some.path), [batch, batch], probes=probes, question=Question(feeds)
    )
    given = {text.removesuffix(":0"): value for text, value in batch.items()}
    fetched = [str(p.tensor) for p in probes if str(p.tensor) not in given]
    values = run(some.path, {**batch, **io["feeds"]}, fetched) | given
    assert len(found) == len(probes)
    for p in probes:
        check(found[p.for_[0]], np.concatenate([values[str(p.tensor)]] * 2))
        assert found.tensors[p.for_[0]] == (str(p.tensor),)


def test_what_an_iterator_would_give_is_measured_where_it_is_consumed(
    tf: Any, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4)).astype("f4")

    def build() -> None:
        taken = tf.data.make_one_shot_iterator(tf.data.Dataset.from_tensors(x)).get_next("taken")
        tf.matmul(taken, tf.get_variable("w", [4, 3]), name="out")

    with tf.Graph().as_default(), tf.Session() as session:
        build()
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(tmp_path / "model"))
    found = measure(open_checkpoint(tmp_path), [{"taken": x}])
    check(found["w", "consumed"], x)


def test_arrays_that_are_filled_anew_for_each_batch(tf: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 64, 16)).astype("f4")

    def build() -> None:
        given = tf.placeholder(tf.float32, [64, 16], "x")
        again = tf.identity(tf.reshape(given, [-1, 8]), "again")
        tf.matmul(given, tf.get_variable("a", [16, 3], use_resource=False), name="one")
        tf.matmul(again, tf.get_variable("b", [8, 3], use_resource=False), name="two")

    made(tf, tmp_path, build, feeds={"x": x[0]}, fetches=["one", "two"])

    def batches() -> Iterator[dict[str, Array]]:
        held = np.empty((64, 16), "f4")
        for held[...] in x:
            yield {"x": held}
        held[...] = 0

    found = measure(open_checkpoint(tmp_path), batches())
    check(found["a", "consumed"], x)
    check(found["b", "consumed"], x)


def test_a_keras_model() -> None:
    keras = pytest.importorskip("keras")
    inputs = keras.Input((7, 3), name="steps")
    hidden = keras.layers.LSTM(5, name="lstm")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="relu", name="head")(hidden))
    checkpoint = open_keras(model)
    assert list(checkpoint) == [variable.path for variable in model.weights]
    for variable in model.weights:
        assert (checkpoint[variable.path].read() == variable.numpy()).all()
    found = measure(checkpoint, [{"steps": SEQUENCES[:2]}, {"steps": SEQUENCES[2:]}])
    check(found["head/kernel", "produced"], model(SEQUENCES).numpy())
    path = checkpoint.files[0]
    assert str(checkpoint.path) == model.name
    assert path.exists()
    del checkpoint
    gc.collect()
    assert not path.exists()


def test_a_keras_model_that_does_not_know_its_inputs(tf: Any) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Dense(2, name="head")], name="late")
    with pytest.raises(UsageError, match="late: it does not know its inputs yet; call it once"):
        open_keras(model)
    with pytest.raises(UsageError, match="open_keras: a str is no Keras model; give the model"):
        open_keras("model.keras")
    spec = tf.TensorSpec([None, 3], tf.float32, "x")
    checkpoint = open_keras(model, [spec])
    found = measure(checkpoint, [{"x": SEQUENCES[:, 0]}])
    check(found["late/head/kernel", "produced"], model(SEQUENCES[:, 0]).numpy())
    bare = measure(checkpoint, [SEQUENCES[:, 0]])["late/head/kernel", "produced"]
    assert (bare.mean_abs == found["late/head/kernel", "produced"].mean_abs).all()


def test_what_keras_computes_once_to_learn_of_shapes_does_not_count() -> None:
    recorded = case("tf115_v2_keras_rnn")
    with np.load(recorded.directory / "io.npz") as arrays:
        x = arrays["in_x"]
    found = measure(open_checkpoint(recorded.path), [{"x": x}])
    check(found["first/kernel", "consumed"], x)
    assert found["first/recurrent_kernel", "consumed"].count == x.shape[0] * x.shape[1]
    assert found.tensors["first/recurrent_kernel", "consumed"] == ("first/while/Identity_2",)


def test_a_keras_model_whose_steps_are_masked() -> None:
    keras = pytest.importorskip("keras")
    ids = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]], "i4")
    inputs = keras.Input((6,), name="ids", dtype="int32")
    rows = keras.layers.Embedding(9, 4, mask_zero=True, name="table")(inputs)
    both = keras.layers.Bidirectional(keras.layers.SimpleRNN(5), name="both")(rows)
    model = keras.Model(inputs, keras.layers.Dense(2)(both))
    found = measure(open_keras(model), [{"ids": ids}])
    table = model.get_layer("table").embeddings.numpy()
    layer = model.get_layer("both")
    for one in (layer.forward_layer, layer.backward_layer):
        kernel, recurrent, bias = (variable.path for variable in one.weights)
        check(found[kernel, "consumed"], table[ids[ids > 0]])
        assert found[recurrent, "consumed"].count == (ids > 0).sum()
        assert found[bias, "produced"].count == (ids > 0).sum()


def test_memory_does_not_grow_with_the_data() -> None:
    checkpoint, ids, _ = charlm()
    peaks: list[int] = []

    def batches(count: int) -> Iterator[dict[str, Array]]:
        for _ in range(count):
            yield {"x": np.tile(ids, (10, 4))}
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    for count in (3, 30):
        measure(checkpoint, batches(count), probes=CHARLM)
    # Each batch has 20 MB of activations, and 27 more were run.
    assert peaks[1] - peaks[0] < 60_000


def test_what_cannot_be_measured_is_named_with_the_reason(tf: Any, tmp_path: Path) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 3], "x")
        w = tf.get_variable("a/w", [3, 4], initializer=tf.glorot_normal_initializer(1))
        hidden = tf.matmul(x, w[:, ::2], name="some")
        head = tf.get_variable("head/w", [2, 2], initializer=tf.glorot_normal_initializer(1))
        tf.matmul(hidden, head, name="out")

    batch = {"x": SEQUENCES[:, 0]}
    made(tf, tmp_path, build, feeds=batch, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    why = "some (MatMul) takes 2 of 4"
    assert f"not measured: a/w (produced): {why}" in measure(checkpoint, [batch]).notes
    only = measure(checkpoint, [batch], variables=["head/*"]).notes
    assert not [note for note in only if "a/w" in note]
