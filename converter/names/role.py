"""What a variable is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "model",
    "batch_statistic",
    "slot",
    "average",
    "step",
    "beta_power",
    "optimizer",
    "table",
    "save_counter",
    "object_graph",
]


@dataclass(frozen=True, slots=True)
class Role:
    """What a variable is for.

    Attributes:
        kind: `optimizer` is optimizer state that belongs to no one variable (hyperparameters,
            GGT's buffers); a step counter is `step` even where an optimizer owns it;
            `object_graph` is TensorFlow 2's bookkeeping.
        of: name of the variable that a slot or an average belongs to; None where the checkpoint
            does not hold it (an average of a tensor) or does not tell it.
        slot: which slot, by the optimizer's own name for it: `m`, `v`, `momentum`, `accumulator`
            ...; None where the name does not tell. Of an average: `biased` or `local_step` for
            what zero-debiasing keeps beside it, None for the average itself.
        optimizer: the optimizer's name: `Adam`, `Momentum` ...; of an average: the optimizer whose
            state is averaged, None for an average of anything else.
    """

    kind: Kind
    of: str | None = None
    slot: str | None = None
    optimizer: str | None = None

    @property
    def is_optimizer_state(self) -> bool:
        """Whether only training needs it: slots, beta powers, hyperparameters, their averages."""
        return self.kind in ("slot", "beta_power", "optimizer") or (
            self.kind == "average" and self.optimizer is not None
        )


MODEL = Role("model")
