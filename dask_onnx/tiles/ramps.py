"""How overlapping tiles lie along an axis, and how much each counts where they overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]


class Row(NamedTuple):
    """Overlapping tiles along one axis of the picture."""

    size: int
    """Pixels of the picture."""
    starts: tuple[int, ...]
    length: int
    """Pixels of each tile; the last may be shorter where the picture is smaller than that."""

    def tile(self, number: int) -> tuple[int, int]:
        """The pixels of a tile."""
        start = self.starts[number]
        return start, min(start + self.length, self.size)


def row_of_tiles(size: int, length: int, overlap: int, align: int) -> Row:
    """Return tiles of equal length that cover an axis, spread evenly.

    Parameters
    ----------
    size : pixels of the picture
    length : pixels of a tile
    overlap : pixels that neighbours share at least
    align : pixels that each start is a multiple of, so that tiles and outputs share a grid

    Notes
    -----
    The last tile ends with the picture where `align` allows that, and else is the only one that is
    shorter.
    """
    if size <= length:
        return Row(size, (0,), length)
    step = max((length - overlap) // align, 1) * align
    count = -(-(size - length) // step) + 1
    spread = (size - length) / (count - 1)
    starts = [min(round(i * spread / align), i * step // align) * align for i in range(count - 1)]
    return Row(size, (*starts, -(-(size - length) // align) * align), length)


def chunk_borders(row: Row, ratio: Fraction, size: int) -> tuple[int, ...]:
    """Return the borders of an output's chunks: where each tile but the first begins.

    Parameters
    ----------
    ratio : positions of the output for each pixel
    size : positions of the output
    """
    inner = {math.ceil(start * ratio) for start in row.starts}
    return (*sorted(border for border in inner if border < size), size)


def weights(row: Row, ratio: Fraction, size: int) -> list[tuple[int, Weights]]:
    """Return for each tile its first output position, and how much each of its positions counts.

    A tile counts less and less over what it shares with a neighbour; all together count 1
    everywhere.
    """
    spans = []
    for number in range(len(row.starts)):
        start, stop = row.tile(number)
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
    """Let the first positions of a ramp, which a neighbour has too, rise linearly."""
    shared = min(shared, len(ramp))
    if shared > 0:
        ramp[:shared] *= (np.arange(shared) + 0.5) / shared


def covering(
    row_weights: Sequence[tuple[int, Weights]], start: int, stop: int
) -> list[tuple[int, slice, slice, Weights]]:
    """Return the tiles that have some of the positions ``[start, stop)``.

    For each its number, the slice of it, the place of that among the positions, and the weights.
    """
    found = []
    for number, (first, ramp) in enumerate(row_weights):
        low, high = max(start, first), min(stop, first + len(ramp))
        if low < high:
            own = slice(low - first, high - first)
            found.append((number, own, slice(low - start, high - start), ramp[own]))
    return found
