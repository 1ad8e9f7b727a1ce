"""Where an output goes and what it is: a safetensors file or directory, a TensorFlow checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from converter.errors import InputError, PlanError, UsageError, did_you_mean
from converter.formats import Contents, bundle, safetensors, state
from converter.formats.stream import Output
from converter.publish import DATA, STATE, Outputs, family
from converter.variable import Variable

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

Format = Literal["safetensors", "tf"]
OpenOutput = Callable[[Path], Output]

SHARD_BYTES = 5_000_000_000
"""The size above which a safetensors directory is sharded, as huggingface_hub has it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One output.

    Attributes:
        directory: the directory of its files.
        name: what they are named after: `NAME.safetensors`, or the prefix of a TensorFlow V2
            checkpoint.
        format: `safetensors`, or `tf`.
        shard_size: bytes of the variables in one file; None for a single file.
        state: whether a TensorFlow checkpoint gets its `checkpoint` state file.
    """

    directory: Path
    name: str
    format: Format
    shard_size: int | None = None
    state: bool = True

    @property
    def path(self) -> Path:
        """What `open_checkpoint` opens: the safetensors file, sharded or not, or the prefix."""
        suffix = "" if self.format == "tf" else ".safetensors"
        return self.directory / (self.name + suffix)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder as libraries load it, with a `model.safetensors` in it."""
        return self.format == "safetensors" and self.name == "model"

    @property
    def sidecar(self) -> str:
        """Prefix, in the directory, of what safetensors cannot hold."""
        return f"{self.name}.sidecar"

    @property
    def record(self) -> Path:
        """What `convert batch` remembers of how the output was made."""
        return self.directory / f"{self.name}.conversion.json"

    def refusal(self, variable: Variable) -> str | None:
        """Return why this output cannot hold a variable, or None where it can."""
        if self.format == "safetensors":
            return safetensors.refusal(variable)
        return "TensorFlow allows no empty names" if not variable.name else None

    def without_objects(self, result: Checkpoint) -> Iterator[tuple[Variable, str]]:
        """Yield the object graph and what belongs to it, where it is not carried, and why not."""
        roles = result.roles()
        graph = [name for name, role in roles.items() if role.kind == "object_graph"]
        reason = "safetensors is name-based"
        if self.format == "tf":
            reason = "it is not what it was; TensorFlow 2 finds the variables by name only"
        yield from ((result[name], f"the object graph: {reason}") for name in graph)
        if graph and self.format != "tf":
            counters = [name for name, role in roles.items() if role.kind == "save_counter"]
            yield from ((result[name], "it belongs to the object graph") for name in counters)

    def existing(self) -> list[Path]:
        """Return the files that an earlier output of this name has left."""
        pattern = family(self._commit(()))
        try:
            names = sorted(path.name for path in self.directory.iterdir())
        except OSError:
            return []
        return [self.directory / n for n in names if pattern and pattern.fullmatch(n)]

    def obstacle(self) -> str | None:
        """Return what lies in the way and is never replaced, or None."""
        for path in self.existing():
            if path.is_dir() and not path.is_symlink():
                return f"{path} is a directory; move it away, or choose another output"
        return state_obstacle(self.directory) if self.format == "tf" and self.state else None

    def check(self, source: Checkpoint, files: Iterable[str], *, force: bool) -> None:
        """Refuse to write where nothing can be written, or what belongs to the source.

        Args:
            source: what is converted.
            files: the names of what is written beside the variables.
            force: an output that exists is no reason.

        Raises:
            PlanError: the output cannot be there, exists, or is the source or its graph.
        """
        directory = self.directory
        if directory.exists() and not directory.is_dir():
            raise PlanError(
                f"{directory} is a file, and a directory is needed; choose another output"
            )
        if (obstacle := self.obstacle()) is not None:
            raise PlanError(obstacle)
        if self.path.resolve() == source.path.resolve():
            # Also where no file is shared: a V2 checkpoint hides a V1 file of its name.
            raise PlanError(
                f"{self.path} belongs to the source, which is never written; choose another"
            )
        existing = self.existing()
        existing += [path for name in files if os.path.lexists(path := directory / name)]
        graph = source.graph_file
        known = source.files if graph is None else (*source.files, graph)
        own = {(s.st_dev, s.st_ino) for f in known if f.exists() for s in [f.stat()]}
        for path in existing:
            stat = path.stat() if path.exists() else path.lstat()
            if (stat.st_dev, stat.st_ino) in own:
                raise PlanError(
                    f"{path} belongs to the source, which is never written; choose another"
                )
        if existing and not force:
            raise PlanError(
                f"{existing[0]} exists; use --force to replace it, or choose another output"
            )

    def write(
        self,
        stage: Path,
        variables: Sequence[Variable],
        sidecar: Sequence[Variable],
        *,
        meta: Path | bytes | None,
        metadata: Mapping[str, str],
        files: Mapping[str, bytes],
        open_output: OpenOutput,
    ) -> dict[str, int | None]:
        """Write every file into `stage` and return the CRC-32C of each variable's bytes.

        Args:
            stage: an empty directory.
            variables: what the output holds, under the names to store.
            sidecar: what goes into the TensorFlow checkpoint beside a safetensors output.
            meta: a graph to carry along: its file, or its bytes.
            metadata: free text for safetensors to carry along.
            files: what lies beside the variables, by name.
            open_output: makes a file.
        """
        for name, data in files.items():
            with open_output(stage / name) as output:
                output.write(data)
        if self.format == "safetensors":
            layout = safetensors.layout(
                variables, self.name, shard_size=self.shard_size, metadata=metadata
            )
            checksums = safetensors.write(stage, layout, open_output=open_output)
            if sidecar:
                checksums |= bundle.write(stage / self.sidecar, sidecar, open_output=open_output)
            return checksums
        checksums = bundle.write(
            stage / self.name, variables, open_output=open_output, shard_size=self.shard_size
        )
        if isinstance(meta, bytes):
            with open_output(stage / f"{self.name}.meta") as output:
                output.write(meta)
        elif meta is not None:
            with open_output(stage / f"{self.name}.meta") as output, meta.open("rb") as source:
                while data := source.read(1 << 20):
                    output.write(data)
        if self.state:
            with open_output(stage / STATE) as output:
                output.write(state_with(self.directory, [self.name]).encode())
        return checksums

    def read_back(self, stage: Path) -> list[Contents]:
        """Read what `write` has left in `stage`."""
        if self.format == "tf":
            return [bundle.read(stage / f"{self.name}.index")]
        contents = [safetensors.read(stage / self._commit(path.name for path in stage.iterdir()))]
        sidecar = stage / f"{self.sidecar}.index"
        return contents + ([bundle.read(sidecar)] if sidecar.exists() else [])

    def outputs(self, files: Iterable[str]) -> Outputs:
        """Return how `files`, as written, take the place of what exists.

        Raises:
            PlanError: something of it is never replaced.
        """
        if (obstacle := self.obstacle()) is not None:
            raise PlanError(obstacle)
        files = tuple(files)
        there = [path.name for path in self.existing()]
        data = re.compile(rf".*({DATA}|-\d{{5}}-of-\d{{5}}\.safetensors)", re.DOTALL)
        return Outputs(
            self.directory,
            files,
            self._commit(files),
            markers=tuple(n for n in there if not data.fullmatch(n)),
            obsolete=tuple(n for n in there if data.fullmatch(n) and n not in files),
            shared=tuple(n for n in files if n == STATE),
        )

    def opened(self, files: Iterable[str]) -> Path:
        """Return what `open_checkpoint` takes for an output of these files."""
        return self.path if self.format == "tf" else self.directory / self._commit(files)

    def _commit(self, files: Iterable[str]) -> str:
        if self.format == "tf":
            return f"{self.name}.index"
        index = f"{self.name}.safetensors.index.json"
        return index if index in files else f"{self.name}.safetensors"


