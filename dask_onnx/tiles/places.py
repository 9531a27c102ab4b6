"""Location of a tiled axis in a value, and the positions that a node reads.

Throughout the package ``k`` stands for a *tiled axis*: an axis of the input image along which tiles
are cut. Other values of the graph carry the positions of that axis, possibly at another stride and
possibly as one factor of a larger axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple, Protocol

from dask_onnx.analysis.axes.dependence import SAME, Window

Interval = tuple[int, int]
"""Positions ``[start, stop)``."""


class Place(NamedTuple):
    """Location of a tiled axis in a value.

    The index along `axis` is ``(o * size + p) * inner + i`` for position p. Position p of the value
    corresponds to position ``p * stride`` of the image.
    """

    axis: int
    """Axis of the value."""
    outer: int
    """Blocks of positions on that axis; 1 where the positions are not repeated."""
    inner: int
    """Consecutive elements of that axis for each position."""
    size: int
    """Positions."""
    stride: Fraction
    """Pixels of the image from one position to the next."""

    def at(self, axis: int) -> Place:
        """Return the same location on another axis."""
        return self._replace(axis=axis)

    @property
    def is_separate(self) -> bool:
        """True if the axis of the value holds the positions of the tiled axis and nothing else."""
        return self.outer == self.inner == 1


Places = Mapping[int, Place]
"""Tiled axis of the image to its location in a value."""


class ReceptiveField(Protocol):
    """Positions of an input that a range of output positions needs."""

    def needed(self, start: int, stop: int, size: int) -> Interval:
        """Return the input positions for outputs ``[start, stop)``.

        Parameters
        ----------
        start, stop : int
            Output positions.
        size : int
            Positions of the input.

        Returns
        -------
        Interval
            Clipped to ``[0, size)`` and never empty.
        """
        ...


class SlidingWindow(NamedTuple):
    """Window that moves with the output position, in integer units of ``1 / unit`` positions."""

    offset: int
    """Start of the window of output position 0."""
    stride: int
    """Distance between the windows of neighbouring output positions."""
    extent: int
    """Length of the window."""
    unit: int
    """Units in one position of the input."""
    blocks: int = 1
    """Elements side by side at each position of the input; the window counts elements."""

    def needed(self, start: int, stop: int, size: int) -> Interval:
        """Return the input positions for outputs ``[start, stop)``; see `ReceptiveField`."""
        first = start * self.stride + self.offset
        last = (stop - 1) * self.stride + self.offset + self.extent
        low, high = _clipped(first // self.unit, -(-last // self.unit), size * self.blocks)
        return low // self.blocks, -(-high // self.blocks)


def sliding_window(window: Window = SAME, blocks: int = 1) -> SlidingWindow:
    """Return a window of fractions in integer units: their least common denominator.

    Parameters
    ----------
    window : Window
        In positions of the input.
    blocks : int, default 1
        Elements side by side at each position.
    """
    unit = math.lcm(*(part.denominator for part in window))
    offset, stride, extent = (int(part * unit) for part in window)
    return SlidingWindow(offset, stride, extent, unit, blocks)


@dataclass(frozen=True, slots=True)
class Reflection:
    """Receptive field of padding by reflection."""

    begin: int
    """Positions padded before the input."""
    end: int
    """Positions padded after the input."""

    def needed(self, start: int, stop: int, size: int) -> Interval:
        """Return the input positions for outputs ``[start, stop)``; see `ReceptiveField`."""
        low, high = start - self.begin, stop - self.begin
        mirrored_high = max(high, 1 - low) if low < 0 else high
        mirrored_low = min(low, 2 * size - 1 - high) if high > size else low
        return _clipped(mirrored_low, mirrored_high, size)


def _clipped(low: int, high: int, size: int) -> Interval:
    """Clip an interval to ``[0, size)``; one that lies outside becomes the nearest position."""
    low = min(max(low, 0), max(size - 1, 0))
    return low, max(min(high, size), low + 1)


UNCHANGED = sliding_window()
"""Receptive field of an element-wise node: each output position needs the same input position."""

Factor = tuple[int, int | None]
"""Size of one factor of an axis, and the tiled axis that it holds, or None."""


def factors_of(shape: Sequence[int], places: Places) -> tuple[tuple[Factor, ...], ...]:
    """Return the factors of each axis of a value, the slowest varying first.

    An axis of flattened rows and columns, for example, has the factors rows, then columns. Factors
    of size 1 are listed only where they hold a tiled axis or are the only one.

    Parameters
    ----------
    shape : sequence of int
        Shape of the value.
    places : Places
        Locations of the tiled axes in it.

    Raises
    ------
    ValueError
        The locations contradict the shape.
    """
    found: list[tuple[Factor, ...]] = []
    for axis, size in enumerate(shape):
        on_axis = [(place, k) for k, place in places.items() if place.axis == axis]
        left, factors = size, list[Factor]()
        for place, k in sorted(on_axis, key=lambda pair: (-pair[0].inner, pair[1])):
            static, rest = divmod(left, place.size * place.inner)
            if rest or static < 1:
                raise ValueError(
                    f"axis {axis} of size {size} is not a multiple of {place.size} positions"
                )
            if static > 1:
                factors.append((static, None))
            factors.append((place.size, k))
            left = place.inner
        if left > 1 or not factors:
            factors.append((left, None))
        found.append(tuple(factors))
    return tuple(found)


@dataclass(frozen=True)
class Layout:
    """Axes of a value, each split into its factors."""

    factors: tuple[tuple[Factor, ...], ...]
    """For each axis its factors, as `factors_of` returns them."""

    @cached_property
    def flat(self) -> list[Factor]:
        """Factors of all axes: the axes of the *split* array, where each tiled axis is separate."""
        return [factor for axis in self.factors for factor in axis]

    @property
    def is_split(self) -> bool:
        """True if every tiled axis already is an axis of its own."""
        return all(len(axis) == 1 for axis in self.factors)

    def axis_of(self, k: int) -> int:
        """Return the axis of the split array that holds a tiled axis."""
        return next(i for i, (_, tiled) in enumerate(self.flat) if tiled == k)

    def split_shape(self, sizes: Mapping[int, int]) -> tuple[int, ...]:
        """Return the shape of the split array.

        Parameters
        ----------
        sizes : mapping of int to int
            Tiled axis to the number of its positions.
        """
        return tuple(size if k is None else sizes[k] for size, k in self.flat)

    def joined_shape(self, sizes: Mapping[int, int]) -> tuple[int, ...]:
        """Return the shape of the value itself.

        Parameters
        ----------
        sizes : mapping of int to int
            Tiled axis to the number of its positions.
        """
        shape = []
        for axis in self.factors:
            product = 1
            for size, k in axis:
                product *= size if k is None else sizes[k]
            shape.append(product)
        return tuple(shape)
