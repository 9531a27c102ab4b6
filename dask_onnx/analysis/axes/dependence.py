"""How a value depends on the positions of one input axis, and where that axis lies in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from fractions import Fraction
from math import ceil, floor, lcm
from typing import NamedTuple


class Kind(IntEnum):
    """What one element of a value needs of an input axis, from nothing to anything."""

    FREE = 0
    """Nothing."""
    INDEPENDENT = 1
    """The one position that it stands for."""
    WINDOW = 2
    """A bounded range of positions (convolution, pooling, resizing, padding, strided slices)."""
    REDUCED = 3
    """All positions, through a statistic whose partial results can be combined (sum, mean, max)."""
    CONTRACTED = 4
    """All positions, through a sum of products (matrix products, convolution over channels)."""
    FACTORED = 5
    """Positions that a Reshape put together with others, or took apart."""
    GATHERED = 6
    """Positions that indices or values pick (Gather, sorting, flipping, concatenation)."""
    SCANNED = 7
    """All positions before it (recurrent networks, cumulative sums, loops)."""
    PAIRED = 8
    """Every position, paired with every other (attention scores, outer products)."""
    LENGTH = 9
    """The number of positions, or its own place among them."""
    OPAQUE = 10
    """Unknown: everything is possible."""

    @property
    def label(self) -> str:
        """The kind in lower case, as tables and messages print it."""
        return self.name.lower()


def _longest_rest(offset: Fraction, stride: Fraction) -> Fraction:
    """How far ``offset + o * stride`` can be from the whole number below it."""
    return 1 - Fraction(1, lcm(offset.denominator, stride.denominator))


class Window(NamedTuple):
    """Positions that one element reads: element o needs `extent` of them from o * stride + offset.

    Units are positions of the axis that is read. See Araujo, Norris and Sim, "Computing Receptive
    Fields of Convolutional Neural Networks" (Distill, 2019), for the arithmetic.
    """

    offset: Fraction
    stride: Fraction
    extent: Fraction

    def after(self, inner: Window) -> Window:
        """Return the window of this node over the input of a node with window `inner`.

        Positions of the value between them are whole: where this window begins or ends in between,
        it is widened by as much as that can be.
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
        """Return the smallest window that covers both; None if they do not advance alike."""
        if self.stride != other.stride:
            return None
        offset = min(self.offset, other.offset)
        end = max(self.offset + self.extent, other.offset + other.extent)
        return Window(offset, self.stride, end - offset)

    def interval(self, start: int, stop: int) -> tuple[int, int]:
        """Return the input positions that outputs ``[start, stop)`` need, not yet clipped."""
        first = start * self.stride + self.offset
        last = (stop - 1) * self.stride + self.offset + self.extent
        return floor(first), ceil(last)


SAME = Window(Fraction(0), Fraction(1), Fraction(1))
"""Each element reads its own position."""


def window(offset: float | Fraction, stride: float | Fraction, extent: float | Fraction) -> Window:
    """Return a `Window` of exact fractions."""
    return Window(Fraction(offset), Fraction(stride), Fraction(extent))


class Index(NamedTuple):
    """Whole numbers made of positions: ``scale * position + r`` with `low` <= r <= `high`."""

    scale: int
    low: int
    high: int


POSITIONS = Index(1, 0, 0)
"""The positions 0, 1, 2 ... themselves."""
OWN_INDEX = "own index"
"""How vectors depend on positions whose first element is their own position, and whose others
follow from that position alone, as GatherND takes them."""


@dataclass(frozen=True, slots=True)
class Dependence:
    """How a value depends on the positions of one input axis (the *source axis*)."""

    kind: Kind
    axis: int | None = None
    """Axis of the value along which the source positions lie; None where they lie on none."""
    outer: int = 1
    """Blocks of positions on that axis: its index is ``(o * positions + p) * inner + i``."""
    inner: int = 1
    """Elements of that axis for each position."""
    is_uniform: bool = False
    """All positions hold the same, so that the axis fits any `outer` and `inner`."""
    window: Window = SAME
    """Which source positions an element reads, while `kind` is at most WINDOW."""
    node: str = ""
    """Name of the node that decides `kind`, where that is more than INDEPENDENT."""
    how: str = ""
    """What the node does, in a word or two: "mean", "recurrence", "positions"."""
    index: Index | None = None
    """What the elements are, where they are known to be made of their position, or bounded."""
    coupled: str = ""
    """Name of the first node that takes a quantisation statistic over all positions."""
    is_resized: bool = False
    """Sizes on axes that carry no positions depend on their number, or on values."""

    @property
    def is_broken(self) -> bool:
        """Whether an element needs more than a bounded range of positions."""
        return self.kind > Kind.WINDOW

    @property
    def is_own(self) -> bool:
        """Whether the value has one element block for each position, which needs that one only."""
        return self.kind == Kind.INDEPENDENT and self.axis is not None

    def at(
        self, axis: int | None, outer: int | None = None, inner: int | None = None
    ) -> Dependence:
        """Return the same dependence with the positions on another axis."""
        outer = self.outer if outer is None else outer
        inner = self.inner if inner is None else inner
        if (axis, outer, inner) == (self.axis, self.outer, self.inner):
            return self
        return replace(self, axis=axis, outer=outer, inner=inner)

    def has_blocks_of(self, other: Dependence) -> bool:
        """Return whether positions lie in the same blocks, or in any, on the axis of both."""
        if self.is_uniform or other.is_uniform:
            return True
        return (self.outer, self.inner) == (other.outer, other.inner)

    def broken(self, kind: Kind, node: str, how: str = "") -> Dependence:
        """Return the dependence once `node` has broken it; what broke it first stands."""
        if self.is_broken or kind <= self.kind:
            return self.without_index() if kind > Kind.WINDOW else self
        return replace(self, kind=kind, node=node, how=how, index=None)

    def resized(self, node: str, how: str, kind: Kind = Kind.LENGTH) -> Dependence:
        """Return the dependence once `node` has made other sizes depend on the positions."""
        return replace(self.broken(kind, node, how), is_resized=True)

    def without_index(self) -> Dependence:
        """Return the same dependence, of elements of which nothing is known."""
        if self.index is None and self.how != OWN_INDEX:
            return self
        how = "position" if self.how in ("positions", OWN_INDEX) else self.how
        return replace(self, index=None, how=how)

    def windowed(self, over: Window, node: str, how: str = "") -> Dependence:
        """Return the dependence behind a node that reads a window of positions."""
        if over == SAME:
            return self
        widened = replace(self, window=over.after(self.window), is_uniform=False)
        if self.kind > Kind.WINDOW:
            return widened
        return replace(widened, kind=Kind.WINDOW, node=self.node or node, how=self.how or how)

    def with_coupled(self, node: str) -> Dependence:
        """Return the dependence marked as coupled by `node`, unless one before did."""
        return self if self.coupled or not node else replace(self, coupled=node)


FREE = Dependence(Kind.FREE)
"""The value does not depend on the source axis."""
