"""What a path is, and the variables behind it."""

from __future__ import annotations

import os
import re
from collections.abc import (
    Callable,
    Container,
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    ValuesView,
)
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from converter.counted import count
from converter.dtype import STRING
from converter.errors import InputError, PlanError, UsageError
from converter.formats import OBJECT_GRAPH_KEY, Contents
from converter.variable import Region, Variable

if TYPE_CHECKING:
    from converter.formats.object_graph import Entry
    from converter.location import Location
    from converter.names import Role

_STEP = re.compile(r"(?s)(?!.*-of-\d+\Z).*-(\d+)")
_T = TypeVar("_T")


class Origin(NamedTuple):
    """What a strategy made a checkpoint from.

    Attributes:
        checkpoint: what the strategy got.
        sizes: the new sizes of the widths to which it gave other ones, by name.
    """

    checkpoint: Checkpoint
    sizes: Mapping[str, int]


class Checkpoint(Mapping[str, Variable]):
    """The variables of a checkpoint by name. Making one reads nothing.

    What `open_checkpoint` gives, and what a strategy gets: then it holds the result of the
    strategy before.

    Args:
        variables: in the order in which they are to be listed; names must be unique.
        path: what was opened: the prefix, the file or the directory.
        name: the checkpoint's own name, for outputs: `model.ckpt-100`.
        format: what it is, for people: `TensorFlow V2`.
        files: every file that was or may be read.
        partitions: the regions of the slices of each partitioned variable.
        check: raises InputError for the first of the named variables whose bytes are not all
            there, by sizes only.
        stored_keys: the keys of each variable whose name is not its key (object checkpoints).
        object_graph: the serialized object graph of an object checkpoint, or None.
        meta: the `.meta` file beside it, or None.
        metadata: free text that the file carries.
        roles: gives the role of each variable; None to tell them from the names.
        origin: what it was made from; None where it was opened, or made of nothing.
        known: what is known of the variables already, by the keys of `once`.
        graph_from: the checkpoint whose graph it has; None where it has its own, or none.
        is_in_memory: whether it was made of a model that is no file: `path` is its name, which is
            what errors are about, and its files are temporary ones.

    Raises:
        PlanError: two variables have one name.
    """

    def __init__(
        self,
        variables: Iterable[Variable],
        *,
        path: Path = Path(),
        name: str = "model",
        format: str = "",
        files: tuple[Path, ...] = (),
        partitions: Mapping[str, tuple[Region, ...]] | None = None,
        check: Callable[[Iterable[str]], None] | None = None,
        stored_keys: Mapping[str, tuple[str, ...]] | None = None,
        object_graph: bytes | None = None,
        meta: Path | None = None,
        metadata: Mapping[str, str] | None = None,
        roles: Callable[[Mapping[str, Variable]], Mapping[str, Role]] | None = None,
        origin: Origin | None = None,
        known: Mapping[Hashable, object] | None = None,
        graph_from: Checkpoint | None = None,
        is_in_memory: bool = False,
    ) -> None:
        self._variables: dict[str, Variable] = {}
        for variable in variables:
            other = self._variables.setdefault(variable.name, variable)
            if other is not variable:
                raise PlanError(
                    f"{variable.name}: two variables would have this name, one made from "
                    f"{', '.join(other.sources) or 'nothing'}, the other from "
                    f"{', '.join(variable.sources) or 'nothing'}; rename or drop one of them"
                )
        self.path = path
        self.name = name
        self.format = format
        self.files = files
        self.partitions = partitions or {}
        self.stored_keys = stored_keys or {}
        self.object_graph = object_graph
        self.meta = meta
        self.metadata = metadata or {}
        self._check = check
        self._find_roles = roles
        self._roles: Mapping[str, Role] | None = None
        self.origin = origin
        self._known: dict[Hashable, Any] = dict(known or {})
        self.graph_from = graph_from
        self.is_in_memory = is_in_memory

    @property
    def graph_file(self) -> Path | None:
        """The file with the graph that belongs to it, or that it was given; None without one."""
        if self.graph_from is not None:
            return self.graph_from.graph_file
        if self.meta is not None:
            return self.meta
        return self.files[0] if self.is_frozen else self.exported

    @property
    def is_frozen(self) -> bool:
        """Whether its variables are constants of its graph."""
        return "frozen" in (self.graph_from or self).format

    @property
    def exported(self) -> Path | None:
        """The file of the SavedModel whose variables it has; None where they are of none."""
        found = self.path.parent.parent / "saved_model.pb"
        return found if self.path.parent.name == "variables" and found.is_file() else None

    def __getitem__(self, name: str) -> Variable:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def values(self) -> ValuesView[Variable]:
        """Return the variables; not by looking each of them up, as Mapping does it."""
        return self._variables.values()

    def items(self) -> ItemsView[str, Variable]:
        """Return names and variables."""
        return self._variables.items()

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path}: {self.format}, {count(len(self), 'variable')}>"

    def roles(self) -> Mapping[str, Role]:
        """Return what each variable is for, by its name."""
        if self._roles is None:
            # Imported where it is needed, as the readers are: a command is to start at once.
            from converter.names.by_name import roles

            self._roles = (self._find_roles or roles)(self)
        return self._roles

    def once(self, key: Hashable, find: Callable[[], _T]) -> _T:
        """Return what `find` gives, which is called for the first of these keys only.

        The variables never change, so that what was found out about them holds on.
        """
        if key not in self._known:
            self._known[key] = find()
        found: _T = self._known[key]
        return found

    def check(self, names: Iterable[str]) -> None:
        """Raise InputError if bytes of one of the named variables are missing on disk.

        Only sizes are looked at; damaged bytes are found when they are read.
        """
        if self._check is not None:
            self._check(names)

    @property
    def step(self) -> int | None:
        """The training step: from the name (`model.ckpt-100`), else from a step variable."""
        if match := _STEP.fullmatch(self.name):
            return int(match[1])
        steps = [n for n, role in self.roles().items() if role.kind == "step"]
        steps.sort(key=lambda n: (n.count("/"), n))
        for name in steps[:1]:
            if self[name].shape == () and self[name].dtype.name.startswith(("int", "uint")):
                try:
                    return int(self[name].read())
                except InputError:
                    return None
        return None

    def derive(
        self, variables: Iterable[Variable], *, sizes: Mapping[str, int] | None = None
    ) -> Checkpoint:
        """Return this checkpoint with other variables, whose roles follow from their sources.

        Args:
            variables: of the new checkpoint.
            sizes: the new sizes of the widths that have other ones in it.

        Raises:
            PlanError: two variables have one name.
        """
        return Checkpoint(
            variables,
            path=self.path,
            name=self.name,
            format=self.format,
            files=self.files,
            partitions=self.partitions,
            check=self._check,
            stored_keys=self.stored_keys,
            object_graph=self.object_graph,
            meta=self.meta,
            metadata=self.metadata,
            roles=lambda derived: _inherited(self, derived),
            origin=Origin(self, sizes or {}),
            graph_from=self.graph_from,
            is_in_memory=self.is_in_memory,
        )


