"""Merging of boxes across the seams between slices: one box for each object.

Two boxes of different slices are compared only in the area that both slices show, since there they
must agree. If a slice crops an object, its box ends at an inner edge of the slice. Such a box need
only lie inside the other one, since the visible part, such as an arm, may be far smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.images.boxes import (
    Boxes,
    Floats,
    Ints,
    areas,
    best_first,
    clipped,
    intersections,
    overlapping_pairs,
    ratio,
)

Mask = npt.NDArray[np.bool_]

_EDGE = 0.01
"""Share of a slice's side within which a box counts as ending at its edge, if that is more than a
pixel: detectors do not hit the edge exactly."""
_SHRUNK_ERROR = 2
"""Error of a box that was found in the shrunk image, in pixels of that image."""


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Views of an image that a detector has processed: slices, and perhaps the shrunk image."""

    windows: Floats
    """float64, shape (m, 4): x1, y1, x2, y2 of each view, in pixels of the image, not beyond it."""
    scales: Ints
    """int64, shape (m,): image pixels for one pixel of the view; above 1 for the shrunk image."""
    size: tuple[int, int]
    """Width and height of the image in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class _Cropping:
    """The view of each box, and the edges of the view at which the box ends."""

    boxes: Floats
    """float64, shape (n, 4): corners, clipped to the view."""
    view_ids: Ints
    """int64, shape (n,): number of the view."""
    windows: Floats
    """float64, shape (n, 4): corners of the view."""
    low: Mask
    """bool, shape (n, 2): whether the box ends at the left, and at the upper edge of its view.

    Edges of the view that are edges of the image do not count.
    """
    high: Mask
    """bool, shape (n, 2): the same for the right and the lower edge."""

    @property
    def is_whole(self) -> Mask:
        """bool, shape (n,): whether the view shows the object whole."""
        return np.asarray(~np.any(self.low | self.high, axis=1))

    def is_cropped(self, i: Ints, j: Ints) -> Mask:
        """Return whether box i ends at an edge of its view beyond which the view of j extends."""
        window, other = self.windows[i], self.windows[j]
        low = self.low[i] & (other[:, :2] < window[:, :2])
        high = self.high[i] & (other[:, 2:] > window[:, 2:])
        return np.asarray(np.any(low | high, axis=1))


def merge_seams(
    found: Boxes, view_ids: Ints, views: Views, threshold: float, *, class_agnostic: bool = False
) -> Boxes:
    """Return one box for each object that one or several slices show, whole or in part.

    Parameters
    ----------
    found : Boxes
        In pixels of the image, without duplicates inside a slice, in any order.
    view_ids : int64 array, shape (n,)
        Number of the view in which each box was found.
    views : Views
    threshold : float
        Overlap at and above which two boxes are the same object. For boxes that neither slice
        crops, it is their intersection over union. For others, it is the share of the cropped box,
        in the area that both slices show, which the other box covers.
    class_agnostic : bool
        True if boxes of different classes may be the same object.

    Returns
    -------
    Boxes
        By falling score.

    Notes
    -----
    The best matches are merged first. Two boxes of one slice are never merged: the detector has
    found two objects. If a slice shows the object whole, the best such box is the result; otherwise
    it is the box around all parts, with their best score. A cropped box that remains and lies in
    another box is dropped.

    Boxes of the shrunk image count only for objects that no slice holds. Such a box replaces the
    one around the parts if the two differ by more than its possible error, two pixels of the shrunk
    image.
    """
    found, view_ids = _without_redundant(found, view_ids, views)
    order = best_first(found)
    found, view_ids = found.take(order), view_ids[order]
    cropping = _cropping_of(found, view_ids, views)
    objects = _ObjectSets(view_ids)
    for i, j, is_part_i, is_part_j in _matches(found, cropping, threshold, class_agnostic):
        if not objects.join(i, j):
            if is_part_i and not is_part_j:
                objects.add_part(i)
            if is_part_j and not is_part_i:
                objects.add_part(j)
    scales, is_whole = views.scales[view_ids], cropping.is_whole
    merged = [
        _merged_object(found, is_whole, scales, np.asarray(group)) for group in objects.groups()
    ]
    boxes, scores, labels = zip(*merged, strict=True) if merged else ((), (), ())
    return Boxes.of(boxes, scores, labels).in_order()


def _without_redundant(found: Boxes, view_ids: Ints, views: Views) -> tuple[Boxes, Ints]:
    """Return boxes and views without those boxes of the shrunk image that a slice shows better.

    They lie in a slice, away from its inner edges.
    """
    is_kept = views.scales[view_ids] == 1
    slices = views.windows[views.scales == 1]
    inner = _inner_edges(slices, views)
    near = np.where(inner, _nearness(slices), 0.0)
    low, high = slices[:, :2] + near[:, :2], slices[:, 2:] - near[:, 2:]
    for place in np.flatnonzero(~is_kept):
        box = found.boxes[place].astype(np.float64)
        is_inside = ((box[:2] >= low) & (box[2:] <= high)).all(axis=1)
        is_kept[place] = not is_inside.any()
    return found.take(is_kept), view_ids[is_kept]


def _inner_edges(windows: Floats, views: Views) -> Mask:
    """Return which edges of windows lie inside the image: left, upper, right, lower."""
    inner = np.concatenate([windows[:, :2] > 0, windows[:, 2:] < np.asarray(views.size)], axis=1)
    return np.asarray(inner)


def _nearness(windows: Floats) -> Floats:
    """Return the pixels from an edge within which a box ends at it: left, upper, right, lower."""
    return np.tile(np.maximum((windows[:, 2:] - windows[:, :2]) * _EDGE, 1.0), 2)


def _cropping_of(found: Boxes, view_ids: Ints, views: Views) -> _Cropping:
    windows = views.windows[view_ids]
    boxes = clipped(found.boxes.astype(np.float64), windows)
    near, inner = _nearness(windows), _inner_edges(windows, views)
    low = (boxes[:, :2] <= windows[:, :2] + near[:, :2]) & inner[:, :2]
    high = (boxes[:, 2:] >= windows[:, 2:] - near[:, 2:]) & inner[:, 2:]
    return _Cropping(boxes, view_ids, windows, low, high)


def _matches(
    found: Boxes, cropping: _Cropping, threshold: float, class_agnostic: bool
) -> list[tuple[int, int, bool, bool]]:
    """Return the pairs of boxes that may be one object, best match first.

    Each is (i, j, whether i is cropped, whether j is cropped).
    """
    parts = [np.empty((5, 0))]
    for i, j in overlapping_pairs(cropping.boxes):
        differs = cropping.view_ids[i] != cropping.view_ids[j]
        if not class_agnostic:
            differs &= found.labels[i] == found.labels[j]
        i, j = np.minimum(i, j)[differs], np.maximum(i, j)[differs]
        shared = intersections(cropping.boxes[i], cropping.boxes[j])
        # Areas of each box that the view of the other one shows too.
        seen_i = intersections(cropping.boxes[i], cropping.windows[j])
        seen_j = intersections(cropping.boxes[j], cropping.windows[i])
        union = areas(cropping.boxes[i]) + areas(cropping.boxes[j]) - shared
        is_part_i, is_part_j = cropping.is_cropped(i, j), cropping.is_cropped(j, i)
        part = np.minimum(np.where(is_part_i, seen_i, np.inf), np.where(is_part_j, seen_j, np.inf))
        is_match = ratio(shared, np.where(is_part_i | is_part_j, part, union)) >= threshold
        agreement = ratio(shared, seen_i + seen_j - shared)
        parts.append(np.stack([agreement, i, j, is_part_i, is_part_j])[:, is_match])
    agreement, i, j, is_part_i, is_part_j = np.concatenate(parts, axis=1)
    order = np.lexsort((j, i, -agreement))
    columns = [i.astype(int), j.astype(int), is_part_i.astype(bool), is_part_j.astype(bool)]
    return list(zip(*(column[order].tolist() for column in columns), strict=True))


class _ObjectSets:
    """Sets of boxes that are one object: disjoint, each with at most one box of a view."""

    def __init__(self, view_ids: Ints) -> None:
        self._groups = [[place] for place in range(len(view_ids))]
        self._view_sets = [{view} for view in view_ids.tolist()]
        self._roots = list(range(len(view_ids)))
        self._parts: set[int] = set()

    def join(self, i: int, j: int) -> bool:
        """Merge the objects of two boxes; return False if both have a box of the same view."""
        i, j = self._roots[i], self._roots[j]
        if i == j:
            return True
        if not self._view_sets[i].isdisjoint(self._view_sets[j]):
            return False
        if len(self._groups[i]) < len(self._groups[j]):
            i, j = j, i
        for place in self._groups[j]:
            self._roots[place] = i
        self._groups[i] += self._groups[j]
        self._view_sets[i] |= self._view_sets[j]
        self._groups[j] = []
        return True

    def add_part(self, place: int) -> None:
        """Record that a box is a part of an object with which it cannot be merged."""
        self._parts.add(place)

    def groups(self) -> list[list[int]]:
        """Return the boxes of each object, without parts that were merged with nothing."""
        return [
            group
            for group in self._groups
            if group and not (len(group) == 1 and group[0] in self._parts)
        ]


def _merged_object(
    found: Boxes, is_whole: Mask, scales: Ints, group: Ints
) -> tuple[npt.NDArray[np.float32], np.float32, np.int64]:
    """Return box, score and label of an object.

    Parameters
    ----------
    found : Boxes
        By falling score, so that the smallest position is the best box.
    is_whole : bool array, shape (n,)
    scales : int64 array, shape (n,)
        Scale of each box's view.
    group : int64 array
        Positions of the object's boxes.
    """
    is_shrunk = scales[group] > 1
    whole, shrunk = group[is_whole[group] & ~is_shrunk], group[is_shrunk]
    parts = group[~is_shrunk]
    chosen = whole.min() if whole.size else shrunk.min() if shrunk.size else group.min()
    box, score, label = found.boxes[chosen], found.scores[chosen], found.labels[chosen]
    if whole.size or not parts.size:
        return box, score, label
    low, high = found.boxes[parts, :2].min(axis=0), found.boxes[parts, 2:].max(axis=0)
    around = np.concatenate([low, high])
    if shrunk.size and np.abs(around - box).max() > _SHRUNK_ERROR * scales[chosen]:
        return box, score, label
    best = parts.min()
    return around, found.scores[best], found.labels[best]
