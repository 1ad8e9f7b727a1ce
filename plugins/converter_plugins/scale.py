"""Multiplies variables by factors, or divides them by statistics."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from converter import PlanError, Strategy, UsageError, by_name, hookimpl, option
from converter.counted import agree, count

if TYPE_CHECKING:
    import numpy as np

    from converter import Checkpoint, Variable
    from converter.scaling.divided import Divided
    from converter.scaling.kinds import Scaled
    from converter.scaling.multiply import Factor


@dataclass(frozen=True)
class Scale(Strategy):
    """Multiply float variables by a factor, or by the inverse of an activation statistic.

    With a file that `convert stats` wrote, each layer is divided once by what each of its units
    gave; dead units stay. With statistics made by hand, a variable of shape (..., units) becomes
    value / max(mean_abs, floor), where `VARIABLE/mean_abs` is one number, or one for each unit.
    Where several factors are about a variable, all of them apply. Dtypes are kept.

    A glob chooses variables, and nothing else follows. A kind chooses the kernels of such layers:
    the statistics of batch normalisations behind them follow, biases as it is asked for, averages
    as their variables, and slots where the outputs stay.

    Example:
        convert ckpt model.ckpt --scale 'decoder/logits/*=0.5' -o out/
    """

    name: ClassVar[str] = "scale"
    scale: Mapping[str, float] = option(
        {}, help="multiply the variables that a glob fits by a factor", metavar="GLOB=FACTOR"
    )
    kind: Mapping[str, float] = option(
        {},
        help="multiply all kernels of a kind: convolution, dense, recurrent or embedding",
        metavar="KIND=FACTOR",
    )
    biases: Literal["left", "scaled", "power"] = option(
        "left",
        help="of these layers: as they are, multiplied as their kernels, or by the power of the "
        "factor that makes all outputs multiples of what they were",
    )
    input_to_hidden: Mapping[str, float] = option(
        {},
        help="multiply what takes the input in the recurrent kernels that a glob fits",
        metavar="GLOB=FACTOR",
    )
    hidden_to_hidden: Mapping[str, float] = option(
        {},
        help="multiply what takes the state in the recurrent kernels that a glob fits",
        metavar="GLOB=FACTOR",
    )
    spectral_radius: Mapping[str, float] = option(
        {},
        help="scale what takes the state, gate by gate, so that its eigenvalues reach this far",
        metavar="GLOB=RADIUS",
    )
    gate: Mapping[str, float] = option(
        {},
        help="multiply a gate of all recurrent kernels that have one of this label: i, j, f, o",
        metavar="LABEL=FACTOR",
    )
    statistics: Path | None = option(
        None,
        help="divide by the statistics of this file (.npz, safetensors; VARIABLE/mean_abs)",
        metavar="FILE",
    )
    floor: float = option(
        1e-6,
        help="units of `convert stats` that give less are dead, and stay; what smaller statistics "
        "made by hand count as",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale and self.statistics is None and not self._by_layers:
            raise UsageError(
                "factors or statistics are needed; give --scale 'GLOB=FACTOR', --scale-kind "
                "KIND=FACTOR or --scale-statistics FILE"
            )
        for option_, numbers in self._numbers():
            for glob, factor in numbers.items():
                if not math.isfinite(factor):
                    raise UsageError(f"{option_} {glob!r}: the factor must be finite, got {factor}")
        for kind in self.kind:
            if kind not in _KINDS:
                raise UsageError(f"kind {kind!r}: it must be one of {', '.join(_KINDS)}")
        if wrong := next((r for r in self.spectral_radius.values() if r < 0), None):
            raise UsageError(f"spectral_radius: a radius cannot be negative, got {wrong}")
        if self.biases == "power" and any(factor <= 0 for factor in self.kind.values()):
            raise UsageError("biases: only positive factors have a power that keeps multiples")
        if self.biases == "power" and not self.kind:
            raise UsageError(
                "biases: power is about kinds of layers; give --scale-kind KIND=FACTOR"
            )
        if not 0 < self.floor < math.inf:
            raise UsageError(f"floor must be a positive number, got {self.floor}")

    def _numbers(self) -> Iterator[tuple[str, Mapping[str, float]]]:
        for name in ("scale", "kind", *_PARTS):
            yield name, getattr(self, name)

    @property
    def _by_layers(self) -> bool:
        return bool(self.kind) or any(getattr(self, name) for name in _PARTS)

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        from converter.scaling.multiply import multiply, times

        factors = self._named(checkpoint)
        for name in factors:
            if not checkpoint[name].dtype.is_float:
                raise PlanError(
                    f"{name}: scale changes floats only, and it is {checkpoint[name].dtype}; "
                    f"choose others"
                )
        found: Iterable[Variable] = checkpoint.values()
        if self._by_layers:
            from converter.structure.infer import structure_of

            scaled = self._scaled(checkpoint)
            found = multiply(
                checkpoint,
                scaled.factors,
                is_kept=scaled.is_kept,
                follows=structure_of(checkpoint).follows,
            )
            found = (scaled.replaced.get(variable.name, variable) for variable in found)
        found = (times(variable, factors.get(variable.name, ())) for variable in found)
        if (divided := self._divided(checkpoint)) is None:
            return found
        from converter.structure.infer import structure_of

        follows = structure_of(checkpoint).follows
        return multiply(checkpoint.derive(found), divided.factors, is_kept=False, follows=follows)

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        divided = self._divided(checkpoint)
        told = list(self._scaled(checkpoint).notes) if self._by_layers else []
        named = self._named(checkpoint)
        changed = [name for name, factors in named.items() if factors]
        if divided is not None or changed:
            told = [note for note in told if not note.startswith(_OF_OUTPUTS)]
        if divided is not None:
            yield from divided.notes
        elif changed or (named and not self._by_layers):
            yield self._told(checkpoint, changed)
        yield from told
        floored = {
            name: number
            for name, mean_abs in self._mean_abs(checkpoint).items()
            if (number := int((mean_abs < self.floor).sum()))
        }
        if floored:
            number = sum(floored.values())
            yield (
                f"{count(number, 'statistic')} of {count(len(floored), 'variable')}, such as "
                f"{next(iter(floored))}, {agree(number, 'is', 'are')} below the floor "
                f"{self.floor:g}, and {agree(number, 'counts', 'count')} as it"
            )

    def multiples(self, checkpoint: Checkpoint) -> Mapping[str, float]:
        is_by_name = any(self._named(checkpoint).values())
        if not self.kind or is_by_name or self._divided(checkpoint) is not None:
            return {}
        return self._scaled(checkpoint).multiples

    def _told(self, checkpoint: Checkpoint, named: Collection[str]) -> str:
        """Say what becomes of the outputs where variables are multiplied by their names."""
        from converter.scaling.kinds import UNCHANGED

        if not named:
            return UNCHANGED
        roles = checkpoint.roles()
        if self._by_layers:
            return "changes the outputs, as nothing follows what is chosen by its name"
        if all(roles[name].of is not None for name in named):
            return "keeps the outputs: only slots and averages are multiplied"
        return "changes the outputs, as nothing follows what is chosen by its name"

    def _named(self, checkpoint: Checkpoint) -> dict[str, list[Factor]]:
        """Return the factors of variables that globs and statistics name; none for one of 1."""
        import numpy as np

        from converter.scaling.multiply import Factor, one_number

        factors = {
            name: [one_number(factor)] if factor != 1 else []
            for name, factor in by_name(self.scale, checkpoint).items()
        }
        for name, mean_abs in self._mean_abs(checkpoint).items():
            inverse = 1.0 / np.maximum(mean_abs, self.floor)
            axis = len(checkpoint[name].shape) - inverse.ndim
            factors.setdefault(name, []).append(Factor(axis, partial(np.asarray, inverse)))
        return factors

    def _scaled(self, checkpoint: Checkpoint) -> Scaled:
        """Return what becomes of the layers that are chosen."""

        def find() -> tuple[Scale, Scaled]:
            from converter.scaling.layers import scaled_layers

            return self, scaled_layers(checkpoint, self)

        # A plan asks for the variables and for the notes. What is kept holds the strategy, so that
        # no other one can have its id while the checkpoint knows it.
        return checkpoint.once((Scale, id(self)), find)[1]

    def _mean_abs(self, checkpoint: Checkpoint) -> Mapping[str, np.ndarray[Any, Any]]:
        if self.statistics is None or self._is_measured(self.statistics, checkpoint):
            return {}
        from converter_plugins.statistics import read_mean_abs

        found = read_mean_abs(self.statistics, checkpoint)
        _check_moments(found, checkpoint, self.statistics)
        return found

    def _divided(self, checkpoint: Checkpoint) -> Divided | None:
        """Return what becomes of measured layers; None where nothing was measured."""
        path = self.statistics
        if path is None or not self._is_measured(path, checkpoint):
            return None

        def find() -> Divided:
            from converter.scaling.divided import divided

            return divided(checkpoint, path, self.floor)

        return checkpoint.once((Scale, "divided", path, self.floor), find)

    def _is_measured(self, path: Path, checkpoint: Checkpoint) -> bool:
        """Whether `convert stats` wrote a file."""
        from converter.activations.file import is_measured

        return checkpoint.once((is_measured, path), lambda: is_measured(path))


def _check_moments(found: Iterable[str], checkpoint: Checkpoint, path: Path) -> None:
    """Refuse the moments of a batch normalisation beside the kernel that they follow.

    Raises:
        PlanError: both have statistics.
    """
    from converter.structure.infer import structure_of

    if structure_of(checkpoint).findings is None:
        return
    from converter.structure.layers import layers

    names = set(found)
    for layer in layers(checkpoint):
        norm, kernel = layer.normalisation, next(iter(names & set(layer.kernels)), None)
        moment = next(iter(names & {norm.mean, norm.variance}), None) if norm else None
        if kernel is not None and moment is not None:
            raise PlanError(
                f"{moment}: it holds moments of what {kernel} makes, and {path} would divide both, "
                f"each by a statistic of its own; leave one of them out, or measure the layer "
                f"(convert stats)"
            )


# What a note of `converter.scaling` on outputs begins with.
_OF_OUTPUTS = ("keeps the output", "changes the output", "multiplies outputs")
_KINDS = ("convolution", "dense", "recurrent", "embedding")
_PARTS = ("input_to_hidden", "hidden_to_hidden", "spectral_radius", "gate")


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Scale
