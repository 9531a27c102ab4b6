"""What slices of a picture that overlap say of the same object, made one box.

Two boxes of different slices are compared where both slices have looked, since there they must
agree. A slice that cuts an object off gives a box that ends at an inner edge of the slice: such a
box need only lie in the other, since the part that is visible, an arm say, may be far smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dask_onnx.tiles.boxes import (
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
"""A box ends at the edge of its slice if it is nearer to it than this share of the slice's side,
or than a pixel: detectors do not hit the edge to the pixel."""
_SHRUNK_ERROR = 2
"""Pixels of the shrunk picture that a box found in it may be off."""


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """The parts of a picture that a detector has looked at."""

    windows: Floats
    """float64, shape (m, 4): x1, y1, x2, y2 in pixels of the picture, not beyond it."""
    scales: Ints
    """int64, shape (m,): pixels of the picture along a side of a pixel of the view: 1 but for the
    shrunk picture."""
    size: tuple[int, int]
    """Width and height of the picture in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class _Cuts:
    """What is known of each box from the slice that it was found in."""

    boxes: Floats
    """float64, shape (n, 4), not beyond the slice."""
    views: Ints
    windows: Floats
    """float64, shape (n, 4): of the slice."""
    low: Mask
    """bool, shape (n, 2): ends at the left, the upper edge of its slice, inside the picture."""
    high: Mask
    """bool, shape (n, 2): at the right, the lower edge."""

    @property
    def is_whole(self) -> Mask:
        return np.asarray(~np.any(self.low | self.high, axis=1))

    def is_cut(self, i: Ints, j: Ints) -> Mask:
        """Return whether box i ends at an edge of its slice beyond which the slice of j goes on."""
        own, other = self.windows[i], self.windows[j]
        low = self.low[i] & (other[:, :2] < own[:, :2])
        high = self.high[i] & (other[:, 2:] > own[:, 2:])
        return np.asarray(np.any(low | high, axis=1))


def merge_seams(
    found: Boxes, owners: Ints, views: Views, threshold: float, *, class_agnostic: bool = False
) -> Boxes:
    """Return one box for each object that several slices have seen, or seen a part of.

    Parameters
    ----------
    found : Boxes
        In pixels of the picture, without duplicates inside a slice, in any order.
    owners : int64, shape (n,)
        The number of the view that each box was found in.
    views : Views
    threshold : float
        For boxes that neither slice cuts off: their intersection over union. For others: the
        share of a cut box, where both slices have looked, that the other box covers.
    class_agnostic : bool
        Boxes of different classes may be one object.

    Returns
    -------
    Boxes, best first
        Best matches become one first, and never two boxes of one slice, which the detector took
        for two objects. If a slice saw the object whole, the best such box is the result;
        otherwise the box around all parts, with their best score. A cut box that is left over and
        lies in another is dropped.

        Of the shrunk picture only the objects count that no slice holds. Its box is the result
        where that around the parts differs by more than it can be off, two of its pixels.
    """
    found, owners = _without_small(found, owners, views)
    order = best_first(found)
    found, owners = found.take(order), owners[order]
    cuts = _cuts(found, owners, views)
    links = _Links(owners)
    for i, j, is_part_i, is_part_j in _matches(found, cuts, threshold, class_agnostic):
        if not links.join(i, j):
            links.note_part(i, is_part_i and not is_part_j)
            links.note_part(j, is_part_j and not is_part_i)
    scales, is_whole = views.scales[owners], cuts.is_whole
    merged = [_one(found, is_whole, scales, np.asarray(group)) for group in links.groups()]
    boxes, scores, labels = zip(*merged, strict=True) if merged else ((), (), ())
    return Boxes.of(boxes, scores, labels).in_order()


def _without_small(found: Boxes, owners: Ints, views: Views) -> tuple[Boxes, Ints]:
    """Without the boxes of the shrunk picture that lie in a slice, away from its inner edges."""
    is_kept = views.scales[owners] == 1
    slices = views.windows[views.scales == 1]
    inner = _inner_edges(slices, views)
    near = np.where(inner, _nearness(slices), 0.0)
    low, high = slices[:, :2] + near[:, :2], slices[:, 2:] - near[:, 2:]
    for place in np.flatnonzero(~is_kept):
        box = found.boxes[place].astype(np.float64)
        is_inside = ((box[:2] >= low) & (box[2:] <= high)).all(axis=1)
        is_kept[place] = not is_inside.any()
    return found.take(is_kept), owners[is_kept]


