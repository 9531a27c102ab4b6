"""Common ways to merge boxes around the same object: NMS, NMM, weighted boxes fusion."""

from __future__ import annotations

import numpy as np

from dask_onnx.collections.images.boxes import (
    Boxes,
    Floats,
    Ints,
    Metric,
    best_first,
    crossing_pairs,
    join_boxes,
    overlapping_pairs,
    overlaps,
)

_FIRST_BLOCK, _LARGEST_BLOCK = 64, 4096
"""Boxes that are compared with each other at a time: few at first, since the best ones suppress
most of the others where there are many per object; then twice as many each time."""
_LEAST_WEIGHT = 1e-9
"""Smallest weight of a box, which keeps a mean defined where all scores are 0."""


def nms(
    found: Boxes, threshold: float, *, metric: Metric = "iou", class_agnostic: bool = False
) -> Boxes:
    """Return the boxes that no better kept box overlaps: greedy non-maximum suppression.

    Parameters
    ----------
    found : Boxes
        Boxes in any order.
    threshold : float
        Overlap at and above which the better of two boxes of a class suppresses the other.
    metric : {"iou", "ios"}
        Measure of overlap.
    class_agnostic : bool
        True if boxes of different classes suppress each other too.

    Returns
    -------
    Boxes
        By falling score.
    """
    return found.take(nms_places(found, threshold, metric=metric, class_agnostic=class_agnostic))


def nms_places(
    found: Boxes, threshold: float, *, metric: Metric = "iou", class_agnostic: bool = False
) -> Ints:
    """Return the positions of the boxes that `nms` returns, in its order.

    Parameters are those of `nms`.
    """
    order = best_first(found)
    suppressors = suppressors_of(found.take(order), threshold, metric, class_agnostic)
    kept: Ints = order[suppressors == np.arange(len(order))]
    return kept


def greedy_nmm(
    found: Boxes, threshold: float, *, metric: Metric = "ios", class_agnostic: bool = False
) -> Boxes:
    """Return the boxes that `nms` keeps, each grown around those that it suppresses.

    Greedy non-maximum merging, as in the SAHI package: suppressed boxes are merged by falling
    score, as long as they overlap the box that has grown so far. Score and label are those of the
    best box. Parameters and order are those of `nms`.
    """
    ordered = found.in_order()
    suppressors = suppressors_of(ordered, threshold, metric, class_agnostic)
    boxes = ordered.boxes.astype(np.float64)
    grown = boxes.copy()
    by_suppressor = np.argsort(suppressors, kind="stable")
    firsts = np.searchsorted(suppressors[by_suppressor], suppressors[by_suppressor])
    # Position of each box among those with the same suppressor; 0 is the suppressor itself. Boxes
    # of equal rank belong to different suppressors, so that they can be merged at once.
    ranks = np.arange(len(suppressors)) - firsts
    for rank in range(1, int(ranks.max(initial=0)) + 1):
        places = by_suppressor[ranks == rank]
        targets = suppressors[places]
        is_match = overlaps(grown[targets], boxes[places], metric) >= threshold
        places, targets = places[is_match], targets[is_match]
        grown[targets, :2] = np.minimum(grown[targets, :2], boxes[places, :2])
        grown[targets, 2:] = np.maximum(grown[targets, 2:], boxes[places, 2:])
    merged = Boxes.of(grown, ordered.scores, ordered.labels)
    return merged.take(suppressors == np.arange(len(ordered))).in_order()


def weighted_boxes_fusion(
    found: Boxes, threshold: float, *, metric: Metric = "iou", class_agnostic: bool = False
) -> Boxes:
    """Return one box for each cluster of overlapping boxes: their mean, weighted by score.

    Boxes join, by falling score, the cluster whose mean they overlap most, or start a new one. The
    score is the mean score of the cluster, the label that of its best box. Parameters and order are
    those of `nms`.

    Notes
    -----
    After R. Solovyev, W. Wang, T. Gabruseva, "Weighted boxes fusion: Ensembling boxes from
    different object detection models", Image and Vision Computing 107, 2021. The paper's factor for
    models that have not found an object is left out, since most objects lie in one slice only.
    """
    ordered = found.in_order()
    groups = _groups(ordered, class_agnostic)
    return join_boxes(
        [_fused(ordered.take(group), threshold, metric) for group in groups]
    ).in_order()


def suppressors_of(ordered: Boxes, threshold: float, metric: Metric, class_agnostic: bool) -> Ints:
    """Return for each box the position of the best kept box that overlaps it.

    A box that is kept has its own position.

    Parameters
    ----------
    ordered : Boxes
        By falling score.
    threshold : float
        Overlap at and above which a box is suppressed.
    metric : {"iou", "ios"}
    class_agnostic : bool

    Returns
    -------
    int64 array, shape (n,)
    """
    suppressors = np.arange(len(ordered))
    for group in _groups(ordered, class_agnostic):
        suppressors[group] = group[
            _suppressors(ordered.boxes[group].astype(np.float64), threshold, metric)
        ]
    return suppressors


