"""Values in pieces, each in the result of a task, and the assembly of regions from them."""

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

_LARGEST_CUT = 0.5
"""Share of a tile that other tiles need above which the whole result is transferred instead."""

Index = tuple[int, ...]
"""Position in a grid of tiles or pieces."""


@dataclass(frozen=True, slots=True)
class Source:
    """Tasks that have the pieces of a value, with its tiled axes split."""

    name: str
    """First element of the tasks' keys."""
    borders: tuple[tuple[float, ...], ...]
    """Borders of the pieces along each axis, from 0 on; NaN behind the only piece of an axis whose
    size only the run tells."""
    position: int | None = None
    """Position of the value in the tasks' results; None if they return it alone."""
    key_axes: tuple[int, ...] | None = None
    """Axes whose piece number is part of the keys; None for all."""

    @property
    def is_of_unknown_size(self) -> bool:
        """True if there is one piece, whose size only the run tells."""
        return any(math.isnan(ends[-1]) for ends in self.borders)

    def key(self, index: Index) -> Any:
        """Return the key of the task that has a piece."""
        axes = range(len(index)) if self.key_axes is None else self.key_axes
        return (self.name, *(index[axis] for axis in axes))

    def pieces(self, region: Sequence[Interval]) -> tuple[tuple[int, ...], list[Piece]]:
        """Return the pieces that cover a region.

        Parameters
        ----------
        region : sequence of Interval
            One for each axis.

        Returns
        -------
        grid : tuple of int
            Number of pieces along each axis.
        pieces : list of Piece
            In C order.
        """
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
            index = tuple(i for i, _ in combination)
            share = math.prod(
                (s.stop - s.start) / (b[i + 1] - b[i])
                for b, (i, s) in zip(self.borders, combination, strict=True)
            )
            slices = None if share == 1 else tuple(s for _, s in combination)
            found.append(Piece(self.key(index), self.position, slices, share))
        return tuple(map(len, each_axis)), found


class Piece(NamedTuple):
    """A part of a value in the result of a task."""

    key: Any
    """Key of the task."""
    position: int | None
    """Position of the value in its result; None if it is all of it."""
    slices: Slices | None
    """Part of the value's tile; None for all of it."""
    share: float
    """Share of the value's tile, 0 to 1."""


class Gathering(NamedTuple):
    """A feed of a task, and the pieces that it is assembled from."""

    name: str
    """Name of the feed."""
    grid: tuple[int, ...]
    """Number of pieces along each axis."""
    shape: tuple[int, ...]
    """Shape of the feed, with joined axes."""
    pieces: list[Piece]
    """Pieces in C order."""

    def spec(self, arguments: Arguments, cuts: CutTasks | None = None) -> GatherSpec:
        """Return the assembly as a task runs it, and add the results it reads to `arguments`.

        Parameters
        ----------
        arguments : Arguments
            Arguments of the task.
        cuts : CutTasks, optional
            Tasks that cut pieces before they are transferred.
        """
        picks = [
            Pick(arguments.add(piece.key), piece.position, piece.slices)
            if cuts is None or not cuts.has(piece)
            else Pick(arguments.add(cuts.key(piece)), cuts.position(piece), None)
            for piece in self.pieces
        ]
        return GatherSpec(self.name, tuple(picks), self.grid, self.shape)


class CutTasks:
    """Tasks that cut the parts that the tiles of a group need out of the results of other tiles.

    There is one for each of those results; it runs where the result is, so that the rest is not
    transferred.

    Parameters
    ----------
    name : str
        First element of the group's keys.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.picks: dict[Any, dict[tuple[int | None, str], Pick]] = {}
        """Key of a result to the parts that are needed, by position and slices."""
        self.shares: dict[Any, float] = {}
        """Key of a result to the sum of the needed shares of its values."""

    def add(self, gathering: Gathering) -> None:
        """Add the pieces that some tile needs."""
        for piece in gathering.pieces:
            if piece.slices is None:
                continue
            picks = self.picks.setdefault(piece.key, {})
            if (part := (piece.position, str(piece.slices))) not in picks:
                picks[part] = Pick(0, piece.position, piece.slices)
                self.shares[piece.key] = self.shares.get(piece.key, 0.0) + piece.share

    def has(self, piece: Piece) -> bool:
        """Return whether a piece is cut before it is transferred."""
        return piece.slices is not None and self._is_cut(piece.key)

    def key(self, piece: Piece) -> Any:
        """Return the key of the task that cuts a piece."""
        return self._key(piece.key)

    def position(self, piece: Piece) -> int:
        """Return the position of a piece in the result of that task."""
        return list(self.picks[piece.key]).index((piece.position, str(piece.slices)))

    def tasks(self) -> dict[Any, Task]:
        """Return the tasks that cut, by key."""
        found = {}
        for key, picks in self.picks.items():
            if self._is_cut(key):
                cut = self._key(key)
                found[cut] = Task(cut, cut_pieces, list(picks.values()), TaskRef(key))
        return found

    def _is_cut(self, key: Any) -> bool:
        """Return whether the parts that are needed of a result are small enough to be cut first."""
        positions = {position for position, _ in self.picks.get(key, ())}
        return self.shares.get(key, 0.0) <= _LARGEST_CUT * len(positions)

    def _key(self, key: Any) -> Any:
        return (f"cut_{self.name}", *key)


class Arguments:
    """Arguments of one task: results of other tasks, each once."""

    def __init__(self) -> None:
        self.keys: dict[Any, int] = {}

    def add(self, key: Any) -> int:
        """Return the position of a result among the arguments, adding it if need be."""
        return self.keys.setdefault(key, len(self.keys))

    @property
    def references(self) -> list[TaskRef]:
        """References to the results, in order."""
        return [TaskRef(key) for key in self.keys]


def borders_of_chunks(chunks: Sequence[Sequence[float]]) -> tuple[tuple[int, ...], ...]:
    """Return the borders of pieces along each axis, from 0 on, for their sizes."""
    return tuple(tuple(np.cumsum((0, *map(int, sizes))).tolist()) for sizes in chunks)
