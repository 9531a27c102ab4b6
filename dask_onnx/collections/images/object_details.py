"""Details of detected objects beside their boxes: masks, key points, corners of turned boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.images.boxes import Boxes, areas, best_first
from dask_onnx.collections.images.geometry import Geometry
from dask_onnx.collections.images.input_layout import Size
from dask_onnx.collections.images.merging import nms_places
from dask_onnx.collections.images.yolo_tables import Detail, Objects

Array = npt.NDArray[Any]
_TINY = 1e-7
"""Addend that keeps quotients and logarithms of turned boxes defined, as ultralytics has it."""
_FARTHEST = 100.0
"""Largest Bhattacharyya distance of two turned boxes."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxMask:
    """Mask of one object, within its box.

    Attributes
    ----------
    row, column : int
        First pixel of the picture that `pixels` shows.
    pixels : numpy.ndarray
        bool, shape (rows, columns): true where the picture shows the object.
    """

    row: int
    """First row of the picture that `pixels` shows."""
    column: int
    """First column of the picture that `pixels` shows."""
    pixels: npt.NDArray[np.bool_]
    """bool, shape (rows, columns): true where the picture shows the object."""

    def full(self, size: Size) -> npt.NDArray[np.bool_]:
        """Return the mask of the whole picture.

        Parameters
        ----------
        size : (int, int)
            Height and width of the picture, as ``result.geometry.picture`` has them.
        """
        found = np.zeros(size, np.bool_)
        rows, columns = self.pixels.shape
        found[self.row : self.row + rows, self.column : self.column + columns] = self.pixels
        return found

    def run_lengths(self, size: Size) -> npt.NDArray[np.int64]:
        """Return the lengths of runs in column order, of false and true in turn, as COCO counts.

        Parameters
        ----------
        size : (int, int)
            Height and width of the picture.
        """
        flat = self.full(size).reshape(-1, order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        starts_true = [0] if len(flat) and flat[0] else []
        edges = np.concatenate([[0], np.array(starts_true, np.int64), ends, [len(flat)]])
        return np.diff(edges).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Objects in pixels of the picture, by falling score."""

    boxes: Boxes
    """Boxes; around turned ones the smallest upright box."""
    masks: tuple[BoxMask, ...] | None = None
    """Mask of each object."""
    points: npt.NDArray[np.float32] | None = None
    """float32, shape (n, points, 2 or 3): x, y and perhaps the score of each point."""
    corners: npt.NDArray[np.float32] | None = None
    """float32, shape (n, 4, 2): x and y of the corners of each turned box."""


def place_objects(
    found: Objects,
    detail: Detail,
    geometry: Geometry,
    *,
    prototypes: Array | None = None,
    keypoints: tuple[int, int] | None = None,
    iou_threshold: float | None,
    class_agnostic: bool,
) -> Placed:
    """Return the objects of a picture in its own coordinates, without duplicates.

    Parameters
    ----------
    found : Objects
        Objects in pixels of the tensor, their boxes as corners; for angles before they are turned.
    detail : {"", "masks", "points", "angles"}
        Meaning of the details.
    geometry : Geometry
    prototypes : array, shape (maps, h, w), optional
        Maps whose sums, weighted by the details, are masks.
    keypoints : (int, int), optional
        Key points of each object, and numbers of each.
    iou_threshold : float or None
        Overlap at which boxes of a class are duplicates; None where the model has removed them.
    class_agnostic : bool
        True if boxes of different classes may be duplicates.
    """
    if iou_threshold is not None:
        # In pixels of the tensor, where the model's author suppresses them.
        found = found.take(_kept(found, detail, iou_threshold, class_agnostic))
    turned = _turned_corners(found) if detail == "angles" else None
    if turned is None:
        boxes = geometry.to_image(found.boxes)
    else:
        turned = (turned - geometry.offset[::-1]) / geometry.scale[::-1]
        boxes = np.concatenate([turned.min(axis=1), turned.max(axis=1)], axis=1)
        boxes = np.clip(boxes, 0, np.tile(geometry.picture[::-1], 2))
    inside = Boxes.of(boxes, found.scores, found.labels)
    places = np.flatnonzero(areas(inside.boxes) > 0)
    places = places[best_first(inside.take(places))]
    inside, details = inside.take(places), found.details[places].astype(np.float32)
    if turned is not None:
        return Placed(inside, corners=turned[places].astype(np.float32))
    if detail == "masks" and prototypes is not None:
        return Placed(inside, masks=_masks(details, prototypes, inside, geometry))
    if detail == "points" and keypoints is not None:
        return Placed(inside, points=_points(details.reshape(-1, *keypoints), geometry))
    return Placed(inside)


def _kept(found: Objects, detail: Detail, threshold: float, class_agnostic: bool) -> Array:
    """Return the positions of the objects that no better one of their class overlaps."""
    boxes = Boxes.of(found.boxes, found.scores, found.labels)
    if detail == "angles":
        return _turned_places(boxes, found.details[:, 0], threshold, class_agnostic)
    return nms_places(boxes, threshold, class_agnostic=class_agnostic)


def _masks(
    coefficients: Array, prototypes: Array, inside: Boxes, geometry: Geometry
) -> tuple[BoxMask, ...]:
    """Return the mask of each object: where the weighted sum of maps is above 0 inside its box."""
    maps = prototypes.astype(np.float32)
    height, width = geometry.picture
    found = []
    for weights, (x0, y0, x1, y1) in zip(coefficients, inside.boxes.tolist(), strict=True):
        rows = range(min(math.ceil(y0), height), min(math.ceil(y1), height))
        columns = range(min(math.ceil(x0), width), min(math.ceil(x1), width))
        sums = np.tensordot(weights, maps, 1)
        shown = geometry.part_to_image(sums, rows, columns) > 0
        found.append(BoxMask(rows.start, columns.start, shown))
    return tuple(found)


def _points(points: Array, geometry: Geometry) -> npt.NDArray[np.float32]:
    placed = geometry.points_to_image(points[..., :2])
    return np.concatenate([placed, points[..., 2:]], axis=-1).astype(np.float32)


def _turned_corners(found: Objects) -> Array:
    """Return the corners of turned boxes, shape (n, 4, 2), in pixels of the tensor."""
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    centre, half = (low + high) / 2, (high - low) / 2
    angle = found.details[:, 0].astype(np.float64)
    cos, sin = np.cos(angle), np.sin(angle)
    along = np.stack([half[:, 0] * cos, half[:, 0] * sin], axis=1)
    across = np.stack([-half[:, 1] * sin, half[:, 1] * cos], axis=1)
    parts = (along + across, along - across, -along - across, -along + across)
    return centre[:, None] + np.stack(parts, axis=1)


def _turned_places(
    boxes: Boxes, angles: Array, threshold: float, class_agnostic: bool
) -> npt.NDArray[np.int64]:
    """Return the positions of turned boxes that no better kept one overlaps, by falling score."""
    order = best_first(boxes)
    shapes = _gaussians(boxes.boxes[order].astype(np.float64), angles[order].astype(np.float64))
    labels = np.zeros(len(order), np.int64) if class_agnostic else boxes.labels[order]
    is_free = np.ones(len(order), np.bool_)
    for place in range(len(order)):
        if is_free[place]:
            later = (
                place
                + 1
                + np.flatnonzero(is_free[place + 1 :] & (labels[place + 1 :] == labels[place]))
            )
            is_free[later] = _likeness(shapes[place], shapes[later]) < threshold
    return order[is_free]


def _gaussians(boxes: Array, angles: Array) -> Array:
    """Return centre x and y and the three covariances of each box as a normal distribution."""
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    a, b = (sides**2 / 12).T
    cos, sin = np.cos(angles), np.sin(angles)
    return np.column_stack(
        [
            centre,
            a * cos**2 + b * sin**2,
            a * sin**2 + b * cos**2,
            (a - b) * cos * sin,
        ]
    )


def _likeness(one: Array, others: Array) -> Array:
    """Return the overlap of a turned box with others, as ultralytics' ``probiou`` has it."""
    x, y, a, b, c = one
    xs, ys, a_s, b_s, c_s = others.T
    spread = (a + a_s) * (b + b_s) - (c + c_s) ** 2
    far = ((a + a_s) * (y - ys) ** 2 + (b + b_s) * (x - xs) ** 2) / (spread + _TINY) / 4
    far += (c + c_s) * (xs - x) * (y - ys) / (spread + _TINY) / 2
    own = np.maximum(a * b - c**2, 0) * np.maximum(a_s * b_s - c_s**2, 0)
    far += np.log(spread / (4 * np.sqrt(own) + _TINY) + _TINY) / 2
    found: Array = 1 - np.sqrt(1 - np.exp(-np.clip(far, _TINY, _FARTHEST)) + _TINY)
    return found
