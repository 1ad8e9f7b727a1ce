"""rename, keep, drop and ema: which variables there are, and what they are called."""

from __future__ import annotations

import numpy as np
import pytest
from converter_plugins.drop import Drop
from converter_plugins.ema import Ema
from converter_plugins.keep import Keep
from converter_plugins.rename import Rename

from converter import Checkpoint, PlanError, Role, Strategy, UsageError, Variable
from converter.testing import NAME, check_strategy

MODEL = [
    "encoder/kernel",
    "encoder/bn/moving_mean",
    "encoder/bn/moving_variance",
    "encoder/bn/gamma",
    "encoder/bn/beta",
]
SLOTS = ["encoder/kernel/Adam", "encoder/kernel/Adam_1"]
AVERAGES = ["encoder/kernel/ExponentialMovingAverage"]
POWERS = ["beta1_power", "beta2_power"]


def checkpoint(*names: str) -> Checkpoint:
    """Return a checkpoint with a number of its own for each name."""
    scalars = {"global_step", *POWERS}
    return Checkpoint(
        Variable.from_array(
            name,
            np.array(number if name in scalars else [number] * 3, "i8" if "step" in name else "f4"),
        )
        for number, name in enumerate(names)
    )


FULL = checkpoint(*MODEL, *SLOTS, *AVERAGES, *POWERS, "global_step")


def apply(strategy: Strategy, source: Checkpoint = FULL) -> dict[str, float]:
    """Return the number in each variable of the result, by name, in order."""
    return {v.name: float(v.read().ravel()[0]) for v in strategy.apply(source)}


def error(strategy: Strategy, source: Checkpoint = FULL) -> str:
    with pytest.raises((PlanError, UsageError)) as caught:
        list(strategy.apply(source))
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


class TestDrop:
    @pytest.mark.parametrize(
        ("patterns", "left"),
        [
            (["encoder/*"], [*POWERS, "global_step"]),
            (["*"], []),
            (["*Adam*", "beta?_power"], [*MODEL, *AVERAGES, "global_step"]),
            (["encoder/bn/[bg]*", "*step"], [*MODEL[:3], *SLOTS, *AVERAGES, *POWERS]),
            (["optimizer"], [*MODEL, *AVERAGES, "global_step"]),
            (["slots"], [*MODEL, *AVERAGES, *POWERS, "global_step"]),
            (["averages", "step"], [*MODEL, *SLOTS, *POWERS]),
            (["model"], [*SLOTS, *AVERAGES, *POWERS, "global_step"]),
            (["batch_statistics", "optimizer"], [MODEL[0], *MODEL[3:], *AVERAGES, "global_step"]),
            (["tables"], list(FULL)),
        ],
    )
    def test_globs_and_words_choose(self, patterns: list[str], left: list[str]) -> None:
        assert list(apply(Drop(drop=tuple(patterns)))) == left
        kept = [name for name in FULL if name not in left]
        assert list(apply(Keep(keep=tuple(patterns)))) == kept

    def test_case_matters(self) -> None:
        assert error(Drop(drop=("ENCODER/*",))).startswith("UsageError: 'ENCODER/*' fits none of")

    def test_a_glob_that_fits_nothing_gets_the_nearest(self) -> None:
        assert error(Drop(drop=("encodr/*",))) == (
            "UsageError: 'encodr/*' fits none of the 11 variables; did you mean 'encoder/*'?"
        )
        assert error(Keep(keep=("encoder/kernle",))) == (
            "UsageError: 'encoder/kernle' fits none of the 11 variables; did you mean "
            "'encoder/kernel'?"
        )

    def test_a_word_without_variables_is_said_and_no_error(self) -> None:
        strategy = Drop(drop=("tables", "optimizer"))
        assert list(strategy.notes(FULL)) == ["no variable is of the role tables"]
        assert list(Keep(keep=("tables", "step")).notes(FULL)) == [
            "no variable is of the role tables"
        ]

    def test_slots_that_lose_their_variable_are_pointed_out(self) -> None:
        (note,) = Drop(drop=("encoder/kernel",)).notes(FULL)
        assert note.startswith(
            "3 slots and averages stay without their variables, such as encoder/kernel/Adam;"
        )

    def test_a_variable_named_like_a_word_is_chosen_too(self) -> None:
        source = checkpoint("a", "tables")
        assert list(apply(Drop(drop=("tables",)), source)) == ["a"]

    def test_something_must_be_chosen(self) -> None:
        for strategy in (Drop, Keep):
            with pytest.raises(UsageError, match=r"^at least one glob or word is needed$"):
                strategy(())

    def test_the_contract_is_kept(self) -> None:
        check_strategy(Drop(drop=("*",)))
        check_strategy(Keep(keep=("scope/*",)))


