"""What would be written: every error that can be known without reading values is raised here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint import Checkpoint
from converter.counted import count
from converter.errors import (
    ConverterError,
    InputError,
    NothingToDoError,
    PlanError,
)
from converter.publish import COMPANION
from converter.strategy import Beside, Strategy
from converter.target import Target
from converter.variable import Stored, Variable

if TYPE_CHECKING:
    from converter.regraph import Regraphed
    from converter.resize.exactness import Resizes
    from converter.structure.structure import Structure


@dataclass(frozen=True, slots=True)
class Change:
    """One variable of the result, and what became of it.

    Attributes:
        variable: as it will be written.
        sources: the variables of the source that it is made from.
        steps: names of the strategies that made or changed it, in order; empty for a copy.
    """

    variable: Variable
    sources: tuple[Variable, ...]
    steps: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Plan:
    """What would be written.

    Attributes:
        source: the opened checkpoint.
        result: the variables that the strategies leave.
        target: where they go; None while that is not decided.
        changes: one for each variable of the result, in its order.
        dropped: the strategy that dropped it, for each variable of the source that is in none
            of the result.
        variables: what the output holds, under the names that it will store.
        sidecar: what goes beside it, because it cannot hold it.
        unheld: what it cannot hold and nobody has decided about, with the reason.
        left_out: what the format has no use for, with the reason.
        meta: the graph that is carried along: its file, or what is rewritten; or None.
        notes: what else there is to know.
        resized: what the strategies do to widths, step by step.
        metadata: texts that go into the metadata of safetensors.
        files: what is written into the folder of the output beside the variables, by name.
        applied: the strategies, each with the checkpoint that it was applied to.
        idle: the strategies that found nothing to do, by name, with the reason.
    """

    source: Checkpoint
    result: Checkpoint
    target: Target | None
    changes: tuple[Change, ...]
    dropped: dict[str, str]
    variables: tuple[Variable, ...]
    sidecar: tuple[Variable, ...]
    unheld: tuple[tuple[Variable, str], ...]
    left_out: tuple[tuple[Variable, str], ...]
    meta: Path | bytes | None
    notes: tuple[str, ...]
    resized: tuple[Resizes, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    applied: tuple[tuple[Strategy, Checkpoint], ...] = ()
    idle: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        # The variables, and the structure of a model, would fill screens.
        to = "" if self.target is None else f" -> {self.target.path}"
        return f"<Plan: {self.source.path}{to}, {count(len(self.changes), 'variable')}>"

    @property
    def nbytes(self) -> int:
        """Bytes of the values to be written, strings not counted."""
        return sum(v.nbytes for v in (*self.variables, *self.sidecar))

    @property
    def is_exact(self) -> bool:
        """Whether no width changes in a way that changes the outputs."""
        return all(width.verdict.exact for resizes in self.resized for width in resizes.widths)

    @property
    def structure(self) -> Structure | None:
        """The structure of the source where widths of it change; None where none of them does."""
        return _structure(self.resized)

    @property
    def sizes(self) -> dict[str, int]:
        """The new size of each width of the source that changes."""
        return _sizes(self.resized)

    @property
    def resized_variables(self) -> int:
        """How many variables of the result have another size because a width changed."""
        shapes = {s for resizes in self.resized for r in resizes.shapes.values() for s in r.sources}
        return sum(not shapes.isdisjoint(v.sources) for v in self.result.values())

    def prepare(self) -> None:
        """Let the strategies find out what values follow from, those that run a model for one.

        Raises:
            ConverterError: it cannot be found out, or a strategy raised something.
        """
        for strategy, checkpoint in self.applied:
            with _named(strategy):
                strategy.prepare(checkpoint)

    def findings(self) -> tuple[str, ...]:
        """Return what the strategies found out while values were written, one line each.

        Raises:
            ConverterError: a strategy raised something.
        """
        found: list[str] = []
        for strategy, checkpoint in self.applied:
            with _named(strategy):
                found += [f"{strategy.name}: {line}" for line in strategy.findings(checkpoint)]
        return tuple(found)

    def multiples(self) -> dict[str, float]:
        """Return by what tensors are multiplied, by the names of their nodes in the graph.

        Raises:
            ConverterError: a strategy raised something.
        """
        found: dict[str, float] = {}
        for strategy, checkpoint in self.applied:
            with _named(strategy):
                for name, number in strategy.multiples(checkpoint).items():
                    found[name] = found.get(name, 1.0) * number
        return found

    def width_entries(self) -> list[dict[str, Any]]:
        """Return the widths that change as plain data, as `--json` has them."""
        return [
            {
                "name": width.name,
                "old": width.old,
                "new": width.new,
                "exact": width.verdict.exact,
                "why": width.verdict.why,
                "dead": width.dead,
            }
            for resizes in self.resized
            for width in resizes.widths
        ]

    def resized_graph(self) -> bytes | None:
        """Return the graph of the source at the sizes of the result: a MetaGraphDef.

        Its savers know the names that the source has. None where no width of the graph changed.
        """
        found = _regraphed(self.source, self.resized)
        return None if found is None else found.meta

    def shape_in_graph(self, name: str) -> tuple[int, ...]:
        """Return the shape of a variable of the source at the sizes of the result."""
        return _shape(self.source, self.resized, name)

    def refuse(self, *, force: bool = False) -> None:
        """Raise the first reason for which the plan cannot be carried out.

        Args:
            force: an output that exists is no reason.

        Raises:
            PlanError: the output cannot hold a variable, exists, or is the source; or nothing
                would be written.
            InputError: bytes of the source are missing.
        """
        if self.unheld:
            variable, reason = self.unheld[0]
            more = f" (and {len(self.unheld) - 1} more)" if len(self.unheld) > 1 else ""
            raise PlanError(
                f"{variable.name}{more}: {reason}; leave it out (--drop), keep it in a TensorFlow "
                "checkpoint beside the output (--sidecar), or write --to tf"
            )
        if not self.variables:
            raise PlanError(f"{self.source.path}: no variable is left to be written")
        if self.target is not None:
            self.target.check(self.source, self.files, force=force)
        # A strategy may take variables from elsewhere.
        wanted = (s for v in (*self.variables, *self.sidecar) for s in v.sources)
        self.source.check(dict.fromkeys(s for s in wanted if s in self.source))


def make_plan(
    source: Checkpoint,
    strategies: Sequence[Strategy] = (),
    target: Target | None = None,
    *,
    sidecar: bool = False,
    may_idle: bool = False,
) -> Plan:
    """Apply strategies to a checkpoint, in order. No value is read and nothing written.

    Args:
        source: an opened checkpoint.
        strategies: each gets the result of the one before.
        target: where the result goes; None leaves open what the output can hold.
        sidecar: keep what the output cannot hold in a TensorFlow checkpoint beside it.
        may_idle: go on without a strategy that finds nothing to do, which else is refused.

    Raises:
        PlanError: names collide, or sizes cannot be.
    """
    result = source
    touched: dict[str, tuple[str, ...]] = {}
    dropped: dict[str, str] = {}
    notes: list[str] = []
    resized: list[Resizes] = []
    along = Beside(source.metadata)
    applied: list[tuple[Strategy, Checkpoint]] = []
    idle: dict[str, str] = {}
    for strategy in strategies:
        try:
            variables, noted, resizes, beside = _applied(strategy, result)
        except NothingToDoError as error:
            if not may_idle:
                raise
            idle[strategy.name] = str(error)
            continue
        applied.append((strategy, result))
        if beside is not None:
            along = Beside({**along.metadata, **beside.metadata}, {**along.files, **beside.files})
        notes += [f"{strategy.name}: {note}" for note in noted]
        if resizes is not None:
            resized.append(resizes)
        after = result.derive(variables, sizes=resizes.sizes if resizes else None)
        touched = _touched(strategy.name, touched, result, after)
        held = {s for v in after.values() for s in v.sources}
        for name in result:
            for lost in (s for s in result[name].sources if s not in held and s in source):
                dropped.setdefault(lost, strategy.name)
        result = after
    changes = tuple(
        Change(v, tuple(source[s] for s in v.sources if s in source), touched.get(name, ()))
        for name, v in result.items()
    )
    plan = _fit(source, result, changes, dropped, notes, resized, along, target, sidecar=sidecar)
    return replace(plan, applied=tuple(applied), idle=idle)


def _applied(
    strategy: Strategy, checkpoint: Checkpoint
) -> tuple[list[Variable], list[str], Resizes | None, Beside | None]:
    """Return what a strategy makes of a checkpoint, what it says about that, and what it adds."""
    with _named(strategy):
        variables = list(strategy.apply(checkpoint))
        notes = list(strategy.notes(checkpoint))
        resizes = strategy.resizes(checkpoint)
        beside = strategy.beside(checkpoint)
    known: dict[Stored, set[object]] = {}
    for old in checkpoint.values():
        if old.stored is not None:
            known.setdefault(old.stored, set()).add(_value(old))
    for variable in variables:
        if not isinstance(variable, Variable):
            raise ConverterError(
                f"{strategy.name}: apply gave {type(variable).__name__}, where a Variable is "
                "expected; this is a bug of the strategy"
            )
        # The bytes on disk are written in place of the values, whatever `load` gives.
        if variable.stored in known and _value(variable) not in known[variable.stored]:
            raise ConverterError(
                f"{strategy.name}: {variable.name} is another value, but still `stored` as the "
                "old one; this is a bug of the strategy: it must use derive() or map()"
            )
    for name in beside.files if beside is not None else ():
        if not COMPANION.fullmatch(name):
            raise ConverterError(
                f"{strategy.name}: {name!r} is no name for a file beside the variables; this is a "
                "bug of the strategy"
            )
    return variables, notes, resizes, beside


@contextlib.contextmanager
def _named(strategy: Strategy) -> Iterator[None]:
    """Raise whatever somebody's strategy raises with its name, and not as a crash of ours."""
    try:
        yield
    except PlanError:
        raise
    except ConverterError as error:
        raise type(error)(f"{strategy.name}: {error}") from None
    # Whatever somebody's strategy raises is to be told with its name.
    except Exception as error:
        raise ConverterError(
            f"{strategy.name}: the strategy raised {type(error).__name__}: {error}"
        ) from error


