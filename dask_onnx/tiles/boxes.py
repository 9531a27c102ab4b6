"""Boxes around objects, how much they overlap, and which of many do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Metric = Literal["iou", "ios"]
"""Intersection over union, or over the smaller of the two boxes."""
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

_PAIRS_AT_A_TIME = 1 << 20
"""Bounds the memory that looking for overlapping pairs takes, to some 100 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Objects that a detector has found, best first."""

    boxes: npt.NDArray[np.float32]
    """float32, shape (n, 4): x1, y1, x2, y2 in pixels, from the picture's upper left corner."""
    scores: npt.NDArray[np.float32]
    """float32, shape (n,), between 0 and 1."""
    labels: Ints
    """int64, shape (n,): numbers of classes, as the model counts them."""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, places: Any) -> Boxes:
        """Return the boxes at some positions, or where a mask is true."""
        return Boxes(self.boxes[places], self.scores[places], self.labels[places])

    def in_order(self) -> Boxes:
        """Return the boxes sorted by `best_first`."""
        return self.take(best_first(self))

    @classmethod
    def of(cls, boxes: Any, scores: Any, labels: Any) -> Boxes:
        """Return arrays or sequences as Boxes, with the dtypes and shapes that these have."""
        return cls(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(scores, np.float32).reshape(-1),
            np.asarray(labels, np.int64).reshape(-1),
        )


def join_boxes(parts: Sequence[Boxes]) -> Boxes:
    """Return the boxes of all parts, one part after the other."""
    if not parts:
        return Boxes.of((), (), ())
    return Boxes(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def best_first(found: Boxes) -> Ints:
    """Return the order by falling score; equal scores by x1, y1, x2, y2 and label.

    It does not depend on the order that the boxes come in.
    """
    x1, y1, x2, y2 = found.boxes.T
    return np.lexsort((found.labels, y2, x2, y1, x1, -found.scores)).astype(np.int64)


def overlaps(a: Floats, b: Floats, metric: Metric) -> Floats:
    """Return the overlap of each box of `a` with the box of `b` at its position.

    Parameters
    ----------
    a, b : float64, shape (n, 4) or broadcastable
    metric : {"iou", "ios"}

    Returns
    -------
    float64, shape (n,), 0 for boxes without an area
    """
    shared = intersections(a, b)
    area_a, area_b = areas(a), areas(b)
    whole = area_a + area_b - shared if metric == "iou" else np.minimum(area_a, area_b)
    return ratio(shared, whole)


def intersections(a: Floats, b: Floats) -> Floats:
    """Return the area that each box of `a` shares with the box of `b` at its position."""
    return areas(clipped(a, b))


def clipped(boxes: Floats, windows: Floats) -> Floats:
    """Return what lies of each box inside a window; without an area if nothing does."""
    low = np.maximum(boxes[..., :2], windows[..., :2])
    high = np.minimum(boxes[..., 2:], windows[..., 2:])
    return np.concatenate([low, high], axis=-1)


def areas(boxes: Floats) -> Floats:
    """Return widths times heights, 0 where one of these is negative."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    product: Floats = sides[..., 0] * sides[..., 1]
    return product


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return `part` over `whole`, 0 where `whole` is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def overlapping_pairs(boxes: Floats) -> Iterator[tuple[Ints, Ints]]:
    """Yield positions i and j of boxes that share an area, each pair once, some at a time.

    Boxes are compared only where they overlap along one axis, the one on which fewer do.
    """

    def sweep(axis: int) -> tuple[Ints, Ints, Ints]:
        order = np.argsort(boxes[:, axis], kind="stable")
        ends = np.searchsorted(boxes[order, axis], boxes[order, axis + 2])
        return order, np.arange(1, len(order) + 1), ends

    order, low, high = min(sweep(0), sweep(1), key=lambda found: _total(*found[1:]))
    for i, j in _ranges(low, high):
        yield _sharing(boxes, boxes, order[i], order[j])


def crossing_pairs(a: Floats, b: Floats) -> Iterator[tuple[Ints, Ints]]:
    """Yield positions i in `a` and j in `b` of boxes that share an area, some pairs at a time."""

    def sweep(axis: int) -> tuple[Ints, Ints, tuple[Ints, Ints], tuple[Ints, Ints]]:
        order_a = np.argsort(a[:, axis], kind="stable")
        order_b = np.argsort(b[:, axis], kind="stable")
        sorted_a, sorted_b = a[order_a], b[order_b]
        starts_a, starts_b = sorted_a[:, axis], sorted_b[:, axis]
        later_b = (
            np.searchsorted(starts_b, starts_a),
            np.searchsorted(starts_b, sorted_a[:, axis + 2]),
        )
        later_a = (
            np.searchsorted(starts_a, starts_b, "right"),
            np.searchsorted(starts_a, sorted_b[:, axis + 2]),
        )
        return order_a, order_b, later_b, later_a

    order_a, order_b, later_b, later_a = min(
        sweep(0), sweep(1), key=lambda found: _total(*found[2]) + _total(*found[3])
    )
    for i, j in _ranges(*later_b):
        yield _sharing(a, b, order_a[i], order_b[j])
    for j, i in _ranges(*later_a):
        yield _sharing(a, b, order_a[i], order_b[j])


def _total(low: Ints, high: Ints) -> int:
    return int(np.maximum(high - low, 0).sum())


def _ranges(low: Ints, high: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Every i with each number from low[i] up to high[i], a bounded number of pairs at a time."""
    counts = np.maximum(high - low, 0)
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_A_TIME, "right")))
        own = counts[start:stop]
        firsts = low[start:stop] - (ends[start:stop] - own - done)
        i = np.repeat(np.arange(start, stop), own)
        yield i, np.arange(len(i)) + np.repeat(firsts, own)
        start = stop


def _sharing(a: Floats, b: Floats, i: Ints, j: Ints) -> tuple[Ints, Ints]:
    """Those of some pairs that share an area."""
    shares = intersections(a[i], b[j]) > 0
    return i[shares], j[shares]
