"""What the recurrent cells of TensorFlow 1 are: their variables, what each release called these,
and the gates that a kernel holds, in their order.

References:
    rnn_cell.py, rnn_cell_impl.py, contrib/rnn, contrib/grid_rnn and legacy_seq2seq of TensorFlow
    0.12.1, 1.0.1, 1.1.0, 1.2.0, 1.4.1 and 1.15.5, whose graphs were built and compared;
    contrib/rnn/python/tools/checkpoint_convert.py of 1.15 for what was in no release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Era = Literal["0.12", "1.0", "1.2", "1.15"]
ERAS: tuple[Era, ...] = ("0.12", "1.0", "1.2", "1.15")
"""The releases from which on recurrent variables had other names."""
OLDEST = 0
NESTED = 2
"""From this era on the cell lies within the scope of its projection or embedding wrapper."""
NEWEST = len(ERAS) - 1

Names = tuple[str | None, ...]
"""A name in each era; None where there was none."""

NUMBER = "#"
"""Stands for a number in a name."""

LSTM_GATES = ("i", "j", "f", "o")
"""The blocks of columns of an LSTM; j are the new values."""
GRU_GATES = ("r", "u")
KERAS_GATES: Mapping[int, tuple[str, ...] | int] = {
    1: 1,
    3: ("z", "r", "h"),
    4: ("i", "f", "c", "o"),
}
"""The blocks of columns of cells of Keras, by how many there are; h and c are the new values."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell or a wrapper: its own scope, and the variables in it.

    Attributes:
        name: of the class.
        scopes: what the class called its scope in each era; empty where the code names it.
        leaves: the names of its variables in each era, below the scope. Empty: they never changed,
            and the scope alone tells the cell.
        place: `around` another cell, in whose scope that lies (in newer eras, for a projection or
            an embedding), `holds` it in all eras, or none of this.
        rank: of the kernel, where that tells the class; None where any does.
        columns: the blocks of columns of its kernel, in their order, or how many there are where
            they have no names. Of a GRU, those of its gates: the candidate has a kernel of its own.
        adds_forget_bias: whether its code adds a number to the forget gate, which is in no
            variable: 1, unless it was told another.
    """

    name: str
    scopes: Names
    leaves: tuple[Names, ...] = ()
    place: Literal["", "around", "holds"] = ""
    rank: int | None = None
    columns: tuple[str, ...] | int = 0
    adds_forget_bias: bool = False


def _names(*spellings: str | None) -> Names:
    """Return a name by era; the last one given goes on to be used."""
    return (*spellings, *[spellings[-1]] * (len(ERAS) - len(spellings)))


def _linear(scope: str = "", old: str | None = "", *, first: str = "Linear/") -> tuple[Names, ...]:
    """Return the names of a kernel and a bias in a scope, which was called `old` in 0.12."""
    inner = f"{scope}/" if scope else ""
    before = None if old is None else f"{old}/{first}" if old else first
    return (
        _names(before and f"{before}Matrix", f"{inner}weights", f"{inner}kernel"),
        _names(before and f"{before}Bias", f"{inner}biases", f"{inner}bias"),
    )


def _peepholes(gates: str = "fio") -> tuple[Names, ...]:
    return tuple(_names(f"W_{gate.upper()}_diag", f"w_{gate}_diag") for gate in gates)


_LSTM = (
    _names(f"W_{NUMBER}", "weights", "kernel"),
    _names("B", "biases", "bias"),
    *_peepholes(),
    _names(f"W_P_{NUMBER}", "projection/weights", "projection/kernel"),
    _names(None, "projection/biases", "projection/bias"),
)
_BLOCK_LSTM = (
    _names("W", "weights", "kernel"),
    _names("b", "biases", "bias"),
    *(_names(f"wc{gate}", f"w_{gate}_diag") for gate in "ifo"),
)
_FUSED_LSTM = (
    _names("W_0", "weights", "kernel"),
    _names("B", "biases", "bias"),
    *_peepholes(),
)
_GRU = (*_linear("gates", "Gates"), *_linear("candidate", "Candidate"))
_BLOCK_GRU = (_names("w_ru"), _names("b_ru"), _names("w_c"), _names("b_c"))
_CONV = (_names("kernel"), _names("biases"))
_CUDNN_GRU = tuple(
    _names(None, None, f"{scope}/{leaf}")
    for scope in ("gates", "candidate/input_projection", "candidate/hidden_projection")
    for leaf in ("kernel", "bias")
)
_INDEPENDENT = ("kernel_w", "kernel_u", "bias")
NORMS = tuple(
    f"{gate}/{leaf}"
    for gate in ("input", "transform", "forget", "output", "state")
    for leaf in ("gamma", "beta")
)
"""What LayerNormBasicLSTMCell normalises its gates and its state with."""


def _lstm(name: str, scopes: Names, leaves: tuple[Names, ...], rank: int | None = None) -> Cell:
    return Cell(name, scopes, leaves, rank=rank, columns=LSTM_GATES, adds_forget_bias=True)


CELLS: tuple[Cell, ...] = (
    Cell("BasicRNNCell", _names("BasicRNNCell", "basic_rnn_cell"), _linear(), columns=1),
    _lstm("BasicLSTMCell", _names("BasicLSTMCell", "basic_lstm_cell"), _linear()),
    _lstm("LSTMCell", _names("LSTMCell", "lstm_cell"), _LSTM),
    # Before the fused one: from 1.0 on nothing tells it from an LSTMCell.
    _lstm("LSTMBlockCell", _names("LSTMBlockCell", "lstm_cell"), _BLOCK_LSTM),
    Cell("GRUCell", _names("GRUCell", "gru_cell"), _GRU, columns=GRU_GATES),
    Cell(
        "GRUBlockCell",
        ("GRUBlockCell", "GRUBlockCell", "GRUBlockCell", "gru_cell"),
        _BLOCK_GRU,
        columns=GRU_GATES,
    ),
    Cell("GRUBlockCellV2", (None, None, "GRUBlockCellV2", "gru_cell"), _GRU, columns=GRU_GATES),
    _lstm(
        "LSTMBlockFusedCell",
        ("LSTMBlockFusedCell", "lstm_block_wrapper", "lstm_block_wrapper", "lstm_fused_cell"),
        _FUSED_LSTM,
    ),
    _lstm(
        "LayerNormBasicLSTMCell",
        _names("LayerNormBasicLSTMCell", "layer_norm_basic_lstm_cell"),
        (
            _names("linear/weights", "weights", "kernel"),
            _names("linear/b", "biases", "bias"),
            *map(_names, NORMS),
        ),
    ),
    Cell(
        "CoupledInputForgetGateLSTMCell",
        _names("CoupledInputForgetGateLSTMCell", "coupled_input_forget_gate_lstm_cell"),
        columns=("j", "f", "o"),
    ),
    Cell("TimeFreqLSTMCell", _names("TimeFreqLSTMCell", "time_freq_lstm_cell")),
    Cell("GridLSTMCell", _names("GridLSTMCell", "grid_lstm_cell")),
    Cell(
        "BidirectionalGridLSTMCell",
        _names("BidirectionalGridLSTMCell", "bidirectional_grid_lstm_cell"),
    ),
    Cell("UGRNNCell", _names(None, "ugrnn_cell"), _linear(old=None), columns=2),
    Cell(
        "IntersectionRNNCell",
        _names(None, "intersection_rnn_cell"),
        (*_linear(old=None), *_linear("in_projection", None)),
    ),
    Cell(
        "NASCell",
        _names(None, "nas_rnn", "nas_cell"),
        (
            _names(None, "weights", "kernel"),
            _names(None, "recurrent_weights", "recurrent_kernel"),
            _names(None, "bias"),
            _names(None, "projection_weights"),
        ),
    ),
    Cell(
        "PhasedLSTMCell",
        _names(None, "phased_lstm_cell"),
        tuple(
            names
            for scope in ("mask_gates", "new_input", "output_gate")
            for names in _linear(scope, None)
        ),
    ),
    Cell(
        "GLSTMCell",
        _names(None, "glstm_cell"),
        (
            _names(None, f"group{NUMBER}/weights", f"group{NUMBER}/kernel"),
            *_linear("projection", None),
        ),
    ),
    *(
        _lstm(
            f"Conv{rank}DLSTMCell",
            (None, None, "conv_lstm_cell", f"conv_{rank}d_lstm_cell"),
            _CONV,
            rank + 2,
        )
        for rank in (1, 2, 3)
    ),
    Cell(
        "CudnnCompatibleLSTMCell",
        _names(None, None, "cudnn_compatible_lstm_cell"),
        (_names(None, None, "kernel"), _names(None, None, "bias")),
        columns=LSTM_GATES,
    ),
    Cell(
        "CudnnCompatibleGRUCell",
        _names(None, None, "cudnn_compatible_gru_cell"),
        _CUDNN_GRU,
        columns=GRU_GATES,
    ),
    Cell(
        "SRUCell",
        _names(None, None, None, "sru_cell"),
        (_names(None, None, None, "kernel"), _names(None, None, None, "bias")),
    ),
    *(
        Cell(
            name,
            _names(None, None, None, scope),
            tuple(
                _names(None, None, None, f"{start}{leaf}")
                for start in starts
                for leaf in _INDEPENDENT
            ),
        )
        for name, scope, starts in (
            ("IndRNNCell", "ind_rnn_cell", ("",)),
            ("IndyLSTMCell", "indy_lstm_cell", ("",)),
            ("IndyGRUCell", "indy_gru_cell", ("gates/", "candidate/")),
        )
    ),
    _lstm("ConvLSTMCell", (None, None, "conv_lstm_cell", "conv_lstm_cell"), _CONV),
    Cell(
        "OutputProjectionWrapper",
        _names("OutputProjectionWrapper", "output_projection_wrapper"),
        _linear(),
        "around",
    ),
    Cell(
        "InputProjectionWrapper",
        _names("InputProjectionWrapper", "input_projection_wrapper"),
        _linear(),
        "around",
    ),
    Cell(
        "EmbeddingWrapper",
        _names("EmbeddingWrapper", "embedding_wrapper"),
        (_names("embedding"),),
        "around",
    ),
    Cell(
        "AttentionCellWrapper",
        _names("AttentionCellWrapper", "attention_cell_wrapper"),
        (
            *_linear(),
            _names("Attention/AttnW", "attention/attn_w"),
            _names("Attention/AttnV", "attention/attn_v"),
            *_linear("attention", "Attention"),
            *_linear("attn_output_projection", "AttnOutputProjection"),
        ),
        "holds",
    ),
)
"""Where several have one scope in an era, the first whose variables are there is meant."""

DECODER = Cell(
    "attention_decoder",
    (),
    (
        *_linear(),
        *_linear(f"Attention_{NUMBER}", f"Attention_{NUMBER}"),
        *_linear("AttnOutputProjection", "AttnOutputProjection"),
    ),
    "holds",
)
"""legacy_seq2seq's decoder, which is known by its variables: its scope can have any name."""
DECODER_MARK = "AttnW_0"

