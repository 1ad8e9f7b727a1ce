"""Which blocks of which variables are drawn, what draws them, and what follows them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from converter import (
    Checkpoint,
    Initializer,
    PlanError,
    Region,
    Role,
    UsageError,
    Variable,
    open_checkpoint,
    select,
    shape_of,
)
from converter.drawing import Block, Drawing, fans
from converter.initializers import Constant, Identity, Ones
from converter.names.fresh import COPIES, fresh_value
from converter.patterns import nearest
from converter.values import Values
from converter.variable import whole
from converter_plugins.kernels import Kernel, adds_forget_bias, kernel_of, start_of

_Part = tuple[str, Region, Initializer]


@dataclass(frozen=True)
class _Choice:
    """What is to draw a variable: all of it, or the rows of a kernel that are inputs, or state.

    Attributes:
        exact: whether the pattern is the variable's own name, which means it as it stands.
    """

    everything: Initializer | None = None
    inputs: Initializer | None = None
    state: Initializer | None = None
    exact: bool = False


class Redraw:
    """What is drawn in a checkpoint. Making one reads nothing.

    Args:
        checkpoint: the variables.
        everything: the initializer of what a glob or a word chooses.
        inputs: the initializer of the input-to-hidden part of chosen kernels.
        hidden: that of their hidden-to-hidden part.
        units: the units of kernels that their names do not tell, by glob or word.
        template: a checkpoint that initializers may look at.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        everything: Mapping[str, Initializer],
        inputs: Mapping[str, Initializer],
        hidden: Mapping[str, Initializer],
        units: Mapping[str, int],
        template: Path | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._template = template
        self._units: dict[str, int] = {}
        for pattern, number in units.items():
            for name in select(pattern, checkpoint):
                self._units.setdefault(name, number)
        self._choices = self._chosen(everything, inputs, hidden)
        self._planned = self._blocks()

    def variables(self, seed: int) -> Iterator[Variable]:
        """Give the variables of the result.

        Raises:
            PlanError: an initializer cannot draw a block, or a slot has no rule.
        """
        drawing = Drawing(seed)
        followers = dict(_followers(self._checkpoint, self._planned))
        for name, variable in self._checkpoint.items():
            if name in self._planned:
                yield drawing.redraw(variable, self._planned[name])
            elif name in followers:
                blocks, stream = followers[name]
                yield _started(drawing, variable, blocks, stream)
            else:
                yield variable

    def notes(self) -> Iterator[str]:
        """Say what a user should know of."""
        checkpoint, choices, planned = self._checkpoint, self._choices, self._planned
        kernels = [n for n, blocks in planned.items() if any("/" in b.label for b in blocks)]
        if kernels:
            yield (
                f"recurrent kernels are drawn gate by gate: {len(kernels)}, such as {kernels[0]}, "
                f"{_layout(planned[kernels[0]])}"
            )
        started = [n for n in planned if _start(n, choices[n], checkpoint)]
        if started:
            yield (
                f"biases, gains and statistics are as TensorFlow's layers start them: "
                f"{len(started)}, such as {started[0]}"
            )
        yield from _bias_notes(checkpoint, choices)
        yield from _slot_notes(checkpoint, planned)

    def _chosen(
        self,
        everything: Mapping[str, Initializer],
        inputs: Mapping[str, Initializer],
        hidden: Mapping[str, Initializer],
    ) -> dict[str, _Choice]:
        found: dict[str, _Choice] = {}
        for pattern, initializer in everything.items():
            for name in _drawable(pattern, self._checkpoint):
                found.setdefault(name, _Choice(initializer, exact=pattern == name))
        for name, initializer in self._sides(inputs, "input").items():
            found[name] = replace(found.get(name, _Choice()), inputs=initializer)
        for name, initializer in self._sides(hidden, "hidden").items():
            found[name] = replace(found.get(name, _Choice()), state=initializer)
        return found

    def _sides(self, values: Mapping[str, Initializer], side: str) -> dict[str, Initializer]:
        """Return what draws the rows of one side, by the name of the kernel that has such rows."""
        found: dict[str, Initializer] = {}
        for pattern, initializer in values.items():
            names = _drawable(pattern, self._checkpoint)
            kernels = [name for name in names if self._rows(name, side)]
            if names and not kernels:
                name = max(names, key=lambda n: self._checkpoint[n].size)
                rows = "inputs" if side == "input" else "the state"
                raise PlanError(
                    f"{name}: nothing tells which rows of {list(self._checkpoint[name].shape)} are "
                    f"for {rows}; say its units (--reinit-units '{name}=UNITS'), or choose a kernel"
                )
            for name in kernels:
                found.setdefault(name, initializer)
        return found

    def _rows(self, name: str, side: str) -> int:
        """Return how many rows of a variable are for the inputs, or for the state; 0 where none."""
        kernel = self._kernel(name)
        if kernel is None:
            return 0
        if kernel.state is None:
            raise PlanError(
                f"{name}: the rows of its state lie in several variables, or are more than it has; "
                f"draw all of it (--reinit), or say its units (--reinit-units '{name}=UNITS')"
            )
        return kernel.state if side == "hidden" else self._checkpoint[name].shape[-2] - kernel.state

    def _kernel(self, name: str) -> Kernel | None:
        shape, units = self._checkpoint[name].shape, self._units.get(name)
        if units is None or len(shape) < 2:
            return kernel_of(name, self._checkpoint)
        if shape[-1] % units or shape[-2] < units:
            raise PlanError(
                f"{name}: {list(shape)} is no kernel of {units} units; its columns would be a "
                f"multiple of them, and its rows as many or more"
            )
        return Kernel(tuple(str(k) for k in range(shape[-1] // units)), units)

    def _blocks(self) -> dict[str, list[Block]]:
        template = None if self._template is None else open_checkpoint(self._template)
        planned = {}
        for name, choice in self._choices.items():
            variable = self._checkpoint[name]
            parts = _start(name, choice, self._checkpoint)
            if not parts:
                parts = list(_parts(variable, choice, self._kernel(name)))
            planned[name] = [
                Block(
                    label,
                    region,
                    initializer,
                    *fans(name, shape_of(region)),
                    old=Values(variable, region),
                    template=self._values(variable, region, initializer, template),
                )
                for label, region, initializer in parts
            ]
        return planned

    def _values(
        self,
        variable: Variable,
        region: Region,
        initializer: Initializer,
        template: Checkpoint | None,
    ) -> Values | None:
        if template is None:
            return None
        found = template.get(variable.name)
        if found is not None and found.shape == variable.shape:
            return Values(found, region)
        if initializer.needs != "template":
            return None
        if found is None:
            near = nearest(variable.name, template)
            raise PlanError(
                f"{variable.name}: the template {self._template} does not have it{near}"
            )
        raise PlanError(
            f"{variable.name}: it is {list(variable.shape)}, and {list(found.shape)} in the "
            f"template {self._template}; take a template of the same sizes"
        )


def _drawable(pattern: str, checkpoint: Checkpoint) -> list[str]:
    """Return the chosen variables that are drawn: the others follow them, or stay.

    Raises:
        UsageError: a pattern chooses none.
    """
    roles = checkpoint.roles()
    names = select(pattern, checkpoint)
    found = [name for name in names if _is_drawn(roles[name], checkpoint)]
    if found or not names:
        return found
    role = roles[names[0]]
    if role.kind in ("slot", "average"):
        what = "a slot" if role.kind == "slot" else "an average"
        why = f"{what} follows its variable; choose {role.of}"
    else:
        why = f"it is no variable of the model, but {role.kind.replace('_', ' ')}; choose others"
    raise UsageError(f"{pattern!r} chooses nothing to draw, such as {names[0]}: {why}")


def _is_drawn(role: Role, checkpoint: Checkpoint) -> bool:
    if role.kind == "average":
        # One whose variable is not there stands for it.
        return role.of not in checkpoint and role.slot is None and role.optimizer is None
    return role.kind in ("model", "batch_statistic")


def _start(name: str, choice: _Choice, checkpoint: Checkpoint) -> list[_Part]:
    """Return the blocks of a bias, gain or statistic that is taken in with its layer."""
    initializer = choice.everything
    if initializer is None or not initializer.for_kernels or choice.exact:
        return []
    is_statistic = checkpoint.roles()[name].kind == "batch_statistic"
    start = start_of(name, checkpoint, is_statistic=is_statistic)
    return [(label, region, Constant(value)) for label, region, value in start or ()]


def _parts(variable: Variable, choice: _Choice, kernel: Kernel | None) -> Iterator[_Part]:
    """Yield label, region and initializer of the blocks that are drawn."""
    everywhere = whole(variable.shape)
    if kernel is None:
        if choice.everything is not None:
            yield "", everywhere, choice.everything
        return
    rows = variable.shape[-2]
    spans = [("", slice(0, rows), choice.everything)]
    if kernel.state is not None and (choice.inputs or choice.state):
        border = rows - kernel.state
        spans = [
            ("input", slice(0, border), choice.inputs or choice.everything),
            ("hidden", slice(border, rows), choice.state or choice.everything),
        ]
    units = variable.shape[-1] // len(kernel.gates)
    for side, span, initializer in spans:
        if initializer is None or span.start == span.stop:
            continue
        for index, gate in enumerate(kernel.gates):
            columns = slice(index * units, (index + 1) * units)
            yield f"{side}/{gate}", (*everywhere[:-2], span, columns), initializer


def _followers(
    checkpoint: Checkpoint, planned: Mapping[str, Sequence[Block]]
) -> Iterator[tuple[str, tuple[Sequence[Block], str]]]:
    """Yield slots and averages of what is drawn, with their blocks and the name of the stream."""
    roles = checkpoint.roles()
    for name, role in roles.items():
        # The average of a slot is what the slot starts with.
        kind = roles.get(role.of or "", role) if role.optimizer else role
        kind = kind if kind.kind == "slot" else role
        of = kind.of
        if role.kind not in ("slot", "average") or of is None or of not in planned:
            continue
        variable, blocks = checkpoint[name], planned[of]
        same = variable.shape == checkpoint[of].shape
        if same and _is_copy(kind):
            yield name, (blocks, of)
            continue
        regions = [b.region for b in blocks] if same else [whole(variable.shape)]
        fresh = partial(Block, initializer=_fresh(name, kind), fan_in=1, fan_out=1)
        yield name, ([fresh(str(i), region) for i, region in enumerate(regions)], name)


def _is_copy(role: Role) -> bool:
    return role.slot in COPIES or (role.kind == "average" and role.slot is None)


def _fresh(name: str, role: Role) -> Initializer:
    """Return what draws a fresh slot, or what zero-debiasing keeps beside an average."""
    if role.kind == "average":
        return Constant(0.0)
    if re.fullmatch(r"H_\d+", role.slot or ""):
        return Identity()
    value = fresh_value(role.optimizer, role.slot)
    if value is None:
        raise PlanError(
            f"{name}: no rule tells what a fresh slot {role.slot or ''} of {role.optimizer} holds; "
            f"leave it out before (--drop '{name}')"
        )
    return Constant(value)


def _started(
    drawing: Drawing, variable: Variable, blocks: Sequence[Block], stream: str
) -> Variable:
    if variable.dtype.is_float:
        return drawing.redraw(variable, blocks, stream=stream)
    # Counts, of zero-debiasing: what starts with a fraction is a float.
    return variable.map(np.zeros_like)


def _layout(blocks: Sequence[Block]) -> str:
    """Return which rows and columns of a kernel are drawn: `30 hidden rows, 4*30 columns`."""
    gates = dict.fromkeys(b.label.partition("/")[2] for b in blocks)
    sides = {b.label.partition("/")[0]: shape_of(b.region)[-2:] for b in blocks}
    (_, units), *_ = sides.values()
    rows = " + ".join(f"{rows} {side} rows".replace("  ", " ") for side, (rows, _) in sides.items())
    called = f" ({', '.join(gates)})" if len(gates) > 1 else ""
    return f"{rows}, {len(gates)}*{units} columns{called}"


def _bias_notes(checkpoint: Checkpoint, choices: Mapping[str, _Choice]) -> Iterator[str]:
    added = [n for n in choices if adds_forget_bias(n, checkpoint)]
    if added:
        yield (
            f"{added[0]}: the cell adds its forget bias, 1 unless the code says otherwise, when it "
            f"runs; what is stored is without it"
        )
    others = [n for n, choice in choices.items() if _differs(n, choice, checkpoint)]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        yield (
            f"{others[0]}{more}: TensorFlow's own layer starts it, or one gate of it, with 1, and "
            f"it gets {choices[others[0]].everything}"
        )


def _differs(name: str, choice: _Choice, checkpoint: Checkpoint) -> bool:
    """Whether a bias or a gain that layers start with ones gets something else."""
    if choice.everything is None or _start(name, choice, checkpoint):
        return False
    if choice.everything in (Ones(), Constant(1.0)) or choice.everything.needs == "template":
        return False
    start = start_of(name, checkpoint, is_statistic=False) or []
    return checkpoint.roles()[name].kind == "model" and any(value for _, _, value in start)


def _slot_notes(checkpoint: Checkpoint, planned: Mapping[str, Sequence[Block]]) -> Iterator[str]:
    slots = [r for r in checkpoint.roles().values() if r.kind == "slot" and r.of in planned]
    if not slots:
        return
    kept = [n for n, r in checkpoint.roles().items() if r.kind in ("beta_power", "step")]
    tail = f"; {', '.join(kept[:3])} {'stays' if len(kept) == 1 else 'stay'}" if kept else ""
    yield f"{len(slots)} slot{'s' if len(slots) > 1 else ''} start afresh{tail}"
    if any(role.slot == "v" and "adam" in (role.optimizer or "").lower() for role in slots):
        yield (
            "with fresh moments late in a training, the first steps of Adam are several times too "
            "large: warm the learning rate up again, or start the optimizer anew (--drop optimizer)"
        )
    if any(role.slot == "linear" for role in slots):
        yield (
            "Ftrl computes a variable from its slots alone: fresh ones bring it to about 0 in the "
            "first step, whatever was drawn, as they do in a new training"
        )
