"""eras: recurrent names of one TensorFlow 1 as those of another.

`data/era_names.json` has the variables of one model by several releases, which built them all;
`data/names_1_15.json` has what the recorded models are called where 1.15 builds them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DATA, case
from converter_plugins.eras import Eras, Kind
from converter_plugins.gates import Gates
from converter_plugins.scope import Scope
from structure_maker import Model

from converter import Checkpoint, PlanError, Role, UsageError, Variable, open_checkpoint
from converter.cli import cli
from converter.formats.messages import message
from converter.names.cells import BY_PLAIN_NAME, ERAS, GATE_KERNELS, Era, plain, spelt
from converter.names.eras import era_of
from converter.testing import check_strategy

NAMES: dict[str, dict[Era, dict[str, list[int]]]] = json.loads(
    (DATA / "era_names.json").read_text()
)
PAIRS = [(m, a, b) for m, eras in NAMES.items() for a in eras for b in eras]
# What the names of the one release don't tell.
KINDS: dict[tuple[str, str], dict[str, Kind]] = {
    ("LSTMBlock", "0.12"): {"rnn/lstm_cell": "LSTMBlockCell"},
    ("GRUBlockV2", "1.2"): {"rnn/gru_cell": "GRUBlockCellV2"},
    ("StackBiStatic", "1.2"): {"StackRNN": "static"},
    ("StackBiStatic", "1.15"): {"StackRNN": "static"},
    ("Conv2D", "1.15"): {"rnn/conv_lstm_cell": "ConvLSTMCell"},
    ("ptb", "1.0"): {"*/RNN": "own"},
    ("ptb", "1.2"): {"*/RNN": "own"},
    ("ptb", "1.15"): {"*/RNN": "own"},
}
# What graphs of TensorFlow 1.15 of the same models expect. It restored what these became, and gave
# the recorded outputs to within 5e-7 of their scale.
IN_1_15: dict[str, dict[str, list[int]]] = json.loads((DATA / "names_1_15.json").read_text())
GATEWISE = "tf10_v2_gatewise_lstm"
RECURRENT = [name for name in IN_1_15 if name != GATEWISE]


def checkpoint(shapes: Mapping[str, Iterable[int]]) -> Checkpoint:
    """Return a checkpoint of ones, twos ..., one number for each variable."""
    return Checkpoint(
        Variable.from_array(name, np.full(tuple(shape), number, "f4"))
        for number, (name, shape) in enumerate(shapes.items(), 1)
    )


def named(strategy: Eras, source: Checkpoint) -> dict[str, float]:
    """Return the first number of each variable of the result."""
    return {v.name: float(v.read().ravel()[0]) for v in strategy.apply(source)}


def notes(strategy: Eras, source: Checkpoint) -> list[str]:
    return list(strategy.notes(source))


class TestNames:
    @pytest.mark.parametrize(("model", "before", "after"), PAIRS)
    def test_they_are_those_that_the_release_gave(
        self, model: str, before: Era, after: Era
    ) -> None:
        source = checkpoint(NAMES[model][before])
        kinds = {
            glob: kind
            for glob, kind in KINDS.get((model, after), {}).items()
            if any(name.startswith(f"{glob}/") for name in source) or "*" in glob
        }
        shards = {}
        if model == "LSTMshards" and after == "0.12" != before:
            shards = {"*/kernel": 2} if before != "1.0" else {"*/weights": 2}
        # Both orders of these wrappers have the names of the other before 1.2.
        is_doubtful = model == "InOut" and ERAS.index(before) < 2 <= ERAS.index(after)
        wanted = NAMES["OutIn" if is_doubtful else model][after]
        got = {v.name: list(v.shape) for v in Eras(after, kinds, shards).apply(source)}
        assert got == wanted

    @pytest.mark.parametrize("name", RECURRENT)
    def test_real_ones_get_those_of_1_15(self, name: str) -> None:
        source = open_checkpoint(case(name).path)
        found = {v.name: list(v.shape) for v in Eras("1.15").apply(source)}
        assert found == IN_1_15[name]

    def test_a_real_one_of_gates_gets_those_of_1_15(self) -> None:
        source = open_checkpoint(case(GATEWISE).path)
        joined = source.derive(Gates("join", forget_bias=1.0).apply(source))
        scope = Scope({"LSTMcell/": "rnn/basic_lstm_cell/"})
        found = {v.name: list(v.shape) for v in scope.apply(joined)}
        assert found == IN_1_15[GATEWISE]

    @pytest.mark.parametrize("era", ERAS)
    @pytest.mark.parametrize("name", RECURRENT)
    def test_real_ones_come_back_as_they_were(self, name: str, era: Era) -> None:
        source = open_checkpoint(case(name).path)
        found = era_of(source, list(source))
        assert found is not None
        there = source.derive(Eras(era).apply(source))
        assert era in (era_of(there, list(there)) or found).eras
        back = there.derive(Eras(found.eras[0]).apply(there))
        assert list(back) == list(source)
        for variable, old in zip(back.values(), source.values(), strict=True):
            # The bytes on disk are copied: nothing was decoded.
            assert variable.stored == old.stored
            assert np.array_equal(variable.read(), old.read())

    def test_keys_of_their_own_are_told(self) -> None:
        source = open_checkpoint(case("tf012_v2_gru_seqlen").path)
        renamed = source.derive(
            [source["RNN/GRUCell/Gates/Linear/Bias"].rename("v"), source["head/w"]]
        )
        assert notes(Eras("1.15"), renamed) == [
            "no variable has the name of a recurrent cell of TensorFlow 1",
            "v is RNN/GRUCell/Gates/Linear/Bias in the graph; --names graph before gives it that "
            "name",
        ]

    def test_slots_and_averages_follow(self) -> None:
        kernel = "RNN/BasicLSTMCell/Linear/Matrix"
        source = checkpoint(
            {
                kernel: (3, 8),
                f"{kernel}/Adam": (3, 8),
                f"train/{kernel}/Adam_1": (3, 8),
                f"{kernel}/ExponentialMovingAverage": (3, 8),
                "beta1_power": (),
            }
        )
        assert named(Eras("1.2"), source) == {
            "rnn/basic_lstm_cell/kernel": 1,
            "rnn/basic_lstm_cell/kernel/Adam": 2,
            "train/rnn/basic_lstm_cell/kernel/Adam_1": 3,
            "rnn/basic_lstm_cell/kernel/ExponentialMovingAverage": 4,
            "beta1_power": 5,
        }
        assert any(
            note.startswith("1 slot in the scope of an optimizer, such as train/RNN/")
            for note in notes(Eras("1.2"), source)
        )

    def test_scopes_of_optimizers_are_taken_off_slots(self) -> None:
        kernel = "RNN/BasicLSTMCell/Linear/Matrix"
        shapes = {kernel: (3, 8), f"train/{kernel}/Adam": (3, 8), "w": (2,), "train/w/Adam": (2,)}
        strategy = Eras("1.2", bare_slots=True)
        assert named(strategy, checkpoint({**shapes, "train/beta1_power": ()})) == {
            "rnn/basic_lstm_cell/kernel": 1,
            "rnn/basic_lstm_cell/kernel/Adam": 2,
            "w": 3,
            "w/Adam": 4,
            "train/beta1_power": 5,
        }
        assert not any("scope of an optimizer" in n for n in notes(strategy, checkpoint(shapes)))

    def test_all_in_a_scope_goes_along(self) -> None:
        source = checkpoint({"a/RNN/GRUCell/Gates/Linear/Bias": (4,), "a/RNN/mine/w": (2,)})
        assert named(Eras("1.0"), source) == {"a/rnn/gru_cell/gates/biases": 1, "a/rnn/mine/w": 2}

    @pytest.mark.parametrize(
        "name",
        [
            "my_lstm_cell/weights",
            "lstm_cell/weights_2",
            "lstm_cell/deep/weights",
            "RNN/weights",
            "rnn/fw/kernel",
            "LSTMCell/W_01",
            "layer/Cell0/kernel",
        ],
    )
    def test_what_is_no_cell_stays(self, name: str) -> None:
        assert named(Eras("1.15"), checkpoint({name: (2, 8)})) == {name: 1}
        assert named(Eras("0.12"), checkpoint({name: (2, 8)})) == {name: 1}

    def test_cells_of_keras_stay(self) -> None:
        names = [f"lstm/lstm_cell/{leaf}" for leaf in ("kernel", "recurrent_kernel", "bias")]
        source = checkpoint(dict.fromkeys(names, (2, 8)))
        assert list(named(Eras("0.12"), source)) == names
        assert era_of(source, names) is None

    def test_numbers_of_cells_stay(self) -> None:
        source = checkpoint({"m/lstm_cell_1/kernel": (3, 8), "m/lstm_cell_1/bias": (8,)})
        assert list(named(Eras("1.0"), source)) == [
            "m/lstm_cell_1/weights",
            "m/lstm_cell_1/biases",
        ]

    def test_directions_in_a_scope_of_your_own_are_told_by_each_other(self) -> None:
        names = ["enc/FW/GRUCell/Gates/Linear/Bias", "enc/BW/GRUCell/Gates/Linear/Bias"]
        both = checkpoint(dict.fromkeys(names, (4,)))
        assert list(named(Eras("1.2"), both)) == [
            "enc/fw/gru_cell/gates/bias",
            "enc/bw/gru_cell/gates/bias",
        ]
        one = checkpoint({names[0]: (4,)})
        assert list(named(Eras("1.2"), one)) == ["enc/FW/gru_cell/gates/bias"]

    def test_the_directions_of_2016_are_read(self) -> None:
        source = checkpoint({"BiRNN_FW/LSTMCell/B": (4,), "BiRNN_BW/LSTMCell/B": (4,)})
        assert list(named(Eras("1.2"), source)) == [
            "bidirectional_rnn/fw/lstm_cell/bias",
            "bidirectional_rnn/bw/lstm_cell/bias",
        ]
        (note,) = (n for n in notes(Eras("1.2"), source) if "tell less" in n)
        assert note == (
            "2 names tell less than the old ones: --eras 0.12 would make BiRNN/FW/LSTMCell/B of "
            "bidirectional_rnn/fw/lstm_cell/bias, and not BiRNN_FW/LSTMCell/B"
        )

    def test_convolutions_are_told_by_their_ranks(self) -> None:
        shapes = {f"c{rank}/conv_lstm_cell/kernel": [2] * (rank + 2) for rank in (1, 2, 3)}
        assert list(named(Eras("1.15"), checkpoint(shapes))) == [
            f"c{rank}/conv_{rank}d_lstm_cell/kernel" for rank in (1, 2, 3)
        ]

    def test_what_block_cells_were_called_before_is_read(self) -> None:
        source = checkpoint({"RNN/GRUBlockCell/w_r": (3, 4), "RNN/GRUBlockCell/b_c": (2,)})
        assert list(named(Eras("1.15"), source)) == ["rnn/gru_cell/w_ru", "rnn/gru_cell/b_c"]
        assert list(named(Eras("1.2"), checkpoint({"gru_cell/w_r": (3, 4)}))) == ["gru_cell/w_r"]

    def test_slots_that_cannot_follow_are_pointed_out(self) -> None:
        names = ["LSTMCell/B", "adam/LSTMCell_B_m", "w", "adam/w_m"]
        roles = {
            name: Role("slot", of, "m") if of else Role("model")
            for name, of in zip(names, (None, "LSTMCell/B", None, "w"), strict=True)
        }
        source = checkpoint(dict.fromkeys(names, (8,)))
        source = Checkpoint(source.values(), roles=lambda _: roles)
        assert [note for note in notes(Eras("1.2"), source) if "hold its" in note] == [
            "1 slot or average keeps a name that doesn't hold its variable's, such as "
            "adam/LSTMCell_B_m; rename them by a pattern"
        ]

    def test_nothing_to_do_is_said(self) -> None:
        source = checkpoint({"dense/kernel": (2, 2)})
        assert named(Eras("1.2"), source) == {"dense/kernel": 1}
        assert notes(Eras("1.2"), source) == [
            "no variable has the name of a recurrent cell of TensorFlow 1"
        ]

    def test_names_of_any_depth_take_no_time(self) -> None:
        source = checkpoint({"/".join(["lstm_cell"] * 20_000) + "/weights": (2, 8)})
        assert named(Eras("1.2"), source) == dict.fromkeys(source, 1)

    def test_the_contract_is_kept(self) -> None:
        check_strategy(Eras("1.15", {"scope": "own"}, {"scope/*": 2}))


class TestDoubts:
    def test_which_wrapper_is_outside_is_said(self) -> None:
        source = checkpoint(NAMES["InOut"]["1.0"])
        assert "rnn/output_projection_wrapper/input_projection_wrapper/kernel" in named(
            Eras("1.2"), source
        )
        assert notes(Eras("1.2"), source)[0] == (
            "rnn: which wrapper is the outer one is not known; it is taken for "
            "output_projection_wrapper around input_projection_wrapper"
        )

    def test_stacks_are_taken_for_dynamic_ones(self) -> None:
        layers = [f"StackRNN/Layer{k}/BiRNN/{d}/LSTMCell/B" for k in (0, 1) for d in ("FW", "BW")]
        source = checkpoint(dict.fromkeys(layers, (8,)))
        said = (
            "StackRNN is taken for stack_bidirectional_dynamic_rnn; if its function is the static "
            "one, say --eras-kind 'StackRNN=static'"
        )
        assert [note for note in notes(Eras("1.2"), source) if "StackRNN" in note] == [said]
        assert not any("static" in note for note in notes(Eras("1.0"), source))
        newer = source.derive(Eras("1.2").apply(source))
        assert not any("static" in note for note in notes(Eras("0.12"), newer))

    def test_what_is_around_a_decoder_is_not_of_tensorflow(self) -> None:
        names = ["a/RNN/AttnW_0", "a/RNN/Linear/Bias", "a/RNN/GRUCell/Gates/Linear/Bias"]
        assert list(named(Eras("1.2"), checkpoint(dict.fromkeys(names, (4,))))) == [
            "a/RNN/AttnW_0",
            "a/RNN/bias",
            "a/RNN/gru_cell/gates/bias",
        ]

    def test_a_wrapper_that_may_be_around_several_cells_stays(self) -> None:
        source = checkpoint(
            {
                "m/output_projection_wrapper/weights": (4, 2),
                "m/gru_cell/gates/weights": (4, 4),
                "m/lstm_cell/weights": (4, 4),
            }
        )
        assert list(named(Eras("1.2"), source)) == [
            "m/output_projection_wrapper/kernel",
            "m/gru_cell/gates/kernel",
            "m/lstm_cell/kernel",
        ]
        assert notes(Eras("1.2"), source)[0].startswith(
            "m/output_projection_wrapper may be around any of 2 cells, which from 1.2 on has to be"
        )

    def test_a_class_that_a_release_lacks_keeps_its_scopes(self) -> None:
        source = checkpoint({"rnn/ugrnn_cell/kernel": (4, 4)})
        assert named(Eras("0.12"), source) == {"rnn/ugrnn_cell/kernel": 1}
        assert notes(Eras("0.12"), source)[0] == (
            "rnn/ugrnn_cell stays: TensorFlow 0.12 had no UGRNNCell"
        )

    @pytest.mark.parametrize(
        ("names", "era", "said"),
        [
            (
                {"rnn/lstm_cell/kernel": (3, 8)},
                "0.12",
                "for LSTMCell; if it is LSTMBlockCell",
            ),
            ({"RNN/LSTMCell/B": (8,)}, "1.2", "RNN becomes rnn, TensorFlow's own name for it;"),
            (
                {"a/Linear/Matrix": (2, 2), "LSTMCell/B": (8,)},
                "1.2",
                "taken for TensorFlow's: 1, such as a;",
            ),
            (
                {"rnn/attention_wrapper/lstm_cell/bias": (8,)},
                "1.0",
                "1 variable of an AttentionWrapper, which came with 1.2",
            ),
            (
                {"rnn/attention_r": (), "rnn/lstm_cell/biases": (8,)},
                "1.2",
                "rnn/attention_r is of the DynamicAttentionWrapper of 1.1",
            ),
        ],
    )
    def test_what_names_do_not_tell_is_said(
        self, names: dict[str, tuple[int, ...]], era: Era, said: str
    ) -> None:
        source = checkpoint(names)
        assert any(said in note for note in notes(Eras(era), source))

    def test_a_kind_must_fit_a_scope(self) -> None:
        with pytest.raises(UsageError) as caught:
            named(Eras("1.2", {"RNM": "own"}), checkpoint({"RNN/LSTMCell/B": (8,)}))
        assert str(caught.value) == ("'RNM' fits none of the 2 scopes; did you mean 'RNN'?")

    def test_names_that_collide_are_refused(self) -> None:
        source = checkpoint({"rnn/lstm_cell/weights": (3, 8), "rnn/lstm_cell/kernel": (3, 8)})
        with pytest.raises(PlanError) as caught:
            named(Eras("1.2"), source)
        assert str(caught.value) == (
            "rnn/lstm_cell/kernel: both rnn/lstm_cell/weights and rnn/lstm_cell/kernel would have "
            "this name; rename or drop one before"
        )


def shards(*sizes: int) -> Checkpoint:
    """Return an LSTM of 0.12 whose kernel is in shards of rows, with an Adam slot of each."""
    rows = np.arange(4 * sum(sizes), dtype="f4").reshape(-1, 4)
    ends = np.cumsum(sizes)
    parts = np.split(rows, ends[:-1])
    names = [f"RNN/LSTMCell/W_{k}" for k in range(len(parts))]
    variables = [
        replace(Variable.from_array(name, part), sources=(name,))
        for name, part in zip(names, parts, strict=True)
    ]
    slots = [
        replace(v.map(np.negative), name=f"{v.name}/Adam", sources=(f"{v.name}/Adam",))
        for v in variables
    ]
    # Numbers, not letters, give the order: W_10 is the last one.
    return Checkpoint([*reversed(variables), *slots])


class TestOwnScopes:
    """A cell that is called itself can be given a scope: `cell(x, state, scope="mine")`."""

    GRU: ClassVar[dict[Era, tuple[str, str]]] = {
        "0.12": ("Gates/Linear/Matrix", "Candidate/Linear/Matrix"),
        "1.0": ("gates/weights", "candidate/weights"),
        "1.2": ("gates/kernel", "candidate/kernel"),
        "1.15": ("gates/kernel", "candidate/kernel"),
    }

    @pytest.mark.parametrize("before", ERAS)
    @pytest.mark.parametrize("after", ERAS)
    def test_a_gru_is_told_by_its_variables(self, before: Era, after: Era) -> None:
        shapes = ((5, 4), (5, 2))
        names = [f"top/mine/{leaf}" for leaf in self.GRU[before]]
        source = checkpoint(dict(zip(names, shapes, strict=True)))
        assert list(named(Eras(after), source)) == [f"top/mine/{n}" for n in self.GRU[after]]
        era = era_of(source, names)
        assert era is not None
        assert before in era.eras

    @pytest.mark.parametrize("before", ERAS)
    @pytest.mark.parametrize("after", ERAS)
    def test_an_lstm_with_peepholes_is_told_by_them(self, before: Era, after: Era) -> None:
        shapes = ((5, 8), (8,), (2,))
        names = {
            era: [f"top/mine/{leaf}" for leaf in leaves]
            for era, leaves in {
                "0.12": ("W_0", "B", "W_F_diag"),
                "1.0": ("weights", "biases", "w_f_diag"),
                "1.2": ("kernel", "bias", "w_f_diag"),
                "1.15": ("kernel", "bias", "w_f_diag"),
            }.items()
        }
        source = checkpoint(dict(zip(names[before], shapes, strict=True)))
        assert list(named(Eras(after), source)) == names[after]
        era = era_of(source, names[before])
        assert era is not None
        assert before in era.eras
        # A gain of another size is no peephole, and a matrix alone no cell.
        other = checkpoint(dict(zip(names[before], ((5, 8), (8,), (4,)), strict=True)))
        assert list(named(Eras(after), other)) == list(other)

    def test_of_other_shapes_it_is_none(self) -> None:
        names = dict.fromkeys((f"a/{leaf}" for leaf in self.GRU["1.0"]), (5, 4))
        assert list(named(Eras("1.2"), checkpoint(names))) == list(names)

    def test_a_linear_function_of_0_12_is_told_by_its_variables(self) -> None:
        names = ["top/mine/Linear/Matrix", "top/mine/Linear/Bias"]
        source = checkpoint(dict(zip(names, ((5, 8), (8,)), strict=True)))
        assert list(named(Eras("1.15"), source)) == ["top/mine/kernel", "top/mine/bias"]
        assert list(named(Eras("1.15", {"top/mine": "own"}), source)) == names
        (note, less) = notes(Eras("1.15"), source)
        assert note == (
            "linear layers in scopes of their own are taken for TensorFlow's: 1, such as top/mine; "
            "if the code has its own, say --eras-kind 'top/mine=own'"
        )
        assert "tell less" in less
        back = checkpoint({"top/mine/kernel": (5, 8), "top/mine/bias": (8,)})
        assert list(named(Eras("0.12", {"top/mine": "BasicLSTMCell"}), back)) == names

    def test_any_other_is_said(self) -> None:
        source = checkpoint({"m/mine/W_0": (5, 8), "m/mine/B": (8,), "m/mine/W_P_0": (2, 2)})
        assert list(named(Eras("1.2"), source)) == list(source)
        assert list(named(Eras("1.2", {"m/mine": "LSTMCell"}), source)) == [
            "m/mine/kernel",
            "m/mine/bias",
            "m/mine/projection/kernel",
        ]

    def test_the_attention_of_a_decoder_is_its_own(self) -> None:
        names = [f"m/Attention_0/Linear/{leaf}" for leaf in ("Matrix", "Bias")]
        source = checkpoint({"m/AttnW_0": (1, 1, 2, 2), names[0]: (4, 2), names[1]: (2,)})
        assert not any("scopes of their own" in note for note in notes(Eras("1.2"), source))


@pytest.mark.parametrize(
    ("name", "eras"),
    [
        ("cudnn_compatible_lstm_cell/kernel", ("1.2", "1.15")),
        ("cudnn_compatible_gru_cell/candidate/hidden_projection/kernel", ("1.2", "1.15")),
        ("sru_cell/kernel", ("1.15",)),
        ("indy_gru_cell/gates/kernel_w", ("1.15",)),
    ],
)
def test_cells_that_came_later_are_known(name: str, eras: tuple[Era, ...]) -> None:
    source = checkpoint({f"rnn/{name}": (4, 4)})
    found = era_of(source, list(source))
    assert found is not None
    assert found.eras == eras
    assert list(named(Eras("1.0"), source)) == list(source)


def test_spellings_of_every_release_come_from_one_table() -> None:
    assert set(spelt("projection/kernel")) == {"projection/kernel", "projection/weights", "w_p_0"}
    assert {"gates/linear/matrix", "w_ru", "w_r"} <= set(GATE_KERNELS)
    assert BY_PLAIN_NAME[plain("LSTMFusedCell_2")].columns == ("i", "j", "f", "o")
    assert BY_PLAIN_NAME[plain("lstm_block_wrapper")].adds_forget_bias
    assert not BY_PLAIN_NAME[plain("cudnn_compatible_lstm_cell")].adds_forget_bias


class TestGraph:
    """What two classes call the same, the ops of a graph tell apart."""

    @staticmethod
    def with_graph(m: Model, directory: Path) -> Checkpoint:
        meta = message("MetaGraphDef")()
        meta.graph_def.CopyFrom(m.definition)
        (directory / "x.meta").write_bytes(meta.SerializeToString())
        made = checkpoint(m.shapes)
        return Checkpoint(made.values(), path=directory / "x", meta=directory / "x.meta")

    def test_a_block_cell_is_one_op(self, tmp_path: Path) -> None:
        for op, wanted in (("LSTMBlockCell", "LSTMBlockCell/W"), ("MatMul", "LSTMCell/W_0")):
            m = Model()
            kernel = m.variable("rnn/lstm_cell/kernel", 4, 8)
            m.op(op, *(m.input(2, 4, name=n) for n in "xyz"), kernel, name="out")
            source = self.with_graph(m, tmp_path)
            assert list(named(Eras("0.12"), source)) == [f"RNN/{wanted}"]
            assert not any("is taken for" in note for note in notes(Eras("0.12"), source))

    @pytest.mark.parametrize("leaves", [("weights", "biases"), ("W_0", "B")])
    def test_an_lstm_in_a_scope_of_its_own_is_seen(
        self, leaves: tuple[str, str], tmp_path: Path
    ) -> None:
        for activation in ("Sigmoid", "Relu"):
            m = Model()
            kernel, bias = (
                m.variable(f"top/mine/{leaf}", *shape)
                for leaf, shape in zip(leaves, ((5, 8), (8,)), strict=True)
            )
            both = m.op("ConcatV2", m.input(2, 3), m.input(2, 2, name="h"), m.constant(1))
            gates = m.op("BiasAdd", m.op("MatMul", both, kernel), bias)
            m.op("Split", m.constant(1), gates, name="s", num_split=4)
            c = m.op("Mul", m.op("Sigmoid", "s:0"), m.op("Tanh", "s:1"))
            c = m.op("Add", c, m.op(activation, "s:2"))
            m.op("Mul", m.op("Tanh", c), m.op("Sigmoid", "s:3"), name="out")
            wanted = ("kernel", "bias") if activation == "Sigmoid" else leaves
            source = self.with_graph(m, tmp_path)
            assert list(named(Eras("1.2"), source)) == [f"top/mine/{leaf}" for leaf in wanted]
            old = Eras("0.12")
            if leaves[0] == "weights" and activation == "Sigmoid":
                assert list(named(old, source)) == [
                    "top/mine/Linear/Matrix",
                    "top/mine/Linear/Bias",
                ]
                assert notes(old, source)[0] == (
                    "top/mine is taken for BasicLSTMCell; if it is LSTMCell, say --eras-kind "
                    "'top/mine=LSTMCell'"
                )

    def test_a_static_stack_has_no_loop(self, tmp_path: Path) -> None:
        names = [f"StackRNN/Layer0/BiRNN/{way}/LSTMCell/W_0" for way in ("FW", "BW")]
        inner = {"Enter": "bidirectional_rnn/", "Identity": ""}
        for op, between in inner.items():
            m = Model()
            for name in names:
                kernel = m.op(op, m.variable(name, 4, 8))
                m.op("MatMul", m.input(2, 4, name=f"x_{name[-16:-14]}"), kernel)
            source = self.with_graph(m, tmp_path)
            assert not any("is taken for" in note for note in notes(Eras("1.2"), source))
            assert list(named(Eras("1.2"), source)) == [
                f"stack_bidirectional_rnn/cell_0/{between}{way}/lstm_cell/kernel"
                for way in ("fw", "bw")
            ]


class TestShards:
    def test_they_are_joined_in_the_order_of_their_numbers(self) -> None:
        source = shards(*[2] * 3, *[1] * 8)
        result = source.derive(Eras("1.2").apply(source))
        assert list(result) == ["rnn/lstm_cell/kernel", "rnn/lstm_cell/kernel/Adam"]
        kernel = result["rnn/lstm_cell/kernel"]
        rows = np.arange(56, dtype="f4").reshape(14, 4)
        assert np.array_equal(kernel.read(), rows)
        assert np.array_equal(kernel.read((slice(3, 7), slice(1, 2))), rows[3:7, 1:2])
        assert np.array_equal(result["rnn/lstm_cell/kernel/Adam"].read(), -rows)
        assert set(kernel.sources) == {
            s for n in source if "Adam" not in n for s in source[n].sources
        }
        assert (
            "rnn/lstm_cell/kernel is joined from 11 shards; --eras 0.12 --eras-shards "
            "'rnn/lstm_cell/kernel=11' makes them again" in notes(Eras("1.2"), source)
        )

    def test_they_are_made_again(self) -> None:
        source = shards(3, 2, 2)
        there = source.derive(Eras("1.15").apply(source))
        strategy = Eras("0.12", shards={"*/kernel": 3})
        back = there.derive(strategy.apply(there))
        assert set(back) == set(source)
        for name, variable in back.items():
            assert np.array_equal(variable.read(), source[name].read())

    def test_those_that_were_just_made_are_joined_with_their_slots(self) -> None:
        source = shards(3, 2, 2)
        whole = source.derive(Eras("1.15").apply(source))
        split = whole.derive(Eras("0.12", shards={"*/kernel": 3}).apply(whole))
        assert split.roles()["RNN/LSTMCell/W_2/Adam"].of == "RNN/LSTMCell/W_2"
        again = split.derive(Eras("1.0").apply(split))
        assert list(again) == ["rnn/lstm_cell/weights", "rnn/lstm_cell/weights/Adam"]
        for new, old in zip(again.values(), whole.values(), strict=True):
            assert np.array_equal(new.read(), old.read())

    def test_slices_of_a_partitioned_variable_become_shards(self) -> None:
        rows = np.arange(20, dtype="f4").reshape(5, 4)
        source = Checkpoint(
            [Variable.from_array("rnn/lstm_cell/kernel", rows)],
            partitions={
                "rnn/lstm_cell/kernel": (
                    (slice(0, 3), slice(0, 4)),
                    (slice(3, 5), slice(0, 4)),
                )
            },
        )
        result = {v.name: v.read().tolist() for v in Eras("0.12").apply(source)}
        assert result == {
            "RNN/LSTMCell/W_0": rows[:3].tolist(),
            "RNN/LSTMCell/W_1": rows[3:].tolist(),
        }

    def test_one_that_is_missing_is_named(self) -> None:
        source = checkpoint({"RNN/LSTMCell/W_0": (2, 4), "RNN/LSTMCell/W_2": (2, 4)})
        with pytest.raises(PlanError) as caught:
            named(Eras("1.2"), source)
        assert str(caught.value) == (
            "RNN/LSTMCell/W_2: it is a shard of rows, and number 1 of them is missing; rename it, "
            "or leave its cell out"
        )

    def test_slots_of_another_shape_are_refused(self) -> None:
        names = ["RNN/LSTMCell/W_0", "RNN/LSTMCell/W_1"]
        shapes = {"": (2, 4), "/Adafactor": (2,), "/Adafactor_1": (4,)}
        source = checkpoint({n + slot: shape for slot, shape in shapes.items() for n in names})
        with pytest.raises(PlanError, match=r"W_0/Adafactor: it is \[2\] where its variable is "):
            named(Eras("1.2"), source)

    @pytest.mark.parametrize("shapes", [((), ()), ((), (2,)), ((2, 3), (2, 4))])
    def test_they_must_have_the_same_columns(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        names = ["RNN/LSTMCell/W_0", "RNN/LSTMCell/W_1"]
        with pytest.raises(PlanError, match=r"RNN/LSTMCell/W_0 is \[.*which cannot be joined"):
            named(Eras("1.2"), checkpoint(dict(zip(names, shapes, strict=True))))

    def test_more_of_them_than_rows_are_refused(self) -> None:
        source = checkpoint({"rnn/lstm_cell/kernel": (3, 4)})
        with pytest.raises(PlanError, match=r"its 3 rows cannot be in 4 shards; give fewer"):
            named(Eras("0.12", shards={"*": 4}), source)
        with pytest.raises(UsageError, match=r"'\*' cannot be in 0 shards; give at least 1"):
            Eras("0.12", shards={"*": 0})


class TestInspect:
    @pytest.mark.parametrize(
        ("name", "line", "eras", "flag"),
        [
            (
                "tf012_v2_gru_seqlen",
                "recurrent names of TensorFlow 0.12; --eras 1.15 brings them to the newest",
                ["0.12"],
                "--eras 1.15",
            ),
            (
                "tf14_v2_bidirectional",
                "recurrent names of TensorFlow 1.2 to 1.15",
                ["1.2", "1.15"],
                None,
            ),
        ],
    )
    def test_it_says_which_release_the_names_are_of(
        self, name: str, line: str, eras: list[str], flag: str | None
    ) -> None:
        shown = CliRunner().invoke(cli, ["inspect", case(name).path])
        assert line in shown.stdout.splitlines()
        document = json.loads(
            CliRunner().invoke(cli, ["inspect", case(name).path, "--json"]).stdout
        )
        assert document["era"]["eras"] == eras
        assert document["era"]["flag"] == flag

    def test_names_of_several_releases_are_counted(self) -> None:
        names = {"a/BasicLSTMCell/Linear/Bias": (4,), "b/lstm_block_wrapper/kernel": (4, 4)}
        found = era_of(checkpoint(names), list(names))
        assert found == ((), 2, {"0.12": 1, "1.2": 1})
