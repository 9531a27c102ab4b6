"""Whole numbers made of positions, as exporters compute them to pick elements of a flat tensor.

``x[rows, columns]`` is often written as ``flat(x)[row * width + column]``. With ``row`` the
position itself and ``column`` within the width, every element is one of its own position's.
"""

from __future__ import annotations

from dask_onnx.analysis.axes.dependence import Index
from dask_onnx.analysis.axes.view import NodeView


def index_of(v: NodeView) -> Index | None:
    """Return what the first output of a node is known to be made of; None for anything."""
    if v.proto.domain:
        return None
    if v.op in ("ArgMax", "ArgMin") and not v.dep(0).is_broken:
        rank = v.rank(0)
        size = None if rank is None else v.size(0, v.attr("axis", 0) % rank)
        return None if size is None else Index(0, 0, size - 1)
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


def _operand(v: NodeView, index: int) -> Index | None:
    """An input as positions and a bounded rest; a constant is a rest alone."""
    if (found := v.dep(index).index) is not None:
        # What is added to a position has to be its own.
        return None if found.scale == 0 and v.dep(index).is_broken else found
    array = v.constant(index)
    if array is None or array.dtype.kind not in "iu" or not array.size:
        return None
    return Index(0, int(array.min()), int(array.max()))