def _groups(ordered: Boxes, class_agnostic: bool) -> list[Ints]:
    """Return the positions of the boxes of each class, in their order."""
    if class_agnostic:
        return [np.arange(len(ordered))]
    return [np.flatnonzero(ordered.labels == label) for label in np.unique(ordered.labels)]


def _suppressors(boxes: Floats, threshold: float, metric: Metric) -> Ints:
    """Return the suppressors of boxes of one class; see `suppressors_of`.

    Blocks of boxes are processed in turn, so that only the matching pairs of one block are in
    memory.
    """
    free = len(boxes)  # stands for "not yet suppressed"
    suppressors = np.full(free, free)
    start, size = 0, _FIRST_BLOCK
    while start < len(boxes):
        stop = min(start + size, len(boxes))
        block = start + np.flatnonzero(suppressors[start:stop] == free)
        _choose(suppressors, block, *_matches(boxes, block, threshold, metric))
        kept = block[suppressors[block] == block]
        rest = stop + np.flatnonzero(suppressors[stop:] == free)
        for i, j in crossing_pairs(boxes[kept], boxes[rest]):
            is_match = overlaps(boxes[kept[i]], boxes[rest[j]], metric) >= threshold
            np.minimum.at(suppressors, rest[j[is_match]], kept[i[is_match]])
        start, size = stop, min(2 * size, _LARGEST_BLOCK)
    return suppressors


def _matches(boxes: Floats, block: Ints, threshold: float, metric: Metric) -> tuple[Ints, Ints]:
    """Return the matching pairs of a block, better and worse box, sorted by the better one."""
    pairs = [np.empty((2, 0), np.int64)]
    for i, j in overlapping_pairs(boxes[block]):
        is_match = overlaps(boxes[block[i]], boxes[block[j]], metric) >= threshold
        pairs.append(np.sort(np.stack([block[i[is_match]], block[j[is_match]]]), axis=0))
    better, worse = np.concatenate(pairs, axis=1)
    order = np.argsort(better, kind="stable")
    return better[order], worse[order]


def _choose(suppressors: Ints, block: Ints, better: Ints, worse: Ints) -> None:
    """Set the suppressors within a block, by falling score; in place."""
    starts, stops = np.searchsorted(better, block), np.searchsorted(better, block, "right")
    for place, start, stop in zip(block.tolist(), starts.tolist(), stops.tolist(), strict=True):
        if suppressors[place] == len(suppressors):
            suppressors[place] = place
            suppressed = worse[start:stop]
            suppressors[suppressed] = np.minimum(suppressors[suppressed], place)


def _fused(ordered: Boxes, threshold: float, metric: Metric) -> Boxes:
    """Return the weighted fusion of boxes of one class, which are sorted by falling score."""
    boxes = ordered.boxes.astype(np.float64)
    weights = np.maximum(ordered.scores.astype(np.float64), _LEAST_WEIGHT)
    clusters = _Clusters(len(boxes), float((boxes[:, 2:] - boxes[:, :2]).max(initial=1.0)))
    for place, box in enumerate(boxes):
        near = clusters.near(box)
        values = overlaps(clusters.means[near], box, metric)
        best = int(values.argmax()) if near else -1
        number = near[best] if near and values[best] >= threshold else clusters.count
        clusters.add(number, box, weights[place], place)
    return clusters.fused(ordered)


class _Clusters:
    """Growing clusters of boxes, indexed by the grid cell of their means."""

    def __init__(self, most: int, side: float) -> None:
        self.count = 0
        self.means = np.zeros((most, 4))
        self._side = side
        """Side of a cell. No box or mean is longer, so that overlapping ones have the same or
        neighbouring cells."""
        self._sums = np.zeros((most, 4))
        self._weights = np.zeros(most)
        self._sizes = np.zeros(most)
        self._firsts: list[int] = []
        self._cells: dict[tuple[int, int], set[int]] = {}

    def near(self, box: Floats) -> list[int]:
        """Return the numbers of clusters whose mean may overlap a box."""
        x, y = self._cell(box)
        around = [(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
        return sorted(number for cell in around for number in self._cells.get(cell, ()))

    def add(self, number: int, box: Floats, weight: float, place: int) -> None:
        """Add a box to a cluster, or start one if `number` is the count of clusters.

        Parameters
        ----------
        number : int
            Number of the cluster.
        box : float64 array, shape (4,)
        weight : float
            Score of the box.
        place : int
            Position of the box, whose label a new cluster takes.
        """
        if number == self.count:
            self.count += 1
            self._firsts.append(place)
        else:
            self._cells[self._cell(self.means[number])].discard(number)
        self._sums[number] += weight * box
        self._weights[number] += weight
        self._sizes[number] += 1
        self.means[number] = self._sums[number] / self._weights[number]
        self._cells.setdefault(self._cell(self.means[number]), set()).add(number)

    def fused(self, ordered: Boxes) -> Boxes:
        """Return for each cluster the mean box, the mean score, and the label of the best box."""
        scores = self._weights[: self.count] / self._sizes[: self.count]
        return Boxes.of(self.means[: self.count], scores, ordered.labels[self._firsts])

    def _cell(self, box: Floats) -> tuple[int, int]:
        return int((box[0] + box[2]) // (2 * self._side)), int(
            (box[1] + box[3]) // (2 * self._side)
        )
