"""Where the objects of a TensorFlow 2 checkpoint go when variables in them get other paths."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from converter.errors import PlanError
from converter.formats.object_edges import Edges, Path
from converter.formats.object_graph import ATTRIBUTES, SLOT, VALUE, escaped, path_of, unescaped

_MAX_DEPTH = 64
# Keras 2 has every layer that has weights a second time, under its place among all layers.
_WEIGHTS = re.compile(r"layer_with_weights-\d+")
_LAYER = re.compile(r"layer-\d+")


@dataclass(frozen=True, slots=True)
class Placed:
    """A variable of the output, and which object it is.

    Attributes:
        name: its name in the output.
        keys: the keys of the source that it takes; none for a new object.
        like: the keys of what a new object is made from.
        path: where it is to be, as people write it; None: it stays where it is, or goes along
            with the object that holds it.
        full_name: the name that it is given; None keeps the one it has.
        old_name: the name that it had, where it is given another: a path that ends like it
            follows.
    """

    name: str
    keys: tuple[str, ...]
    like: tuple[str, ...] = ()
    path: str | None = None
    full_name: str | None = None
    old_name: str | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key, taken apart.

    Attributes:
        path: the object; of a slot, the variable that it belongs to.
        optimizer: of a slot, the optimizer; None for everything else.
        slot: of a slot, its name as it stands in the key.
        attribute: what of the object it is.
    """

    path: Path
    optimizer: Path | None = None
    slot: str = ""
    attribute: str = VALUE

    @classmethod
    def parse(cls, key: str) -> Key:
        """Take a key apart."""
        path, _, attribute = key.rpartition(ATTRIBUTES)
        path = path.removesuffix("/")
        names = path.split("/") if path else []
        if SLOT not in names:
            return cls(tuple(map(unescaped, names)), None, "", attribute)
        middle = names.index(SLOT)
        of, optimizer, slot = names[:middle], names[middle + 1 : -1], names[-1]
        return cls(tuple(map(unescaped, of)), tuple(map(unescaped, optimizer)), slot, attribute)

    def __str__(self) -> str:
        names = [escaped(name) for name in self.path]
        if self.optimizer is not None:
            names += [SLOT, *map(escaped, self.optimizer), self.slot]
        return "/".join([*names, ATTRIBUTES + self.attribute])


class Places:
    """Where objects go.

    A variable whose path is known to the user has a say in where the objects above it go. If all
    that have a say below an object agree, it goes there with everything that it holds; else they
    go one by one.
    """

    def __init__(self, edges: Edges, placed: Sequence[Placed]) -> None:
        self._edges = edges
        self._alone: dict[str, Path] = {}
        said: defaultdict[Path, set[Path]] = defaultdict(set)
        for one in placed:
            for key in one.keys[:1]:
                self._hear(one, key, said)
        self._at: dict[Path, Path] = {(): ()}
        self._lengths: list[int] = []
        for path in sorted(said, key=len):
            wanted = said[path]
            self._at[path] = next(iter(wanted)) if len(wanted) == 1 else self.now(path)
            if len(path) not in self._lengths[:1]:
                self._lengths.insert(0, len(path))

    def _hear(self, one: Placed, key: str, said: defaultdict[Path, set[Path]]) -> None:
        if one.path is None or one.path == (old := path_of(key)):
            if one.path is not None and self._is_held(parsed := Key.parse(key)):
                for path, goal in _steps(parsed.path, parsed.path):
                    said[path].add(goal)
            return
        parsed = Key.parse(key)
        wanted = one.path
        if parsed.attribute != VALUE:
            wanted, slash, attribute = one.path.rpartition("/")
            if attribute != parsed.attribute or not slash:
                return
        if self._is_held(parsed):
            for path, goal in _steps(parsed.path, _respelt(parsed.path, wanted)):
                said[path].add(goal)
        elif SLOT not in wanted.split("/"):
            # A slot has no path but that of its variable, until it becomes something of its own.
            self._alone[key] = _respelt(tuple(old.split("/")), wanted)

    def _is_held(self, key: Key) -> bool:
        return key.optimizer is None and self._edges.walk(key.path) is not None

    def now(self, path: Path) -> Path:
        """Return where the object of an old path is now."""
        for length in self._lengths:
            if path[:length] in self._at and length <= len(path):
                return self._at[path[:length]] + path[length:]
        return path

    def path(self, key: str) -> Path | None:
        """Return where the variable of an old key is now; None for a slot."""
        parsed = Key.parse(key)
        if key in self._alone:
            return self._alone[key]
        return self.now(parsed.path) if parsed.optimizer is None else None

    def key(self, key: str) -> str:
        """Return the new key of an old one."""
        parsed = Key.parse(key)
        if key in self._alone:
            return str(Key(self._alone[key], attribute=parsed.attribute))
        optimizer = None if parsed.optimizer is None else self.now(parsed.optimizer)
        moved = replace(parsed, path=self.now(parsed.path), optimizer=optimizer)
        return key if moved == parsed else str(moved)

    def move(self) -> tuple[tuple[str, str], ...]:
        """Move the objects; return old and new path of each, what it holds not told.

        Raises:
            PlanError: another object is in the way.
        """
        moves = []
        for path, goal in self._at.items():
            number = self._edges.walk(path)
            if path and number is not None and goal != (*self.now(path[:-1]), path[-1]):
                moves.append((path, goal, number))
        # From the innermost: the way to it leads through those that go, too.
        for path, _, number in reversed(moves):
            self._edges.detach(path)
            if _WEIGHTS.fullmatch(path[-1]):
                self._edges.unalias(path[:-1], number, _LAYER)
        told = [("/".join(path), "/".join(goal)) for path, goal, _ in moves]
        told += [(path_of(key), "/".join(goal)) for key, goal in self._alone.items()]
        alone = [
            ((), goal, self._edges.owners[key][0])
            for key, goal in self._alone.items()
            if key in self._edges.owners
        ]
        self._edges.release({number for _, _, number in alone})
        moves += alone
        for _, goal, number in sorted(moves, key=lambda move: len(move[1])):
            obstacle = self._edges.attach(number, goal)
            if obstacle is not None:
                raise PlanError(
                    f"{'/'.join(obstacle)}: another object of the checkpoint has this path; choose "
                    f"another, or move that one too"
                )
        return tuple(told)


