"""Boxes around objects: the record, their overlaps, and a search for overlapping pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Metric = Literal["iou", "ios"]
"""Overlap of two boxes: intersection over union, or over the smaller of the two."""
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

_PAIRS_AT_A_TIME = 1 << 20
"""Candidate pairs that are compared at a time, which bounds the memory to some 100 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Objects that a detector has found: corners, scores and classes.

    `detect_sliced` returns them sorted by falling score. ``len(boxes)`` is their number n.

    Attributes
    ----------
    boxes : numpy.ndarray
        float32, shape (n, 4): x1, y1, x2, y2 in pixels from the upper left corner of the image.
    scores : numpy.ndarray
        float32, shape (n,): confidence from 0 to 1.
    labels : numpy.ndarray
        int64, shape (n,): class numbers, as the model counts them.

    Examples
    --------
    >>> import dask_onnx as dx
    >>> found = dx.Boxes.of([[0, 0, 10, 20], [5, 5, 9, 9]], [0.9, 0.4], [0, 2])
    >>> confident = found.take(found.scores > 0.5)
    >>> len(confident), confident.boxes.tolist()
    (1, [[0.0, 0.0, 10.0, 20.0]])
    """

    boxes: npt.NDArray[np.float32]
    """float32, shape (n, 4): x1, y1, x2, y2 in pixels from the upper left corner of the image."""
    scores: npt.NDArray[np.float32]
    """float32, shape (n,): confidence from 0 to 1."""
    labels: Ints
    """int64, shape (n,): class numbers, as the model counts them."""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: Any) -> Boxes:
        """Return some of the boxes.

        Parameters
        ----------
        index : int array, bool array or slice
            Positions, or a mask that is true for the boxes to return.
        """
        return Boxes(self.boxes[index], self.scores[index], self.labels[index])

    def in_order(self) -> Boxes:
        """Return the boxes by falling score; equal scores by x1, y1, x2, y2 and label."""
        return self.take(best_first(self))

    @classmethod
    def of(cls, boxes: Any, scores: Any, labels: Any) -> Boxes:
        """Convert arrays or sequences to Boxes.

        Parameters
        ----------
        boxes : array-like, shape (n, 4)
            x1, y1, x2, y2 in pixels.
        scores : array-like, shape (n,)
        labels : array-like, shape (n,)
        """
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
    """Return the positions that sort boxes by score, falling; ties by x1, y1, x2, y2 and label.

    The sorted boxes do not depend on the order of the given ones.
    """
    x1, y1, x2, y2 = found.boxes.T
    return np.lexsort((found.labels, y2, x2, y1, x1, -found.scores)).astype(np.int64)


def overlaps(a: Floats, b: Floats, metric: Metric) -> Floats:
    """Return the overlap of each box of `a` with the box of `b` at its position.

    Parameters
    ----------
    a, b : float64 arrays, shape (n, 4) or broadcastable
    metric : {"iou", "ios"}

    Returns
    -------
    float64 array, shape (n,)
        From 0 to 1; 0 for boxes without area.
    """
    shared = intersections(a, b)
    area_a, area_b = areas(a), areas(b)
    whole = area_a + area_b - shared if metric == "iou" else np.minimum(area_a, area_b)
    return ratio(shared, whole)


def intersections(a: Floats, b: Floats) -> Floats:
    """Return the area that each box of `a` shares with the box of `b` at its position."""
    return areas(clipped(a, b))


def clipped(boxes: Floats, windows: Floats) -> Floats:
    """Return the part of each box inside a window; a box without area if there is none."""
    low = np.maximum(boxes[..., :2], windows[..., :2])
    high = np.minimum(boxes[..., 2:], windows[..., 2:])
    return np.concatenate([low, high], axis=-1)


def areas(boxes: Floats) -> Floats:
    """Return width times height of boxes, 0 where one of the two is negative."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    product: Floats = sides[..., 0] * sides[..., 1]
    return product


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return `part` over `whole`, 0 where `whole` is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def overlapping_pairs(boxes: Floats) -> Iterator[tuple[Ints, Ints]]:
    """Yield the positions of boxes that share an area, each pair once, in bounded batches.

    A sweep along x or y, whichever has fewer candidates, finds boxes whose intervals overlap on
    that axis; only these are compared.

    Parameters
    ----------
    boxes : float64 array, shape (n, 4)

    Yields
    ------
    i, j : int64 arrays of equal length
        Positions of the two boxes of each pair.
    """

    def sweep(axis: int) -> tuple[Ints, Ints, Ints]:
        order = np.argsort(boxes[:, axis], kind="stable")
        ends = np.searchsorted(boxes[order, axis], boxes[order, axis + 2])
        return order, np.arange(1, len(order) + 1), ends

    order, low, high = min(sweep(0), sweep(1), key=lambda found: _total(*found[1:]))
    for i, j in _ranges(low, high):
        yield _sharing(boxes, boxes, order[i], order[j])


def crossing_pairs(a: Floats, b: Floats) -> Iterator[tuple[Ints, Ints]]:
    """Yield the positions of boxes of `a` and `b` that share an area, in bounded batches.

    Parameters
    ----------
    a, b : float64 arrays, shapes (n, 4) and (m, 4)

    Yields
    ------
    i, j : int64 arrays of equal length
        Position in `a` and position in `b` of each pair.
    """

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
    """Yield each i with each number of ``range(low[i], high[i])``, in bounded batches of pairs."""
    counts = np.maximum(high - low, 0)
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_A_TIME, "right")))
        batch = counts[start:stop]
        firsts = low[start:stop] - (ends[start:stop] - batch - done)
        i = np.repeat(np.arange(start, stop), batch)
        yield i, np.arange(len(i)) + np.repeat(firsts, batch)
        start = stop


def _sharing(a: Floats, b: Floats, i: Ints, j: Ints) -> tuple[Ints, Ints]:
    """Return those of some pairs that share an area."""
    shares = intersections(a[i], b[j]) > 0
    return i[shares], j[shares]
