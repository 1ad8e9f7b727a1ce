"""Factors for all kernels of a kind, with the biases and the batch statistics behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import PlanError
from converter.rounding import round_to
from converter.scaling.multiples import NoMultiple, multiples
from converter.scaling.multiply import Factor, one_number
from converter.scaling.widths import outputs_of
from converter.structure.called import called_in_graph, called_now
from converter.structure.layers import Layer, Normalisation
from converter.structure.structure import Structure
from converter.variable import Array, Region, Variable

Kind = Literal["convolution", "dense", "recurrent", "embedding"]
KINDS: tuple[str, ...] = get_args(Kind)
Biases = Literal["left", "scaled", "power"]
UNCHANGED = "keeps the outputs: a factor of 1 changes nothing"


class Scaled(NamedTuple):
    """What becomes of the variables of layers whose kernels are multiplied.

    Attributes:
        factors: by variable.
        replaced: means behind biases that stay, and variances, which no factor gives.
        is_kept: whether the model computes what it did.
        notes: what a user should know.
        multiples: of tensors, by the names of their nodes, where they are promised.
    """

    factors: Mapping[str, Sequence[Factor]]
    replaced: Mapping[str, Variable]
    is_kept: bool
    notes: tuple[str, ...]
    multiples: Mapping[str, float]


def scaled_kinds(
    checkpoint: Checkpoint,
    structure: Structure,
    layers: Sequence[Layer],
    kinds: Mapping[str, float],
    biases: Biases,
) -> Scaled:
    """Return what becomes of all variables where kernels of some kinds are multiplied.

    Args:
        checkpoint: the variables.
        structure: their axes.
        layers: in the order of the data.
        kinds: the factor of each kind; those that are not in it stay.
        biases: whether biases stay, are multiplied as their kernels are, or by what their layer is
            a multiple of, so that all of it is one.

    Raises:
        PlanError: there is no layer of any of the kinds; a variable is in layers of two; or `power`
            is asked for and a layer gives no multiple.
    """
    missing = [kind for kind in kinds if all(layer.kind != kind for layer in layers)]
    if len(missing) == len(kinds):
        raise PlanError(f"no layer is {' or '.join(missing)}; {_kinds_of(layers)}")
    own = [kinds.get(layer.kind, 1.0) for layer in layers]
    outputs: Mapping[str, float | NoMultiple] = {}
    tensors: Mapping[str, float] = {}
    if biases == "power":
        linear, outputs, tensors = multiples(
            structure, layers, own, outputs_of(structure, checkpoint), called_now(checkpoint)
        )
    else:
        before = [_behind(layers, index) for index in range(len(layers))]
        linear = tuple(own[index if b is None else b] for index, b in enumerate(before))
    found: dict[str, float] = {}
    by: dict[str, str] = {}
    replaced: dict[str, Variable] = {}
    for layer, number, made in zip(layers, own, linear, strict=True):
        numbers = dict.fromkeys(layer.kernels, number)
        if biases != "left":
            numbers |= dict.fromkeys(layer.biases, made)
        norm = layer.normalisation
        if norm is not None and norm.over == "batch":
            numbers |= _statistics(norm, made)
            replaced |= _moments(checkpoint, structure, layer, norm, made, biases)
        for name, factor in numbers.items():
            if found.setdefault(name, factor) != factor:
                raise PlanError(
                    f"{name}: layers of two kinds have it, {by[name]} and {layer.kind}, and would "
                    f"multiply it by {found[name]:g} and {factor:g}; give both kinds one factor"
                )
            by[name] = layer.kind
    factors = {name: [one_number(number)] for name, number in found.items() if number != 1}
    _check_here(checkpoint, factors)
    is_kept = _is_kept(layers, own, biases, outputs)
    normalised = [
        (layer.normalisation.epsilon, made)
        for layer, made in zip(layers, linear, strict=True)
        if made != 1 and layer.normalisation is not None and layer.normalisation.over == "batch"
    ]
    notes = (
        *_told(is_kept, outputs, is_changed=bool(factors), is_inference=bool(normalised)),
        *(f"no layer is {kind}; {_kinds_of(layers)}" for kind in missing),
        *_of_statistics(normalised),
    )
    return Scaled(factors, replaced, is_kept, notes, tensors)


def _check_here(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Refuse variables that were made into something else than the graph has."""
    held = {old for olds in called_in_graph(checkpoint).values() for old in olds}
    for name in names:
        if name in held and name not in checkpoint:
            raise _changed(name)


def _changed(name: str) -> PlanError:
    return PlanError(
        f"{name}: its layer is to be multiplied, and it is not here as it is in the graph; scale "
        "before what leaves it out, cuts it or puts it together with others"
    )


def _kinds_of(layers: Sequence[Layer]) -> str:
    known = dict.fromkeys(layer.kind for layer in layers if layer.kind in KINDS)
    return f"they are {', '.join(known)}" if known else "it has none"


def _behind(layers: Sequence[Layer], index: int) -> int | None:
    """Return the layer that a normalisation by itself takes all it takes from; None for none."""
    layer = layers[index]
    if layer.kernels or len(layer.sources) != 1 or layer.sources[0] >= index:
        return None
    (source,) = layer.sources
    return None if layers[source].normalisation is not None else source


def _is_direct(layers: Sequence[Layer], source: int, index: int) -> bool:
    """Whether one layer takes the very tensor that another gives, and no other one takes it."""
    given = {place.finished for place in layers[source].places}
    taken = {place.linear for place in layers[index].places}
    others = [i for i, layer in enumerate(layers) if source in layer.sources]
    return None not in taken and taken <= given and others == [index]