def state_obstacle(directory: Path) -> str | None:
    """Return why the state file of a directory cannot be replaced, or None."""
    file = directory / STATE
    if not os.path.lexists(file):
        return None
    try:
        if file.is_file() and (file.stat().st_size == 0 or state.read_state(file)):
            return None
    except (InputError, OSError):
        pass
    return f"{file} is no state file of TensorFlow's; move it away, or choose another directory"


def state_with(directory: Path, names: Sequence[str]) -> str:
    """Return a state file that adds `names` to those that it has and that are still there.

    The last one becomes the current one.
    """
    file = directory / STATE
    before = dict.fromkeys(
        _name_in(directory, path) for path in (state.read_state(file) if file.is_file() else [])
    )
    kept = [n for n in before if n not in names and _is_checkpoint(directory, n)]
    return state.state_text(*kept, *names)


def _name_in(directory: Path, path: str) -> str:
    """Return a path without the directory, where TensorFlow has written it absolute."""
    parent, name = os.path.split(path)
    if Path(path).is_absolute() and os.path.realpath(parent) == os.path.realpath(directory):
        return name
    return path


def _is_checkpoint(directory: Path, name: str) -> bool:
    if not name or "\0" in name or Path(name).is_absolute():
        return False
    path = directory / name
    if path.is_file() or Path(f"{path}.index").is_file():
        return True
    # A sharded V1 checkpoint is named `NAME-?????-of-00002`, or just `NAME`.
    shards = re.escape(path.name).replace(r"\?", r"\d") + r"(-\d{5}-of-\d{5})?"
    try:
        return any(re.fullmatch(shards, other.name) for other in path.parent.iterdir())
    except OSError:
        return False


