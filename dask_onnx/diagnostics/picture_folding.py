"""Folding of large graphs for a picture: chains, branches side by side, and then the rest.

Boxes are joined until what is left fits a page. Each join keeps the graph free of circles: of a
chain, whose inner boxes have one neighbour on either side; of branches, which have the same
neighbours; and of boxes that are consecutive in topological order.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["stage", "chain", "branches", "rest"]
"""One box; boxes one after the other; side by side; and neither."""

_SLOWEST_APART = 3
"""Branches of many that keep a box of their own: those that take longest."""
_MOST_ROUNDS = 64
_LIGHT_SHARE = 0.01
"""Share of all seconds below which a box is joined with others beside it, if room is short."""


@dataclass(frozen=True, slots=True)
class Page:
    """Room of a page, in boxes."""

    rows: int = 8
    columns: int = 7
    boxes: int = 40


@dataclass(frozen=True, slots=True)
class Fold:
    """Boxes of a graph that a picture shows as one."""

    members: tuple[int, ...]
    """Positions of the boxes, in order."""
    kind: Kind = "stage"
    parts: tuple[Fold, ...] = ()
    """Folds that it was joined from."""


Edges = frozenset[tuple[int, int]]
"""Pairs of positions: a box, and one that reads from it."""


def fold(
    count: int,
    lines: Iterable[tuple[int, int]],
    seconds: Sequence[float],
    colours: Sequence[Hashable],
    page: Page,
) -> list[Fold]:
    """Return the boxes of a picture that fits a page, in topological order.

    Parameters
    ----------
    count : int
        Number of boxes, which are in topological order.
    lines : iterable of (int, int)
        The box that each line comes from, and a later one that it goes to.
    seconds : sequence of float
        Seconds of each box: of many branches the slowest are shown apart.
    colours : sequence of hashable
        Colour of each box; boxes of several colours are joined only if the page is too small.
    page : Page

    Returns
    -------
    list of Fold
        Each box is a member of one of them.
    """
    edges = frozenset(lines)
    folds = [Fold((i,)) for i in range(count)]
    if _fits(folds, edges, page):
        return folds
    for shades in (colours, [None] * count):
        longest = 2
        while longest < 2 * count:
            shorter = _ordered(_chains(folds, edges, shades, longest), edges)
            if _fits(shorter, edges, page):
                return shorter
            longest *= 2
    return _opened(_reduced(folds, edges, seconds, page), edges, seconds, page)


def _reduced(folds: list[Fold], edges: Edges, seconds: Sequence[float], page: Page) -> list[Fold]:
    """Join chains and branches in turns as far as possible, and intervals if they do not fit."""
    for _ in range(_MOST_ROUNDS):
        before = len(folds)
        folds = _ordered(_all_chains(folds, edges), edges)
        folds = _ordered(_branches(folds, edges, seconds, page), edges)
        if len(folds) == before:
            break
    if len(folds) > 1:
        folds = _light_joined(folds, seconds)
    return folds if _fits(folds, edges, page) else _intervals(folds, page)


def _light_joined(folds: Sequence[Fold], seconds: Sequence[float]) -> list[Fold]:
    """Join neighbours in order that take next to no time, to leave the page to the others."""
    total = sum(seconds)

    def is_light(each: Fold) -> bool:
        return sum(seconds[member] for member in each.members) < _LIGHT_SHARE * total

    runs = (list(run) for _, run in itertools.groupby(folds, key=is_light))
    joined: list[Fold] = []
    for run in runs:
        joined += [_joined(run, "rest")] if is_light(run[0]) else run
    return joined


def _opened(folds: list[Fold], edges: Edges, seconds: Sequence[float], page: Page) -> list[Fold]:
    """Open folds again, those that take longest first, as long as the page has room."""

    def weight(each: Fold) -> float:
        return sum(seconds[member] for member in each.members)

    closed: set[tuple[int, ...]] = set()
    """Members of folds that could not be opened: the page has no more room for them later."""
    while len(folds) < page.boxes:
        left = [each for each in folds if each.parts and each.members not in closed]
        if not left:
            break
        heaviest = max(left, key=weight)
        others = [each for each in folds if each is not heaviest]
        for parts in _openings(heaviest):
            opened = _ordered([*others, *parts], edges)
            if _fits(opened, edges, page):
                folds = opened
                break
        else:
            closed.add(heaviest.members)
    return folds


def _openings(each: Fold) -> Iterator[Sequence[Fold]]:
    """Yield ways to show a fold as several, the most detailed first."""
    if not each.parts:
        return
    yield each.parts
    if len(each.parts) > 2 and each.kind != "branches":
        for count in (4, 3, 2):
            bounds = [part * len(each.parts) // count for part in range(count + 1)]
            runs = [each.parts[first:last] for first, last in itertools.pairwise(bounds)]
            yield [_joined(run, each.kind) for run in runs if run]


def _fits(folds: Sequence[Fold], edges: Edges, page: Page) -> bool:
    if len(folds) > page.rows * page.columns:
        return False
    rows = Counter(_depths(len(folds), _between(folds, edges)))
    fullest = max(rows.values(), default=0)
    return len(rows) <= page.rows and fullest <= page.columns and len(folds) <= page.boxes


def _depths(count: int, edges: Edges) -> list[int]:
    before = _neighbours(edges)[0]
    depth: list[int] = []
    for i in range(count):
        depth.append(1 + max((depth[j] for j in before[i]), default=-1))
    return depth


def _neighbours(edges: Edges) -> tuple[defaultdict[int, set[int]], defaultdict[int, set[int]]]:
    """Return the boxes before and behind each box."""
    before: defaultdict[int, set[int]] = defaultdict(set)
    behind: defaultdict[int, set[int]] = defaultdict(set)
    for first, second in edges:
        before[second].add(first)
        behind[first].add(second)
    return before, behind


def _between(folds: Sequence[Fold], edges: Edges) -> Edges:
    """Return the edges between folds, by their positions."""
    place = {member: i for i, each in enumerate(folds) for member in each.members}
    pairs = {(place[first], place[second]) for first, second in edges}
    return frozenset((first, second) for first, second in pairs if first != second)


def _ordered(folds: Sequence[Fold], edges: Edges) -> list[Fold]:
    """Return folds in topological order, those with earlier members first."""
    before, behind = _neighbours(_between(folds, edges))
    left = {i: len(before[i]) for i in range(len(folds))}
    ready = [(folds[i].members[0], i) for i, count in left.items() if not count]
    heapq.heapify(ready)
    found = []
    while ready:
        _, i = heapq.heappop(ready)
        found.append(folds[i])
        for other in behind[i]:
            left[other] -= 1
            if not left[other]:
                heapq.heappush(ready, (folds[other].members[0], other))
    return found


def _chains(
    folds: Sequence[Fold], edges: Edges, colours: Sequence[Hashable], longest: int
) -> list[Fold]:
    """Join chains of one colour, each cut into equal parts of at most `longest` folds."""
    found = []
    for chain in _chains_of(folds, edges):
        for run in _runs(chain, lambda i: colours[folds[i].members[0]]):
            parts = math.ceil(len(run) / longest)
            for part in range(parts):
                own = run[part * len(run) // parts : (part + 1) * len(run) // parts]
                found.append(_joined([folds[i] for i in own], "chain"))
    return found


def _runs(chain: Sequence[int], colour: Callable[[int], Hashable]) -> Iterator[list[int]]:
    run: list[int] = []
    for i in chain:
        if run and colour(run[-1]) != colour(i):
            yield run
            run = []
        run.append(i)
    yield run


def _chains_of(folds: Sequence[Fold], edges: Edges) -> Iterator[list[int]]:
    """Yield each maximal chain of folds, by their positions; a lone fold is one too."""
    before, behind = _neighbours(_between(folds, edges))

    def follows(i: int) -> int | None:
        if len(behind[i]) != 1:
            return None
        (other,) = behind[i]
        return other if len(before[other]) == 1 else None

    inner = {other for i in range(len(folds)) if (other := follows(i)) is not None}
    for first in range(len(folds)):
        if first in inner:
            continue
        chain, last = [first], follows(first)
        while last is not None:
            chain.append(last)
            last = follows(last)
        yield chain


def _all_chains(folds: Sequence[Fold], edges: Edges) -> list[Fold]:
    return [_joined([folds[i] for i in chain], "chain") for chain in _chains_of(folds, edges)]


def _branches(
    folds: Sequence[Fold], edges: Edges, seconds: Sequence[float], page: Page
) -> list[Fold]:
    """Join branches with the same neighbours; of very many, the slowest stay apart."""
    before, behind = _neighbours(_between(folds, edges))
    alike: defaultdict[tuple[frozenset[int], frozenset[int]], list[int]] = defaultdict(list)
    for i in range(len(folds)):
        alike[frozenset(before[i]), frozenset(behind[i])].append(i)
    found = []
    for places in alike.values():
        if len(places) > page.columns:
            places.sort(key=lambda i: -sum(seconds[member] for member in folds[i].members))
            found += [folds[i] for i in places[:_SLOWEST_APART]]
            places = places[_SLOWEST_APART:]
        found.append(_joined([folds[i] for i in sorted(places)], "branches"))
    return found


def _joined(folds: Sequence[Fold], kind: Kind) -> Fold:
    if len(folds) == 1:
        return folds[0]
    is_plain = all(each.kind in ("stage", kind) for each in folds)
    members = sorted(member for each in folds for member in each.members)
    return Fold(tuple(members), kind if is_plain else "rest", tuple(folds))


def _intervals(folds: Sequence[Fold], page: Page) -> list[Fold]:
    """Join what is consecutive in order into as many boxes as there are rows."""
    parts = min(page.rows, len(folds))
    bounds = [part * len(folds) // parts for part in range(parts + 1)]
    return [_joined(folds[first:last], "rest") for first, last in itertools.pairwise(bounds)]
