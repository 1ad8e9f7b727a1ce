"""Axes while they are being found out: atoms that are merged, cut and factored.

Each axis of each tensor begins as an atom of which nothing but its size is known. `unify` says that
two axes are the same one: it walks both, merges what is of equal size, cuts what is larger at the
boundary, and factors what a product stands opposite of. What is cut or factored is so wherever it
occurs, since an atom is bound once and looked up by `find`: a union-find with substitution.

Every step either removes an atom or replaces it by smaller ones, so it ends. Atoms of unknown size
(a batch) are merged and bound, never cut. Nothing recurses: the depth would follow the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

Product = tuple["Atom", ...]
"""Factors, the outermost first."""

_MAX_TERMS = 1024
_MAX_UNROLLED = 64


class Kind(Enum):
    """What an atom has turned out to be."""

    LEAF = 0
    SUM = 1
    PRODUCT = 2


class Atom:
    """An axis, or a piece or a factor of one.

    Attributes:
        size: the length; None where it is not known. Of a sum or product: None if any part's is.
        kind: a leaf until it is cut or factored.
        parts: of what it is the sum or product.
        link: what it was merged with; `find` follows it.
        piece: for a slice of a partitioned variable, which one.
    """

    __slots__ = ("kind", "link", "parts", "piece", "size")

    def __init__(
        self, size: int | None, kind: Kind = Kind.LEAF, parts: tuple[Atom, ...] = ()
    ) -> None:
        self.size = size
        self.kind = kind
        self.parts = parts
        self.link: Atom | None = None
        self.piece: Piece | None = None


class Whole:
    """An axis that is stored in slices.

    It stays one axis for whoever joins all slices in their order. Only where a slice by itself
    meets something else is the axis the sum of its slices: see `settle`.

    Args:
        sizes: of the slices, in order.
        name: of the axis, for people.
    """

    def __init__(self, sizes: Sequence[int], name: str = "") -> None:
        self.name = name
        self.full = leaf(sum(sizes))
        self.parts = tuple(Atom(size) for size in sizes)
        self.is_whole = True
        self.is_used_apart = False
        for index, part in enumerate(self.parts):
            part.piece = Piece(self, index)

    def settle(self) -> None:
        """Decide, once all is unified, whether the slices are seen as one axis.

        Raises:
            Clash: they are not, and what they are together has been cut elsewhere.
        """
        is_bound = any(p.link is not None or p.kind is not Kind.LEAF for p in self.parts)
        if is_bound or self.is_used_apart:
            self.split()

    def split(self) -> None:
        """See the slices as axes of their own from now on."""
        if self.is_whole:
            self.is_whole = False
            unify(self.full, _sum(self.parts))


@dataclass(frozen=True)
class Piece:
    """Which slice of which axis."""

    whole: Whole
    index: int

    @property
    def name(self) -> str:
        """What the slice is called, which no width is."""
        return f"{self.whole.name}[{self.index}]"


class Clash(Exception):
    """Two axes cannot be the same, or what they share cannot be told.

    Attributes:
        sizes: the two lengths that differ; None where the lengths agree, but not the inner
            boundaries, or where unknown sizes hide them.
    """

    def __init__(self, sizes: tuple[int, int] | None = None) -> None:
        super().__init__(sizes)
        self.sizes = sizes


ONE = Atom(1)
"""Every axis of one entry. It holds no width, and it is never bound."""


def leaf(size: int | None) -> Atom:
    """Return a new atom."""
    return ONE if size == 1 else Atom(size)


def find(atom: Atom) -> Atom:
    """Return what an atom is by now: a leaf, a sum or a product."""
    root = atom
    while root.link is not None:
        root = root.link
    while atom.link is not None:
        atom.link, atom = root, atom.link
    return root


def size_of(atom: Atom) -> int | None:
    """Return the size, which may have become known since the atom was made."""
    root = find(atom)
    if root.size is None and root.kind is not Kind.LEAF:
        sizes = [_size(term) for term in terms(root)]
        if None not in sizes:
            root.size = sum(size for size in sizes if size is not None)
    return root.size


def concat(atoms: Iterable[Atom]) -> Atom:
    """Return the axis that holds these one after the other."""
    return _sum(_joined([find(atom) for atom in atoms]))


def _sum(atoms: Sequence[Atom]) -> Atom:
    parts = tuple(part for part in map(find, atoms) if part.size != 0)
    if len(parts) == 1:
        return parts[0]
    sizes = [size_of(p) for p in parts]
    known = [size for size in sizes if size is not None]
    return Atom(sum(known) if len(known) == len(sizes) else None, Kind.SUM, parts)


def _joined(parts: list[Atom]) -> list[Atom]:
    """Put the whole axis in the place of all of its slices in their order."""
    found: list[Atom] = []
    at = 0
    while at < len(parts):
        piece = parts[at].piece
        run = piece.whole.parts if piece and piece.index == 0 and piece.whole.is_whole else ()
        if piece and run and [find(part) for part in run] == parts[at : at + len(run)]:
            found.append(piece.whole.full)
            at += len(run)
        else:
            found.append(parts[at])
            at += 1
    return found


def product(atoms: Iterable[Atom]) -> Atom:
    """Return the row-major product, the outermost factor first."""
    parts = tuple(root for root in map(find, atoms) if root.size != 1)
    if len(parts) == 1:
        return parts[0]
    return Atom(_size(parts), Kind.PRODUCT, parts) if parts else ONE


def terms(atom: Atom) -> list[Product]:
    """Multiply out: return the products whose sum an atom is.

    The first factor of each is a leaf; a later one is a leaf or a sum. Factors of size 1 are left
    out, and so are terms of size 0.

    Raises:
        Clash: there are more than can be meant.
    """
    return _expand((atom,))


def _expand(factors: Product) -> list[Product]:
    found: list[Product] = []
    stack = [factors]
    while stack:
        factors = stack.pop()
        head, rest = find(factors[0]), factors[1:]
        if head.kind is Kind.PRODUCT:
            stack.append(head.parts + rest)
        elif head.kind is Kind.SUM:
            stack.extend((part, *rest) for part in reversed(head.parts))
        elif head.size == 1 and rest:
            stack.append(rest)
        elif head.size != 0:
            found.append((head, *_flat(rest)) if rest else (head,))
        if len(stack) + len(found) > _MAX_TERMS:
            raise Clash
    return found


def _flat(factors: Product) -> list[Atom]:
    """Resolve the inner factors of a product: no products in it, and no ones."""
    found = []
    stack = list(reversed(factors))
    while stack:
        root = find(stack.pop())
        if root.kind is Kind.PRODUCT:
            stack.extend(reversed(root.parts))
        elif root.size != 1:
            found.append(root)
        if len(stack) + len(found) > _MAX_TERMS:
            raise Clash
    return found


def leaves(atom: Atom) -> list[Atom]:
    """Return every leaf that an atom is made of, each once, in order."""
    found: dict[Atom, None] = {}
    seen: set[Atom] = set()
    stack = [atom]
    while stack:
        root = find(stack.pop())
        if root.kind is not Kind.LEAF:
            # Parts are shared, so that walking each anew could take exponential time.
            if root not in seen:
                seen.add(root)
                stack.extend(reversed(root.parts))
        elif root.piece is not None and root.piece.whole.is_whole:
            stack.append(root.piece.whole.full)
        elif root is not ONE:
            found[root] = None
    return list(found)


def _size(factors: Iterable[Atom]) -> int | None:
    total = 1
    for factor in factors:
        size = size_of(factor)
        if size is None:
            return None
        total *= size
    return total


def cut(atom: Atom, *places: int) -> list[Atom]:
    """Cut an axis of known size into pieces at the places, which ascend, and return these.

    Raises:
        Clash: a place lies inside what a product cannot be cut in.
    """
    if len(places) > _MAX_TERMS:
        raise Clash
    pieces: list[list[Atom]] = [[]]
    waiting = _expand((atom,))[::-1]
    at, left = 0, list(places)[::-1]
    while waiting:
        while left and left[-1] == at:
            left.pop()
            pieces.append([])
        term = waiting.pop()
        size = _size(term)
        if size is None:
            raise Clash
        if left and at + size > left[-1]:
            waiting.extend(reversed(_cut_term(term, left[-1] - at)))
            continue
        pieces[-1].append(product(term))
        at += size
    pieces.extend([] for _ in left)
    return [concat(piece) if piece else Atom(0) for piece in pieces]


def _cut_term(term: Product, place: int) -> list[Product]:
    """Cut a product at `place`, which lies inside it; the terms that it now is are returned."""
    head, rest = term[0], term[1:]
    inner = _size(rest)
    if inner is None or head.size is None:
        raise Clash
    if place % inner == 0:
        at = place // inner
        head.kind, head.parts = Kind.SUM, (leaf(at), leaf(head.size - at))
    elif head.size <= _MAX_UNROLLED:
        # The place lies inside one of the blocks, so the blocks are no longer all alike.
        head.kind, head.parts = Kind.SUM, (ONE,) * head.size
    else:
        raise Clash
    return _expand(term)


def unify(a: Atom, b: Atom) -> None:
    """Make two axes the same one.

    Raises:
        Clash: they cannot be. What was merged before that was found out stays merged.
    """
    work: list[tuple[Atom, Atom]] = [(a, b)]
    while work:
        left, right = map(find, work.pop())
        if left is right:
            continue
        sizes = size_of(left), size_of(right)
        if None not in sizes and sizes[0] != sizes[1]:
            raise Clash((sizes[0] or 0, sizes[1] or 0))
        if left.kind is Kind.LEAF or right.kind is Kind.LEAF:
            _bind(left, right)
        else:
            _walk(_expand((left,)), _expand((right,)), work)


def _bind(a: Atom, b: Atom) -> None:
    """Bind a leaf to what stands opposite of it."""
    if a.kind is not Kind.LEAF or _should_stay(a, b):
        a, b = b, a
    if a.kind is not Kind.LEAF or a is ONE:
        # A product or sum of unknown size that turns out to be one entry says nothing more.
        return
    if b.kind is not Kind.LEAF:
        if (a.size is None or b.size is None) and a in leaves(b):
            raise Clash
        if a.size is not None and b.size is None:
            _solve(b, a.size)
            b.size = a.size
    elif a.piece and b.piece and a.piece.index == b.piece.index:
        a.link = b
        _merge_wholes(a.piece.whole, b.piece.whole)
        return
    for piece in (a.piece, b.piece):
        if piece is not None:
            piece.whole.is_used_apart = True
    a.link = b


def _should_stay(a: Atom, b: Atom) -> bool:
    """Whether of two leaves it is `b` that has to be bound."""
    if b.kind is not Kind.LEAF or b is ONE:
        return False
    return a is ONE or (b.size is None and a.size is not None) or (not b.piece and bool(a.piece))


def _merge_wholes(a: Whole, b: Whole) -> None:
    """Two axes that are sliced alike are one, if all of their slices meet."""
    if len(a.parts) == len(b.parts) and all(
        find(p) is find(q) for p, q in zip(a.parts, b.parts, strict=True)
    ):
        a.parts = b.parts
        unify(a.full, b.full)


def _solve(compound: Atom, size: int) -> None:
    """Find the size of the one unknown leaf of a sum or product, where there is but one."""
    unknown = [atom for atom in leaves(compound) if atom.size is None]
    products = terms(compound)
    open_terms = [term for term in products if _size(term) is None]
    if len(unknown) != 1 or len(open_terms) != 1:
        return
    rest = size - sum(_size(term) or 0 for term in products if term is not open_terms[0])
    if any(factor.kind is not Kind.LEAF for factor in open_terms[0]):
        return
    inner = _size(factor for factor in open_terms[0] if factor is not unknown[0])
    if not inner or rest < 0 or rest % inner or open_terms[0].count(unknown[0]) != 1:
        raise Clash
    if rest // inner == 1:
        unknown[0].link = ONE
    else:
        unknown[0].size = rest // inner


def _walk(left: list[Product], right: list[Product], work: list[tuple[Atom, Atom]]) -> None:
    """Match two sums term by term; `work` gets the factors that are to be the same."""
    left.reverse()
    right.reverse()
    while left and right:
        a, b = _current(left), _current(right)
        if a is None or b is None:
            continue
        size_a, size_b = _size(a), _size(b)
        if a == b:
            left.pop()
            right.pop()
        elif size_a is None or size_b is None:
            _walk_back(left, right, work)
            return
        elif size_a == size_b:
            left.pop()
            right.pop()
            _match(a, b, work)
        elif size_a > size_b:
            left[-1:] = reversed(_cut_term(a, size_b))
        else:
            right[-1:] = reversed(_cut_term(b, size_a))
    if left or right:
        raise Clash


def _current(stack: list[Product]) -> Product | None:
    """Return the next term as it is by now; None where it became several, which are put back."""
    now = _expand(stack[-1])
    if len(now) == 1:
        stack[-1] = now[0]
        return now[0]
    stack[-1:] = reversed(now)
    return None


def _walk_back(left: list[Product], right: list[Product], work: list[tuple[Atom, Atom]]) -> None:
    """Match what follows a term of unknown size from its end, and give the rest to that term."""
    left.reverse()
    right.reverse()
    while len(left) > 1 and len(right) > 1:
        a, b = _current(left), _current(right)
        if a is None or b is None:
            continue
        if a != b:
            if _size(a) is None or _size(a) != _size(b):
                break
            _match(a, b, work)
        left.pop()
        right.pop()
    if len(left) > 1 and len(right) > 1:
        raise Clash
    a_sum = concat(product(term) for term in left)
    b_sum = concat(product(term) for term in right)
    if a_sum.kind is Kind.PRODUCT and b_sum.kind is Kind.PRODUCT:
        _match_unknown(tuple(_flat((a_sum,))), tuple(_flat((b_sum,))), work)
    elif Kind.LEAF in (a_sum.kind, b_sum.kind):
        work.append((a_sum, b_sum))
    else:
        raise Clash


def _match_unknown(a: Product, b: Product, work: list[tuple[Atom, Atom]]) -> None:
    """Match products of unknown size: equal factors at both ends, and one that is left."""
    left, right = list(a), list(b)
    for end in (-1, 0):
        while left and right:
            x, y = left[end], right[end]
            if x is not y:
                if size_of(x) is None or size_of(x) != size_of(y):
                    break
                work.append((x, y))
            left.pop(end)
            right.pop(end)
    if not left and not right:
        return
    if min(len(left), len(right)) != 1:
        raise Clash
    work.append((product(left), product(right)))


def _match(a: Product, b: Product, work: list[tuple[Atom, Atom]]) -> None:
    """Match two products of one size, factor by factor from the right."""
    if len(a) == 1 or len(b) == 1:
        work.append((product(a), product(b)))
        return
    left, right = list(a), list(b)
    while left and right:
        x, y = find(left[-1]), find(right[-1])
        size_x, size_y = size_of(x), size_of(y)
        if x is y or size_x == size_y:
            work.append((x, y))
            left.pop()
            right.pop()
        elif not size_x or not size_y:
            raise Clash
        elif size_x % size_y == 0:
            outer = leaf(size_x // size_y)
            work.append((x, product((outer, y))))
            left[-1] = outer
            right.pop()
        elif size_y % size_x == 0:
            outer = leaf(size_y // size_x)
            work.append((y, product((outer, x))))
            right[-1] = outer
            left.pop()
        else:
            raise Clash
