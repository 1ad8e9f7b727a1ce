"""`convert inspect --widths`, and layout files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import CASES, VALID, Case, case, structure_of
from resized import write
from structure_maker import Model, N

from converter import Variable, open_checkpoint
from converter.cli import cli
from converter.errors import PlanError, UsageError
from converter.formats.messages import message
from converter.graph.ordered import read_ordered
from converter.structure.layout import layout_text, read_layout, write_layout


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["inspect", *arguments])


def test_people_see_widths_and_axes(lstm: str) -> None:
    result = run(lstm, "--widths")
    assert result.exit_code == 0
    lines = [line.split() for line in result.output.splitlines()]
    assert result.output.splitlines()[0] == f"{lstm}.meta  938 nodes, 4 widths in 5 variables"
    assert lines[2] == [
        *("width", "size", "class", "grows", "produced", "consumed", "followed", "because")
    ]
    assert lines[5][:7] == ["charlm/rnn/lstm_cell", "30", "permutation", "exact", "1", "2", "1"]
    assert lines[6][:4] == ["charlm/softmax", "14", "bound", "exact"]
    assert lines[11] == [
        "charlm/rnn/lstm_cell/kernel",
        "charlm/embedding",
        "+",
        "charlm/rnn/lstm_cell,",
        "[i,j,f,o]*charlm/rnn/lstm_cell",
        "[38,",
        "120]",
    ]


def test_members_are_listed_when_asked_for(lstm: str) -> None:
    output = run(lstm, "--widths", "-v").output
    assert (
        "charlm/rnn/lstm_cell  30, permutation\n"
        "  produced by charlm/rnn/lstm_cell/kernel\n"
        "  consumed by charlm/rnn/lstm_cell/kernel\n"
        "  consumed by charlm/softmax/kernel\n"
        "  followed by charlm/rnn/lstm_cell/bias\n"
    ) in output


def test_keys_of_json(lstm: str) -> None:
    document = json.loads(run(lstm, "--widths", "--json").output)
    assert list(document) == ["widths", "variables", "opaque", "even"]
    by_name = {width["name"]: width for width in document["widths"]}
    assert by_name["charlm/rnn/lstm_cell"] == {
        "name": "charlm/rnn/lstm_cell",
        "size": 30,
        "class": "permutation",
        "resizable": True,
        "exact": True,
        "produced_by": ["charlm/rnn/lstm_cell/kernel"],
        "consumed_by": ["charlm/rnn/lstm_cell/kernel", "charlm/softmax/kernel"],
        "followed_by": ["charlm/rnn/lstm_cell/bias"],
        "why": "Sigmoid charlm/rnn/while/rnn/lstm_cell/Sigmoid is nonlinear",
    }
    assert document["variables"]["charlm/rnn/lstm_cell/kernel/Adam_1"] == [
        "charlm/embedding + charlm/rnn/lstm_cell",
        "[i,j,f,o]*charlm/rnn/lstm_cell",
    ]
    assert document["variables"]["global_step"] == []
    assert document["opaque"] == []


def test_opaque_widths_are_told_with_the_op() -> None:
    path = case("tf012_v1_dtypes").path
    document = json.loads(run(path, "--widths", "--json").output)
    assert {"name": "dtypes/int8", "op": "Variable", "node": "dtypes/int8"} in document["opaque"]
    why = "no op of the graph reads dtypes/int8; it may be tied to anything"
    assert f"opaque  dtypes/int8: {why}" in run(path, "--widths").output


def test_constants_that_move_with_a_width_are_noted() -> None:
    output = run(case("tf115_v2_bert_mini").path, "--widths").output
    assert (
        "note    bert/encoder/layer_0/attention/self/truediv multiplies with 0.25, which is the "
        "size of bert/encoder/layer_0/attention/self/query/head_size to the power of -0.5"
    ) in output


def test_without_a_graph_it_says_what_names_tell() -> None:
    path = case("tf221_obj_tfkeras_charlm").path
    result = run(path, "--widths")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == (
        f"{path}  by names, without a graph (no {path}.meta): 4 widths in 6 variables"
    )
    assert [line.split()[:4] for line in lines[3:7]] == [
        ["embedding/vocabulary", "17", "bound", "exact"],
        ["embedding", "7", "permutation", "exact"],
        ["lstm/lstm_cell", "24", "permutation", "exact"],
        ["softmax", "17", "bound", "yes"],
    ]


def test_a_layout_can_be_given_back(tmp_path: Path) -> None:
    path = case("tf221_obj_module").path
    assert "net/layers/0" in run(path, "--widths").output
    layout = tmp_path / "layout.toml"
    layout.write_text('[variables."net/heads/mean/w"]\naxes = ["hidden", "mean"]\n')
    result = run(path, "--widths", "--json", "--layout", str(layout))
    assert result.exit_code == 0
    assert json.loads(result.output)["variables"]["net/heads/mean/w"] == ["hidden", "mean"]
    result = run(path, "--layout", str(layout))
    assert result.exit_code == 2
    assert "--layout is about the widths; add --widths" in result.output


@pytest.mark.parametrize(
    "options", [("--graph", "--widths"), ("--graph", "--norms"), ("--norms", "--variable=x")]
)
def test_one_thing_is_shown_at_a_time(lstm: str, options: tuple[str, str]) -> None:
    result = run(lstm, *options)
    assert result.exit_code == 2
    assert "show different things; ask for one at a time" in result.stderr


def test_output_is_for_widths_only(lstm: str) -> None:
    result = run(lstm, "-o", "layout.toml")
    assert result.exit_code == 2
    assert "-o is where the widths are written; add --widths" in result.output


def test_every_case_is_shown_or_refused_in_one_line() -> None:
    for one in CASES:
        result = run(one.path, "--widths")
        assert result.exit_code in (0, 3), one.name
        if result.exit_code:
            assert result.output.startswith("Error: "), one.name
            assert len(result.output.splitlines()) == 1, one.name


def test_a_layout_is_written_once(lstm: str, tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    result = run(lstm, "--widths", "-o", str(path))
    assert result.exit_code == 0
    assert result.output == f"wrote {path} (4 widths)\n"
    assert (
        '[widths."charlm/rnn/lstm_cell"]\n'
        "size = 30\n"
        'class = "permutation"  # Sigmoid charlm/rnn/while/rnn/lstm_cell/Sigmoid is nonlinear\n'
    ) in path.read_text()
    assert (
        '[variables."charlm/rnn/lstm_cell/kernel"]\n'
        'axes = ["charlm/embedding + charlm/rnn/lstm_cell", "[i,j,f,o]*charlm/rnn/lstm_cell"]\n'
        'uses = ["consume", "produce"]\n'
    ) in path.read_text()
    text = path.read_text()
    result = run(lstm, "--widths", "-o", str(path))
    assert result.exit_code == 4
    assert f"{path} exists, and may have been edited; write to another file" in result.output
    assert path.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["layout.toml"]


@pytest.mark.parametrize("one", VALID, ids=lambda one: one.name)
def test_a_layout_is_read_as_it_was_written(one: Case, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(one.path)
    if read_ordered(checkpoint) is None:
        return
    _, structure = structure_of(one)
    names = [name for name in checkpoint if checkpoint[name].shape]
    write_layout(tmp_path / "layout.toml", layout_text(structure, names, "test"))
    layout = read_layout(tmp_path / "layout.toml")
    assert layout.axes == {name: structure.axes[name] for name in names}
    assert layout.sizes == structure.sizes
    assert layout.classes == {n: w.symmetry for n, w in structure.widths.items()}
    for name in names:
        kept = [{w: uses for w, uses in axis.items() if uses} for axis in layout.uses[name]]
        told = [{w: uses for w, uses in axis.items() if uses} for axis in structure.uses[name]]
        assert kept == told
    assert layout.solved(checkpoint) == structure.sizes


LAYOUT = """
[widths.units]
size = 30
class = "permutation"

