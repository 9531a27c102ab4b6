"""Layouts of shards in a value, and slicing and concatenating arrays along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """Axis of a value along which the positions of the sharded axis lie.

    The axis has ``outer * positions * inner`` elements: index ``(o * positions + p) * inner + i``
    belongs to position p. Three projections stored side by side have ``outer=3``; heads that were
    merged with their features have ``inner=features``.
    """

    axis: int
    """Axis of the value, from 0."""
    outer: int = 1
    """Number of times that the whole range of positions repeats along the axis."""
    inner: int = 1
    """Consecutive elements of the axis for each position."""
    combine: str = ""
    """Combination of the results of shards into the value, such as "mean": each shard has the value
    for its own positions, and no axis is cut. Empty for shards that are slices of the value."""

    @property
    def blocks(self) -> int:
        """Elements of the axis for each position, over all repetitions."""
        return self.outer * self.inner

    @property
    def label(self) -> str:
        """Short text that tells the layouts of one value apart, for names of values and tasks."""
        if self.combine:
            return self.combine
        blocks = f"x{self.outer}x{self.inner}" if self.blocks != 1 else ""
        return f"{self.axis}{blocks}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Ranges of positions: shard i has positions ``[offsets[i], offsets[i + 1])``."""

    offsets: tuple[int, ...]
    """First position of each shard, and the size of the sharded axis at the end."""

    @property
    def positions(self) -> int:
        """Size of the sharded axis."""
        return self.offsets[-1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of positions of each shard."""
        return tuple(stop - start for start, stop in pairwise(self.offsets))

    @property
    def shards(self) -> range:
        """Indices of the shards."""
        return range(len(self.offsets) - 1)


def even_bounds(positions: int, n: int) -> Bounds:
    """Return bounds of `n` shards whose sizes differ by at most one.

    There are fewer shards where there are fewer positions: none is empty, unless there are no
    positions at all.
    """
    n = max(1, min(n, positions))
    size, longer = divmod(positions, n)
    sizes = [size + (i < longer) for i in range(n)]
    return Bounds((0, *accumulate(sizes)))


def take_shard(array: Array, layout: Layout, positions: int, start: int, stop: int) -> Array:
    """Return positions ``[start, stop)`` of a whole value as a contiguous copy.

    Parameters
    ----------
    array : ndarray
        Whole value, whose axis ``layout.axis`` has ``outer * positions * inner`` elements.
    positions : int
        Size of the sharded axis.
    """
    shape, axis = array.shape, layout.axis
    blocked = array.reshape(
        (*shape[:axis], layout.outer, positions, layout.inner, *shape[axis + 1 :])
    )
    taken = blocked[(slice(None),) * (axis + 1) + (slice(start, stop),)]
    size = layout.blocks * (stop - start)
    return np.ascontiguousarray(taken.reshape((*shape[:axis], size, *shape[axis + 1 :])))


def join_shards(pieces: Sequence[Array], layout: Layout) -> Array:
    """Return the whole value that consecutive shards are slices of.

    Parameters
    ----------
    pieces : sequence of ndarray
        Shards in order; equal shapes except along ``layout.axis``.
    """
    if len(pieces) == 1:
        return pieces[0]
    axis = layout.axis
    if layout.outer == 1:
        return np.concatenate(pieces, axis=axis)
    first = pieces[0].shape
    blocked = [
        piece.reshape((*first[:axis], layout.outer, -1, layout.inner, *first[axis + 1 :]))
        for piece in pieces
    ]
    joined = np.concatenate(blocked, axis=axis + 1)
    return joined.reshape((*first[:axis], -1, *first[axis + 1 :]))
