"""The .meta of a renamed checkpoint: its savers store and find variables under the new names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, case
from converter_plugins.drop import Drop
from converter_plugins.eras import Eras
from converter_plugins.rename import Rename
from converter_plugins.scale import Scale
from converter_plugins.scope import Scope

from converter import Strategy, convert, open_checkpoint
from converter.formats.messages import parse
from converter.graph.ordered import OrderedGraph, read_ordered
from converter.plan import make_plan
from converter.structure.tensors.variables import bind
from converter.target import Target

# By each of the savers that there are: V1, V2, of partitioned variables, of shards.
SAVED = ["tf012_v1_charlm_basiclstm", "tf012_v2_lstm_peephole", "tf10_v2_partitioned"]
SAVED += ["tf14_v1_partitioned", "tf10_v1_sharded", "tf115_v2_sharded", "tf14_v2_charlm_lstm_ema"]
TRIED = ["tf012_v2_lstm_peephole", "tf10_v2_partitioned", "tf14_v2_charlm_lstm_ema"]


def keys(graph: OrderedGraph) -> dict[str, str]:
    """Return the key of each variable node, as the savers of a graph tell."""
    assert graph.path.suffix == ".meta"
    checkpoint = open_checkpoint(graph.path)
    return {node.name: name for node, (name, _) in bind(graph, checkpoint).items()}


def planned(source: Path | str, tmp_path: Path, *strategies: Strategy) -> tuple[object, list[str]]:
    """Return the graph that goes along, and what is noted about it."""
    checkpoint = open_checkpoint(source)
    plan = make_plan(checkpoint, strategies, Target(tmp_path / "out", "model", "tf"))
    return plan.meta, [note for note in plan.notes if ".meta" in note]


@pytest.mark.parametrize("name", SAVED)
def test_savers_have_the_new_names_and_nodes_the_old_ones(name: str, tmp_path: Path) -> None:
    source = open_checkpoint(case(name).path)
    convert(source.path, tmp_path / "out", [Scope({"": "model/"})], to="tf")
    result = open_checkpoint(tmp_path / "out")
    before, after = read_ordered(source), read_ordered(result)
    assert before is not None
    assert after is not None
    assert [node.name for node in after.nodes] == [node.name for node in before.nodes]
    new = {v.sources[0]: v.name for v in Scope({"": "model/"}).apply(source)}
    assert keys(after) == {node: new[key] for node, key in keys(before).items()}
    assert set(keys(after).values()) == set(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_tensorflow_restores_it_by_its_graph(name: str, tmp_path: Path) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    source = open_checkpoint(case(name).path)
    strategies = [Eras("1.15" if name.startswith("tf0") else "1.0"), Scope({"": "model/"})]
    result = convert(source.path, tmp_path / "out", strategies, to="tf")
    graph = read_ordered(source)
    assert graph is not None
    with tf.Graph().as_default(), v1.Session() as session:
        saver = v1.train.import_meta_graph(f"{result.output}.meta")
        saver.restore(session, str(result.output))
        for node, (key, part) in bind(graph, source).items():
            whole = source[key].read()
            if part is not None:
                whole = whole[
                    tuple(slice(a, a + n) for a, n in zip(part.offset, part.shape, strict=True))
                ]
            assert np.array_equal(session.run(f"{node.name}:0"), whole)
        saver.save(session, str(tmp_path / "again"))
    assert set(open_checkpoint(tmp_path / "again")) == set(open_checkpoint(result.output))


class TestPlan:
    SOURCE = DATA / "tf012_v2_lstm_peephole"

    def test_what_the_graph_is_for_is_said(self, tmp_path: Path) -> None:
        meta, notes = planned(self.SOURCE, tmp_path, Rename({"readout": "w"}), Scale({"w": 2.0}))
        assert isinstance(meta, bytes)
        assert b"readout" in meta
        assert notes == [
            "peephole.ckpt-60.meta: its savers store and find the variables under the new names; "
            "the graph itself calls them as before"
        ]

    def test_other_variables_have_another_graph(self, tmp_path: Path) -> None:
        note = (
            "peephole.ckpt-60.meta is left out: its savers restore global_step, which the output "
            "lacks"
        )
        rename, drop = Rename({"readout": "w"}), Drop(("global_step",))
        for strategies in ([rename, drop], [drop]):
            assert planned(self.SOURCE, tmp_path, *strategies) == (None, [note])

    def test_a_damaged_graph_is_left_out(self, tmp_path: Path) -> None:
        for file in self.SOURCE.glob("peephole*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "peephole.ckpt-60.meta").write_bytes(b"\xff\xff")
        meta, (note,) = planned(tmp_path / "peephole.ckpt-60", tmp_path, Scope({"": "m/"}))
        assert meta is None
        assert note.startswith("peephole.ckpt-60.meta is left out: ")

    def test_variables_that_no_saver_has_are_counted(self, tmp_path: Path) -> None:
        for file in self.SOURCE.glob("peephole*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        file = tmp_path / "peephole.ckpt-60.meta"
        file.write_bytes(file.read_bytes().replace(b"readout", b"readoux"))
        meta, notes = planned(tmp_path / "peephole.ckpt-60", tmp_path, Scope({"": "m/"}))
        assert isinstance(meta, bytes)
        assert notes[1] == ("peephole.ckpt-60.meta: no saver in it has 2 of them, such as readout")
        assert parse("MetaGraphDef", meta, "the graph").saver_def.restore_op_name
