"""Layouts that are given back: they have the last word."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import VALID, Case, case, slow, structure_of
from structure_maker import told

from converter import Checkpoint, Variable, open_checkpoint
from converter.errors import PlanError, UsageError
from converter.structure.infer import infer
from converter.structure.layout import Layout, layout_text, read_layout
from converter.structure.structure import Structure

LSTM = "tf14_v2_charlm_lstm_ema"
CELL = "charlm/rnn/lstm_cell"


def layout(tmp_path: Path, text: str) -> Layout:
    path = tmp_path / "layout.toml"
    path.write_text(text)
    return read_layout(path)


def variables(axes: Mapping[str, list[str]]) -> str:
    return "".join(
        f'[variables."{name}"]\naxes = {texts}\n'.replace("'", '"') for name, texts in axes.items()
    )


def inferred(tmp_path: Path, text: str, name: str = LSTM) -> Structure:
    return infer(open_checkpoint(case(name).path), layout(tmp_path, text))


def without_graph(tmp_path: Path, name: str) -> Checkpoint:
    one = case(name)
    shutil.copytree(one.directory, tmp_path / "bare", ignore=shutil.ignore_patterns("*.meta"))
    return open_checkpoint(str(tmp_path / "bare" / one.record["prefix"]))


@pytest.mark.parametrize("has_slots", [True, slow(False)])
@pytest.mark.parametrize("one", VALID, ids=lambda one: one.name)
def test_what_is_written_and_read_changes_nothing(
    one: Case, has_slots: bool, tmp_path: Path
) -> None:
    checkpoint, before = structure_of(one)
    roles = checkpoint.roles()
    names = [n for n, v in checkpoint.items() if v.shape and (has_slots or not roles[n].of)]
    after = infer(checkpoint, layout(tmp_path, layout_text(before, names, "test")))
    assert after.widths == before.widths
    assert list(after.widths) == list(before.widths)
    assert (after.axes, after.uses) == (before.axes, before.uses)
    assert (after.opaque, after.factors) == (before.opaque, before.factors)
    assert after.conflicts == before.conflicts


def test_a_layout_from_a_graph_is_all_that_a_checkpoint_without_one_needs(tmp_path: Path) -> None:
    before = infer(open_checkpoint(case("tf14_v2_attention_bahdanau").path))
    bare = without_graph(tmp_path, "tf14_v2_attention_bahdanau")
    roles = bare.roles()
    names = [n for n, v in bare.items() if v.shape and not roles[n].of]
    after = infer(bare, layout(tmp_path, layout_text(before, names, "test")))
    assert after.findings is None
    assert after.axes == before.axes
    for name, width in before.widths.items():
        found = after.widths[name]
        assert (found.size, found.symmetry) == (width.size, width.symmetry)
        assert (found.growth, found.resizable) == (width.growth, width.resizable)
        assert set(found.consumed_by) == set(width.consumed_by)


def test_a_layout_alone_tells_everything(tmp_path: Path) -> None:
    arrays = {"p": (5, 3), "q": (3,), "r": (3, 7)}
    made = Checkpoint(
        [Variable.from_array(n, np.zeros(s, "f4")) for n, s in arrays.items()], path=Path("made")
    )
    text = variables({"p": ["x", "h"], "q": ["h"], "r": ["h", "y"]})
    found = infer(made, layout(tmp_path, text + '[widths.h]\nclass = "scaling"\ngrowth = "any"\n'))
    assert {name: told(found, name) for name in arrays} == {
        "p": "x, h | consume, produce",
        "q": "h | shift",
        "r": "h, y | consume, produce",
    }
    width = found.widths["h"]
    assert (width.size, width.symmetry, width.growth, width.resizable) == (
        3,
        "scaling",
        "any",
        True,
    )
    assert (width.produced_by, width.consumed_by, width.followed_by) == (("p",), ("r",), ("q",))
    assert width.why == f"declared in {tmp_path / 'layout.toml'}"
    assert found.widths["x"].growth == "none"


def test_what_is_renamed_in_one_variable_is_renamed_in_all(tmp_path: Path) -> None:
    found = inferred(tmp_path, variables({f"{CELL}/bias": ["[i,j,f,o]*units"]}))
    assert told(found, f"{CELL}/kernel") == (
        "charlm/embedding + units, [i,j,f,o]*units | consume, produce"
    )
    assert told(found, "charlm/softmax/kernel") == "units, charlm/softmax | consume, produce"
    assert str(found.axes[f"{CELL}/kernel/Adam"][1]) == "[i,j,f,o]*units"
    before = infer(open_checkpoint(case(LSTM).path)).widths[CELL]
    assert CELL not in found.widths
    after = found.widths["units"]
    assert (after.consumed_by, after.why, after.growth) == (
        before.consumed_by,
        before.why,
        before.growth,
    )
    findings, write = found.graph
    assert str(write(findings.axes["charlm/softmax/kernel"][0])) == "units"


def test_blocks_may_be_written_out_or_counted(tmp_path: Path) -> None:
    for axis in ("u + u + u + u", "4*u", "[a,b,c,d]*u"):
        found = inferred(tmp_path, variables({f"{CELL}/bias": [axis]}))
        assert str(found.axes[f"{CELL}/bias"][0]) == axis
        assert str(found.axes["charlm/softmax/kernel"][0]) == "u"


def test_a_width_may_be_the_sum_or_the_product_of_others(tmp_path: Path) -> None:
    found = inferred(tmp_path, variables({"charlm/softmax/kernel": ["a + b", "classes"]}) + SIZES)
    assert str(found.axes[f"{CELL}/kernel"][0]) == "charlm/embedding + a + b"
    assert str(found.axes[f"{CELL}/bias"][0]) == "[i,j,f,o]*(a + b)"
    assert {n: found.widths[n].size for n in ("a", "b")} == {"a": 10, "b": 20}
    assert found.widths["b"].symmetry == "permutation"
    assert found.uses[f"{CELL}/kernel"][0]["b"] == ("consume",)
    text = variables({"charlm/softmax/kernel": ["heads*size", "classes"]})
    found = inferred(tmp_path, text + "[widths.heads]\nsize = 3\n")
    assert str(found.axes[f"{CELL}/bias"][0]) == "[i,j,f,o]*heads*size"
    assert found.widths["size"].size == 10


SIZES = "[widths.a]\nsize = 10\n"


def test_widths_of_one_name_are_one(tmp_path: Path) -> None:
    """The tighter class holds, and what makes either makes both."""
    text = variables({"charlm/embedding": ["vocabulary", "charlm/embedding"]}) + variables(
        {"charlm/softmax/bias": ["vocabulary"]}
    )
    found = inferred(tmp_path, text)
    merged = found.widths["vocabulary"]
    assert told(found, "charlm/softmax/kernel").startswith(f"{CELL}, vocabulary |")
    assert merged.produced_by == ("charlm/softmax/kernel",)
    assert merged.consumed_by == ("charlm/embedding",)
    assert (merged.symmetry, merged.growth) == ("bound", "any")


def test_the_tighter_class_of_two_holds(tmp_path: Path) -> None:
    name = "tf115_v2_bert_mini"
    heads = "bert/encoder/layer_0/attention/self/heads"
    text = variables({"bert/encoder/layer_1/attention/self/query/bias": [f"{heads}*d"]})
    found = inferred(tmp_path, text, name)
    assert found.widths["d"].symmetry == "free"
    assert found.widths[heads].symmetry == "permutation"
    assert str(found.axes["bert/encoder/layer_1/attention/self/key/bias"][0]) == f"{heads}*d"
    assert len(found.factors["d"]) == 1


def test_classes_and_growth_are_declared(tmp_path: Path) -> None:
    text = f'[widths."{CELL}"]\nclass = "bound"\ngrowth = "none"\nresizable = false\n'
    width = inferred(tmp_path, text).widths[CELL]
    assert (width.symmetry, width.growth, width.resizable) == ("bound", "none", False)
    assert width.why == f"declared in {tmp_path / 'layout.toml'}"
    name = "tf012_v1_dtypes"
    found = inferred(tmp_path, '[widths."dtypes/int8"]\nclass = "permutation"\n', name)
    assert found.widths["dtypes/int8"].resizable
    assert found.widths["dtypes/int8"].growth == "none"
    assert "dtypes/int8" not in [opaque.name for opaque in found.opaque]
    assert "dtypes/int16" in [opaque.name for opaque in found.opaque]


def test_a_split_of_a_width_must_be_said_of_all_that_have_it(tmp_path: Path) -> None:
    text = variables({f"{CELL}/bias": ["4*a"], "charlm/softmax/kernel": ["b", "classes"]})
    with pytest.raises(UsageError) as error:
        inferred(tmp_path, text)
    assert str(error.value) == (
        f"{tmp_path / 'layout.toml'}: {CELL} is a in {CELL}/bias and b in charlm/softmax/kernel, "
        f"and {CELL}/kernel has it too; write the axes of {CELL}/kernel as well: "
        f"charlm/embedding + {CELL}, [i,j,f,o]*{CELL}"
    )
    found = inferred(tmp_path, text + variables({f"{CELL}/kernel": ["x + a", "4*a"]}))
    assert found.conflicts == (f"{tmp_path / 'layout.toml'} makes {CELL} several widths: a, b",)
    assert found.widths["a"].consumed_by == (f"{CELL}/kernel",)
    assert found.widths["b"].consumed_by == ("charlm/softmax/kernel",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            variables({f"{CELL}/bias": ["4*units"]}) + "[widths.units]\nsize = 29\n",
            f"{CELL}/bias, axis 0: 4*units is 4*29 = 116, but its length is 120; correct the axis",
        ),
        (
            variables({f"{CELL}/bias": ["4*charlm/embedding"]}),
            "charlm/embedding, axis 1: charlm/embedding is 30 = 30, but its length is 8; correct",
        ),
        (variables({f"{CELL}/bias": ["a + b"]}), "the lengths of the axes leave the size of a, b"),
    ],
)
def test_lengths_that_contradict_a_layout(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PlanError) as error:
        inferred(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'layout.toml'}: {message}")


def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        layout(tmp_path, "[widths.units]\nsize = \n")
    assert str(error.value) == f"{tmp_path / 'layout.toml'}:2: invalid value"


def test_what_names_ask_for_is_answered(tmp_path: Path) -> None:
    bare = without_graph(tmp_path, "tf012_v2_lstm_peephole")
    cell = "encoder/RNN/LSTMCell"
    assert not infer(bare).widths[cell].resizable
    found = infer(bare, layout(tmp_path, variables({"readout": [cell, "1"]})))
    assert found.widths[cell].exact
    assert found.widths[cell].consumed_by == (f"{cell}/W_0", "readout")
    assert sorted(found.widths) == [cell, f"{cell}/inputs"]
    text = variables({"readout": ["units", "1"], f"{cell}/B": ["[i,j,f,o]*units"]})
    found = infer(bare, layout(tmp_path, text))
    assert found.widths["units"].exact
    assert str(found.axes[f"{cell}/W_0"][0]) == f"{cell}/inputs + units"


def test_the_inputs_of_a_layer_are_declared(tmp_path: Path) -> None:
    bare = without_graph(tmp_path, "tf14_v2_bidirectional")
    fw, bw = "bidirectional_rnn/fw/lstm_cell", "bidirectional_rnn/bw/gru_cell"
    assert not infer(bare).widths[fw].resizable
    found = infer(bare, layout(tmp_path, variables({"tags/kernel": [f"{fw} + {bw}", "tags"]})))
    assert found.widths[fw].exact
    assert found.widths[bw].exact
    assert found.widths[bw].consumed_by[-1] == "tags/kernel"


def test_what_is_held_without_a_graph_may_be_let_go(tmp_path: Path) -> None:
    bare = without_graph(tmp_path, "tf012_v2_lstm_peephole")
    text = '[widths."encoder/RNN/LSTMCell"]\nresizable = true\n'
    width = infer(bare, layout(tmp_path, text)).widths["encoder/RNN/LSTMCell"]
    assert width.resizable
    assert not width.exact


def test_without_a_graph_what_may_be_edited_is_not_written(tmp_path: Path) -> None:
    bare = without_graph(tmp_path, "tf012_v2_lstm_peephole")
    text = layout_text(infer(bare), list(bare), "test")
    assert "resizable" not in text
    assert 'growth = "none"' not in text
