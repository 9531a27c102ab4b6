"""Where the positions of a tiled axis lie in a value, and which of them a node reads."""

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
    """Where a tiled axis of the picture lies in a value.

    The index along `axis` is ``(o * size + p) * inner + i`` for position p. Position p of the value
    stands for position ``p * stride`` of the picture.
    """

    axis: int
    outer: int
    inner: int
    size: int
    """Positions."""
    stride: Fraction
    """Pixels of the picture from one position to the next."""

    def at(self, axis: int) -> Place:
        """Return the same place on another axis."""
        return self._replace(axis=axis)


Places = Mapping[int, Place]
"""Tiled axis of the picture to its place in a value."""


class Reach(Protocol):
    """Which positions of an input a range of output positions needs."""

    def needed(self, start: int, stop: int, size: int) -> Interval:
        """Return the positions, clipped to ``[0, size)`` and never empty."""
        ...


class Sliding(NamedTuple):
    """A window that slides with the output position, in units of ``1 / unit`` positions."""

    offset: int
    stride: int
    extent: int
    unit: int
    blocks: int = 1
    """Elements that stand side by side at each position of the input, and that the window counts
    one by one."""

    def needed(self, start: int, stop: int, size: int) -> Interval:
        first = start * self.stride + self.offset
        last = (stop - 1) * self.stride + self.offset + self.extent
        low, high = _clipped(first // self.unit, -(-last // self.unit), size * self.blocks)
        return low // self.blocks, -(-high // self.blocks)


def sliding(window: Window = SAME, blocks: int = 1) -> Sliding:
    """Return a window in whole numbers."""
    unit = math.lcm(*(part.denominator for part in window))
    offset, stride, extent = (int(part * unit) for part in window)
    return Sliding(offset, stride, extent, unit, blocks)


@dataclass(frozen=True, slots=True)
class Mirrored:
    """Padding by reflection: so many positions in front of the input, and behind it."""

    begin: int
    end: int

    def needed(self, start: int, stop: int, size: int) -> Interval:
        low, high = start - self.begin, stop - self.begin
        mirrored_high = max(high, 1 - low) if low < 0 else high
        mirrored_low = min(low, 2 * size - 1 - high) if high > size else low
        return _clipped(mirrored_low, mirrored_high, size)


def _clipped(low: int, high: int, size: int) -> Interval:
    low = min(max(low, 0), max(size - 1, 0))
    return low, max(min(high, size), low + 1)


UNCHANGED = sliding()
"""Each position needs its own."""

Factor = tuple[int, int | None]
"""Elements of a part of an axis, and the tiled axis of the picture that it is, if any."""


def factors_of(shape: Sequence[int], places: Places) -> tuple[tuple[Factor, ...], ...]:
    """Return the parts that each axis of a value is made of, the slowest first.

    An axis that carries rows and columns, say, is rows, then columns. Apart from the tiled ones
    only factors above 1 are named.

    Raises
    ------
    ValueError
        The places do not fit together.
    """
    found: list[tuple[Factor, ...]] = []
    for axis, size in enumerate(shape):
        inline = [(place, k) for k, place in places.items() if place.axis == axis]
        left, parts = size, list[Factor]()
        for place, k in sorted(inline, key=lambda pair: (-pair[0].inner, pair[1])):
            static, rest = divmod(left, place.size * place.inner)
            if rest or static < 1:
                raise ValueError(f"axis {axis} of {size} is not made of {place.size} positions")
            if static > 1:
                parts.append((static, None))
            parts.append((place.size, k))
            left = place.inner
        if left > 1 or not parts:
            parts.append((left, None))
        found.append(tuple(parts))
    return tuple(found)


@dataclass(frozen=True)
class Layout:
    """The axes of a value, each taken apart into its factors."""

    factors: tuple[tuple[Factor, ...], ...]

    @cached_property
    def flat(self) -> list[Factor]:
        """The factors as the axes of a larger array, in which each tiled axis stands alone."""
        return [factor for axis in self.factors for factor in axis]

    @property
    def is_apart(self) -> bool:
        """Whether every tiled axis already is an axis of its own."""
        return all(len(axis) == 1 for axis in self.factors)

    def axis_of(self, k: int) -> int:
        """Return where a tiled axis stands among `flat`."""
        return next(i for i, (_, own) in enumerate(self.flat) if own == k)

    def apart(self, sizes: Mapping[int, int]) -> tuple[int, ...]:
        """Return the shape with all factors apart, for so many positions of each tiled axis."""
        return tuple(size if k is None else sizes[k] for size, k in self.flat)

    def joined(self, sizes: Mapping[int, int]) -> tuple[int, ...]:
        """Return the value's own shape, for so many positions of each tiled axis."""
        shape = []
        for axis in self.factors:
            product = 1
            for size, k in axis:
                product *= size if k is None else sizes[k]
            shape.append(product)
        return tuple(shape)
