"""Where the positions of a sharded axis lie in a value, and cutting and joining along them."""

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
    """The axis of a value along which the positions of the sharded axis lie.

    Index ``(o * positions + p) * inner + i`` of `axis` belongs to position p.
    """

    axis: int
    outer: int = 1
    """Blocks of all positions on that axis."""
    inner: int = 1
    """Elements of that axis for each position."""

    @property
    def blocks(self) -> int:
        """Elements of the axis for each position, all blocks together."""
        return self.outer * self.inner

    @property
    def label(self) -> str:
        """A few characters that tell layouts of one value apart."""
        blocks = f"x{self.outer}x{self.inner}" if self.blocks != 1 else ""
        return f"{self.axis}{blocks}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Positions of each shard: shard i has positions ``[offsets[i], offsets[i + 1])``."""

    offsets: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Size of the whole axis."""
        return self.offsets[-1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of positions of each shard."""
        return tuple(stop - start for start, stop in pairwise(self.offsets))

    @property
    def shards(self) -> range:
        """Numbers of the shards."""
        return range(len(self.offsets) - 1)


def even_bounds(positions: int, n: int) -> Bounds:
    """Return `n` shards whose sizes differ by one at most; fewer where there are fewer positions.

    No shard is empty, unless there are no positions at all.
    """
    n = max(1, min(n, positions))
    size, longer = divmod(positions, n)
    sizes = [size + (i < longer) for i in range(n)]
    return Bounds((0, *accumulate(sizes)))


def take_shard(array: Array, layout: Layout, positions: int, start: int, stop: int) -> Array:
    """Return positions ``[start, stop)`` of a whole value, as a contiguous array of its own."""
    shape, axis = array.shape, layout.axis
    apart = array.reshape(
        (*shape[:axis], layout.outer, positions, layout.inner, *shape[axis + 1 :])
    )
    part = apart[(slice(None),) * (axis + 1) + (slice(start, stop),)]
    size = layout.blocks * (stop - start)
    return np.ascontiguousarray(part.reshape((*shape[:axis], size, *shape[axis + 1 :])))


def join_shards(pieces: Sequence[Array], layout: Layout) -> Array:
    """Return the whole value that shards, in their order, are cut from."""
    if len(pieces) == 1:
        return pieces[0]
    axis = layout.axis
    if layout.outer == 1:
        return np.concatenate(pieces, axis=axis)
    first = pieces[0].shape
    apart = [
        piece.reshape((*first[:axis], layout.outer, -1, layout.inner, *first[axis + 1 :]))
        for piece in pieces
    ]
    joined = np.concatenate(apart, axis=axis + 1)
    return joined.reshape((*first[:axis], -1, *first[axis + 1 :]))