class TestRename:
    def test_groups_fill_the_replacement(self) -> None:
        source = checkpoint("bert/layer_1/kernel", "bert/layer_2/kernel", "cls/bias")
        strategy = Rename(rename={r"bert/layer_(\d)/(?P<leaf>.*)": r"enc.\1.\g<leaf>"})
        assert apply(strategy, source) == {"enc.1.kernel": 0, "enc.2.kernel": 1, "cls/bias": 2}

    def test_what_no_expression_fits_is_the_same_variable(self) -> None:
        source = checkpoint("a", "b")
        assert list(Rename(rename={"a": "c"}).apply(source))[1] is source["b"]

    def test_expressions_are_anchored(self) -> None:
        assert error(Rename(rename={"ncode": "x"})).startswith("UsageError: 'ncode' fits none")
        assert error(Rename(rename={"encoder": "x"})).startswith("UsageError: 'encoder' fits none")

    def test_the_first_expression_that_fits_wins(self) -> None:
        source = checkpoint("a/x", "a/y")
        assert apply(Rename(rename={"a/x": "first", "a/(.*)": r"b/\1"}), source) == {
            "first": 0,
            "b/y": 1,
        }

    def test_names_can_be_swapped(self) -> None:
        assert apply(Rename(rename={"a": "b", "b": "a"}), checkpoint("a", "b")) == {"b": 0, "a": 1}

    def test_slots_and_averages_follow_their_variable(self) -> None:
        assert list(apply(Rename(rename={"encoder/kernel": "w"}))) == [
            "w",
            *MODEL[1:],
            "w/Adam",
            "w/Adam_1",
            "w/ExponentialMovingAverage",
            *POWERS,
            "global_step",
        ]
        named = Rename(rename={"encoder/kernel": "w", "encoder/kernel/Adam": "m"})
        assert list(apply(named))[5:7] == ["m", "w/Adam_1"]

    def test_slots_follow_within_the_scope_of_an_optimizer(self) -> None:
        source = checkpoint("net/w", "Adam/net/w/m", "Adam/net/w/v")
        assert list(apply(Rename(rename={"net/w": "x"}), source)) == [
            "x",
            "Adam/x/m",
            "Adam/x/v",
        ]

    def test_slots_whose_names_are_made_in_another_way_are_pointed_out(self) -> None:
        source = checkpoint("net/w", "net/w_slot_m", "o/net_w_m", "o/net/w/m/net/w")
        names = ("net/w_slot_m", "o/net_w_m", "o/net/w/m/net/w")
        roles = {name: Role("slot", of="net/w", slot="m") for name in names}
        source = Checkpoint(source.values(), roles=lambda _: {"net/w": Role("model")} | roles)
        strategy = Rename(rename={"net/w": "x"})
        assert list(apply(strategy, source)) == ["x", "x_slot_m", "o/net_w_m", "o/net/w/m/net/w"]
        assert list(strategy.notes(source)) == [
            "2 slots and averages keep names that don't hold their variable's, such as o/net_w_m; "
            "rename them by a pattern"
        ]
        assert list(Rename(rename={"net/w": "net/w"}).notes(source)) == []
        assert list(Rename(rename={"encoder/kernel": "w"}).notes(FULL)) == []

    def test_collisions_name_both_sources(self) -> None:
        source = checkpoint("a/x", "b/x", "c")
        assert error(Rename(rename={"[ab]/x": "y"}), source) == (
            "PlanError: y: both a/x (by '[ab]/x') and b/x (by '[ab]/x') would have this name; "
            "change a pattern"
        )
        assert error(Rename(rename={"a/x": "c"}), source) == (
            "PlanError: c: both a/x (by 'a/x') and c would have this name; change a pattern"
        )

    def test_a_pattern_that_fits_nothing_gets_the_nearest(self) -> None:
        assert error(Rename(rename={"encoder/kernle": "w"})) == (
            "UsageError: 'encoder/kernle' fits none of the 11 variables; did you mean "
            "'encoder/kernel'?"
        )

    @pytest.mark.parametrize(
        ("pattern", "replacement", "message"),
        [
            ("a(", "b", "'a(' is no regular expression: missing ), unterminated subpattern at "),
            ("a", "", "'a' has no replacement; drop leaves variables out"),
        ],
    )
    def test_what_is_no_expression_is_refused(
        self, pattern: str, replacement: str, message: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            Rename(rename={pattern: replacement})
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize("replacement", [r"\1", r"\g<x>", r"\q"])
    def test_a_replacement_must_suit_the_pattern(self, replacement: str) -> None:
        message = error(Rename(rename={"encoder/kernel": replacement}))
        assert message.startswith(f"UsageError: {replacement!r} is no replacement for 'encoder/ker")

    @pytest.mark.parametrize(
        ("pattern", "advice"),
        [
            ("encoder/*", "it is a regular expression, where any text is '.*': 'encoder/(.*)'"),
            ("encodr/(.*)", "did you mean 'encoder/(.*)'?"),
            ("encoder/kernl", "did you mean 'encoder/kernel'?"),
        ],
    )
    def test_a_pattern_that_fits_nothing_gets_one_that_does(
        self, pattern: str, advice: str
    ) -> None:
        assert error(Rename(rename={pattern: "x"})) == (
            f"UsageError: {pattern!r} fits none of the 11 variables; {advice}"
        )

    def test_nothing_to_rename_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"^at least one pattern is needed$"):
            Rename(rename={})

    def test_the_contract_is_kept(self) -> None:
        check_strategy(Rename(rename={f"{NAME}": "other"}))


