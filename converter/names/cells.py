"""What TensorFlow 1 called the recurrent cells and their variables, from 0.12 to 1.15.

References:
    rnn_cell.py, rnn_cell_impl.py, contrib/rnn, contrib/grid_rnn and legacy_seq2seq of TensorFlow
    0.12.1, 1.0.1, 1.1.0, 1.2.0, 1.4.1 and 1.15.5, whose graphs were built and compared;
    contrib/rnn/python/tools/checkpoint_convert.py of 1.15 for what was in no release.
"""

from __future__ import annotations

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
    """

    name: str
    scopes: Names
    leaves: tuple[Names, ...] = ()
    place: Literal["", "around", "holds"] = ""
    rank: int | None = None


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
_NORMS = ("input", "transform", "forget", "output", "state")

CELLS: tuple[Cell, ...] = (
    Cell("BasicRNNCell", _names("BasicRNNCell", "basic_rnn_cell"), _linear()),
    Cell("BasicLSTMCell", _names("BasicLSTMCell", "basic_lstm_cell"), _linear()),
    Cell("LSTMCell", _names("LSTMCell", "lstm_cell"), _LSTM),
    # Before the fused one: from 1.0 on nothing tells it from an LSTMCell.
    Cell("LSTMBlockCell", _names("LSTMBlockCell", "lstm_cell"), _BLOCK_LSTM),
    Cell("GRUCell", _names("GRUCell", "gru_cell"), _GRU),
    Cell("GRUBlockCell", ("GRUBlockCell", "GRUBlockCell", "GRUBlockCell", "gru_cell"), _BLOCK_GRU),
    Cell("GRUBlockCellV2", (None, None, "GRUBlockCellV2", "gru_cell"), _GRU),
    Cell(
        "LSTMBlockFusedCell",
        ("LSTMBlockFusedCell", "lstm_block_wrapper", "lstm_block_wrapper", "lstm_fused_cell"),
        _FUSED_LSTM,
    ),
    Cell(
        "LayerNormBasicLSTMCell",
        _names("LayerNormBasicLSTMCell", "layer_norm_basic_lstm_cell"),
        (
            _names("linear/weights", "weights", "kernel"),
            _names("linear/b", "biases", "bias"),
            *(_names(f"{norm}/{leaf}") for norm in _NORMS for leaf in ("gamma", "beta")),
        ),
    ),
    Cell(
        "CoupledInputForgetGateLSTMCell",
        _names("CoupledInputForgetGateLSTMCell", "coupled_input_forget_gate_lstm_cell"),
    ),
    Cell("TimeFreqLSTMCell", _names("TimeFreqLSTMCell", "time_freq_lstm_cell")),
    Cell("GridLSTMCell", _names("GridLSTMCell", "grid_lstm_cell")),
    Cell(
        "BidirectionalGridLSTMCell",
        _names("BidirectionalGridLSTMCell", "bidirectional_grid_lstm_cell"),
    ),
    Cell("UGRNNCell", _names(None, "ugrnn_cell"), _linear(old=None)),
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
        Cell(
            f"Conv{rank}DLSTMCell",
            (None, None, "conv_lstm_cell", f"conv_{rank}d_lstm_cell"),
            _CONV,
            rank=rank + 2,
        )
        for rank in (1, 2, 3)
    ),
    Cell(
        "CudnnCompatibleLSTMCell",
        _names(None, None, "cudnn_compatible_lstm_cell"),
        (_names(None, None, "kernel"), _names(None, None, "bias")),
    ),
    Cell("CudnnCompatibleGRUCell", _names(None, None, "cudnn_compatible_gru_cell"), _CUDNN_GRU),
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
    Cell("ConvLSTMCell", (None, None, "conv_lstm_cell", "conv_lstm_cell"), _CONV),
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
