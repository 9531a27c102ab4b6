"""Abstract values of the axis analysis: how a value depends on one input axis, and where.

The *source axis* is the input axis under analysis; its *positions* are the indices 0 to size - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from fractions import Fraction
from math import ceil, floor, lcm
from typing import NamedTuple


class Kind(IntEnum):
    """Positions of the source axis that one element of a value reads, ordered from best to worst.

    Where two dependences meet, the larger kind prevails.
    """

    FREE = 0
    """No position: the value does not depend on the source axis."""
    INDEPENDENT = 1
    """Only the element's own position (elementwise operators)."""
    WINDOW = 2
    """A bounded range of positions (convolution, pooling, resizing, padding, strided slices)."""
    REDUCED = 3
    """All positions, through a statistic whose partial results can be combined (sum, mean, max)."""
    CONTRACTED = 4
    """All positions, through a sum of products (matrix products, convolution over channels)."""
    FACTORED = 5
    """Positions in an order that a Reshape changed by merging or splitting the axis."""
    GATHERED = 6
    """Positions chosen by indices, values or layout (Gather, sorting, flipping, concatenation)."""
    SCANNED = 7
    """All positions up to its own (recurrent networks, cumulative sums, loops)."""
    PAIRED = 8
    """Every pair of positions (attention scores, outer products)."""
    LENGTH = 9
    """The number of positions, or the element's own index among them."""
    OPAQUE = 10
    """Unknown: the element may read anything."""

    @property
    def label(self) -> str:
        """Name of the kind in lower case, as printed in tables and messages."""
        return self.name.lower()


def _longest_rest(offset: Fraction, stride: Fraction) -> Fraction:
    """Return the largest distance of ``offset + o * stride`` to the integer below it.

    With both as fractions of a common denominator d, the largest fractional part is (d - 1) / d.
    """
    return 1 - Fraction(1, lcm(offset.denominator, stride.denominator))


class Window(NamedTuple):
    """Receptive field: element o reads `extent` positions starting at ``o * stride + offset``.

    All fields are in positions of the axis that is read. The arithmetic follows Araujo, Norris and
    Sim, "Computing Receptive Fields of Convolutional Neural Networks" (Distill, 2019).
    """

    offset: Fraction
    """First position that element 0 reads; negative where padding is read."""
    stride: Fraction
    """Positions from the start of one element's range to the start of the next; below 1 where the
    axis is upsampled."""
    extent: Fraction
    """Positions that one element reads."""

    def after(self, inner: Window) -> Window:
        """Return the composition: this window applied to the output of a node with `inner`.

        Positions of the intermediate value are integers. Where this window starts or ends at a
        fraction, it is widened to the farthest integer that any element reaches.
        """
        is_shift = inner.stride == 1 and inner.offset.denominator == inner.extent.denominator == 1
        front = Fraction(0) if is_shift else _longest_rest(self.offset, self.stride)
        back = Fraction(0) if is_shift else _longest_rest(self.offset + self.extent, self.stride)
        return Window(
            (self.offset - front) * inner.stride + inner.offset,
            self.stride * inner.stride,
            (front + self.extent - 1 + back) * inner.stride + inner.extent,
        )

    def union(self, other: Window) -> Window | None:
        """Return the smallest window that covers both; None if their strides differ."""
        if self.stride != other.stride:
            return None
        offset = min(self.offset, other.offset)
        end = max(self.offset + self.extent, other.offset + other.extent)
        return Window(offset, self.stride, end - offset)

    def interval(self, start: int, stop: int) -> tuple[int, int]:
        """Return the half-open range of positions that outputs ``[start, stop)`` read.

        The range is not clipped to the axis: it may start below 0 or end behind the last position.
        """
        first = start * self.stride + self.offset
        last = (stop - 1) * self.stride + self.offset + self.extent
        return floor(first), ceil(last)


SAME = Window(Fraction(0), Fraction(1), Fraction(1))
"""Window of an element that reads its own position only."""


def window(offset: float | Fraction, stride: float | Fraction, extent: float | Fraction) -> Window:
    """Return a `Window` with its three numbers, in positions, as exact fractions."""
    return Window(Fraction(offset), Fraction(stride), Fraction(extent))


class Index(NamedTuple):
    """Integers of the form ``scale * position + r`` with ``low <= r <= high``."""

    scale: int
    """Factor of the element's own position; 0 for bounded integers."""
    low: int
    """Smallest remainder r."""
    high: int
    """Largest remainder r."""


