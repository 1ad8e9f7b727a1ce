"""Names of widths: after what produces them, for people to choose by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from converter.structure.axes.axis import is_name
from converter.structure.axes.scopes import scope_of
from converter.structure.properties.facts import Facts, Place
from converter.structure.tensors.atoms import Atom, Product

_ODD = re.compile(r"[^A-Za-z0-9_.\-/]")


def names(
    facts: Mapping[Atom, Facts], products: Mapping[Place, Sequence[Product]]
) -> dict[Atom, str]:
    """Name each width, every one differently."""
    suffixes = _suffixes(facts, products)
    found: dict[Atom, str] = {}
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for atom, fact in facts.items():
        base = name = _clean(_name(fact) + suffixes.get(atom, ""))
        while name in taken:
            counts[base] = counts.get(base, 0) + 1
            name = f"{base}_{counts[base]}"
        taken.add(name)
        found[atom] = name
    return found


def _name(fact: Facts) -> str:
    if "lookup" in fact.touches and (consumers := fact.by_use("consume")):
        return f"{scope_of(consumers[0])}/vocabulary"
    if producers := fact.by_use("produce"):
        return _common(producers)
    if "input" in fact.touches:
        return fact.touches["input"].name
    if consumers := fact.by_use("consume"):
        return f"{scope_of(consumers[0])}/inputs"
    return scope_of(next(iter(fact.places)).variable)


def _common(producers: Sequence[str]) -> str:
    """Return the scope of the first producer, or the one above it if it has a sibling there."""
    scopes = [scope_of(name) for name in producers]
    above = scopes[0].rpartition("/")[0]
    has_sibling = any(s != scopes[0] and s.rpartition("/")[0] == above for s in scopes)
    return above if above and has_sibling else scopes[0]


def _suffixes(
    facts: Mapping[Atom, Facts], products: Mapping[Place, Sequence[Product]]
) -> dict[Atom, str]:
    """Tell the factors of products apart: heads and what each of them has, or groups."""
    inner: dict[Atom, dict[Atom, None]] = {}
    alone: set[Atom] = set()
    for terms in products.values():
        for term in terms:
            widths = [atom for atom in term if atom in facts]
            if len(widths) == 1:
                alone.update(widths)
            elif widths:
                inner.setdefault(widths[0], {}).update(dict.fromkeys(widths[1:]))
    found: dict[Atom, str] = {}
    for outer, parts in inner.items():
        is_head = any("paired" in facts[part].touches for part in parts)
        if outer not in alone:
            found[outer] = "/heads" if is_head else "/groups"
        for part in parts:
            if part not in alone and is_head:
                found[part] = "/head_size"
    return found


def _clean(name: str) -> str:
    name = _ODD.sub("_", name)
    return name if is_name(name) else f"_{name}"
