"""The usual ways to make one box of several around the same object: NMS, NMM, weighted fusion."""

from __future__ import annotations

import numpy as np

from dask_onnx.tiles.boxes import (
    Boxes,
    Floats,
    Ints,
    Metric,
    crossing_pairs,
    join_boxes,
    overlapping_pairs,
    overlaps,
)

_FIRST_BLOCK, _LARGEST_BLOCK = 64, 4096
"""Boxes that are compared with each other at a time: few at first, as the best ones suppress most
where there are many of each object; then twice as many each time."""
_LEAST_WEIGHT = 1e-9
"""Keeps a mean defined where all scores are 0."""


def nms(
    found: Boxes, threshold: float, *, metric: Metric = "iou", class_agnostic: bool = False
) -> Boxes:
    """Return the boxes that no better one overlaps: greedy non-maximum suppression.

    Parameters
    ----------
    found : Boxes
        In any order.
    threshold : float
        Overlap at and above which the better of two boxes of a class suppresses the other.
    metric : {"iou", "ios"}
    class_agnostic : bool
        Boxes of different classes suppress each other too.

    Returns
    -------
    Boxes, best first
    """
    ordered = found.in_order()
    owners = owners_of(ordered, threshold, metric, class_agnostic)
    return ordered.take(owners == np.arange(len(ordered)))


def greedy_nmm(
    found: Boxes, threshold: float, *, metric: Metric = "ios", class_agnostic: bool = False
) -> Boxes:
    """Return boxes that each have grown around the worse ones that they overlap.

    Greedy non-maximum merging, as in the SAHI package: the boxes that `nms` keeps grow, each around
    those that it suppresses, best first, as long as these overlap the box that has grown so far.
    Score and label are those of the best. Parameters and order as for `nms`.
    """
    ordered = found.in_order()
    owners = owners_of(ordered, threshold, metric, class_agnostic)
    boxes = ordered.boxes.astype(np.float64)
    grown = boxes.copy()
    by_owner = np.argsort(owners, kind="stable")
    firsts = np.searchsorted(owners[by_owner], owners[by_owner])
    ranks = np.arange(len(owners)) - firsts  # 0 for the owner itself
    for rank in range(1, int(ranks.max(initial=0)) + 1):
        places = by_owner[ranks == rank]
        is_match = overlaps(grown[owners[places]], boxes[places], metric) >= threshold
        places = places[is_match]
        grown[owners[places], :2] = np.minimum(grown[owners[places], :2], boxes[places, :2])
        grown[owners[places], 2:] = np.maximum(grown[owners[places], 2:], boxes[places, 2:])
    merged = Boxes.of(grown, ordered.scores, ordered.labels)
    return merged.take(owners == np.arange(len(ordered))).in_order()


def weighted_boxes_fusion(
    found: Boxes, threshold: float, *, metric: Metric = "iou", class_agnostic: bool = False
) -> Boxes:
    """Return one mean box for each cluster, weighted by score.

    After R. Solovyev, W. Wang, T. Gabruseva, "Weighted boxes fusion: Ensembling boxes from
    different object detection models", Image and Vision Computing 107, 2021. Boxes join, best
    first, the cluster whose mean they overlap most. The score is the cluster's mean score; the
    paper's factor for models that have not found an object is left out, since most objects lie in
    one slice only. Parameters and order as for `nms`; the label is that of the best.
    """
    ordered = found.in_order()
    groups = _groups(ordered, class_agnostic)
    return join_boxes(
        [_fused(ordered.take(group), threshold, metric) for group in groups]
    ).in_order()


def owners_of(ordered: Boxes, threshold: float, metric: Metric, class_agnostic: bool) -> Ints:
    """Return for each box the position of the best kept one that overlaps it; its own if kept.

    Parameters
    ----------
    ordered : Boxes, best first
    """
    owners = np.arange(len(ordered))
    for group in _groups(ordered, class_agnostic):
        owners[group] = group[_owners(ordered.boxes[group].astype(np.float64), threshold, metric)]
    return owners


def _groups(ordered: Boxes, class_agnostic: bool) -> list[Ints]:
    """Positions of the boxes of each class, in their order."""
    if class_agnostic:
        return [np.arange(len(ordered))]
    return [np.flatnonzero(ordered.labels == label) for label in np.unique(ordered.labels)]


def _owners(boxes: Floats, threshold: float, metric: Metric) -> Ints:
    """As `owners_of`, for boxes of one class.

    Block by block, so that the matching pairs of one block are all that is held.
    """
    free = len(boxes)
    owners = np.full(free, free)
    start, size = 0, _FIRST_BLOCK
    while start < len(boxes):
        stop = min(start + size, len(boxes))
        block = start + np.flatnonzero(owners[start:stop] == free)
        _choose(owners, block, *_matches(boxes, block, threshold, metric))
        kept = block[owners[block] == block]
        rest = stop + np.flatnonzero(owners[stop:] == free)
        for i, j in crossing_pairs(boxes[kept], boxes[rest]):
            is_match = overlaps(boxes[kept[i]], boxes[rest[j]], metric) >= threshold
            np.minimum.at(owners, rest[j[is_match]], kept[i[is_match]])
        start, size = stop, min(2 * size, _LARGEST_BLOCK)
    return owners


def _matches(boxes: Floats, block: Ints, threshold: float, metric: Metric) -> tuple[Ints, Ints]:
    """The matching pairs of a block, better and worse, sorted by the better one."""
    pairs = [np.empty((2, 0), np.int64)]
    for i, j in overlapping_pairs(boxes[block]):
        is_match = overlaps(boxes[block[i]], boxes[block[j]], metric) >= threshold
        pairs.append(np.sort(np.stack([block[i[is_match]], block[j[is_match]]]), axis=0))
    better, worse = np.concatenate(pairs, axis=1)
    order = np.argsort(better, kind="stable")
    return better[order], worse[order]


def _choose(owners: Ints, block: Ints, better: Ints, worse: Ints) -> None:
    """Keep, best first, the boxes of a block that no kept one matches; note who owns the rest."""
    starts, stops = np.searchsorted(better, block), np.searchsorted(better, block, "right")
    for place, start, stop in zip(block.tolist(), starts.tolist(), stops.tolist(), strict=True):
        if owners[place] == len(owners):
            owners[place] = place
            losers = worse[start:stop]
            owners[losers] = np.minimum(owners[losers], place)


def _fused(ordered: Boxes, threshold: float, metric: Metric) -> Boxes:
    """Weighted fusion of the boxes of one class, best first."""
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
    """Growing clusters of boxes, found by where their means are."""

    def __init__(self, most: int, side: float) -> None:
        self.count = 0
        self.means = np.zeros((most, 4))
        self._side = side
        """No box and no mean is longer: boxes that overlap are in the same cell or the next."""
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
        """Add a box to a cluster; a new one if `number` is the count of clusters."""
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
        """Return the mean boxes, mean scores and labels of the best."""
        scores = self._weights[: self.count] / self._sizes[: self.count]
        return Boxes.of(self.means[: self.count], scores, ordered.labels[self._firsts])

    def _cell(self, box: Floats) -> tuple[int, int]:
        return int((box[0] + box[2]) // (2 * self._side)), int(
            (box[1] + box[3]) // (2 * self._side)
        )