def parse_target(
    output: str | os.PathLike[str],
    *,
    name: str,
    to: str | None = None,
    shard_size: int | None = None,
    state: bool = True,
) -> Target:
    """Make the target that `-o OUTPUT` and `--to FORMAT` mean.

    Args:
        output: `x.safetensors` is that file, `x.index` the TensorFlow checkpoint `x`; anything
            else is a directory, with a `model.safetensors` or a TensorFlow checkpoint in it.
        name: the source's own name, for a TensorFlow checkpoint in a directory.
        to: `safetensors` or `tf`; None for what `output` says, or safetensors.
        shard_size: bytes in one file. None: a directory of safetensors is sharded above
            SHARD_BYTES, everything else is one file.
        state: whether a TensorFlow checkpoint gets its `checkpoint` state file.

    Raises:
        UsageError: `to` is unknown, or contradicts the ending of `output`.
    """
    if shard_size is not None and shard_size <= 0:
        raise UsageError(f"shard_size must be a positive number of bytes, got {shard_size}")
    text = os.fspath(output)
    endings: dict[str, Format] = {".safetensors": "safetensors", ".index": "tf"}
    said = next((f for ending, f in endings.items() if text.endswith(ending)), None)
    formats: dict[str, Format] = {"safetensors": "safetensors", "tf": "tf"}
    if to is not None and to not in formats:
        raise UsageError(f"no format {to!r}, only safetensors and tf{did_you_mean(to, formats)}")
    format_ = formats[to] if to else said or "safetensors"
    if said is not None and said != format_:
        raise UsageError(f"{text}: the ending says {said}, and --to says {to}; change one of them")
    path = Path(text)
    if said is not None:
        file = path.name.removesuffix(".safetensors" if said == "safetensors" else ".index")
        if not file:
            raise UsageError(f"{text}: a file needs a name before its ending")
        return Target(path.parent, file, format_, shard_size, state)
    if format_ == "tf":
        return Target(path, name, "tf", shard_size, state)
    return Target(path, "model", "safetensors", shard_size or SHARD_BYTES, state)
