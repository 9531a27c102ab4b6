"""Values in pieces, each in the result of a task, and how a region is put together from them."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from dask.task_spec import Task, TaskRef

from dask_onnx.tiles.places import Interval
from dask_onnx.tiles.tile_tasks import GatherSpec, Pick, Slices, cut_pieces

_MOST_CUT = 0.5
"""Share of a tile that others need, above which all of it travels."""

Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A value in pieces, each in the result of a task."""

    name: str
    """First part of the tasks' keys."""
    borders: tuple[tuple[int, ...], ...]
    """Of the pieces, for each axis, from 0 on."""
    position: int | None = None
    """Of the value in the tasks' results; None if that is all they are."""
    key_axes: tuple[int, ...] | None = None
    """Axes whose piece number is part of the keys; None for all."""

    def key(self, place: Index) -> Any:
        """The key of the task with a piece."""
        axes = range(len(place)) if self.key_axes is None else self.key_axes
        return (self.name, *(place[axis] for axis in axes))

    def pieces(self, region: Sequence[Interval]) -> tuple[tuple[int, ...], list[Piece]]:
        """Return the number of pieces along each axis that a region takes, and these pieces."""
        each_axis = []
        for borders, (start, stop) in zip(self.borders, region, strict=True):
            first = bisect.bisect_right(borders, start) - 1
            last = bisect.bisect_left(borders, stop)
            each_axis.append(
                [
                    (i, slice(max(start - borders[i], 0), min(stop, borders[i + 1]) - borders[i]))
                    for i in range(first, last)
                ]
            )
        found = []
        for combination in itertools.product(*each_axis):
            place = tuple(i for i, _ in combination)
            share = math.prod(
                (s.stop - s.start) / (b[i + 1] - b[i])
                for b, (i, s) in zip(self.borders, combination, strict=True)
            )
            slices = None if share == 1 else tuple(s for _, s in combination)
            found.append(Piece(self.key(place), self.position, slices, share))
        return tuple(map(len, each_axis)), found


class Piece(NamedTuple):
    """A part of a value in the result of a task."""

    key: Any
    position: int | None
    slices: Slices | None
    """None for all of it."""
    share: float
    """Of the value's tile."""


class Gathering(NamedTuple):
    """A value, or a region of it, and the pieces that make it."""

    name: str
    grid: tuple[int, ...]
    shape: tuple[int, ...]
    pieces: list[Piece]

    def spec(self, arguments: Arguments, cuts: Cuts | None = None) -> GatherSpec:
        """Return how a task puts it together, and note the arguments that it needs for that."""
        picks = [
            Pick(arguments.add(piece.key), piece.position, piece.slices)
            if cuts is None or not cuts.has(piece)
            else Pick(arguments.add(cuts.key(piece)), cuts.position(piece), None)
            for piece in self.pieces
        ]
        return GatherSpec(self.name, tuple(picks), self.grid, self.shape)


class Cuts:
    """What the tiles of a group need of others' tiles: cut by one task for each of these, where it
    is, so that the rest does not travel."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.picks: dict[Any, dict[tuple[int | None, str], Pick]] = {}
        self.shares: dict[Any, float] = {}

    def note(self, gathering: Gathering) -> None:
        """Add the pieces that some tile needs."""
        for piece in gathering.pieces:
            if piece.slices is None:
                continue
            picks = self.picks.setdefault(piece.key, {})
            if (own := (piece.position, str(piece.slices))) not in picks:
                picks[own] = Pick(0, piece.position, piece.slices)
                self.shares[piece.key] = self.shares.get(piece.key, 0.0) + piece.share

    def has(self, piece: Piece) -> bool:
        """Whether a piece is cut before it travels."""
        return piece.slices is not None and self._is_cut(piece.key)

    def key(self, piece: Piece) -> Any:
        """The key of the task that cuts it."""
        return self._key(piece.key)

    def position(self, piece: Piece) -> int:
        """Where it stands in what that task gives."""
        return list(self.picks[piece.key]).index((piece.position, str(piece.slices)))

    def tasks(self) -> dict[Any, Task]:
        """The tasks that cut."""
        found = {}
        for key, picks in self.picks.items():
            if self._is_cut(key):
                own = self._key(key)
                found[own] = Task(own, cut_pieces, list(picks.values()), TaskRef(key))
        return found

    def _is_cut(self, key: Any) -> bool:
        positions = {position for position, _ in self.picks.get(key, ())}
        return self.shares.get(key, 0.0) <= _MOST_CUT * len(positions)

    def _key(self, key: Any) -> Any:
        return (f"cut_{self.name}", *key)


class Arguments:
    """The arguments of one task, each result once."""

    def __init__(self) -> None:
        self.keys: dict[Any, int] = {}

    def add(self, key: Any) -> int:
        """Return the place of a result among the arguments."""
        return self.keys.setdefault(key, len(self.keys))

    @property
    def references(self) -> list[TaskRef]:
        return [TaskRef(key) for key in self.keys]


def borders_of_chunks(chunks: Sequence[Sequence[float]]) -> tuple[tuple[int, ...], ...]:
    """From the sizes of pieces along each axis to their borders."""
    return tuple(tuple(np.cumsum((0, *map(int, sizes))).tolist()) for sizes in chunks)
