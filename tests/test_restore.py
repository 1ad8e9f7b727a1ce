"""TensorFlow itself restores what was written, and its graphs compute what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VALID, Case
from converter_plugins.drop import Drop
from converter_plugins.scale import Scale

from converter import convert, open_checkpoint

pytestmark = pytest.mark.slow

_REFUSED = {
    "tf115_v2_convbn_ema": "TensorFlow 2.21 finds shapes in its gradients inconsistent",
    "tf115_v2_odd_names": "a Saver takes the brackets of its prefix for a glob",
}


WITH_GRAPHS = [
    one for one in VALID if list(one.directory.rglob("*.meta")) and one.name not in _REFUSED
]


def _feeds(record: dict[str, Any], arrays: Any) -> dict[str, Any]:
    feeds: dict[str, Any] = dict(record["feeds"])
    for name, given in record["inputs"].items():
        feeds[given["tensor"]] = arrays[name]
    return feeds


@pytest.mark.parametrize("case", WITH_GRAPHS, ids=lambda case: case.name)
def test_saver_restores_and_the_graph_runs(case: Case, tmp_path: Path) -> None:
    """From V1 sources too: since TensorFlow 0.12 their graphs read V2 as well."""
    import tensorflow as tf

    convert(case.path, tmp_path / "out", to="tf")
    (meta,) = (tmp_path / "out").glob("*.meta")
    prefix = str(meta).removesuffix(".meta")
    ours = open_checkpoint(case.path)
    v1 = tf.compat.v1
    with v1.Graph().as_default() as graph:
        saver = v1.train.import_meta_graph(str(meta), clear_devices=True)
        with v1.Session() as session:
            saver.restore(session, prefix)
            for variable in v1.global_variables():
                name = variable.op.name
                if name in ours and ours[name].dtype.name != "string":
                    np.testing.assert_array_equal(
                        session.run(graph.get_tensor_by_name(_read(graph, name))),
                        ours[name].read(),
                    )
            arrays = case.directory / "io.npz"
            if "io" not in case.record or not arrays.exists():
                return
            io = case.record["io"]
            with np.load(arrays) as recorded:
                for name, output in io["outputs"].items():
                    found = session.run(output["tensor"], _feeds(io, recorded))
                    np.testing.assert_allclose(found, recorded[name], rtol=0, atol=5e-5)


def _read(graph: Any, name: str) -> str:
    operations = {operation.name for operation in graph.get_operations()}
    resource = f"{name}/Read/ReadVariableOp"
    return f"{resource}:0" if resource in operations else f"{name}/read:0"


def _objects() -> tuple[Any, Any, Any]:
    import tensorflow as tf

    class Net(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="net")
            self.kernel = tf.Variable(np.full((3, 4), 2.0, np.float32), name="kernel")
            self.parts = [tf.Variable([float(n)], name="part") for n in range(12)]
            self.text = tf.Variable(["a", "b"], name="text")

    net = Net()
    step = tf.Variable(7, dtype=tf.int64, name="step")
    return tf.train.Checkpoint(net=net, step=step), net, step


def test_checkpoint_restores_its_objects(tmp_path: Path) -> None:
    checkpoint, _, _ = _objects()
    source = checkpoint.save(tmp_path / "run" / "ckpt")
    convert(source, tmp_path / "out", [Scale({"*kernel*": 0.5, "*parts*": 3.0})], to="tf")
    again, net, step = _objects()
    net.kernel.assign(net.kernel * 0)
    net.text.assign(["", ""])
    step.assign(0)
    import tensorflow as tf

    latest = tf.train.latest_checkpoint(tmp_path / "out")
    again.restore(latest).assert_consumed()
    np.testing.assert_array_equal(net.kernel.numpy(), np.full((3, 4), 1.0, np.float32))
    assert [part.numpy().tolist() for part in net.parts] == [[3.0 * n] for n in range(12)]
    assert net.text.numpy().tolist() == [b"a", b"b"]
    assert step.numpy() == 7


def test_checkpoint_by_name(tmp_path: Path) -> None:
    import tensorflow as tf

    checkpoint, _, _ = _objects()
    source = checkpoint.save(tmp_path / "run" / "ckpt")
    convert(source, tmp_path / "out", [Drop(("*text*", "_CHECKPOINTABLE*"))], to="tf")
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(tmp_path / "out"))
    names = set(reader.get_variable_to_shape_map())
    # Twelve variables are called `part`: these go by their paths.
    assert names == {"kernel", "step", "save_counter", *(f"net/parts/{n}" for n in range(12))}
    np.testing.assert_array_equal(reader.get_tensor("net/parts/11"), [11.0])


def test_a_trained_keras_model_goes_on(tmp_path: Path) -> None:
    """Weights and optimizer state: the next training step is the same from either checkpoint."""
    import tensorflow as tf

    inputs = np.linspace(-1, 1, 40, dtype=np.float32).reshape(8, 5)
    targets = inputs.sum(1, keepdims=True)

    def model() -> Any:
        tf.keras.utils.set_random_seed(3)
        made = tf.keras.Sequential([tf.keras.Input((5,)), tf.keras.layers.Dense(1)])
        made.compile(tf.keras.optimizers.Adam(0.1), "mse")
        return made

    trained = model()
    trained.fit(inputs, targets, epochs=3, verbose=0)
    source = tf.train.Checkpoint(model=trained).save(tmp_path / "run" / "ckpt")
    convert(source, tmp_path / "out", to="tf")
    after = []
    for path in (source, tf.train.latest_checkpoint(tmp_path / "out")):
        again = model()
        again.optimizer.build(again.trainable_variables)
        tf.train.Checkpoint(model=again).restore(path).assert_existing_objects_matched()
        again.fit(inputs, targets, epochs=1, verbose=0)
        after.append([weight.tobytes() for weight in again.get_weights()])
    assert after[0] == after[1]