def _inner_edges(windows: Floats, views: Views) -> Mask:
    """Which edges of windows are not those of the picture: left, upper, right, lower."""
    inner = np.concatenate([windows[:, :2] > 0, windows[:, 2:] < np.asarray(views.size)], axis=1)
    return np.asarray(inner)


def _nearness(windows: Floats) -> Floats:
    """Pixels from an edge within which a box ends at it: left, upper, right, lower."""
    return np.tile(np.maximum((windows[:, 2:] - windows[:, :2]) * _EDGE, 1.0), 2)


def _cuts(found: Boxes, owners: Ints, views: Views) -> _Cuts:
    windows = views.windows[owners]
    boxes = clipped(found.boxes.astype(np.float64), windows)
    near, inner = _nearness(windows), _inner_edges(windows, views)
    low = (boxes[:, :2] <= windows[:, :2] + near[:, :2]) & inner[:, :2]
    high = (boxes[:, 2:] >= windows[:, 2:] - near[:, 2:]) & inner[:, 2:]
    return _Cuts(boxes, owners, windows, low, high)


def _matches(
    found: Boxes, cuts: _Cuts, threshold: float, class_agnostic: bool
) -> list[tuple[int, int, bool, bool]]:
    """Pairs of boxes that may be one object, best match first, and which of the two is cut off."""
    parts = [np.empty((5, 0))]
    for i, j in overlapping_pairs(cuts.boxes):
        differs = cuts.views[i] != cuts.views[j]
        if not class_agnostic:
            differs &= found.labels[i] == found.labels[j]
        i, j = np.minimum(i, j)[differs], np.maximum(i, j)[differs]
        shared = intersections(cuts.boxes[i], cuts.boxes[j])
        seen_i = intersections(cuts.boxes[i], cuts.windows[j])
        seen_j = intersections(cuts.boxes[j], cuts.windows[i])
        both = areas(cuts.boxes[i]) + areas(cuts.boxes[j]) - shared
        cut_i, cut_j = cuts.is_cut(i, j), cuts.is_cut(j, i)
        smaller = np.minimum(np.where(cut_i, seen_i, np.inf), np.where(cut_j, seen_j, np.inf))
        is_match = ratio(shared, np.where(cut_i | cut_j, smaller, both)) >= threshold
        agreement = ratio(shared, seen_i + seen_j - shared)
        parts.append(np.stack([agreement, i, j, cut_i, cut_j])[:, is_match])
    agreement, i, j, cut_i, cut_j = np.concatenate(parts, axis=1)
    order = np.lexsort((j, i, -agreement))
    columns = [i.astype(int), j.astype(int), cut_i.astype(bool), cut_j.astype(bool)]
    return list(zip(*(column[order].tolist() for column in columns), strict=True))


class _Links:
    """Boxes that have become one object: disjoint sets, each with at most one box of a view."""

    def __init__(self, owners: Ints) -> None:
        self._groups = [[place] for place in range(len(owners))]
        self._views = [{view} for view in owners.tolist()]
        self._roots = list(range(len(owners)))
        self._parts: set[int] = set()

    def join(self, i: int, j: int) -> bool:
        """Make two boxes one object; False if both sides have a box of the same view."""
        i, j = self._roots[i], self._roots[j]
        if i == j:
            return True
        if not self._views[i].isdisjoint(self._views[j]):
            return False
        if len(self._groups[i]) < len(self._groups[j]):
            i, j = j, i
        for place in self._groups[j]:
            self._roots[place] = i
        self._groups[i] += self._groups[j]
        self._views[i] |= self._views[j]
        self._groups[j] = []
        return True

    def note_part(self, place: int, is_part: bool) -> None:
        """Note that a box that joins nothing is a part of an object all the same."""
        if is_part:
            self._parts.add(place)

    def groups(self) -> list[list[int]]:
        """Return the boxes of each object, without lone parts."""
        return [
            group
            for group in self._groups
            if group and not (len(group) == 1 and group[0] in self._parts)
        ]


def _one(
    found: Boxes, is_whole: Mask, scales: Ints, group: Ints
) -> tuple[npt.NDArray[np.float32], np.float32, np.int64]:
    """The box, score and label of an object."""
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
