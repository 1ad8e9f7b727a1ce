"""What a layout says, laid over what is known without it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from converter.errors import UsageError
from converter.structure.axes.axis import Axis, Blocks, Factor, Symmetry, Term, Use, Width
from converter.structure.axes.followers import Axes, Uses, follows, with_followers

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.names import Role
    from converter.structure.layout import Layout
    from converter.structure.structure import EvenParts, Opaque, SizeFactor, Structure
    from converter.structure.tensors.atoms import Atom

_MAX_BLOCKS = 64
# From what allows most to what allows least.
_TIGHTER: tuple[Symmetry, ...] = (
    "free",
    "scaling",
    "orthogonal",
    "permutation",
    "bound",
    "opaque",
)
_GROWTHS = ("any", "zero", "none")


class Merged(NamedTuple):
    """Axes after a layout.

    Attributes:
        axes: of all variables that have their own.
        uses: of the same.
        written: what each width is in the variables that the layout tells, each once.
        renamed: what each width is in the other variables.
        sizes: of all widths.
    """

    axes: dict[str, Axes]
    uses: dict[str, Uses]
    written: Mapping[str, Sequence[Axis]]
    renamed: Mapping[str, Axis]
    sizes: Mapping[str, int]


def merge(
    axes: Mapping[str, Axes],
    uses: Mapping[str, Uses],
    sizes: Mapping[str, int],
    checkpoint: Checkpoint,
    layout: Layout,
) -> Merged:
    """Lay a layout over axes.

    The variables that it names have the axes that it gives them. In all others, a width that these
    have too becomes what it is there.

    Args:
        axes: of the variables that have their own.
        uses: of the same.
        sizes: of the widths in `axes`.
        checkpoint: whose variables they are.
        layout: what is said of them.

    Raises:
        PlanError: lengths contradict the layout, or leave a size open.
        UsageError: it names a variable that is not there, or does not say what becomes of another.
    """
    new = layout.solved(checkpoint, known=sizes)
    written: dict[str, dict[Axis, str]] = {}
    merged_uses: dict[str, Uses] = {}
    for name, told in layout.axes.items():
        before = axes.get(name) or tuple(Axis(((size,),)) for size in checkpoint[name].shape)
        had = uses.get(name) or tuple({} for _ in before)
        found = []
        for place, (old, axis) in enumerate(zip(before, told, strict=True)):
            pairs = list(_aligned(old, axis, sizes, new))
            for width, is_now in pairs:
                written.setdefault(width, {}).setdefault(is_now, name)
            found.append(_carried(axis, pairs, had[place]) or _usual(axis, place, len(told)))
        merged_uses[name] = layout.uses.get(name) or tuple(found)
    others = {name: found for name, found in axes.items() if name not in layout.axes}
    for name, told in others.items():
        _refuse_torn(name, told, written, layout)
    renamed = {width: next(iter(is_now)) for width, is_now in written.items() if len(is_now) == 1}
    others = {n: tuple(substituted(a, renamed) for a in told) for n, told in others.items()}
    for name in others:
        merged_uses[name] = tuple(_substituted_uses(used, renamed) for used in uses[name])
    solved = layout.solved(checkpoint, others, sizes)
    return Merged(
        {**layout.axes, **others},
        merged_uses,
        {width: tuple(is_now) for width, is_now in written.items()},
        renamed,
        solved,
    )


def _refuse_torn(
    name: str, axes: Axes, written: Mapping[str, Mapping[Axis, str]], layout: Layout
) -> None:
    for axis in axes:
        for width in axis.widths():
            if len(written.get(width, {})) > 1:
                said = " and ".join(f"{a} in {by}" for a, by in list(written[width].items())[:4])
                raise UsageError(
                    f"{layout.path}: {width} is {said}, and {name} has it too; write the axes of "
                    f"{name} as well: {', '.join(map(str, axes))}"
                )


def substituted(axis: Axis, renamed: Mapping[str, Axis]) -> Axis:
    """Return an axis with other axes in the place of widths."""
    terms: list[Term] = []
    for term in axis.terms:
        factors: list[Factor] = []
        for factor in term:
            is_now = renamed.get(factor) if isinstance(factor, str) else None
            if isinstance(factor, Axis):
                factors.append(substituted(factor, renamed))
            elif is_now is None:
                factors.append(factor)
            elif len(is_now.terms) == 1:
                factors += is_now.terms[0]
            else:
                factors.append(is_now)
        if len(factors) == 1 and isinstance(factors[0], Axis):
            terms += factors[0].terms
        else:
            terms.append(tuple(factors))
    return Axis(tuple(terms))


def _substituted_uses(
    used: Mapping[str, tuple[Use, ...]], renamed: Mapping[str, Axis]
) -> dict[str, tuple[Use, ...]]:
    found: dict[str, tuple[Use, ...]] = {}
    for width, uses in used.items():
        for name in renamed[width].widths() if width in renamed else (width,):
            found[name] = tuple(dict.fromkeys((*found.get(name, ()), *uses)))
    return found


def _carried(
    axis: Axis, pairs: Iterable[tuple[str, Axis]], had: Mapping[str, tuple[Use, ...]]
) -> Mapping[str, tuple[Use, ...]] | None:
    """Return the uses that the widths of an axis have had under their old names."""
    found: dict[str, tuple[Use, ...]] = {}
    for width, is_now in pairs:
        for name in is_now.widths():
            found[name] = tuple(dict.fromkeys((*found.get(name, ()), *had.get(width, ()))))
    every = set(had.values())
    for name in axis.widths():
        if name not in found and len(every) == 1:
            found[name] = next(iter(every))
    complete = all(found.get(name) for name in axis.widths()) or bool(had)
    return {n: found.get(n, ()) for n in axis.widths()} if complete and any(every) else None


def _usual(axis: Axis, place: int, count: int) -> Mapping[str, tuple[Use, ...]]:
    """Return the uses where nothing tells them: `[..., in, out]`, and a vector is added."""
    use: Use = "shift" if count == 1 else "produce" if place == count - 1 else "consume"
    return dict.fromkeys(axis.widths(), (use,))


def _aligned(
    old: Axis, new: Axis, old_sizes: Mapping[str, int], new_sizes: Mapping[str, int]
) -> Iterator[tuple[str, Axis]]:
    """Yield what each width of an axis is in another writing of it, as far as that shows."""
    sides: tuple[Sequence[Term], Sequence[Term]] = (old.terms, new.terms)
    if len(old.terms) != len(new.terms):
        sides = (_expanded(old.terms), _expanded(new.terms))
    sums = (_sized(sides[0], old_sizes), _sized(sides[1], new_sizes))
    for before, after in _paired(*sums, operator.add):
        if len(before) == 1 and len(after) == 1:
            factors = [_sized([(f,) for f in before[0]], old_sizes)]
            factors.append(_sized([(f,) for f in after[0]], new_sizes))
            for parts, is_now in _paired(factors[0], factors[1], operator.mul):
                if len(parts) == 1 and isinstance(parts[0][0], str):
                    yield parts[0][0], Axis((tuple(f for (f,) in is_now),))
        elif len(before) == 1 and len(before[0]) == 1 and isinstance(before[0][0], str):
            yield before[0][0], Axis(tuple(after))


def _expanded(terms: Sequence[Term]) -> list[Term]:
    """Write blocks out: `2*a` as `a + a`."""
    found: list[Term] = []
    for term in terms:
        outer = term[0] if term else 1
        count = len(outer.labels) if isinstance(outer, Blocks) else outer
        if len(term) > 1 and isinstance(count, int) and count <= _MAX_BLOCKS:
            found += [term[1:]] * count
        else:
            found.append(term)
    return found


def _sized(terms: Sequence[Term], sizes: Mapping[str, int]) -> list[tuple[Term, int]]:
    return [(term, Axis((term,)).size(sizes)) for term in terms]


def _paired(
    old: Sequence[tuple[Term, int]],
    new: Sequence[tuple[Term, int]],
    joined: Callable[[int, int], int],
) -> Iterator[tuple[list[Term], list[Term]]]:
    """Cut two sequences where they are equally long so far, as finely as that goes."""
    i = j = 0
    while i < len(old) and j < len(new):
        (term, before), (other, after) = old[i], new[j]
        terms, others = [term], [other]
        while before != after:
            if before < after and i + 1 < len(old):
                i += 1
                terms.append(old[i][0])
                before = joined(before, old[i][1])
            elif after < before and j + 1 < len(new):
                j += 1
                others.append(new[j][0])
                after = joined(after, new[j][1])
            else:
                return
        yield terms, others
        i, j = i + 1, j + 1


def declare(
    structure: Structure, checkpoint: Checkpoint, layout: Layout, roles: Mapping[str, Role]
) -> Structure:
    """Return a structure in which a layout has the last word.

    Args:
        structure: what the graph says.
        checkpoint: whose structure it is.
        layout: what somebody says.
        roles: of the variables of the checkpoint.

    Raises:
        PlanError: lengths contradict the layout, or leave a size open.
        UsageError: it names a variable that is not there, or does not say what becomes of another.
    """
    own = [name for name in structure.axes if not follows(roles[name], checkpoint)]
    merged = merge(
        {name: structure.axes[name] for name in own},
        {name: structure.uses[name] for name in own},
        structure.sizes,
        checkpoint,
        layout,
    )
    sources: dict[str, dict[str, Width]] = {}
    for name, width in structure.widths.items():
        for is_now in merged.written.get(name, (Axis(((name,),)),)):
            for new in is_now.widths():
                sources.setdefault(new, {})[name] = width
    members = [name for name in own if name in merged.axes]
    holders = holders_of(members, merged)
    ordered = [*(n for n in sources if n in holders), *(n for n in holders if n not in sources)]
    widths = {}
    for name in ordered:
        had = list(sources.get(name, {}).values())
        width = _joined(name, merged.sizes[name], had, layout)
        widths[name] = overridden(with_members(width, holders[name]), layout)
    axes, uses = with_followers(merged.axes, merged.uses, checkpoint, roles)
    return replace(
        structure,
        widths=widths,
        axes=axes,
        uses=uses,
        opaque=tuple(_opaque(structure.opaque, widths, merged.renamed)),
        factors=_factors(structure.factors, widths, merged.renamed),
        conflicts=(*structure.conflicts, *_splits(merged, layout)),
        evens=tuple(_evens(structure.evens, widths, merged.renamed)),
        write=_writer(structure, widths, merged.renamed),
    )


def _joined(name: str, size: int, sources: Sequence[Width], layout: Layout) -> Width:
    """Return what several widths are as one: what each of them allows."""
    if not sources:
        return Width(name, size, "permutation", True, "none", why=f"declared in {layout.path}")
    tightest = max(sources, key=lambda width: _TIGHTER.index(width.symmetry))
    symmetry = tightest.symmetry
    if {"scaling", "orthogonal"} <= {width.symmetry for width in sources} and symmetry in _TIGHTER[
        :3
    ]:
        symmetry = "permutation"
    held = [width for width in sources if not width.resizable]
    touches = {what: by for width in sources for what, by in width.touches}
    return replace(
        tightest,
        name=name,
        size=size,
        symmetry=symmetry,
        resizable=not held,
        growth=max((w.growth for w in sources), key=_GROWTHS.index),
        produced_by=tuple(n for width in sources for n in width.produced_by),
        consumed_by=tuple(n for width in sources for n in width.consumed_by),
        followed_by=tuple(n for width in sources for n in width.followed_by),
        why=held[0].why if held else tightest.why,
        touches=tuple(touches.items()),
    )


def holders_of(members: Iterable[str], merged: Merged) -> dict[str, dict[str, set[Use]]]:
    """Return by width the variables that hold it, each with all that it does with it."""
    found: dict[str, dict[str, set[Use]]] = {}
    for name in members:
        for used, axis in zip(merged.uses[name], merged.axes[name], strict=True):
            for width in axis.widths():
                found.setdefault(width, {}).setdefault(name, set()).update(used.get(width, ()))
    return found


def with_members(width: Width, holders: Mapping[str, set[Use]]) -> Width:
    """Return a width with the variables that hold it; those that it has had come first."""
    produced = [name for name, uses in holders.items() if "produce" in uses]
    consumed = [name for name, uses in holders.items() if "consume" in uses]
    rest = [name for name, uses in holders.items() if uses.isdisjoint(("produce", "consume"))]
    return replace(
        width,
        produced_by=_in_order(width.produced_by, produced),
        consumed_by=_in_order(width.consumed_by, consumed),
        followed_by=_in_order(width.followed_by, rest),
    )


def _in_order(known: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    held = set(names)
    return tuple(dict.fromkeys([*(name for name in known if name in held), *names]))


def overridden(width: Width, layout: Layout) -> Width:
    """Return a width as a layout wants it."""
    name = width.name
    said = layout.classes.get(name, width.symmetry)
    why = f"declared in {layout.path}"
    if said != width.symmetry:
        if "opaque" in (said, width.symmetry):
            width = replace(width, resizable=said != "opaque", growth="none")
        width = replace(width, symmetry=said, why=why)
    if layout.resizable.get(name, width.resizable) != width.resizable:
        width = replace(width, resizable=layout.resizable[name], growth="none", why=why)
    return replace(width, growth=layout.growths.get(name, width.growth))


def _opaque(
    opaque: Sequence[Opaque], widths: Mapping[str, Width], renamed: Mapping[str, Axis]
) -> Iterator[Opaque]:
    for found in opaque:
        for name in renamed[found.name].widths() if found.name in renamed else (found.name,):
            if name in widths and widths[name].symmetry == "opaque":
                yield found._replace(name=name)


def _factors(
    factors: Mapping[str, tuple[SizeFactor, ...]],
    widths: Mapping[str, Width],
    renamed: Mapping[str, Axis],
) -> dict[str, tuple[SizeFactor, ...]]:
    """Return the constants that move with a width; with one that is a product, they do not."""
    found: dict[str, tuple[SizeFactor, ...]] = {}
    for name, constants in factors.items():
        axis = renamed.get(name, Axis(((name,),)))
        names = axis.widths()
        if len(names) == 1 and names[0] in widths and axis == Axis(((names[0],),)):
            found[names[0]] = (*found.get(names[0], ()), *constants)
    return found


def _splits(merged: Merged, layout: Layout) -> Iterator[str]:
    for name, is_now in merged.written.items():
        if len(is_now) > 1:
            yield f"{layout.path} makes {name} several widths: {', '.join(map(str, is_now))}"


def _writer(
    structure: Structure, widths: Mapping[str, Width], renamed: Mapping[str, Axis]
) -> Callable[[Atom], Axis] | None:
    write, sizes = structure.write, structure.sizes
    if write is None:
        return None

    def written(atom: Atom) -> Axis:
        gone = {n: Axis(((size,),)) for n, size in sizes.items() if n not in widths}
        return substituted(write(atom), gone | dict(renamed))

    return written


def _evens(
    evens: Iterable[EvenParts],
    widths: Mapping[str, Width],
    renamed: Mapping[str, Axis],
) -> Iterator[EvenParts]:
    """Yield what has to stay equally long; without what has become several widths."""
    known = {*widths, *renamed}
    for even in evens:
        told = [axis for axis in even.parts if known.issuperset(axis.widths())]
        axes = tuple(dict.fromkeys(substituted(axis, renamed) for axis in told))
        if len(axes) > 1:
            yield even._replace(parts=axes)
