"""Resized graphs in TensorFlow: they import, restore, compute the same, and train the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VALID, Case
from resized import Resizing, run, write

from converter import open_checkpoint
from converter.formats.messages import message
from converter.regraph import regraph
from converter.regraph.tensors import Constant
from converter.structure.axes.axis import Width
from converter.structure.infer import infer

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
RECORDED = [
    case
    for case in VALID
    if case.record.get("io")
    and (case.record["format"] in ("V1", "V2") or case.name == "tf115_savedmodel")
]
# New units of a sigmoid are 0.5 and learn; Adam takes other steps where a scale factor moved.
LEARNING = ("tf14_v1_partitioned", "tf115_v2_bert_mini")


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def resized(case: Case, directory: Path, tf: Any, *, only_exact: bool) -> float:
    """Grow widths by half with zeros; return how far the outputs are from those of the source.

    What they are after ten training steps has to be the same too, if new units stay dead. New
    outputs don't, as the loss counts them: those widths are not among the exact ones here.
    """
    io = case.record["io"]
    arrays = np.load(case.directory / io["file"])
    feeds = {e["tensor"]: arrays[name] for name, e in io["inputs"].items()} | io["feeds"]
    fetches = [entry["tensor"] for entry in io["outputs"].values()]
    checkpoint = open_checkpoint(case.path)
    structure = infer(checkpoint)
    sizes = {
        width.name: max(width.size + 1, width.size * 3 // 2)
        for width in structure.widths.values()
        if width.resizable and not (only_exact and (not width.exact or _is_output(width)))
    }
    found = regraph(checkpoint, structure, sizes)
    assert found.notes == ()
    same = regraph(checkpoint, structure, {})
    old = run(tf, write(directory / "old", list(checkpoint.values()), same.meta), feeds, fetches)
    resizing = Resizing(checkpoint, structure, sizes)
    prefix = write(directory / "new", resizing.variables(found), found.meta)
    grown = {t: resizing.grown(np.asarray(v), resizing.axes_of(t)) for t, v in feeds.items()}
    new = run(tf, prefix, grown, fetches)
    assert new.is_finite
    errors = []
    for tensor, a, b, trained_a, trained_b in zip(
        fetches, old.before, new.before, old.after, new.after, strict=True
    ):
        axes = resizing.axes_of(tensor)
        errors.append(_error(a, resizing.cut(b, axes)))
        if only_exact and case.name not in LEARNING:
            assert _error(trained_a, resizing.cut(trained_b, axes)) < 100 * TOLERANCE, tensor
    return max(errors)


def _is_output(width: Width) -> bool:
    return not {"output", "softmax", "cross entropy"}.isdisjoint(dict(width.touches))


def _error(a: Any, b: Any) -> float:
    if a.dtype.kind != "f":
        return float((a != b).mean())
    return float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_a_grown_model_computes_and_trains_as_before(tf: Any, case: Case, tmp_path: Path) -> None:
    assert resized(case, tmp_path, tf, only_exact=True) < TOLERANCE


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_every_width_at_once(tf: Any, case: Case, tmp_path: Path) -> None:
    assert np.isfinite(resized(case, tmp_path, tf, only_exact=False))


def build(tf: Any, units: int, heads: int, head_size: int, *, is_static: bool) -> None:
    """Attention between two normalisations, an LSTM, and its training."""
    batch = 4 if is_static else None
    x = tf.placeholder("float32", [batch, 5, 7], "x")
    y = tf.placeholder("float32", [batch, 3], "y")
    rows = batch or tf.shape(x)[0]

    def dense(h: Any, columns: int, name: str) -> Any:
        with tf.variable_scope(name):
            start = tf.orthogonal_initializer()
            kernel = tf.get_variable("w", [int(h.shape[-1]), columns], initializer=start)
            bias = tf.get_variable("b", [columns], initializer=tf.constant_initializer(0.1))
        return tf.tensordot(h, kernel, [[len(h.shape) - 1], [0]]) + bias

    def split(h: Any) -> Any:
        return tf.transpose(tf.reshape(h, [rows, 5, heads, head_size]), [0, 2, 1, 3])

    h = dense(x, units, "in")
    mean, variance = tf.nn.moments(h, [-1], keep_dims=True)
    gain = tf.get_variable("gain", [units], initializer=tf.ones_initializer())
    h = tf.nn.batch_normalization(h, mean, variance, None, gain, 1e-5)
    q, k, v = (split(dense(h, heads * head_size, name)) for name in "qkv")
    scores = tf.matmul(q, k, transpose_b=True) * (1.0 / np.sqrt(float(head_size)))
    mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), v), [0, 2, 1, 3])
    h += dense(tf.reshape(mixed, [rows, 5, heads * head_size]), units, "o")
    h *= tf.rsqrt(tf.reduce_mean(tf.square(h), -1, keepdims=True) + 1e-6)
    h = tf.reduce_mean(h, 1) + tf.reduce_sum(h, [1]) / 3
    both = tf.concat([h, tf.tanh(h)], 1)
    h = tf.slice(both, [0, 0], [-1, units]) + tf.slice(both, [0, units], [-1, units])
    h += tf.reduce_mean(h, -1, keepdims=True)
    logits = tf.identity(dense(h, 3, "out"), "logits")
    tf.train.AdamOptimizer(0.01).minimize(tf.reduce_mean(tf.square(logits - y)))


@pytest.mark.parametrize("is_static", [False, True], ids=["any batch", "a batch of 4"])
def test_the_graph_is_what_the_code_builds(tf: Any, is_static: bool, tmp_path: Path) -> None:
    prefixes = [str(tmp_path / name / "model") for name in ("small", "large")]
    for prefix, sizes in zip(prefixes, [(8, 2, 6), (13, 3, 9)], strict=True):
        with tf.Graph().as_default():
            build(tf, *sizes, is_static=is_static)
            with tf.Session() as session:
                session.run(tf.global_variables_initializer())
                tf.train.Saver().save(session, prefix)
    small, large = map(open_checkpoint, prefixes)
    structure = infer(small)
    new = {8: 13, 2: 3, 6: 9}
    grown = {w.name: new[w.size] for w in structure.widths.values() if w.size in new}
    assert len(grown) == 4
    found = regraph(small, structure, grown)
    assert [note for note in found.notes if "orthogonal" not in note] == []
    wanted = message("MetaGraphDef").FromString(regraph(large, infer(large), {}).meta)
    made = message("MetaGraphDef").FromString(found.meta)
    assert len(made.graph_def.node) == len(wanted.graph_def.node)
    by_name = {node.name: node for node in made.graph_def.node}
    needed = needed_by(
        wanted.graph_def, "init", "Adam", "save/restore_all", "save/SaveV2", "logits"
    )
    for node in wanted.graph_def.node:
        # The largest and smallest random numbers go by the sizes too, and stay as they were.
        # What nothing needs has no axes that would tell what it is.
        if b"/Initializer/" not in node.name and node.name in needed:
            assert told(node) == told(by_name[node.name]), node.name


def needed_by(definition: Any, *names: str) -> set[bytes]:
    inputs = {node.name: node.input for node in definition.node}
    found: set[bytes] = set()
    waiting = [name.encode() for name in names]
    while waiting:
        name = waiting.pop().lstrip(b"^").partition(b":")[0]
        if name not in found:
            found.add(name)
            waiting += inputs[name]
    return found


def told(node: Any) -> dict[bytes, Any]:
    """Return the attributes of a node; a constant by its values, not by how they are written."""
    found = {entry.key: entry.value for entry in node.attr}
    if node.op == b"Const":
        values = Constant(found[b"value"].tensor, "it").values
        assert values is not None
        found[b"value"] = (
            np.round(values, 6).tolist() if values.dtype.kind == "f" else values.tolist()
        )
    return found
