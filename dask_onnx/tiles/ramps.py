"""Overlapping tiles along an axis, and their weights where they overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]
"""Weights of consecutive output positions, 0 to 1, shape (n,)."""


class AxisTiling(NamedTuple):
    """Overlapping tiles along one axis of the image."""

    size: int
    """Pixels of the image."""
    starts: tuple[int, ...]
    """First pixel of each tile."""
    length: int
    """Pixels of each tile; the last may be shorter, see `axis_tiling`."""

    def tile(self, number: int) -> tuple[int, int]:
        """Return the first pixel of a tile, and the one after its last."""
        start = self.starts[number]
        return start, min(start + self.length, self.size)


def axis_tiling(size: int, length: int, overlap: int, align: int) -> AxisTiling:
    """Return tiles of equal length that cover an axis, spread evenly.

    Parameters
    ----------
    size : int
        Pixels of the image.
    length : int
        Pixels of a tile.
    overlap : int
        Pixels that neighbours share at least.
    align : int
        Pixels of which each start is a multiple, so that the outputs of all tiles share one grid.

    Notes
    -----
    The last tile ends at the end of the image if `align` allows that; otherwise it is the only tile
    that is shorter.
    """
    if size <= length:
        return AxisTiling(size, (0,), length)
    step = max((length - overlap) // align, 1) * align
    count = -(-(size - length) // step) + 1
    spread = (size - length) / (count - 1)
    starts = [min(round(i * spread / align), i * step // align) * align for i in range(count - 1)]
    return AxisTiling(size, (*starts, -(-(size - length) // align) * align), length)


def chunk_borders(tiling: AxisTiling, ratio: Fraction, size: int) -> tuple[int, ...]:
    """Return the borders of an output's chunks: 0, the start of each further tile, and the end.

    Parameters
    ----------
    tiling : AxisTiling
    ratio : Fraction
        Output positions for each pixel.
    size : int
        Positions of the output.
    """
    inner = {math.ceil(start * ratio) for start in tiling.starts}
    return (*sorted(border for border in inner if border < size), size)


def weights(tiling: AxisTiling, ratio: Fraction, size: int) -> list[tuple[int, Weights]]:
    """Return the weights of each tile, which fall linearly where it overlaps a neighbour.

    Parameters
    ----------
    tiling : AxisTiling
    ratio : Fraction
        Output positions for each pixel.
    size : int
        Positions of the output.

    Returns
    -------
    list of (int, Weights)
        For each tile its first output position, and the weights of its positions. Those of all
        tiles add up to 1 at each position.
    """
    spans = []
    for number in range(len(tiling.starts)):
        start, stop = tiling.tile(number)
        spans.append((int(start * ratio), min(math.ceil(stop * ratio), size)))
    total = np.zeros(size)
    ramps = []
    for number, (start, stop) in enumerate(spans):
        ramp = np.ones(stop - start)
        if number:
            _lower(ramp, spans[number - 1][1] - start)
        if number + 1 < len(spans):
            _lower(ramp[::-1], stop - spans[number + 1][0])
        total[start:stop] += ramp
        ramps.append((start, ramp))
    return [(start, ramp / total[start : start + len(ramp)]) for start, ramp in ramps]


def _lower(ramp: Weights, shared: int) -> None:
    """Let the first weights, of positions shared with a neighbour, rise linearly; in place."""
    shared = min(shared, len(ramp))
    if shared > 0:
        ramp[:shared] *= (np.arange(shared) + 0.5) / shared


class CoveringTile(NamedTuple):
    """A tile that covers some of a range of output positions."""

    number: int
    """Number of the tile."""
    part: slice
    """Part of the tile's output positions that lies in the range."""
    place: slice
    """Location of that part in the range."""
    weights: Weights
    """Weights of that part."""


def covering(
    tile_weights: Sequence[tuple[int, Weights]], start: int, stop: int
) -> list[CoveringTile]:
    """Return the tiles that cover some of the output positions ``[start, stop)``.

    Parameters
    ----------
    tile_weights : sequence of (int, Weights)
        As `weights` returns them.
    start, stop : int
        Output positions.
    """
    found = []
    for number, (first, ramp) in enumerate(tile_weights):
        low, high = max(start, first), min(stop, first + len(ramp))
        if low < high:
            part = slice(low - first, high - first)
            found.append(CoveringTile(number, part, slice(low - start, high - start), ramp[part]))
    return found