POSITIONS = Index(1, 0, 0)
"""Form of the positions 0, 1, 2 ... themselves, as Range produces them."""
POSITION_VECTORS = "index vectors that start with the position"
"""`Dependence.how` of index vectors for GatherND and ScatterND whose first element is the vector's
own position and whose other elements depend on that position only."""


@dataclass(frozen=True, slots=True)
class Dependence:
    """Dependence of one value on the source axis: what its elements read, and its layout.

    A value that merges the source axis with others, such as (batch * heads, ...), has the positions
    in blocks on one axis: index ``(o * positions + p) * inner + i`` belongs to position p, with
    ``0 <= o < outer`` and ``0 <= i < inner``.
    """

    kind: Kind
    """Positions that one element reads."""
    axis: int | None = None
    """Axis of the value along which the source positions lie; None if there is none."""
    outer: int = 1
    """Number of blocks on that axis, each of which holds all positions once."""
    inner: int = 1
    """Consecutive elements of that axis that belong to one position."""
    is_uniform: bool = False
    """True if all positions hold equal values, so that the axis matches any `outer` and `inner`."""
    window: Window = SAME
    """Source positions that an element reads; meaningful while `kind` is at most WINDOW."""
    node: str = ""
    """Name of the node that decides `kind`; empty while that is FREE or INDEPENDENT."""
    how: str = ""
    """Operation of that node in a few words: "mean", "recurrence", "positions"."""
    index: Index | None = None
    """Form of the elements where they are integers computed from their position, or bounded; None
    if unknown."""
    coupled: str = ""
    """Name of the first node that computes quantisation parameters over all positions; "" if none.
    """
    is_resized: bool = False
    """True if sizes of axes other than `axis` depend on the number of positions, or on values."""

    @property
    def is_broken(self) -> bool:
        """True if an element reads more than a bounded range of positions."""
        return self.kind > Kind.WINDOW

    @property
    def is_independent(self) -> bool:
        """True if the value has elements for each position on an axis that read only that one."""
        return self.kind == Kind.INDEPENDENT and self.axis is not None

    def at(
        self, axis: int | None, outer: int | None = None, inner: int | None = None
    ) -> Dependence:
        """Return the same dependence with the positions on another axis.

        `outer` and `inner` stay as they are unless given.
        """
        outer = self.outer if outer is None else outer
        inner = self.inner if inner is None else inner
        if (axis, outer, inner) == (self.axis, self.outer, self.inner):
            return self
        return replace(self, axis=axis, outer=outer, inner=inner)

    def has_blocks_of(self, other: Dependence) -> bool:
        """Return whether the block layouts on the axis are equal, or one of the two is uniform."""
        if self.is_uniform or other.is_uniform:
            return True
        return (self.outer, self.inner) == (other.outer, other.inner)

    def broken(self, kind: Kind, node: str, how: str = "") -> Dependence:
        """Return the dependence raised to `kind` by `node`.

        A dependence that is broken already keeps the node that broke it first.
        """
        if self.is_broken or kind <= self.kind:
            return self.without_index() if kind > Kind.WINDOW else self
        return replace(self, kind=kind, node=node, how=how, index=None)

    def resized(self, node: str, how: str, kind: Kind = Kind.LENGTH) -> Dependence:
        """Return the dependence after `node` made sizes of other axes depend on the positions."""
        return replace(self.broken(kind, node, how), is_resized=True)

    def without_index(self) -> Dependence:
        """Return the same dependence without what is known of integer elements."""
        if self.index is None and self.how != POSITION_VECTORS:
            return self
        how = "position" if self.how in ("positions", POSITION_VECTORS) else self.how
        return replace(self, index=None, how=how)

    def windowed(self, over: Window, node: str, how: str = "") -> Dependence:
        """Return the dependence of the output of a node that reads a window of positions."""
        if over == SAME:
            return self
        widened = replace(self, window=over.after(self.window), is_uniform=False)
        if self.kind > Kind.WINDOW:
            return widened
        return replace(widened, kind=Kind.WINDOW, node=self.node or node, how=self.how or how)

    def of_whole_positions(self, node: str = "") -> Dependence:
        """Return the dependence, broken by `node` if the elements of a position lie in blocks.

        Such an axis is not what the positions' results are when they are put one after another.
        """
        if self.is_independent and (self.outer, self.inner) != (1, 1):
            return self.broken(Kind.FACTORED, node, "joined with another axis")
        return self

    def with_coupled(self, node: str) -> Dependence:
        """Return the dependence marked as coupled by `node`, unless an earlier node did so."""
        return self if self.coupled or not node else replace(self, coupled=node)


FREE = Dependence(Kind.FREE)
"""Dependence of a value that does not depend on the source axis."""