def also(edges: Edges, path: Path | None, old_name: str, new_name: str) -> str | None:
    """Let a variable with a new name be found where a path that ends like it would follow.

    Returns:
        That path; None if there is none, or another object has it.
    """
    number = None if path is None else edges.walk(path)
    followed = None if path is None else follow(old_name, new_name, "/".join(path))
    if path is None or number is None or followed is None:
        return None
    second = _respelt(path, followed)
    return followed if edges.attach(number, second) is None else None


def follow(name: str, new_name: str, other: str) -> str | None:
    """Return what becomes of a name that ends like one that changes; None where that is open.

    The path and the given name of a variable often end alike, `net/dense/kernel` and
    `dense/kernel`. Where only what they share changes, both change; where only the rest does, the
    other stays.
    """
    old, new, rest = name.split("/"), new_name.split("/"), other.split("/")
    shared = _shared(old, rest)
    if not shared:
        return None
    if new[-shared:] == old[-shared:]:
        return other
    scope = old[:-shared]
    if new[: len(scope)] == scope and len(new) > len(scope):
        return "/".join(rest[:-shared] + new[len(scope) :])
    return None


def _shared(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many components two names have in common at their ends."""
    count = 0
    while count < min(len(first), len(second)) and first[-1 - count] == second[-1 - count]:
        count += 1
    return count


def _steps(old: Path, new: Path) -> Iterator[tuple[Path, Path]]:
    """Yield where a variable goes, and where the objects above it would go with it."""
    shared = _shared(old, new)
    head = _shared(old[::-1], new[::-1])
    for length in range(max(1, len(old) - _MAX_DEPTH), len(old)):
        rest = len(old) - length
        if rest <= shared:
            yield old[:length], new[:-rest]
        elif len(old) == len(new) or length <= head:
            yield old[:length], new[:length]
    if old:
        yield old, new


def _respelt(old: Path, new: str) -> Path:
    """Return the local names of a path as people write it.

    A local name of `old` that has slashes stays one.
    """
    start, end = 0, len(new)
    head, tail = 0, 0
    for name in old:
        if len(name) == end - start and new.endswith(name):
            return old[: head + 1]
        if not new.startswith(f"{name}/", start):
            break
        head, start = head + 1, start + len(name) + 1
    for name in reversed(old[head:]):
        if not new.endswith(f"/{name}", start, end):
            break
        tail, end = tail + 1, end - len(name) - 1
    return (*old[:head], *new[start:end].split("/"), *old[len(old) - tail :])
