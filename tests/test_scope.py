"""scope and names: other scopes, a part of a model in another one, and names from a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from converter_plugins.names import Names
from converter_plugins.scope import Scope
from graph_maker import Maker

from converter import (
    Checkpoint,
    PlanError,
    Role,
    Strategy,
    UsageError,
    Variable,
    convert,
    open_checkpoint,
)
from converter.formats.messages import message
from converter.pipeline import run
from converter.plan import make_plan
from converter.strategy import options
from converter.target import Target
from converter.testing import NAME, check_strategy

CHARLM = DATA / "tf14_v2_charlm_lstm_ema"


def checkpoint(names: Mapping[str, float] | tuple[str, ...]) -> Checkpoint:
    """Return a checkpoint with a number of its own for each name."""
    numbers = names if isinstance(names, Mapping) else {n: k for k, n in enumerate(names)}
    scalars = ("beta1_power", "beta2_power", "global_step")
    return Checkpoint(
        Variable.from_array(n, np.array(k if n in scalars else [k], "i8" if "step" in n else "f4"))
        for n, k in numbers.items()
    )


def apply(strategy: Strategy, source: Checkpoint) -> dict[str, float]:
    return {v.name: float(v.read().ravel()[0]) for v in strategy.apply(source)}


def names(scopes: dict[str, str], *source: str, only: bool = False) -> list[str]:
    return list(apply(Scope(scopes, only), checkpoint(source)))


def error(strategy: Strategy, source: Checkpoint) -> str:
    with pytest.raises((PlanError, UsageError)) as caught:
        list(strategy.apply(source))
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


class TestScope:
    @pytest.mark.parametrize("old", ["old/", "old"])
    def test_a_scope_is_renamed_and_no_part_of_a_name(self, old: str) -> None:
        source = ("old/w", "old/old/w", "older/w", "x/old/w", "old")
        assert names({old: "new/"}, *source) == ["new/w", "new/old/w", "older/w", "x/old/w", "old"]

    def test_an_empty_right_side_takes_it_off(self) -> None:
        assert names({"a/b/": ""}, "a/b/w", "a/c") == ["w", "a/c"]

    def test_an_empty_left_side_puts_the_model_into_one(self) -> None:
        source = ("w", "w/Adam", "b/w", "w/ExponentialMovingAverage", "beta1_power", "global_step")
        assert names({"": "m/"}, *source) == [
            "m/w",
            "m/w/Adam",
            "m/b/w",
            "m/w/ExponentialMovingAverage",
            "beta1_power",
            "global_step",
        ]

    def test_it_is_given_on_the_command_line(self) -> None:
        (option,) = (o for o in options(Scope) if o.name == "scope")
        assert option.parse(["=m/", "a/="]) == {"": "m/", "a/": ""}

    def test_the_longest_scope_is_taken(self) -> None:
        scopes = {"a/": "x/", "a/b/": "y/", "": "z/"}
        assert names(scopes, "a/w", "a/b/w", "c") == ["x/w", "y/w", "z/c"]

    def test_scopes_can_be_swapped(self) -> None:
        source = checkpoint({"a/w": 1, "b/w": 2})
        assert apply(Scope({"a": "b", "b": "a"}), source) == {"b/w": 1, "a/w": 2}

    @pytest.mark.parametrize(
        ("slot", "new"),
        [
            ("old/w/Adam", "new/w/Adam"),
            ("train/old/w/Adam", "train/new/w/Adam"),
            ("Adam/old/w/m", "Adam/new/w/m"),
            ("training/Adam/m/old/w", "training/Adam/m/new/w"),
            ("old/w/ExponentialMovingAverage", "new/w/ExponentialMovingAverage"),
            # What a slot is called that is made in the scope of its variable.
            ("old/train/old/w/Adam", "new/train/new/w/Adam"),
        ],
    )
    def test_slots_and_averages_follow(self, slot: str, new: str) -> None:
        assert names({"old/": "new/"}, "old/w", slot) == ["new/w", new]

    def test_slots_that_cannot_follow_are_pointed_out(self) -> None:
        source = checkpoint(("old/w", "adam/old_w_momentum"))
        roles = {"old/w": Role("model"), "adam/old_w_momentum": Role("slot", "old/w", "momentum")}
        source = Checkpoint(source.values(), roles=lambda _: roles)
        (note,) = Scope({"old": "new"}).notes(source)
        assert note.startswith("1 slot or average keeps a name that doesn't hold its variable's")

    def test_only_takes_a_part(self) -> None:
        source = ("a/w", "Adam/a/w/m", "b/w", "global_step")
        assert names({"a/": "a/"}, *source, only=True) == ["a/w", "Adam/a/w/m"]

    def test_collisions_are_refused(self) -> None:
        assert error(Scope({"a": ""}), checkpoint(("a/w", "w"))) == (
            "PlanError: w: both a/w and w would have this name; rename or drop one before"
        )

    def test_a_scope_of_nothing_is_refused(self) -> None:
        assert error(Scope({"encodr/": "x/"}), checkpoint(("encoder/w",))) == (
            "UsageError: 'encodr/' is the scope of none of the 1 variables; did you mean "
            "'encoder/*'?"
        )

    @pytest.mark.parametrize(
        ("scopes", "said"),
        [
            ({}, "at least one scope is needed"),
            ({"a//b": "c"}, "'a//b' is no scope; write it as in the names of variables: 'a/b/'"),
            ({"a": "/c"}, "'/c' is no scope; write it as in the names of variables: 'a/b/'"),
            ({"a": "b", "a/": "c"}, "'a/' is given twice"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, scopes: dict[str, str], said: str) -> None:
        with pytest.raises(UsageError) as caught:
            Scope(scopes)
        assert str(caught.value) == said

    def test_the_contract_is_kept(self) -> None:
        check_strategy(Scope({NAME.partition("/")[0]: "other"}))
        check_strategy(Scope({"": "other/"}, only=True))


class TestFill:
    def test_what_is_missing_comes_from_the_template(self, tmp_path: Path) -> None:
        template = tmp_path / "template.safetensors"
        source = checkpoint({"enc/w": 10, "head/w": 11, "head/w/Adam": 12, "old/b": 13})
        convert_to(source, template)
        strategy = Scope({"old/": "enc/"}, only=True, fill=template)
        model = checkpoint({"old/w": 1, "old/w/Adam": 2, "rest": 3})
        result = model.derive(strategy.apply(model))
        assert {n: v.read().item() for n, v in result.items()} == {
            "enc/w": 1,
            "enc/w/Adam": 2,
            "head/w": 11,
            "head/w/Adam": 12,
            "old/b": 13,
        }
        # Their names tell what they are, as they come from no variable of the source.
        assert result["old/b"].sources == ()
        assert result.roles()["head/w/Adam"] == Role("slot", "head/w", "m", "Adam")
        assert list(strategy.notes(model)) == [
            f"3 variables come from {template}",
            f"1 variable is none of {template}, such as enc/w/Adam",
        ]

    def test_other_shapes_and_dtypes_are_refused(self, tmp_path: Path) -> None:
        template = tmp_path / "template.safetensors"
        convert_to(Checkpoint([Variable.from_array("new/w", np.zeros((2, 3), "f4"))]), template)
        for array, told in (
            (np.zeros((3, 3), "f4"), "float32 [3, 3]"),
            (np.zeros((2, 3), "f8"), "float64 [2, 3]"),
        ):
            source = Checkpoint([Variable.from_array("old/w", array)])
            assert error(Scope({"old": "new"}, fill=template), source) == (
                f"PlanError: old/w: it is {told}, and new/w of {template} is float32 [2, 3]; "
                "resize, cast or drop it before"
            )

    def test_a_trained_lstm_gets_into_another_model(self, tmp_path: Path) -> None:
        """The whole way: the model is written, its cell moved, and the rest filled up."""
        new = tmp_path / "new.safetensors"
        kernel = np.full((38, 120), 7, "f4")
        fresh = [
            Variable.from_array("tagger/encoder/lstm_cell/kernel", kernel),
            Variable.from_array("tagger/encoder/lstm_cell/bias", np.zeros(120, "f4")),
            Variable.from_array("tagger/head/kernel", np.ones((30, 3), "f4")),
        ]
        convert_to(Checkpoint(fresh), new)
        scope = Scope({"charlm/rnn/": "tagger/encoder/"}, only=True, fill=new)
        convert(CHARLM, tmp_path / "out", [scope], to="tf")
        old, result = open_checkpoint(CHARLM), open_checkpoint(tmp_path / "out")
        for leaf in ("kernel", "bias", "kernel/Adam", "bias/ExponentialMovingAverage"):
            got = result[f"tagger/encoder/lstm_cell/{leaf}"].read()
            assert np.array_equal(got, old[f"charlm/rnn/lstm_cell/{leaf}"].read())
        assert np.array_equal(result["tagger/head/kernel"].read(), np.ones((30, 3)))
        assert len(result) == 9


def convert_to(source: Checkpoint, output: Path) -> None:
    """Write a checkpoint that is in memory as safetensors."""
    target = Target(output.parent, output.name.removesuffix(".safetensors"), "safetensors")
    run(make_plan(source, [], target))


def saved_under(tmp_path: Path, keys: dict[str, str], *parts: str) -> Checkpoint:
    """Return a checkpoint with the graph of its Saver.

    Args:
        keys: the key of each variable node.
        parts: nodes without a key.
    """
    maker = Maker()
    for node in (*keys, *parts):
        maker.variable(node, 1)
    tensors = maker.strings(*keys.values())
    slices = maker.strings(*["" for _ in keys])
    maker.op("Const", name="save/Const")
    maker.op("SaveV2", "save/Const", tensors, slices, *keys, name="save/SaveV2")
    meta = message("MetaGraphDef")(graph_def=maker.definition)
    meta.saver_def.filename_tensor_name = b"save/Const:0"
    file = tmp_path / "model.meta"
    file.write_bytes(meta.SerializeToString())
    made = checkpoint(tuple(dict.fromkeys(keys.values())))
    return Checkpoint(made.values(), path=tmp_path / "model", meta=file)


class TestNames:
    def test_keys_become_the_names_of_the_graph(self, tmp_path: Path) -> None:
        source = saved_under(
            tmp_path, {"net/dense/w": "kernel", "net/dense/b": "bias", "step": "n"}
        )
        assert apply(Names("graph"), source) == {"net/dense/w": 0, "net/dense/b": 1, "step": 2}

    def test_slots_that_the_graph_lacks_follow(self, tmp_path: Path) -> None:
        source = saved_under(tmp_path, {"net/w": "w"})
        more = [Variable.from_array(n, np.zeros(1, "f4")) for n in ("w/Adam", "other")]
        source = Checkpoint([*source.values(), *more], path=source.path, meta=source.meta)
        assert list(apply(Names("graph"), source)) == ["net/w", "net/w/Adam", "other"]
        assert list(Names("graph").notes(source)) == [
            "1 variable is not in the graph and stays, such as other"
        ]

    def test_a_key_that_is_the_name_of_a_variable_is_that(self, tmp_path: Path) -> None:
        """As where a Saver restores averages in the place of their variables."""
        source = saved_under(tmp_path, {"w": "w/ExponentialMovingAverage", "b": "b"}, "c")
        assert list(apply(Names("graph"), source)) == ["w", "b"]
        source = saved_under(tmp_path, {"x": "c", "b": "b"}, "c")
        assert list(apply(Names("graph"), source)) == ["c", "b"]
        assert list(Names("graph").notes(source)) == [
            "all variables are stored under the names that the graph has for them"
        ]

    def test_parts_of_a_partitioned_variable_have_its_name(self, tmp_path: Path) -> None:
        source = saved_under(tmp_path, {"net/w/part_0": "w", "net/w/part_1": "w"})
        assert list(apply(Names("graph"), source)) == ["net/w"]

    def test_names_that_collide_are_refused(self, tmp_path: Path) -> None:
        source = saved_under(tmp_path, {"a/part_0": "x", "a/part_1": "y"})
        assert error(Names("graph"), source).startswith(
            "PlanError: a: both x and y would have this name, which the graph gives them;"
        )

    def test_without_a_graph_it_is_refused(self) -> None:
        assert error(Names("graph"), checkpoint(("a",))).endswith(
            "there is no graph beside it (a .meta file), which would tell the names; use rename"
        )

    def test_real_keys_are_names_already(self) -> None:
        source = open_checkpoint(CHARLM)
        assert list(Names("graph").apply(source)) == list(source.values())