def _value(variable: Variable) -> object:
    return id(variable.load), variable.dtype.name, variable.shape


def _touched(
    step: str, touched: dict[str, tuple[str, ...]], before: Checkpoint, after: Checkpoint
) -> dict[str, tuple[str, ...]]:
    """Return the steps behind each variable of `after`, with `step` where it did something."""
    unchanged = {id(v) for v in before.values()}
    by_source = {s: name for name, v in before.items() for s in v.sources}
    result = {}
    for name, variable in after.items():
        if id(variable) in unchanged:
            result[name] = touched.get(name, ())
            continue
        earlier = [touched.get(by_source[s], ()) for s in variable.sources if s in by_source]
        steps = dict.fromkeys(s for group in earlier for s in group)
        result[name] = (*steps, step)
    return result


def _fit(
    source: Checkpoint,
    result: Checkpoint,
    changes: tuple[Change, ...],
    dropped: dict[str, str],
    notes: list[str],
    resized: list[Resizes],
    along: Beside,
    target: Target | None,
    *,
    sidecar: bool,
) -> Plan:
    """Decide what the target holds, under which names, and what goes along with it."""
    same = _signature(source) == _signature(result)
    carried = target is not None and target.format == "tf" and same
    objects = None
    if target is not None and target.format == "tf" and not carried:
        from converter.regraph.objects import regroup

        objects = regroup(source, result)
    left_out: list[tuple[Variable, str]] = []
    if target is not None and not carried and objects is None:
        left_out = list(target.without_objects(result))
    meta: Path | bytes | None = source.meta if carried else None
    if source.meta is not None and target is not None and target.format == "tf" and not same:
        meta, told = _rewritten(source, result, resized)
        notes += told
    if target is not None and target.format == "tf" and target.state and _is_beside(target, source):
        target = replace(target, state=False)
        notes.append(f"{target.directory / 'checkpoint'} belongs to the source and stays as it is")
    if source.metadata.keys() - {"format"} and target is not None and target.format == "tf":
        notes.append(f"the metadata of {source.path.name} is left out: TensorFlow has none")
    skipped = {v.name for v, _ in left_out}
    kept = [v for v in result.values() if v.name not in skipped]
    if carried:
        kept = [v.rename(key) for v in kept for key in source.stored_keys.get(v.name, (v.name,))]
    elif objects is not None:
        kept = list(objects.variables)
        notes += [f"object graph: {note}" for note in objects.notes]
    refused = [(v, r) for v in kept if target is not None and (r := target.refusal(v)) is not None]
    names = {v.name for v, _ in refused}
    files = along.files
    if files and target is not None and not target.is_folder:
        notes.append(
            f"{', '.join(files)} is left out: it belongs into a folder of safetensors (-o DIR/)"
        )
        files = {}
    beside = sidecar and target is not None and target.format == "safetensors"
    return Plan(
        source=source,
        result=result,
        target=target,
        changes=changes,
        dropped=dropped,
        variables=tuple(v for v in kept if v.name not in names),
        sidecar=tuple(v for v, _ in refused) if beside else (),
        unheld=() if beside else tuple(refused),
        left_out=tuple(left_out),
        meta=meta,
        notes=tuple(notes),
        resized=tuple(resized),
        metadata=along.metadata,
        files=files,
    )


