"""What has to be multiplied so that what a layer gives is multiplied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from converter.checkpoint import Checkpoint
from converter.errors import PlanError
from converter.scaling.multiply import Factor, along
from converter.structure.layers import Activation, Layer
from converter.structure.structure import Structure
from converter.variable import Array, Variable


def of_output(
    checkpoint: Checkpoint, structure: Structure, layer: Layer, values: Callable[[], Array]
) -> dict[str, Factor]:
    """Return factors by which what a layer gives, with the inputs that it has, is multiplied.

    Behind a batch normalisation its gains and offsets take the factors, and the same is normalised;
    where it has no gains, the kernels do, with the means. That is exact where the activation
    function of the layer is homogeneous and the factors are positive.

    Args:
        checkpoint: the variables.
        structure: their axes.
        layer: one of them.
        values: gives float64 of the shape of `layer.produced`, or of () for one number. Called when
            the first values of a variable are asked for.

    Raises:
        PlanError: a variable of the layer holds its units in a way that is not known.
    """
    norm = layer.normalisation
    if norm is not None and norm.gamma is not None:
        named = [name for name in (norm.gamma, norm.beta) if name is not None]
    else:
        vectors = (norm.beta, norm.mean) if norm is not None else ()
        named = [*layer.kernels, *layer.biases, *(name for name in vectors if name is not None)]
    if not named:
        raise PlanError("a normalisation without gains gives what no variable could scale")
    return {name: along_units(checkpoint[name], structure, layer, values) for name in named}


def along_units(
    variable: Variable, structure: Structure, layer: Layer, values: Callable[[], Array]
) -> Factor:
    """Return the factor of a variable of a layer by its units.

    Args:
        variable: a kernel, a bias or a vector of its normalisation.
        structure: the axes.
        layer: the layer.
        values: as for `of_output`.

    Raises:
        PlanError: it is not known which axis the units go along.
    """
    return along(variable, unit_axis(variable, structure, layer), values)


def unit_axis(variable: Variable, structure: Structure, layer: Layer) -> int:
    """Return the first axis of a variable of a layer that its units go along.

    Raises:
        PlanError: that is not known.
    """
    rank = len(variable.shape)
    axes = structure.axes.get(variable.name, ())
    found = [number for number, axis in enumerate(axes) if axis == layer.produced]
    if found:
        uses = structure.uses.get(variable.name, ({},) * rank)
        made = [n for n in found if any("produce" in use for use in uses[n].values())]
        return (made or found)[-1]
    if variable.name in layer.kernels and layer.kind == "convolution" and rank > 2:
        # A depthwise kernel makes channels times multipliers.
        return rank - 2
    if rank == 1:
        return 0
    raise PlanError(
        f"{variable.name}: none of its axes is known to be the units {layer.produced}; scale it by "
        f"its name"
    )


def bending(named: Iterable[tuple[str, Activation | None]]) -> Iterator[str]:
    """Say of which layers the factor of their weights is not that of what they give.

    Args:
        named: layers that are divided by what they give, by a variable of each.
    """
    bent = [(name, act.op) for name, act in named if act is not None and not act.is_homogeneous]
    if bent:
        (name, op), more = bent[0], f" (and {len(bent) - 1} more)" if len(bent) > 1 else ""
        yield (
            f"{name}{more}: no factor goes through {op}, so that dividing the weights before it "
            f"does not divide what it gives; activation-scale's sequential method measures again"
        )
