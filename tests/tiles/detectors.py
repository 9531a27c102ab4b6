"""A small detector as an ONNX graph, whose true boxes are known."""

from __future__ import annotations

import numpy as np
from builders import make_model, node, value

LEAST = 0.4
"""Brightness above which a pixel belongs to an object; it is also the object's score."""
NOTHING = -10_000.0
"""Corner of a pixel that belongs to no object."""


def finder(height=64, width=64, *, kind="yolo8", batch=1, steps=72, channels=1, layout="first"):
    """Return a detector of bright spots, as far as they are visible in its input.

    Each bright pixel starts with its own corners; in each of `steps` steps it takes the outermost
    corners among the bright pixels next to it. There is one row for each pixel; all pixels of a
    spot give the same box.

    Parameters
    ----------
    height, width : int
        Input size in pixels.
    kind : {"yolo8", "yolo5", "xyxysc", "named", "dets"}
        Format of the outputs. The last three select one row for each spot by NonMaxSuppression;
        "named" gives boxes, scores and labels without a batch axis, "dets" boxes with scores, and
        labels.
    batch : int or str
        Batch size, or the name of an open axis.
    steps : int
        Largest distance in pixels from a pixel to the corners of its spot.
    channels : int
    layout : {"first", "last"}
        Location of the channel axis.
    """
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    start = np.stack([-columns, -rows, columns + 1, rows + 1])[None]
    signs = np.array([-1, -1, 1, 1], np.float32).reshape(1, 4, 1)
    shape = (
        [batch, channels, height, width] if layout == "first" else [batch, height, width, channels]
    )
    nodes = [] if layout == "first" else [node("Transpose", "image", "first", perm=[0, 3, 1, 2])]
    first = "image" if layout == "first" else "first"
    nodes += [
        node("ReduceMax", first, "gray", axes=[1], keepdims=1),
        node("Greater", "gray least", "bright"),
        node("Where", "bright start nothing", "m0"),
    ]
    for step in range(steps):
        nodes += [
            node("MaxPool", f"m{step}", f"p{step}", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Where", f"bright p{step} nothing", f"m{step + 1}"),
        ]
    nodes += [
        node("Reshape", f"m{steps} flat", "signed"),
        node("Mul", "signed signs", "corners"),  # (b, 4, n)
        node("Where", "bright gray zero", "scored"),
        node("Reshape", "scored flat", "scores"),  # (b, 1, n)
    ]
    weights = {
        "least": np.array(LEAST, np.float32),
        "nothing": np.array(NOTHING, np.float32),
        "zero": np.array(0, np.float32),
        "start": start,
        "signs": signs,
        "flat": np.array([0, 0, -1]),
    }
    n = height * width
    tail, more, outputs = _TAILS[kind](batch, n)
    return make_model(
        [*nodes, *tail], [value("image", shape)], outputs, weights | more, name="finder"
    )


def _yolo8(batch, n):
    return (
        [
            node("Split", "corners", "low high", axis=1),
            node("Sub", "high low", "sides"),
            node("Mul", "sides half", "halves"),
            node("Add", "low halves", "centres"),
            node("Concat", "centres sides scores", "y", axis=1),
        ],
        {"half": np.array(0.5, np.float32)},
        [value("y", [batch, 5, n])],
    )


def _yolo5(batch, n):
    """Return objectness and two classes, of which the second is always the best."""
    nodes, weights, _ = _yolo8(batch, n)
    nodes = [
        *nodes[:-1],
        node("Mul", "scores zero", "other"),
        node("Add", "other one", "ones"),
        node("Concat", "centres sides scores other ones", "table", axis=1),
        node("Transpose", "table", "y", perm=[0, 2, 1]),
    ]
    return nodes, weights | {"one": np.array(1, np.float32)}, [value("y", [batch, n, 7])]


def _selected(batch, n):
    """Return nodes that select one row for each spot: boxes (k, 4), scores (k,)."""
    nodes = [
        node("Transpose", "corners", "rows", perm=[0, 2, 1]),
        node("NonMaxSuppression", "rows scores most iou threshold", "chosen"),
        node("Gather", "chosen last", "places", axis=1),
        node("Squeeze", "rows front", "spot_rows"),
        node("Gather", "spot_rows places", "boxes"),
        node("Reshape", "scores all", "all_scores"),
        node("Gather", "all_scores places", "kept_scores"),
    ]
    weights = {
        "most": np.array([1000]),
        "iou": np.array([0.5], np.float32),
        "threshold": np.array([LEAST], np.float32),
        "last": np.array(2),
        "front": np.array([0]),
        "all": np.array([-1]),
    }
    return nodes, weights


def _named(batch, n):
    nodes, weights = _selected(batch, n)
    nodes.append(node("Mul", "places none", "labels"))
    outputs = [value("boxes", ["k", 4]), value("labels", ["k"], 7), value("kept_scores", ["k"])]
    return nodes, weights | {"none": np.array(0)}, outputs


def _dets(batch, n):
    """Return boxes with scores, from 0 to 1 over the input, and labels, with a batch axis."""
    nodes, weights = _selected(batch, n)
    nodes += [
        node("Div", "boxes extent", "shares"),
        node("Unsqueeze", "kept_scores last_axis", "column"),
        node("Concat", "shares column", "table", axis=1),
        node("Unsqueeze", "table front", "dets"),
        node("Mul", "places none", "zeros"),
        node("Unsqueeze", "zeros front", "labels"),
    ]
    weights |= {
        "extent": np.array([64, 64, 64, 64], np.float32),
        "last_axis": np.array([1]),
        "none": np.array(0),
    }
    return nodes, weights, [value("dets", [1, "k", 5]), value("labels", [1, "k"], 7)]


def _xyxysc(batch, n):
    """Return 50 rows, of which the last have score 0."""
    nodes, weights = _selected(batch, n)
    nodes += [
        node("Unsqueeze", "kept_scores last_axis", "column"),
        node("Mul", "column zero", "classes"),
        node("Concat", "boxes column classes", "some", axis=1),
        node("Concat", "some padding", "more", axis=0),
        node("Slice", "more from to", "table"),
        node("Unsqueeze", "table front", "y"),
    ]
    weights |= {
        "last_axis": np.array([1]),
        "padding": np.zeros((50, 6), np.float32),
        "from": np.array([0]),
        "to": np.array([50]),
    }
    return nodes, weights, [value("y", [1, 50, 6])]


_TAILS = {"yolo8": _yolo8, "yolo5": _yolo5, "xyxysc": _xyxysc, "named": _named, "dets": _dets}