def _rewritten(
    source: Checkpoint, result: Checkpoint, resized: Sequence[Resizes]
) -> tuple[bytes | None, list[str]]:
    """Return the graph for a result of other names, or other sizes, and notes about it."""
    assert source.meta is not None
    name = source.meta.name
    held = {s for v in result.values() for s in v.sources}
    if lost := [v for v in source if v not in held]:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        return None, [
            f"{name} is left out: its savers restore {lost[0]}{more}, which the output lacks"
        ]
    found = _regraphed(source, resized)
    notes = [f"{name}: {note}" for note in found.notes] if found is not None else []
    names = {(v.name, v.dtype.name) for v in source.values()}
    if found is not None and names == {(v.name, v.dtype.name) for v in result.values()}:
        return found.meta, notes
    try:
        renamed = _rekeyed(source, result, found, resized)
    except InputError as error:
        return None, [f"{name} is left out: {error}"]
    if renamed is None:
        return None, [f"{name} is left out: it describes the old names, shapes and dtypes"]
    meta, missing = renamed
    notes.append(
        f"{name}: its savers store and find the variables under the new names; the graph itself "
        f"calls them as before"
    )
    if missing:
        notes.append(f"{name}: no saver in it has {len(missing)} of them, such as {missing[0]}")
    return meta, notes


