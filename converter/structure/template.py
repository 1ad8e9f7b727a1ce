"""The sizes of widths for which the variables have the shapes of a template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from converter.counted import count
from converter.errors import PlanError
from converter.structure.axes.axis import Axis, Equation, check, solve

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.structure.structure import Structure

_ADVICE = "the template is of another model, or take --resize"


def sizes_like(
    structure: Structure, checkpoint: Checkpoint, template: Checkpoint
) -> dict[str, int]:
    """Return the new size of every width that has another one in a template.

    Variables are matched by name. Those that the template lacks follow their widths, and a width
    that nothing decides keeps its size.

    Raises:
        PlanError: no sizes give the template's shapes, several do, or a width that is another one
            there cannot be resized.
    """
    equations = list(_equations(structure, checkpoint, template))
    sizes = solve(equations, {}, _ADVICE)
    sizes = solve(equations, sizes | _solved(equations, sizes), _ADVICE)
    held = {n: w.size for n, w in structure.widths.items() if not w.resizable and n not in sizes}
    if held:
        sizes = solve(equations, sizes | held, _ADVICE)
    for group in _groups([e for e in equations if not _is_decided(e, sizes)], sizes):
        sizes |= _kept(group, sizes, structure.sizes)
    check(equations, sizes, _ADVICE)
    changed = {}
    for name, width in structure.widths.items():
        if sizes.get(name, width.size) != width.size:
            if not width.resizable:
                raise PlanError(
                    f"{template.path}: {name} has {count(sizes[name], 'unit')} there and "
                    f"{width.size} here, and cannot be resized: {width.why}"
                )
            changed[name] = sizes[name]
    return changed


def _equations(
    structure: Structure, checkpoint: Checkpoint, template: Checkpoint
) -> Iterator[Equation]:
    # A step has no axes, and stands in every checkpoint.
    shared = [name for name in checkpoint if name in template and checkpoint[name].shape]
    if not shared:
        raise PlanError(
            f"{template.path}: none of its {len(template)} variables is called as one of "
            f"{checkpoint.path}; rename them, or take another template"
        )
    for name in shared:
        here, there = checkpoint[name].shape, template[name].shape
        if len(here) != len(there):
            raise PlanError(
                f"{template.path}: {name} is {list(there)} there and {list(here)} here; {_ADVICE}"
            )
        for number, (axis, length) in enumerate(zip(structure.axes[name], there, strict=True)):
            yield Equation(axis, length, f"{template.path}: {name}, axis {number}")


def _is_decided(equation: Equation, sizes: Mapping[str, int]) -> bool:
    return all(name in sizes for name in equation.axis.widths())


def _solved(equations: Sequence[Equation], sizes: Mapping[str, int]) -> dict[str, int]:
    """Solve sums of several unknown widths together, as far as they have but one solution."""
    rows: dict[str, tuple[dict[str, Fraction], Fraction]] = {}
    for equation in equations:
        if _is_decided(equation, sizes) or (found := _linear(equation.axis, sizes)) is None:
            continue
        row, rest = found
        rest = equation.length - rest
        for pivot, (others, constant) in rows.items():
            if share := row.pop(pivot, None):
                row = _minus(row, others, share)
                rest -= share * constant
        if not row:
            # That the rest is none is checked in the end, in the words of the axis.
            continue
        pivot, share = next(iter(row.items()))
        del row[pivot]
        solved = {n: number / share for n, number in row.items()}, rest / share
        for other, (numbers, constant) in rows.items():
            if factor := numbers.pop(pivot, None):
                rows[other] = (
                    _minus(numbers, solved[0], factor),
                    constant - factor * solved[1],
                )
        rows[pivot] = solved
    return {
        name: int(constant)
        for name, (others, constant) in rows.items()
        if not others and constant.denominator == 1 and constant > 0
    }


def _minus(
    row: Mapping[str, Fraction], other: Mapping[str, Fraction], share: Fraction
) -> dict[str, Fraction]:
    found = dict(row)
    for name, number in other.items():
        found[name] = found.get(name, Fraction(0)) - share * number
    return {name: number for name, number in found.items() if number}


def _linear(axis: Axis, sizes: Mapping[str, int]) -> tuple[dict[str, Fraction], Fraction] | None:
    """Return the factor of each unknown width and what is known; None for a product of two."""
    unknown = [name for name in axis.widths() if name not in sizes]
    nothing = {**sizes, **dict.fromkeys(unknown, 0)}
    known = axis.size(nothing)
    factors = {name: axis.size({**nothing, name: 1}) - known for name in unknown}
    twice = axis.size({**nothing, **dict.fromkeys(unknown, 2)})
    if twice != known + 2 * sum(factors.values()) or not all(factors.values()):
        return None
    return {name: Fraction(number) for name, number in factors.items()}, Fraction(known)


def _groups(equations: Sequence[Equation], sizes: Mapping[str, int]) -> list[list[Equation]]:
    """Gather the equations that share a width of unknown size."""
    by_name: dict[str, list[int]] = {}
    for place, equation in enumerate(equations):
        for name in equation.axis.widths():
            if name not in sizes:
                by_name.setdefault(name, []).append(place)
    groups = []
    seen: set[int] = set()
    for place in range(len(equations)):
        if place in seen:
            continue
        seen.add(place)
        members = [place]
        for member in members:
            for name in equations[member].axis.widths():
                others = [other for other in by_name.pop(name, ()) if other not in seen]
                seen.update(others)
                members += others
        groups.append([equations[member] for member in members])
    return groups


def _kept(
    group: Sequence[Equation], sizes: Mapping[str, int], old: Mapping[str, int]
) -> dict[str, int]:
    """Return the sizes that widths have now, where that is what the template wants."""
    names = dict.fromkeys(n for e in group for n in e.axis.widths() if n not in sizes)
    keep = {name: old[name] for name in names}
    wrong = [e for e in group if e.axis.size({**sizes, **keep}) != e.length]
    if not wrong:
        return keep
    candidates = []
    for name in names:
        others = {**sizes, **{other: size for other, size in keep.items() if other != name}}
        try:
            candidates.append(f"{name}={solve(group, others)[name]}")
        except PlanError:
            continue
    few = " or ".join(candidates[:4]) or "several of them together"
    equation = wrong[0]
    raise PlanError(
        f"{equation.subject}: {equation.axis} is {equation.axis.shown({**sizes, **keep})} = "
        f"{equation.axis.size({**sizes, **keep})} and has to be {equation.length}, which leaves "
        f"open which of {', '.join(names)} changes; say it with --resize: {few}"
    )