[variables."charlm/rnn/lstm_cell/kernel"]
axes = ["features + units", "[i,j,f,o]*units"]
uses = [{ features = "consume", units = "consume" }, "produce"]
"""


def test_sizes_follow_from_lengths(lstm: str, tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    path.write_text(LAYOUT)
    assert read_layout(path).solved(open_checkpoint(lstm)) == {"units": 30, "features": 8}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[widths.units]", "[width.units]", "a layout has no key 'width'; did you mean 'widths'?"),
        ("size = 30", "siz = 30", "widths.'units' has no key 'siz'; did you mean 'size'?"),
        ("size = 30", "size = -1", "the size of units must be a number, got -1"),
        ("permutation", "permuted", "the class of units must be one of free, orthogonal, scaling,"),
        ("widths.units", 'widths."a b"', "a width cannot be called 'a b'; use letters and / . - _"),
        ("+ units", "+", "charlm/rnn/lstm_cell/kernel: the axis 'features +': a width, a number,"),
        ('"produce"]', '"make"]', "charlm/rnn/lstm_cell/kernel: there is no use 'make'; it can be"),
        ('"produce"]', "]", "charlm/rnn/lstm_cell/kernel has 2 axes, so uses must be a list of as"),
        (
            "{ features",
            "{ feature",
            "charlm/rnn/lstm_cell/kernel: the axis features + units has no width",
        ),
        ("axes =", "axis =", "variables.'charlm/rnn/lstm_cell/kernel' has no key 'axis'; did you"),
    ],
)
def test_a_wrong_layout_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "layout.toml"
    path.write_text(LAYOUT.replace(old, new, 1))
    with pytest.raises(UsageError) as error:
        read_layout(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_what_is_no_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    path.write_text(LAYOUT.replace("size = 30", "size =", 1))
    with pytest.raises(UsageError) as error:
        read_layout(path)
    assert str(error.value) == f"{path}:3: invalid value"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "size = 30",
            "size = 31",
            "charlm/rnn/lstm_cell/kernel, axis 1: [i,j,f,o]*units is 4*31 = 124, but its length is "
            "120; correct the axis or the sizes",
        ),
        (
            '"features + units", ',
            "",
            "charlm/rnn/lstm_cell/kernel has 2 axes, [38, 120], and 1 are written: "
            "[[i,j,f,o]*units]",
        ),
        (
            "features + units",
            "features + context + units",
            "the lengths of the axes leave the size of features, context open; write it: "
            '[widths."features"] size = ...',
        ),
    ],
)
def test_a_layout_must_fit(lstm: str, tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "layout.toml"
    text = LAYOUT.replace(old, new, 1)
    if "1 are written" in message:
        text = text.replace('{ features = "consume", units = "consume" }, ', "")
    path.write_text(text)
    with pytest.raises(PlanError) as error:
        read_layout(path).solved(open_checkpoint(lstm))
    assert str(error.value) == f"{path}: {message}"


def test_a_layout_of_another_model_is_refused(lstm: str, tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    path.write_text(LAYOUT.replace("lstm_cell/kernel", "lstm_cell/kernels"))
    with pytest.raises(UsageError, match="did you mean 'charlm/rnn/lstm_cell/kernel'"):
        read_layout(path).solved(open_checkpoint(lstm))


def test_parts_of_one_length_are_told(tmp_path: Path) -> None:
    m = Model()
    m.op("Split", m.constant(1), m.dense(m.input(2, N), "a", N, 2 * N), name="s", num_split=2)
    m.dense(m.op("Relu", "s"), "p")
    m.dense(m.op("Tanh", "s:1"), "q")
    variables = [Variable.from_array(n, np.zeros(s, "f4")) for n, s in m.shapes.items()]
    meta = message("MetaGraphDef")(graph_def=m.definition)
    path = write(tmp_path / "saved", variables, meta.SerializeToString())
    found = json.loads(run(path, "--widths", "--json").output)
    assert found["even"] == [{"op": "Split", "node": "s", "axes": ["a", "a_1"]}]
    note = "Split s makes parts of one length, so a and a_1 stay equally long"
    assert note in run(path, "--widths").output
