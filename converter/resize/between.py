"""What two checkpoints of one model at two sizes differ in, where nobody tells how that came."""

from __future__ import annotations

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import ConverterError
from converter.resize.exactness import Resized, Resizes, Verdict
from converter.resize.units import Units, WidthMap
from converter.structure.infer import structure_of
from converter.structure.structure import Structure
from converter.structure.template import sizes_like


def between(a: Checkpoint, b: Checkpoint) -> tuple[Resizes, ...]:
    """Return what can have become of the widths of one checkpoint in another.

    First that its units are the first ones there, and new ones are nothing's copies; then, where a
    width is larger, that these are copies of the first, the second and so on, round and round.

    None where no variable has another size, or where no widths explain it.
    """
    shared = [name for name in a if name in b]
    if all(a[name].shape == b[name].shape for name in shared):
        return ()
    try:
        structure = structure_of(a)
        sizes = sizes_like(structure, a, b)
    except ConverterError:
        return ()
    if not sizes:
        return ()
    found = [_resizes(structure, sizes, copied=False)]
    if any(size > structure.widths[name].size for name, size in sizes.items()):
        found.append(_resizes(structure, sizes, copied=True))
    return tuple(found)


def _resizes(structure: Structure, sizes: dict[str, int], *, copied: bool) -> Resizes:
    maps: dict[str, WidthMap] = {}
    widths = []
    for name, size in sizes.items():
        old = structure.widths[name].size
        units = Units(size, np.arange(size) % old) if copied else Units.first(old, size)
        maps[name] = WidthMap(units, units)
        verdict = Verdict(False, "nobody tells what became of its units")
        widths.append(Resized(name, old, size, verdict, None))
    return Resizes(tuple(widths), {}, maps, structure)