def _inherited(parent: Checkpoint, derived: Mapping[str, Variable]) -> dict[str, Role]:
    """Return the roles of variables that a strategy made from those of `parent`.

    What it took from elsewhere is what its name says.
    """
    from converter.names import MODEL
    from converter.names.by_name import roles

    descent = _Descent(parent, derived)
    before = parent.roles()
    by_name: Mapping[str, Role] | None = None
    result = {}
    for name, variable in derived.items():
        old = descent.origin(name)
        if old is None:
            if by_name is None:
                by_name = roles(derived)
            result[name] = MODEL if variable.sources else by_name[name]
            continue
        role = before[old]
        if role.of == name and old != name:
            # An average that took the place of its variable is what that was.
            role = before.get(role.of, MODEL)
        if role.of is not None:
            # None where that variable has gone, whatever has taken its name.
            owners = descent.made_of(role.of)
            of = next(iter(owners), None)
            if len(owners) > 1:
                # Which piece of a slot is of which piece of its variable their names tell.
                if by_name is None:
                    by_name = roles(derived)
                told = by_name[name].of
                of = told if told in owners else of
            role = replace(role, of=of)
        result[name] = role
    return result


class _Descent:
    """Which variables of a checkpoint those of another were made from, as their sources tell.

    Variables that were split of one have the same sources. One that keeps its name is then made of
    the one of that name, and any other of those that have lost theirs.
    """

    def __init__(self, parent: Checkpoint, derived: Mapping[str, Variable]) -> None:
        self._parent, self._derived = parent, derived
        self._kept = {
            name
            for name, variable in derived.items()
            if name in parent and not {*parent[name].sources}.isdisjoint(variable.sources)
        }
        self._olds = _by_source(parent, set())
        self._lost = _by_source(parent, self._kept)
        self._news = _by_source(derived, self._kept)

    def origin(self, name: str) -> str | None:
        """Return the variable that one was made of, the first where there are several."""
        if name in self._kept:
            return name
        sources = self._derived[name].sources
        for found in (self._lost, self._olds):
            for source in sources:
                if source in found:
                    return next(iter(found[source]))
        return None

    def made_of(self, old: str) -> Mapping[str, None]:
        """Return what became of a variable; what keeps its name alone, where one does."""
        if old in self._kept:
            return {old: None}
        sources = self._parent[old].sources if old in self._parent else ()
        if len(sources) == 1:
            return self._news.get(sources[0], {})
        return {name: None for source in sources for name in self._news.get(source, ())}