def _statistics(norm: Normalisation, factor: float) -> Iterator[tuple[str, float]]:
    if norm.mean is not None:
        yield norm.mean, factor
    if norm.variance is not None:
        yield norm.variance, factor**2


def _moments(
    checkpoint: Checkpoint,
    structure: Structure,
    layer: Layer,
    norm: Normalisation,
    factor: float,
    biases: Biases,
) -> Iterator[tuple[str, Variable]]:
    """Yield the moments of batches that no factor alone gives."""
    if factor == 1:
        return
    if biases == "left":
        yield from _means(checkpoint, layer, norm, factor)
    yield from _variances(checkpoint, structure, norm, factor)


def _means(
    checkpoint: Checkpoint, layer: Layer, norm: Normalisation, factor: float
) -> Iterator[tuple[str, Variable]]:
    """Yield what a mean becomes behind biases that stay."""
    if norm.mean is None or not layer.kernels or not layer.biases:
        return
    if lacking := next((name for name in layer.biases if name not in checkpoint), None):
        raise _changed(lacking)
    if norm.mean in checkpoint:
        offset = [checkpoint[name] for name in layer.biases]
        yield norm.mean, _moved(checkpoint[norm.mean], offset, factor)


def _moved(mean: Variable, biases: Sequence[Variable], factor: float) -> Variable:
    """Return the mean of what is multiplied before biases that stay are added."""

    def load(region: Region) -> Array:
        offset = sum(np.asarray(b.load(region), np.float64) for b in biases)
        wide = np.asarray(mean.load(region), np.float64)
        return round_to(factor * (wide - offset) + offset, mean.dtype, mean.counts)

    return mean.derive(load)


def _variances(
    checkpoint: Checkpoint, structure: Structure, norm: Normalisation, factor: float
) -> Iterator[tuple[str, Variable]]:
    """Yield what a variance becomes, and its averages, so that with epsilon it is a multiple."""
    if norm.variance is None or norm.epsilon is None:
        return
    averages = {
        name
        for name, role in structure.follows.items()
        if role.of == norm.variance and role.kind == "average" and role.slot is None
    }
    for name in (norm.variance, *sorted(averages)):
        if name in checkpoint:
            yield name, _raised(checkpoint[name], factor, norm.epsilon)


def _raised(variance: Variable, factor: float, epsilon: float) -> Variable:
    def load(region: Region) -> Array:
        values = factor**2 * (np.asarray(variance.load(region), np.float64) + epsilon) - epsilon
        if number := int((values < 0).sum()):
            counts = variance.counts
            counts[_RAISED] = counts.get(_RAISED, 0) + number
        return round_to(np.maximum(values, 0), variance.dtype, variance.counts)

    return variance.derive(load)


_RAISED = "would be less than 0, and are 0"


def _is_kept(
    layers: Sequence[Layer],
    own: Sequence[float],
    biases: Biases,
    outputs: Mapping[str, float | NoMultiple],
) -> bool:
    """Whether the model computes what it did, its kernels times their own factors."""
    if biases == "power":
        return all(number == 1 for number in outputs.values())
    return all(
        number == 1 or (number > 0 and _is_normalised(layers, index, biases))
        for index, number in enumerate(own)
    )


def _is_normalised(layers: Sequence[Layer], index: int, biases: Biases) -> bool:
    layer = layers[index]
    norm = layer.normalisation
    if norm is not None:
        return norm.over == "batch" and norm.variance is not None
    moves = biases == "scaled" or not layer.biases
    return (
        moves
        and _passes(layer)
        and any(
            _behind(layers, other) == index and _is_direct(layers, index, other)
            for other in range(len(layers))
        )
    )


def _passes(layer: Layer) -> bool:
    """Whether a positive factor goes through its activation function."""
    return layer.activation is None or layer.activation.is_homogeneous


def _told(
    is_kept: bool,
    outputs: Mapping[str, float | NoMultiple],
    *,
    is_changed: bool,
    is_inference: bool,
) -> Iterator[str]:
    if is_kept and not is_changed:
        yield UNCHANGED
        return
    if is_kept:
        yield (
            "keeps the outputs in inference"
            if is_inference
            else "keeps the outputs: what they come from undoes the factors"
        )
        return
    if not outputs:
        yield "changes the outputs; --scale-biases power keeps multiples of them"
        return
    told = [f"{n} by {m:g}" for n, m in outputs.items() if not isinstance(m, NoMultiple)]
    if told:
        yield f"multiplies outputs: {', '.join(told)}"
    for name, broken in outputs.items():
        if isinstance(broken, NoMultiple):
            yield f"changes the output {name}: {broken.why}"


def _of_statistics(normalised: Sequence[tuple[float | None, float]]) -> Iterator[str]:
    """Tell how batch statistics follow.

    Args:
        normalised: what is added to a variance, if that is known, and the factor before it.
    """
    if not normalised:
        return
    known = [(epsilon, factor) for epsilon, factor in normalised if epsilon is not None]
    # What stays what it was has to be at least epsilon, as no variance is less than 0.
    least = max((e * (1 / f**2 - 1) for e, f in known if f), default=0)
    told = f"; those below {least:.2g} cannot far enough, and become 0" if least > 0 else ""
    if known:
        yield f"batch statistics follow, with the epsilons that are added to variances{told}"
    if len(known) < len(normalised):
        largest = max(abs(1 / f**2 - 1) / 2 for e, f in normalised if e is None and f)
        yield (
            f"where no epsilon is written down, variances follow without it: each unit is off by "
            f"about {largest:.2g}*epsilon/variance of itself"
        )
