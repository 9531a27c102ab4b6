"""Outputs of detectors that have several: boxes, scores and classes apart from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.core.specs import TensorSpec

Array = npt.NDArray[Any]
Parts = tuple[Array, Array, Array]
"""Boxes (n, 4) as x1, y1, x2, y2, scores (n,) and labels (n,) of one image."""
_PADDLE_COLUMNS = 6


def corners(boxes: Array) -> Array:
    """Return x1, y1, x2, y2 of boxes given as cx, cy, w, h."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def named_outputs(wanted: str, outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the outputs that a format reads, found by their names and shapes; empty if not there.

    Parameters
    ----------
    wanted : {"tf", "paddle", "detr", "rtdetr"}
    outputs : sequence of TensorSpec
    """
    names = {spec.name.rpartition("/")[2].partition(":")[0].lower(): spec for spec in outputs}
    if wanted == "tf":
        roles = ("detection_boxes", "detection_scores", "detection_classes")
        if not all(role in names for role in roles):
            return ()
        counts = [names["num_detections"].name] if "num_detections" in names else []
        return (*(names[role].name for role in roles), *counts)
    if wanted == "paddle":
        tables = [s for s in outputs if s.rank == 2 and s.shape and s.shape[1] == _PADDLE_COLUMNS]
        counts = [s.name for s in outputs if s.rank == 1 and s.dtype and s.dtype.kind in "iu"]
        return (tables[0].name, *counts[:1]) if len(tables) == 1 else ()
    boxes = [s for s in outputs if "box" in s.name.lower() and s.shape and s.shape[-1] == 4]
    logits = [s for s in outputs if "logit" in s.name.lower() and s.rank in (2, 3)]
    if len(boxes) != 1 or len(logits) != 1:
        return ()
    return logits[0].name, boxes[0].name


def read_set(kind: str, arrays: Sequence[Array]) -> Parts:
    """Return the boxes, scores and labels of one image.

    Parameters
    ----------
    kind : {"boxes", "tf", "paddle", "detr", "rtdetr"}
        Format.
    arrays : sequence of array
        Outputs in the order of the format, without a batch axis.
    """
    if kind == "tf":
        return _read_tf(arrays)
    if kind == "paddle":
        return _read_paddle(arrays)
    if kind in ("detr", "rtdetr"):
        return _read_detr(*arrays, is_softmax=kind == "detr")
    return _read_boxes(arrays)


def _read_boxes(arrays: Sequence[Array]) -> Parts:
    """Read boxes (n, 4), scores and labels (n,); or boxes (n, 5) with scores, and labels."""
    boxes, *others = arrays
    if len(others) == 1:
        return boxes[:, :4], boxes[:, 4], others[0].reshape(-1).astype(np.int64)
    return boxes, others[0].reshape(-1), others[1].reshape(-1).astype(np.int64)


def _read_tf(arrays: Sequence[Array]) -> Parts:
    """Read y1, x1, y2, x2 from 0 to 1, scores, classes, and the number of objects."""
    boxes, scores, labels, *counts = arrays
    count = int(counts[0].reshape(-1)[0]) if counts else len(boxes)
    ordered = boxes.reshape(-1, 4)[:count, [1, 0, 3, 2]]
    return ordered, scores.reshape(-1)[:count], labels.reshape(-1)[:count].astype(np.int64)


def _read_paddle(arrays: Sequence[Array]) -> Parts:
    """Read a table of class, score, x1, y1, x2, y2, and its number of rows; class -1 is none."""
    table, *counts = arrays
    rows = table[: int(counts[0].reshape(-1)[0])] if counts else table
    rows = rows[rows[:, 0] >= 0]
    return rows[:, 2:6], rows[:, 1], rows[:, 0].astype(np.int64)


def _read_detr(logits: Array, boxes: Array, *, is_softmax: bool) -> Parts:
    """Read logits (queries, classes) and cx, cy, w, h from 0 to 1 (queries, 4).

    A softmax is over all classes, of which the last is "no object", and its best class counts. Of
    sigmoids, the best pairs of query and class count, as many as there are queries.
    """
    values = logits.reshape(-1, logits.shape[-1]).astype(np.float32)
    places = corners(boxes.reshape(-1, 4))
    if is_softmax:
        shares = softmax(values)[:, :-1]
        best = shares.argmax(axis=1)
        return places, np.take_along_axis(shares, best[:, None], axis=1)[:, 0], best
    flat = sigmoid(values).reshape(-1)
    order = np.argsort(-flat, kind="stable")[: len(values)]
    return places[order // values.shape[1]], flat[order], order % values.shape[1]


def softmax(values: Array) -> Array:
    """Return the softmax along the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    found: Array = powers / powers.sum(axis=-1, keepdims=True)
    return found


def sigmoid(values: Array) -> Array:
    """Return the logistic function, without overflow for large negative values."""
    powers = np.exp(-np.abs(values))
    found: Array = np.where(values >= 0, 1, powers) / (1 + powers)
    return found
