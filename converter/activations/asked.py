"""What of a model is run to measure it, and what that takes from outside."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from converter.checkpoint import Checkpoint
from converter.errors import InputError, UsageError
from converter.forward.feeds import given_tensor, given_values, parse_feeds
from converter.forward.find import Forward, find_forward
from converter.forward.inputs import Input
from converter.forward.signature import signature_of, signatures
from converter.graph.node import Tensor
from converter.graph.written import read_graph
from converter.patterns import texts
from converter.variable import Array

_FEW = 3


@dataclass(frozen=True, slots=True)
class Question:
    """What is run.

    Attributes:
        feeds: `NAME=VALUE`, for tensors that are fed the same in every batch.
        fetches: up to where the graph is run; none for what looks like its outputs.
        signature: of an exported model, whose inputs and outputs are meant; None for none.
        where: the subject of errors about the data.
        flags: what the names of the options begin with that say all this, for errors.
    """

    feeds: tuple[str, ...] = ()
    fetches: tuple[str, ...] = ()
    signature: str | None = None
    where: str = "the data"
    flags: str = "--"

    def __post_init__(self) -> None:
        object.__setattr__(self, "feeds", texts(self.feeds, "feeds"))
        object.__setattr__(self, "fetches", texts(self.fetches, "fetches"))


class Asked:
    """What a question means in the graph of a checkpoint.

    Args:
        checkpoint: with a graph.
        question: what is run.

    Attributes:
        graph: the graph.
        called: the tensors of inputs by the names that a signature has for them.
        fed: what the question gives values for.
        hint: what else can be done about inputs, at the end of an error.

    Raises:
        InputError: there is no graph, or it is damaged.
        UsageError: TensorFlow is not installed; a feed, a fetch or the signature does not fit.
    """

    def __init__(self, checkpoint: Checkpoint, question: Question) -> None:
        from converter.session import can_run

        self._can_run = can_run()
        graph = read_graph(checkpoint)
        if graph is None:
            raise InputError(
                f"{checkpoint.path}: it has no graph (.meta, .pb) in which it could be run; give "
                "that of another checkpoint (--graph-from)"
                + (", or open the model in Python (open_keras)" if checkpoint.object_graph else "")
            )
        self.graph = graph
        self._keys = set(checkpoint)
        self._where, self._flags = question.where, question.flags
        flag = f"{question.flags}signature"
        self._signature = signed = signature_of(graph, question.signature, flag)
        self.called: Mapping[str, str] = {} if signed is None else signed.inputs
        listed = ", ".join(signatures(graph)) if signed is None else ""
        self.hint = f", or choose a signature ({flag}): {listed}" if listed else ""
        self._fetches = question.fetches
        flag = f"{question.flags}feed"
        self.fed = given_values(graph, parse_feeds(question.feeds, flag), flag, self.called)

    @cached_property
    def inputs(self) -> Mapping[str, Input]:
        """The inputs that nothing decides, by the names that data have for them."""
        found = self.forward(self.fed).open_inputs(self.fed)
        return {one.name: one for one in found}

    def given(self, batch: Mapping[str, Array]) -> dict[Tensor, Array]:
        """Return what the tensors are fed that a batch or the question gives a value for.

        Raises:
            UsageError: there is no such tensor, or it takes other values.
        """
        try:
            return {**given_values(self.graph, batch, self._where, self.called), **self.fed}
        except UsageError:
            for name in batch:
                self.tensor(name, self._where)
            raise

    def tensor(self, name: str, where: str) -> Tensor:
        """Return the tensor that a name of data means.

        Args:
            name: of an input.
            where: the subject of the error.

        Raises:
            UsageError: there is none.
        """
        try:
            return given_tensor(self.graph, name, where, self.called)
        except UsageError as error:
            raise UsageError(f"{error}{self.hint}") from None

    def forward(self, given: Mapping[Tensor, Array | None]) -> Forward:
        """Return what is run where these tensors are given values, None for what is not known.

        Raises:
            UsageError: nothing looks like an output, or a fetch does not fit.
        """
        return find_forward(
            self.graph,
            self._keys,
            fetches=self._fetches,
            fed=list(map(str, given)),
            values={tensor: value for tensor, value in given.items() if value is not None},
            can_run=self._can_run,
            signature=self._signature,
            flags=self._flags,
        )

    def check_complete(self, forward: Forward, given: Collection[Tensor], where: str) -> None:
        """Refuse what lacks an input: nothing is drawn to be measured.

        Args:
            forward: what is run.
            given: the tensors that values are given for.
            where: the subject of the error.

        Raises:
            UsageError: an input is neither given nor decided.
        """
        missing = [one.name for one in forward.open_inputs(given)]
        if missing:
            more = f" (and {len(missing) - _FEW} more)" if len(missing) > _FEW else ""
            raise UsageError(
                f"{where}: it has no values for {', '.join(missing[:_FEW])}{more}, which the model "
                f"needs; add them to the data, or feed them ({self._flags}feed NAME=VALUE)"
                f"{self.hint}"
            )


def asked(checkpoint: Checkpoint, question: Question) -> Asked:
    """Return what a question means, which is found out once. Errors are those of `Asked`."""
    return checkpoint.once((Asked, question), lambda: Asked(checkpoint, question))
