"""Which strategy or recipe brings a model forward whose names tell what it is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from converter.names.gates import by_gates

_BERT = re.compile(
    r"(?:.+/)?(?:bert/encoder/layer_0/attention/self/query/kernel|"
    r"bert/embeddings/word_embeddings)",
    re.DOTALL,
)


class Hint(NamedTuple):
    """What a model is by its names, and what can be made of it.

    Attributes:
        text: both, in words.
        flag: of the command line.
    """

    text: str
    flag: str


def hints_of(names: Iterable[str]) -> list[Hint]:
    """Return what can be made of a model by its names, besides other eras.

    Args:
        names: of the variables of the model.
    """
    names = list(names)
    found = []
    cells = list(by_gates(names))
    if cells:
        flag = "--gates join"
        which = f"{cells[0]} (and {len(cells) - 1} more)" if len(cells) > 1 else cells[0]
        found.append(
            Hint(
                f"an LSTM with a scope for each gate: {which or 'in no scope'}; {flag} makes it "
                f"the fused kernel and bias of TensorFlow's cells",
                flag,
            )
        )
    if sum(_BERT.fullmatch(name) is not None for name in names) > 1:
        flag = "--recipe bert-hf"
        found.append(Hint(f"a BERT of google-research; {flag} makes it one of transformers", flag))
    return found