class TestEma:
    def test_averages_take_the_place_of_their_variables(self) -> None:
        assert apply(Ema(ema="use")) == {
            "encoder/kernel": 7,
            **{name: n for n, name in enumerate(MODEL) if n},
            "encoder/kernel/Adam": 5,
            "encoder/kernel/Adam_1": 6,
            "beta1_power": 8,
            "beta2_power": 9,
            "global_step": 10,
        }
        used = next(iter(Ema(ema="use").apply(FULL)))
        assert used.sources == FULL["encoder/kernel/ExponentialMovingAverage"].sources

    def test_an_average_without_its_variable_gets_its_name(self) -> None:
        source = checkpoint("a/ExponentialMovingAverage", "b", "b/ExponentialMovingAverage")
        assert apply(Ema(ema="use"), source) == {"a": 0, "b": 2}

    def test_averages_are_dropped_or_kept(self) -> None:
        assert list(apply(Ema(ema="drop"))) == [name for name in FULL if name not in AVERAGES]
        assert list(apply(Ema(ema="keep"))) == list(FULL)

    def test_no_averages_are_an_error_only_where_they_are_to_be_used(self) -> None:
        source = checkpoint("a", "b")
        assert error(Ema(ema="use"), source) == (
            "PlanError: ema: no variable has a moving average that could be used; leave ema out"
        )
        assert list(apply(Ema(ema="drop"), source)) == ["a", "b"]
        assert list(Ema(ema="drop").notes(source)) == ["no variable is a moving average"]
        assert list(Ema(ema="drop").notes(FULL)) == []

    def test_averages_in_the_places_of_their_variables_change_the_outputs(self) -> None:
        told = ["changes the outputs to those of the averages"]
        assert list(Ema(ema="use").notes(FULL)) == told
        # Where averages were saved as the model there is nothing else.
        source = checkpoint("a/ExponentialMovingAverage", "b")
        assert list(Ema(ema="use").notes(source)) == []

    def test_an_average_of_another_shape_is_refused(self) -> None:
        source = Checkpoint(
            [Variable.from_array("a", np.zeros(2)), Variable.from_array("a/x", np.zeros(3))],
            roles=lambda _: {"a": Role("model"), "a/x": Role("average", of="a")},
        )
        assert error(Ema(ema="use"), source) == (
            "PlanError: a: it is [2], and its average a/x is [3]; resize both, or drop the average "
            "before"
        )

    def test_two_averages_of_one_variable_are_refused(self) -> None:
        source = Checkpoint(
            [Variable.from_array(name, np.zeros(2)) for name in ("a", "a/x", "a/y")],
            roles=lambda _: {
                "a": Role("model"),
                "a/x": Role("average", of="a"),
                "a/y": Role("average", of="a"),
            },
        )
        assert error(Ema(ema="use"), source) == (
            "PlanError: a: both a/x and a/y are averages of it; drop one before"
        )

    def test_what_zero_debiasing_keeps_goes_along(self) -> None:
        average = "a/ExponentialMovingAverage"
        source = Checkpoint(
            [
                Variable.from_array("a", np.array([0, 0], "f4")),
                Variable.from_array(average, np.array([1, 1], "f4")),
                Variable.from_array(f"{average}/biased", np.array([2, 2], "f4")),
                Variable.from_array(f"{average}/local_step", np.float32(3)),
            ]
        )
        assert apply(Ema(ema="use"), source) == {"a": 1}
        assert apply(Ema(ema="drop"), source) == {"a": 0}

    def test_the_contract_is_kept(self) -> None:
        check_strategy(Ema(ema="keep"))
        check_strategy(Ema(ema="drop"))