LINEAR = Cell("linear", (), _linear())
"""The function that cells multiply with, in a scope that the code named: a cell that was called in
such a scope has these variables too."""

EARLIER = {"w_r": "w_ru", "b_r": "b_ru"}
"""What GRUBlockCell called its variables before 0.12: they always held both gates."""
EARLIER_SCOPES = frozenset(["GRUBlockCell"])

DIRECTIONS = {"FW": "fw", "BW": "bw"}


def spelt(*newest: str) -> tuple[str, ...]:
    """Return what any release called variables of cells, below the scope, in small letters.

    Args:
        newest: what the last release calls them.
    """
    rows = [row for cell in CELLS for row in cell.leaves if row[NEWEST] in newest]
    names = [name for era in reversed(range(len(ERAS))) for row in rows if (name := row[era])]
    earlier = [old for old, new in EARLIER.items() if new in names]
    return tuple(dict.fromkeys(n.lower().replace(NUMBER, "0") for n in (*names, *earlier)))


KERNELS = spelt("kernel")
BIASES = spelt("bias")
PROJECTIONS = spelt("projection/kernel")
PEEPHOLES = spelt("w_f_diag", "w_i_diag", "w_o_diag")
GATE_KERNELS = spelt("gates/kernel", "w_ru")
GATE_BIASES = spelt("gates/bias", "b_ru")
CANDIDATE_KERNELS = spelt("candidate/kernel", "w_c")
CANDIDATE_BIASES = spelt("candidate/bias", "b_c")
CANDIDATE_PARTS = tuple(f"candidate/{part}_projection" for part in ("input", "hidden"))
"""Where a CudnnCompatibleGRUCell has the two kernels of its candidate."""


def plain(component: str) -> str:
    """Return a component of a scope in small letters, without underscores and its number."""
    return re.sub(r"_\d+$", "", component).lower().replace("_", "")


def _by_plain_name() -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for cell in CELLS:
        for scope in (*cell.scopes, cell.name):
            if scope is not None and not cell.place:
                found.setdefault(plain(scope), cell)
    return found


BY_PLAIN_NAME = _by_plain_name()
"""The cells by their scopes, whatever the spelling; what shares a scope is the same to compute."""