def _by_source(
    variables: Mapping[str, Variable], without: Container[str]
) -> dict[str, dict[str, None]]:
    """Return the variables that were made of each source, in their order."""
    found: dict[str, dict[str, None]] = {}
    for name, variable in variables.items():
        for source in variable.sources if name not in without else ():
            found.setdefault(source, {})[name] = None
    return found


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    graph_from: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Open a checkpoint of any format. Only names, shapes and dtypes are read.

    Args:
        path: a prefix, one of its files (`.index`, `.data-00000-of-00001`, `.meta`), a directory
            (the checkpoint that its `checkpoint` file names, else the newest in it), a V1 file,
            one of its shards or their glob, a SavedModel directory, a frozen GraphDef (`.pb`),
            a `.safetensors` file or its `.index.json`. Glob characters are taken literally.
        verify: compare what is read later with the checksums that the files record.
        graph_from: another checkpoint of the model, or its `.meta` alone, whose graph this one is
            given as it has none; its variables must have the names that they have there.

    Raises:
        InputError: there is no checkpoint, or it is damaged; the other has no graph.
        UsageError: it has a graph of its own.
    """
    from converter.location import locate

    location = locate(os.fspath(path))
    contents = _read(location, verify=verify)
    checkpoint = _named_by(location, contents)
    if graph_from is not None:
        checkpoint.graph_from = _lent(checkpoint, os.fspath(graph_from))
    return checkpoint


def graph_lender(path: str) -> Checkpoint:
    """Return the checkpoint of which a graph is taken.

    Args:
        path: of a checkpoint, or of a `.meta` file alone.

    Raises:
        InputError: there is none.
    """
    if path.endswith(".meta") and Path(path).is_file():
        # Its values may be gone.
        return Checkpoint((), path=Path(path), meta=Path(path))
    return open_checkpoint(path)


def _lent(checkpoint: Checkpoint, path: str) -> Checkpoint:
    """Return what a checkpoint takes its graph from."""
    if (own := checkpoint.graph_file) is not None:
        raise UsageError(
            f"{checkpoint.path}: it has a graph of its own, {own}; leave out {path} (--graph-from)"
        )
    found = graph_lender(path)
    if found.graph_file is None:
        raise InputError(f"{found.path}: it has no graph (.meta, .pb) either; give another")
    return found


def _named_by(location: Location, contents: Contents) -> Checkpoint:
    by_key = {variable.name: variable for variable in contents.variables}
    graph = by_key.get(OBJECT_GRAPH_KEY)
    if graph is None or graph.dtype is not STRING or graph.shape != ():
        return _opened(location, contents, contents.variables, {})
    return _open_objects(location, contents, by_key, graph.read().item())


def _opened(
    location: Location,
    contents: Contents,
    variables: Iterable[Variable],
    stored_keys: Mapping[str, tuple[str, ...]],
    **more: Any,
) -> Checkpoint:
    names_of = {key: name for name, keys in stored_keys.items() for key in keys}
    return Checkpoint(
        variables,
        path=Path(location.path),
        name=location.name,
        files=contents.files,
        partitions={names_of.get(k, k): regions for k, regions in contents.partitions.items()},
        stored_keys=stored_keys,
        meta=location.meta,
        metadata=contents.metadata,
        **{"format": contents.format, "check": contents.check, **more},
    )


def _open_objects(
    location: Location, contents: Contents, by_key: Mapping[str, Variable], graph: bytes
) -> Checkpoint:
    """Open an object checkpoint under the names that its variables were given."""
    from converter.formats import object_graph
    from converter.names.objects import object_roles

    objects = object_graph.read(graph, by_key, str(location.files[0]))
    keys: dict[str, list[str]] = {entry.key: [entry.key] for entry in objects.entries}
    for copy, key in objects.duplicates.items():
        keys[key].append(copy)
    stored_keys = {entry.name: tuple(keys[entry.key]) for entry in objects.entries}
    return _opened(
        location,
        contents,
        (_named(by_key[entry.key], entry) for entry in objects.entries),
        stored_keys,
        check=lambda names: contents.check(key for n in names for key in stored_keys[n]),
        object_graph=graph,
        roles=lambda variables: object_roles(objects.entries, variables),
        format=f"{contents.format} (objects)",
    )


def _named(variable: Variable, entry: Entry) -> Variable:
    path = None if entry.path == entry.name else entry.path
    return replace(variable, name=entry.name, sources=(entry.name,), path=path)


def _read(location: Location, *, verify: bool) -> Contents:
    # Each reader is imported where it is needed: a command is to start at once.
    if location.kind == "bundle":
        from converter.formats import bundle

        return bundle.read(location.files[0], verify=verify)
    if location.kind == "v1":
        from converter.formats import slices

        return slices.read(location.files, verify=verify)
    if location.kind == "safetensors":
        return _read_safetensors(location.files[0], verify=verify)
    from converter.formats import frozen

    return frozen.read(location.files[0])


def _read_safetensors(path: Path, *, verify: bool) -> Contents:
    """Read a safetensors output, with the TensorFlow checkpoint of what it could not hold."""
    from converter.formats import bundle, safetensors

    contents = safetensors.read(path)
    name = path.name.removesuffix(".index.json").removesuffix(".safetensors")
    index = path.with_name(f"{name}.sidecar.index")
    if not index.is_file():
        return contents
    beside = bundle.read(index, verify=verify)
    names = {variable.name for variable in beside.variables}
    return Contents(
        f"{contents.format} with a sidecar",
        (*contents.variables, *beside.variables),
        (*contents.files, *beside.files),
        beside.partitions,
        lambda wanted: beside.check(name for name in wanted if name in names),
        contents.metadata,
    )
