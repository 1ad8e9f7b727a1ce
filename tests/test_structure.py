"""The structure of every real checkpoint that has a graph, against what its model is."""

from __future__ import annotations

import gc
import json
import time
import traceback
from pathlib import Path

import pytest
from conftest import DATA, VALID, Case, case, structure_of

from converter import open_checkpoint
from converter.errors import InputError, PlanError
from converter.regraph import regraph
from converter.structure.axes.axis import Equation, check
from converter.structure.infer import infer

# Written down by reading the models: expressions and uses of each axis, and what widths allow.
KNOWN = json.loads((DATA / "structure.json").read_text())
CASES = [case for case in VALID if case.name in KNOWN]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_axes_are_those_of_the_model(case: Case) -> None:
    _, structure = structure_of(case)
    known = KNOWN[case.name]["axes"]
    for name, axes in known.items():
        found = []
        for axis, uses in zip(structure.axes[name], structure.uses[name], strict=True):
            texts = list(dict.fromkeys(" ".join(use) for use in uses.values()))
            found.append(f"{axis} | {' / '.join(texts)}" if any(texts) else str(axis))
        assert found == axes, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_widths_allow_what_the_model_allows(case: Case) -> None:
    found = {
        width.name: f"{width.size} {width.symmetry} {width.growth if width.resizable else 'fixed'}"
        for width in structure_of(case)[1].widths.values()
    }
    assert found == KNOWN[case.name]["widths"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_contradicts(case: Case) -> None:
    checkpoint, structure = structure_of(case)
    assert structure.conflicts == ()
    assert structure.opaque == ()
    assert structure.graph.findings.analysis.unknown == {}
    assert list(structure.axes) == list(checkpoint)
    check(
        (
            Equation(axis, length, f"{name}, axis {number}")
            for name, axes in structure.axes.items()
            for number, (axis, length) in enumerate(zip(axes, checkpoint[name].shape, strict=True))
        ),
        structure.sizes,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_slots_and_averages_have_the_axes_of_their_variable(case: Case) -> None:
    checkpoint, structure = structure_of(case)
    for name, role in checkpoint.roles().items():
        if role.kind in ("slot", "average") and role.of is not None and checkpoint[name].shape:
            assert structure.axes[name] == structure.axes[role.of], name
            assert structure.uses[name] == structure.uses[role.of], name


def test_gates_of_every_era() -> None:
    cells = {
        "tf012_v1_charlm_basiclstm": "RNN/BasicLSTMCell/Linear/Matrix",
        "tf10_v2_multilstm_adagrad": "rnn/multi_rnn_cell/cell_1/basic_lstm_cell/weights",
        "tf14_v2_charlm_lstm_ema": "charlm/rnn/lstm_cell/kernel",
        "tf115_v2_lstmblockfused": "lstm_fused_cell/kernel",
    }
    for name, kernel in cells.items():
        rows, columns = structure_of(case(name))[1].axes[kernel]
        assert len(rows.terms) == 2, name
        assert str(columns) == f"[i,j,f,o]*{rows.terms[1][0]}", name


def test_a_scale_that_moves_with_a_width_is_found() -> None:
    factors = structure_of(case("tf115_v2_bert_mini"))[1].factors
    assert list(factors) == [
        f"bert/encoder/layer_{i}/attention/self/query/head_size" for i in range(2)
    ]
    ((factor,), _) = factors.values()
    assert (factor.node, factor.number, factor.power) == (
        "bert/encoder/layer_0/attention/self/truediv",
        0.25,
        -0.5,
    )


def test_members_of_a_width() -> None:
    width = structure_of(case("tf14_v2_charlm_lstm_ema"))[1].widths["charlm/rnn/lstm_cell"]
    assert width.produced_by == ("charlm/rnn/lstm_cell/kernel",)
    assert width.consumed_by == ("charlm/rnn/lstm_cell/kernel", "charlm/softmax/kernel")
    assert width.followed_by == ("charlm/rnn/lstm_cell/bias",)
    assert width.why == "Sigmoid charlm/rnn/while/rnn/lstm_cell/Sigmoid is nonlinear"
    assert width.exact


def test_variables_that_nothing_reads_are_opaque() -> None:
    _, structure = structure_of(case("tf012_v1_dtypes"))
    assert {width.symmetry for width in structure.widths.values()} == {"opaque"}
    assert {"dtypes/float32", "dtypes/float32_1"} <= {found.name for found in structure.opaque}


def test_what_only_a_graph_tells_says_so_without_one() -> None:
    structure = infer(open_checkpoint(case("tf221_raw_dtypes").path))
    with pytest.raises(InputError) as error:
        _ = structure.graph
    assert str(error.value) == (
        f"{case('tf221_raw_dtypes').path}: it has no graph, and nothing else tells what stands "
        "around variables; put the .meta file that was saved with it beside it, or give the graph "
        "of another checkpoint of the model (--graph-from)"
    )


def test_without_a_graph_and_known_names_nothing_can_be_resized() -> None:
    widths = infer(open_checkpoint(case("tf221_raw_dtypes").path)).widths.values()
    assert {(width.symmetry, width.resizable) for width in widths} == {("opaque", False)}
    assert {width.why for width in widths} == {
        "there is no graph, and no known name that tells what it is"
    }


def test_the_graph_of_another_checkpoint_is_refused() -> None:
    checkpoint = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    checkpoint.meta = open_checkpoint(case("tf14_v2_bidirectional").path).meta
    with pytest.raises(InputError, match=r"bi.ckpt.meta: none of its variables is in .*; it is"):
        infer(checkpoint)
    checkpoint = open_checkpoint(case("tf10_v2_multilstm_adagrad").path)
    checkpoint.meta = open_checkpoint(case("tf012_v1_charlm_basiclstm").path).meta
    with pytest.raises(InputError) as error:
        infer(checkpoint)
    assert str(error.value) == (
        f"{checkpoint.meta}: embedding is [16, 10] in the graph and [15, 9] in {checkpoint.path}; "
        "it is the graph of another checkpoint"
    )


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(case("tf14_v2_rotation").path)
    assert checkpoint.meta is not None
    data = checkpoint.meta.read_bytes()
    for damaged in (data[: len(data) // 2], b"\xff" * 100):
        checkpoint.meta = tmp_path / "damaged.meta"
        checkpoint.meta.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged\.meta: it is damaged"):
            infer(checkpoint)


def test_it_takes_no_time() -> None:
    checkpoint = open_checkpoint(case("tf115_v2_bert_mini").path)
    began = time.perf_counter()
    structure = infer(checkpoint)
    # 4,068 nodes take a tenth of a second; TensorFlow imports them in half a second.
    assert time.perf_counter() - began < 3
    assert len(structure.graph.findings.analysis.graph.nodes) == 4068


def test_no_garbage_is_looked_for_while_graphs_are_read_and_written() -> None:
    checkpoint = open_checkpoint(case("tf14_v2_rotation").path)
    found: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            # Both are asked from here.
            frames = {frame.name for frame in traceback.extract_stack()}
            found.extend(frames & {"infer", "regraph"})

    gc.callbacks.append(note)
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        structure = infer(checkpoint)
        width = next(name for name, width in structure.widths.items() if width.resizable)
        with pytest.raises(PlanError, match="a width cannot be 0"):
            regraph(checkpoint, structure, {width: 0})
        assert regraph(checkpoint, structure, {width: 7}).meta
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(note)
    assert not found
    assert gc.isenabled()
    gc.disable()
    try:
        infer(checkpoint)
        assert not gc.isenabled()
    finally:
        gc.enable()
