"""Rules of operators that slice, split, crop or pad."""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.analysis.axes.dependence import Dependence, Kind, window
from dask_onnx.analysis.axes.view import PROPORTIONAL, NodeView, with_kind_of

_TO_THE_END = 10**9
"""Smallest bound, in magnitude, that counts as an end of the axis; exporters write at least this.
"""


def unfold(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through com.microsoft UnfoldTensor, which appends an axis of windows."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is not None and (rank is None or v.attr("dim", -1) % rank == dep.axis):
        return v.all(v.lost(dep, Kind.GATHERED, "windows"))
    return v.all(dep)


def split(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Split; along their own axis, parts of whole blocks keep them."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep if v.dep(1).kind == Kind.FREE else v.broken(Kind.LENGTH, "split"))
    if rank is None:
        return v.opaque("unknown rank")
    if v.attr("axis", 0) % rank != dep.axis:
        by_length = v.dep(1).kind != Kind.FREE
        return v.all(dep.resized(v.name, "split") if by_length else dep)
    parts = []
    start = 0
    for number in range(len(v.proto.output)):
        size = (v.out_shape(number) or (None,) * rank)[dep.axis]
        parts.append(_blocks(v, dep, start, None if size is None else start + size))
        start += size or 0
    return parts


def _blocks(v: NodeView, dep: Dependence, start: int, end: int | None) -> Dependence:
    """Return the dependence of elements ``[start, end)`` if these are whole outer blocks."""
    block = v.positions * dep.inner
    if end is None or dep.outer == 1 or dep.is_uniform or start % block or end % block:
        return v.lost(dep, Kind.GATHERED, "split")
    if end <= start:
        return v.lost(dep, Kind.GATHERED, "split")
    return dep.at(dep.axis, (end - start) // block)


def slice_(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Slice, axis by axis."""
    dep, shape = v.dep(0), v.shape(0)
    if v.opset < 10:
        starts, ends = v.attr("starts", []), v.attr("ends", [])
        axes, steps = v.attr("axes") or list(range(len(starts))), [1] * len(starts)
    else:
        bounds = [v.known(i) for i in range(1, 5)]
        if (
            bounds[0] is None
            or bounds[1] is None
            or any(v.has(i) and bounds[i - 1] is None for i in (3, 4))
        ):
            return _unknown_slice(v, dep)
        starts, ends = ([int(n) for n in b.array.reshape(-1)] for b in bounds[:2] if b is not None)
        axes = (
            list(range(len(starts))) if bounds[2] is None else bounds[2].array.reshape(-1).tolist()
        )
        steps = [1] * len(starts) if bounds[3] is None else bounds[3].array.reshape(-1).tolist()
    if shape is None:
        return v.opaque("unknown shape") if dep.axis is not None else v.all(dep)
    found = dep
    for place, axis in enumerate(axes):
        axis %= len(shape)
        marks = [_mark(v, i, place) if v.opset >= 10 else 0 for i in (1, 2, 4)]
        if axis == dep.axis:
            own = _sliced(v, dep, starts[place], ends[place], steps[place], marks)
            found = with_kind_of(own, found)
        elif any(marks) and dep.axis is None and dep.kind == Kind.FREE:
            found = v.broken(Kind.LENGTH, "position", axis)
        elif any(marks):
            found = found.resized(v.name, "slice by length")
    return v.all(found)


def _mark(v: NodeView, index: int, place: int) -> int:
    """Return the taint mark of one element of an operand."""
    found = v.known(index)
    return 0 if found is None or found.tainted is None else int(found.tainted.reshape(-1)[place])


def _unknown_slice(v: NodeView, dep: Dependence) -> Sequence[Dependence]:
    """Return the dependence for bounds computed from values, which must be of other axes."""
    axes = v.constant(3) if v.has(3) else None
    rank = v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if axes is None or rank is None or dep.axis in {int(a) % rank for a in axes.reshape(-1)}:
        return v.all(v.lost(dep, Kind.GATHERED, "slice by values"))
    return v.all(dep)


def _sliced(
    v: NodeView, dep: Dependence, start: int, end: int, step: int, marks: Sequence[int]
) -> Dependence:
    """Return the dependence of a slice along the axis of the positions.

    `marks` are the taint marks of start, end and step.
    """
    size = v.size(0, dep.axis or 0)
    tainted = any(marks)
    is_whole = (
        step == 1
        and not marks[2]
        and not marks[0]
        and (start == 0 or start <= -_TO_THE_END)
        and (end >= _TO_THE_END or (end == size and marks[1] == PROPORTIONAL))
    )
    if is_whole:
        return dep
    if tainted and step == 1 and size is not None and dep.outer > 1:
        stop = min(end, size) if end >= 0 else size + end
        return _blocks(v, dep, start if start >= 0 else size + start, stop)
    if step < 1 or dep.outer != 1 or dep.inner != 1 or dep.is_uniform or size is None:
        return v.lost(dep, Kind.GATHERED, "slice")
    if start < 0 or tainted or (0 <= end < _TO_THE_END):
        # A start counted from the end, or a fixed end, selects by the number of positions.
        return v.lost(dep, Kind.GATHERED, "slice")
    # With a negative end, element o exists only if -end positions follow it: the window has them.
    return dep.windowed(window(start, step, 1 - min(end, 0)), v.name, "slice")


def pad(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Pad of modes constant, edge and reflect, by a window."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep if v.dep(1).kind == Kind.FREE else v.broken(Kind.LENGTH, "padding"))
    if rank is None:
        return v.opaque("unknown rank")
    known = v.known(1) if v.has(1) else None
    pads = v.attr("pads") or v.attr("paddings") if known is None else known.array.reshape(-1)
    if pads is None:
        return v.opaque("unknown padding")
    axes = v.axes(3 if v.has(3) else None) or list(range(rank))
    if len(pads) != 2 * len(axes):
        return v.opaque("unknown padding")
    where = [a % rank for a in axes]
    if known is not None and known.is_tainted:
        return v.all(dep.resized(v.name, "padding"))
    if dep.axis not in where:
        return v.all(dep)
    place = where.index(dep.axis)
    begin, end = int(pads[place]), int(pads[place + len(axes)])
    if begin == end == 0:
        return v.all(dep)
    mode = v.attr("mode", b"constant").decode(errors="replace")
    if dep.inner != 1 or dep.outer != 1 or mode not in ("constant", "edge", "reflect"):
        return v.all(v.lost(dep, Kind.GATHERED, f"{mode} padding"))
    front, back = max(begin, 0), max(end, 0)
    before, after = {
        "constant": (0, 0),
        "edge": (back, front),  # elements of the padding read the first or the last position
        "reflect": (2 * back, 2 * front),
    }[mode]
    shifted = window(-begin - before, 1, before + 1 + after)
    return v.all(dep.windowed(shifted, v.name, f"{mode} padding"))


def center_crop_pad(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through CenterCropPad along other axes."""
    dep, rank, shape = v.dep(0), v.rank(0), v.known(1)
    if dep.axis is None:
        return v.all(dep if v.dep(1).kind == Kind.FREE else v.broken(Kind.LENGTH, "shape"))
    if rank is None:
        return v.opaque("unknown rank")
    axes = [axis % rank for axis in v.attr("axes") or range(rank)]
    if dep.axis in axes:
        return v.all(v.lost(dep, Kind.GATHERED, "crop"))
    is_fixed = shape is not None and not shape.is_tainted
    return v.all(dep if is_fixed else dep.resized(v.name, "shape"))
