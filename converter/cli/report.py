"""How a plan and its result are told."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from converter.checkpoint import Checkpoint
from converter.cli.text import shape, size
from converter.counted import count
from converter.names import Role
from converter.pipeline import Result
from converter.plan import Change, Plan
from converter.resize.exactness import Resizes
from converter.resize.units import Units
from converter.variable import Variable

_FEW = 40
_NOUNS = {
    "model": "model variable",
    "batch_statistic": "batch statistic",
    "slot": "optimizer slot",
    "average": "average",
    "step": "step counter",
    "beta_power": "beta power",
    "optimizer": "optimizer variable",
    "table": "table tensor",
    "save_counter": "save counter",
    "object_graph": "object graph",
}


def plan_lines(plan: Plan, *, verbose: bool = False) -> Iterator[str]:
    """Yield the plan for people: what is read, changed, dropped, copied, and written.

    Args:
        plan: the plan.
        verbose: list every variable, where otherwise long lists are cut and copies counted.
    """
    yield _source_line(plan.source)
    for resizes in plan.resized:
        yield from _width_lines(resizes)
    changed = [change for change in plan.changes if change.steps]
    shapes = _shapes(plan)
    yield from _cut([_change_line(change, shapes) for change in changed], verbose)
    yield from _dropped_lines(plan, verbose)
    copied = [change.variable for change in plan.changes if not change.steps]
    copied = [v for v in copied if v.name not in {left.name for left, _ in plan.left_out}]
    if verbose:
        for variable in copied:
            yield f"copy    {_described(variable)}"
    elif copied:
        yield f"copy    {count(len(copied), 'variable')}, {size(_bytes(copied))}"
    for variable, reason in plan.left_out:
        yield f"leave   {variable.name} ({reason})"
    for variable in plan.sidecar:
        yield f"sidecar {_described(variable)}"
    for variable, reason in plan.unheld:
        yield f"decide  {_described(variable)}: {reason}"
    for note in plan.notes:
        yield f"note    {note}"
    for name, data in plan.files.items():
        yield f"beside  {name}, {size(len(data))}"
    if plan.target is not None:
        held = count(len(plan.variables), "variable")
        yield f"output  {plan.target.path}: {held}, {size(_bytes(plan.variables))}"


def result_lines(result: Result) -> Iterator[str]:
    """Yield what a conversion did, for people."""
    for name, counts in result.counts.items():
        for what, number in counts.items():
            yield f"warning {name}: {number:,} {what}"
    for line in result.found:
        yield f"found   {line}"
    rate = result.nbytes / max(result.writing_seconds, 1e-9)
    how = "verified" if result.verified else "not read back"
    files = count(len(result.files), "file")
    yield f"wrote   {result.output} ({files}, {size(result.nbytes)}, {how}, {size(rate)}/s)"


def as_json(plan: Plan, result: Result | None) -> dict[str, object]:
    """Return a plan, and what came of it, as plain data; docs/cli.md describes the keys."""
    roles = plan.result.roles()
    report: dict[str, object] = {
        "source": str(plan.source.path),
        "format": plan.source.format,
        "output": str(plan.target.path) if plan.target else None,
        "to": plan.target.format if plan.target else None,
        "bytes": plan.nbytes,
        "variables": [
            {
                "name": c.variable.name,
                "dtype": c.variable.dtype.name,
                "shape": list(c.variable.shape),
                "bytes": c.variable.nbytes,
                "role": roles[c.variable.name].kind,
                "sources": [v.name for v in c.sources],
                "steps": list(c.steps),
            }
            for c in plan.changes
        ],
        "dropped": plan.dropped,
        "sidecar": [v.name for v in plan.sidecar],
        "undecided": {v.name: reason for v, reason in plan.unheld},
        "left_out": {v.name: reason for v, reason in plan.left_out},
        "files": list(plan.files),
        "notes": list(plan.notes),
        "widths": plan.width_entries(),
        "held": {name: why for resizes in plan.resized for name, why in resizes.held.items()},
    }
    if result is not None:
        report["result"] = {
            "files": [str(path) for path in result.files],
            "bytes": result.nbytes,
            "seconds": result.seconds,
            "verified": result.verified,
            "counts": {name: dict(counts) for name, counts in result.counts.items()},
            "units": _units(plan),
            "found": list(result.found),
        }
    return report


def _units(plan: Plan) -> dict[str, list[int]]:
    """Return which old unit each new one is, by width, where a choice of them was made."""
    return {
        name: width_map.produce.index.tolist()
        for resizes in plan.resized
        for name, width_map in resizes.maps.items()
        if isinstance(width_map.produce, Units) and width_map.produce.kept is None
    }


def _source_line(source: Checkpoint) -> str:
    variables = list(source.values())
    total = _bytes(variables)
    roles = source.roles()
    state = _bytes(v for v in variables if roles[v.name].is_optimizer_state)
    line = f"read    {source.path} ({source.format}): {count(len(variables), 'variable')}, "
    line += size(total)
    if state:
        line += f", {100 * state / total:.0f} % of it optimizer state"
    return line


def _width_lines(resizes: Resizes) -> Iterator[str]:
    """Yield what happens to each width: its sizes, whether that is exact, and whether it learns."""
    for width in resizes.widths:
        verdict = "exact" if width.verdict.exact else "not exact"
        yield f"width   {width.name}  {width.old} -> {width.new}  {verdict}: {width.verdict.why}"
        if width.dead is not None:
            yield f"        dead to training: {width.dead}"


def _shapes(plan: Plan) -> dict[tuple[str, ...], str]:
    """Return the change of shape over widths, by the sources of a variable."""
    first: dict[tuple[str, ...], str] = {}
    found: dict[tuple[str, ...], str] = {}
    for resizes in plan.resized:
        for reshaped in resizes.shapes.values():
            old = first.setdefault(reshaped.sources, reshaped.old)
            found[reshaped.sources] = f"{old} -> {reshaped.new}"
    return found


def _change_line(change: Change, shapes: Mapping[tuple[str, ...], str]) -> str:
    label = "+".join(change.steps).ljust(7)
    new = change.variable
    old = change.sources[0] if len(change.sources) == 1 else None
    if old is None:
        made = f" from {', '.join(v.name for v in change.sources)}" if change.sources else ""
        return f"{label} {_described(new)}{made}"
    name = new.name if new.name == old.name else f"{old.name} -> {new.name}"
    dtype = f"{new.dtype}" if new.dtype is old.dtype else f"{old.dtype} -> {new.dtype}"
    sizes = shape(new.shape)
    if new.shape != old.shape:
        sizes = shapes.get(new.sources, f"{shape(old.shape)} -> {sizes}")
    return f"{label} {name}  {dtype} {sizes}"


def _dropped_lines(plan: Plan, verbose: bool) -> Iterator[str]:
    by_step: dict[str, list[Variable]] = defaultdict(list)
    for name, step in plan.dropped.items():
        by_step[step].append(plan.source[name])
    for step, variables in by_step.items():
        if verbose:
            for variable in variables:
                yield f"{step.ljust(7)} {_described(variable)}: left out"
            continue
        kinds = _kinds(variables, plan.source.roles())
        yield f"{step.ljust(7)} {kinds} left out, {size(_bytes(variables))}"


def _kinds(variables: Sequence[Variable], roles: Mapping[str, Role]) -> str:
    kinds = Counter(roles[v.name].kind for v in variables)
    return ", ".join(count(number, _NOUNS[kind]) for kind, number in kinds.most_common())


def _described(variable: Variable) -> str:
    return f"{variable.name}  {variable.dtype} {shape(variable.shape)}"


def _bytes(variables: Iterable[Variable]) -> int:
    return sum(variable.nbytes for variable in variables)


def _cut(lines: Sequence[str], verbose: bool) -> Iterator[str]:
    shown = lines if verbose or len(lines) <= _FEW else lines[: _FEW // 2]
    yield from shown
    if len(shown) < len(lines):
        yield f"        ... and {len(lines) - len(shown)} more; -v lists all"
