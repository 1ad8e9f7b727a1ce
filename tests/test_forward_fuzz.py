"""Graphs that nobody would write: whatever is in them, the error is one for the user."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import slow
from test_forward import RECORDED

from converter import ConverterError, open_checkpoint
from converter.formats.messages import parse
from converter.forward.feeds import complete
from converter.forward.find import find_forward
from converter.forward.prune import prune
from converter.forward.variables import check_shape
from converter.graph.definition import Definition
from converter.graph.written import Graph

pytestmark = pytest.mark.slow

METAS = [case for case in RECORDED if case.record["format"] in ("V1", "V2")]
SIZES = (-5, 0, 3, 1 << 31, 1 << 62)


def mutate(nodes: Any, rng: random.Random) -> None:
    """Change one thing: an input, an op, an attribute, a size."""
    node, other = rng.choice(nodes), rng.choice(nodes)
    choice = rng.randrange(7)
    if choice == 0 and len(node.input):
        port = rng.choice([b"", b":1", b":99999"])
        node.input[rng.randrange(len(node.input))] = other.name + port
    elif choice == 1:
        node.op = other.op
    elif choice == 2 and len(node.input):
        del node.input[rng.randrange(len(node.input))]
    elif choice == 3:
        node.input.append(rng.choice([b"^" + other.name, other.name, b"^nowhere", b""]))
    elif choice == 4 and len(node.attr):
        del node.attr[rng.randrange(len(node.attr))]
    elif choice == 5 and len(other.attr):
        node.attr.add().CopyFrom(rng.choice(other.attr))
    else:
        for entry in node.attr:
            for shape in (entry.value.shape, *entry.value.list.shape):
                for dim in shape.dim:
                    dim.size = rng.choice(SIZES)


@pytest.mark.parametrize("seed", [0, *map(slow, (1, 2))])
@pytest.mark.parametrize("case", METAS, ids=lambda case: case.name)
def test_mutated_graphs(case: Any, seed: int) -> None:
    checkpoint = open_checkpoint(case.path)
    assert checkpoint.meta is not None
    data = checkpoint.meta.read_bytes()
    rng = random.Random(f"{case.name} {seed}")
    for changes in (1, 5, 30, 200):
        meta = parse("MetaGraphDef", data, "it")
        for _ in range(changes):
            mutate(meta.graph_def.node, rng)
        with contextlib.suppress(ConverterError):
            _walk(Graph(Definition(Path("mutated.meta"), meta.graph_def, meta)), checkpoint)


def _walk(graph: Graph, checkpoint: Any) -> None:
    forward = find_forward(graph, set(checkpoint))
    for name, held in forward.variables.items():
        if held.key in checkpoint:
            check_shape(graph, name, held, checkpoint[held.key])
    values = next(complete(forward, {}, 0)).values
    prune(forward, {s: dtype for s in values if (dtype := graph.dtype(s)) is not None})
