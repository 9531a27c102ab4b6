"""Integer arithmetic on positions, by which exporters compute indices into a flattened tensor.

``x[rows, columns]`` is often exported as ``flat(x)[row * width + column]``. If ``row`` is the
position itself and ``column`` lies in the width, each picked element belongs to its own position.
"""

from __future__ import annotations

import math

from onnx import TensorProto

from dask_onnx.analysis.axes.dependence import Index
from dask_onnx.analysis.axes.view import NodeView


def index_of(v: NodeView, output: int = 0) -> Index | None:
    """Return the form ``scale * position + r`` of a node's integer output; None if unknown.

    Covers Add and Mul of such integers, and the indices of ArgMax, ArgMin, TopK and MaxPool.
    """
    if v.proto.domain:
        return None
    if v.op in ("ArgMax", "ArgMin", "TopK", "MaxPool"):
        is_index = output == 1 or v.op.startswith("Arg")
        return _picked(v) if is_index and not v.dep(0).is_broken else None
    if v.op not in ("Add", "Mul") or len(v.ins) != 2:
        return None
    first, second = (_operand(v, index) for index in (0, 1))
    if first is None or second is None:
        return None
    if v.op == "Add":
        return Index(first.scale + second.scale, first.low + second.low, first.high + second.high)
    by, what = (first, second) if first.scale == 0 and first.low == first.high else (second, first)
    if by.scale or by.low != by.high or by.low < 0:
        return None
    return Index(what.scale * by.low, what.low * by.low, what.high * by.low)


def keeps_index(v: NodeView) -> bool:
    """Return whether a node's output has the integers of its input, if these are positions."""
    if v.op != "Cast":
        return v.op in _POSITION_PRESERVING
    # Narrower types wrap around, or round, at a number of positions beyond those under analysis.
    return v.attr("to") in _WIDE_TYPES


_POSITION_PRESERVING = frozenset(
    "Range Reshape Squeeze Unsqueeze Expand Identity Concat Transpose".split()
)
_WIDE_TYPES = (
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT32,
    TensorProto.UINT64,
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
)
"""Types that hold any position exactly; float does up to 2 ** 24."""


def _picked(v: NodeView) -> Index | None:
    """Return the form of indices along an axis; those of MaxPool count elements of the tensor."""
    shape, dep = v.shape(0), v.dep(0)
    if shape is None:
        return None
    if v.op == "MaxPool":
        is_batch = dep.axis == 0 and (dep.outer, dep.inner) == (1, 1) and None not in shape
        elements = math.prod(size or 0 for size in shape[1:])
        # storage_order=1 counts in column-major order; its indices lie in the same range.
        return Index(elements, 0, elements - 1) if is_batch else None
    size = shape[v.attr("axis", -1 if v.op == "TopK" else 0) % len(shape)]
    return None if size is None else Index(0, 0, size - 1)


def _operand(v: NodeView, index: int) -> Index | None:
    """Return the form of an operand; a constant has scale 0. None if unknown."""
    if (found := v.dep(index).index) is not None:
        # A bounded addend must depend on its own position only, or other positions leak in.
        return None if found.scale == 0 and v.dep(index).is_broken else found
    array = v.constant(index)
    if array is None or array.dtype.kind not in "iu" or not array.size:
        return None
    return Index(0, int(array.min()), int(array.max()))