def _rekeyed(
    source: Checkpoint,
    result: Checkpoint,
    regraphed: Regraphed | None,
    resized: Sequence[Resizes],
) -> tuple[bytes, list[str]] | None:
    """Return the graph with the names of the result in its savers, and those that none has.

    None where the result is not the same variables under other names, or no saver knows them.
    """
    keys: dict[str, str] = {}
    for variable in result.values():
        old = source.get(variable.sources[0]) if len(variable.sources) == 1 else None
        if old is None or old.dtype != variable.dtype:
            return None
        if _shape(source, resized if regraphed else (), old.name) != variable.shape:
            return None
        keys[old.name] = variable.name
    if keys.keys() != source.keys() or len(result) != len(source):
        return None
    from converter.regraph.keys import with_keys

    return with_keys(source, keys, regraphed.meta if regraphed else None)


def _shape(source: Checkpoint, resized: Sequence[Resizes], name: str) -> tuple[int, ...]:
    """Return the shape of a variable of the source at the new sizes."""
    structure = _structure(resized)
    if structure is None or name not in structure.axes:
        return source[name].shape
    sizes = {**structure.sizes, **_sizes(resized)}
    return tuple(axis.size(sizes) for axis in structure.axes[name])


def _regraphed(source: Checkpoint, resized: Sequence[Resizes]) -> Regraphed | None:
    """Return the graph at the new sizes; None where no width of the graph changed."""
    structure = _structure(resized)
    if structure is None or structure.findings is None:
        return None
    from converter.regraph import regraph

    return regraph(source, structure, _sizes(resized))


def _structure(resized: Sequence[Resizes]) -> Structure | None:
    """Return the structure of the source, by its own names, where widths of it change."""
    structure = resized[0].structure if resized else None
    return structure and (structure.root or structure)


def _sizes(resized: Sequence[Resizes]) -> dict[str, int]:
    return {name: size for resizes in resized for name, size in resizes.sizes.items()}


def _is_beside(target: Target, source: Checkpoint) -> bool:
    directories = {file.parent for file in source.files}
    return target.directory.is_dir() and any(
        directory.is_dir() and directory.samefile(target.directory) for directory in directories
    )


def _signature(checkpoint: Checkpoint) -> set[tuple[object, ...]]:
    return {(v.name, v.dtype.name, v.shape, v.path) for v in checkpoint.values()}
