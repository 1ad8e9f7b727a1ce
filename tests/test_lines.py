"""Lines of nodes that are run together."""

from __future__ import annotations

import pytest

from converter.activations.lines import lines

CELL = {
    "taken": ["x", "h"],
    "gates": ["taken", "kernel"],
    "sum": ["gates", "bias"],
    "reset": ["sum"],
    "update": ["sum"],
    "candidate": ["reset", "x"],
    "h": ["next"],
    "next": ["candidate", "update"],
}


def test_what_is_computed_from_each_other_is_on_one_line() -> None:
    assert lines(CELL, ["candidate", "sum", "taken"], ["next", "h"]) == [
        ["taken", "sum", "candidate"]
    ]


def test_branches_are_on_lines_of_their_own() -> None:
    found = lines(CELL, ["taken", "reset", "update", "candidate"], ["next", "h"])
    assert found == [["taken", "reset", "candidate"], ["update"]]
    # Where both come together, one of them goes on.
    graph = {"b": ["a"], "c": ["a"], "d": ["b", "c"]}
    assert lines(graph, "abcd", ()) == [["a", "b", "d"], ["c"]]


@pytest.mark.parametrize("turning", ["b", "bc"])
def test_no_line_goes_through_control_flow(turning: str) -> None:
    graph = {"b": ["a"], "c": ["b"], "d": ["c"]}
    assert sorted(lines(graph, "abcd", turning)) == sorted(
        [["a"], ["b"], *([["c"], ["d"]] if "c" in turning else [["c", "d"]])]
    )


def test_a_long_graph_needs_no_depth() -> None:
    graph = {str(number): [str(number - 1)] for number in range(1, 30_000)}
    (line,) = lines(graph, [str(number) for number in range(30_000)], ())
    assert line == [str(number) for number in range(30_000)]
