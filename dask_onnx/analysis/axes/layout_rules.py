"""Rules of operators that move elements: reshaping, transposing, slicing, picking, joining."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dask_onnx.analysis.axes.dependence import (
    FREE,
    OWN_INDEX,
    POSITIONS,
    SAME,
    Dependence,
    Index,
    Kind,
    window,
)
from dask_onnx.analysis.axes.view import DEPENDENT, PROPORTIONAL, NodeView, Shape, at_least, join

_TO_THE_END = 10**9
"""Exporters write this, or more, for a slice that goes to the end."""


def reshaped(dep: Dependence, before: Shape, after: Shape, node: str) -> Dependence:
    """Return where the positions lie once elements are read in another shape, row by row.

    Exact for the sizes given: with all axes in front of the positions (and the outer blocks) put
    together, and all behind, an axis of the new shape carries the positions if its own outer and
    inner blocks complete the same two numbers.
    """
    axis = dep.axis
    assert axis is not None
    if before == after:
        return dep
    if axis == 0 and dep.outer == dep.inner == 1 and after and after[0] == before[0] is not None:
        return dep  # what stands behind has as many elements, known or not
    if None in before or None in after:
        return _reshaped_inside(dep, before, after, node)
    if 0 in before:
        return replace(dep, axis=None, outer=1, inner=1).resized(node, "empty", Kind.FACTORED)
    sizes: list[int] = [size or 0 for size in before]
    count = sizes[axis] // (dep.outer * dep.inner) if dep.outer * dep.inner else 0
    in_front = math.prod(sizes[:axis]) * dep.outer
    behind = math.prod(sizes[axis + 1 :]) * dep.inner
    prefix = 1
    for place, size in enumerate(after):
        assert size is not None
        suffix = math.prod(s or 0 for s in after[place + 1 :])
        if prefix and suffix and not in_front % prefix and not behind % suffix:
            outer, inner = in_front // prefix, behind // suffix
            if size == outer * count * inner and (count > 1 or outer == inner == 1):
                is_uniform = dep.is_uniform and outer <= dep.outer and inner <= dep.inner
                return replace(dep.at(place, outer, inner), is_uniform=is_uniform)
        prefix *= size
    if dep.is_uniform and count:
        parts = _parts_of(sizes[axis], math.prod(sizes[:axis]), after)
        whole = [place for place in parts if (after[place] or 0) % count == 0]
        if len(whole) == 1:
            return dep.at(whole[0], 1, (after[whole[0]] or 0) // count)
    return replace(dep, axis=None, outer=1, inner=1).resized(node, "reshape", Kind.FACTORED)


def _parts_of(size: int, in_front: int, after: Shape) -> list[int]:
    """Axes of a new shape that an axis with `in_front` elements in front is split into."""
    products = list(itertools.accumulate((part or 0 for part in after), operator.mul, initial=1))
    if in_front not in products or in_front * size not in products:
        return []
    start, stop = products.index(in_front), products.index(in_front * size)
    return [place for place in range(start, stop) if after[place] != 1]


def _reshaped_inside(dep: Dependence, before: Shape, after: Shape, node: str) -> Dependence:
    """The same where a size is unknown: equal leading axes leave the positions alone."""
    axis = dep.axis
    assert axis is not None
    leading = before[: axis + 1]
    if None not in leading and after[: axis + 1] == leading:
        return dep
    return replace(dep, axis=None, outer=1, inner=1).resized(node, "unknown shape", Kind.OPAQUE)


def reshape(v: NodeView) -> Sequence[Dependence]:
    """Reshape and Flatten."""
    dep, before, after = v.dep(0), _completed(v), v.out_shape()
    if after is None or None in after:
        after = _target(v, before) or after
    if dep.axis is None:
        if v.dep(1).kind == Kind.LENGTH and v.dep(1).axis is None:
            # Elements that no position owns, in a shape made of the number of positions.
            return v.all(v.broken(Kind.LENGTH, "shape"))
        return v.all(dep)
    if before is None or after is None:
        found = _by_target(v, dep, before)
    else:
        found = _by_length(v, reshaped(dep, before, after, v.name))
    if dep.how == OWN_INDEX and (not before or not after or before[-1] != after[-1]):
        found = found.without_index()
    return v.all(found)


def _completed(v: NodeView) -> Shape | None:
    """The shape of what is reshaped, with the size that its positions have."""
    dep, before = v.dep(0), v.shape(0)
    if before is None or dep.axis is None or dep.window != SAME or dep.is_resized:
        return before
    own = v.positions * dep.outer * dep.inner
    return (*before[: dep.axis], before[dep.axis] or own, *before[dep.axis + 1 :])


def _target(v: NodeView, before: Shape | None) -> Shape | None:
    """The shape that a Reshape says, where inference has not found it."""
    known = v.known(1) if v.op == "Reshape" else None
    if known is None or before is None or None in before or v.attr("allowzero", 0):
        return None
    sizes = [int(size) for size in known.array.reshape(-1)]
    if any(size == 0 and place >= len(before) for place, size in enumerate(sizes)):
        return None
    sizes = [before[place] or 0 if size == 0 else size for place, size in enumerate(sizes)]
    count, rest = math.prod(size or 0 for size in before), math.prod(s for s in sizes if s > 0)
    if -1 in sizes and rest and not count % rest:
        sizes[sizes.index(-1)] = count // rest
    return tuple(sizes) if math.prod(sizes) == count else None


def _by_length(v: NodeView, dep: Dependence) -> Dependence:
    """Break `dep` if another size than the positions' own follows from the number of positions."""
    target = v.known(1)
    if target is None or not target.is_tainted:
        return dep
    marks = target.marks.reshape(-1)
    others = [mark for axis, mark in enumerate(marks) if axis != dep.axis]
    own = 0 if dep.axis is None else marks[dep.axis]
    if any(others) or own == DEPENDENT:
        return dep.resized(v.name, "shape")
    return dep


def _by_target(v: NodeView, dep: Dependence, before: Shape | None) -> Dependence:
    """Leading axis kept by the target alone, where the shapes are not known."""
    target = v.known(1) if v.op == "Reshape" else None
    if dep.axis == 0 and dep.outer == dep.inner == 1 and target is not None and target.array.size:
        first = int(target.array.reshape(-1)[0])
        is_copied = first == 0 and not v.attr("allowzero", 0)
        if is_copied or (before is not None and first == before[0] and target.is_tainted):
            return dep
    return v.lost(dep, Kind.OPAQUE, "unknown shape")


def transpose(v: NodeView) -> Sequence[Dependence]:
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    order = v.attr("perm") or list(range(rank))[::-1]
    return v.all(dep.at(list(order).index(dep.axis)))


def squeeze(v: NodeView) -> Sequence[Dependence]:
    dep, shape, after = v.dep(0), v.shape(0), v.out_shape()
    if dep.axis is None:
        return v.all(dep)
    if not v.has(1) and v.attr("axes") is None:
        # All axes of size 1 go, that of the positions too once there is one of them.
        if shape is None or None in shape or shape[dep.axis] == 1:
            return v.all(v.lost(dep, Kind.LENGTH, "squeezed if there is one"))
        ones = sum(size == 1 for size in shape[: dep.axis])
        return v.all(dep.at(dep.axis - ones).resized(v.name, "squeezed if there is one"))
    axes = v.axes(1 if v.opset >= 13 else None)
    if shape is None or axes is None:
        return v.opaque("unknown axes")
    gone = {a % len(shape) for a in axes}
    if not axes:
        if None in shape:
            return v.opaque("unknown shape")
        gone = {i for i, size in enumerate(shape) if size == 1}
    if dep.axis in gone or (after is not None and len(after) != len(shape) - len(gone)):
        return v.all(v.lost(dep, Kind.OPAQUE, "squeezed away"))
    return v.all(dep.at(dep.axis - sum(a < dep.axis for a in gone)))


def unsqueeze(v: NodeView) -> Sequence[Dependence]:
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    axes = v.axes(1 if v.opset >= 13 else None)
    if rank is None or not axes:
        return v.opaque("unknown axes")
    new = {a % (rank + len(axes)) for a in axes}
    kept = [i for i in range(rank + len(axes)) if i not in new]
    return v.all(dep.at(kept[dep.axis]))


def expand(v: NodeView) -> Sequence[Dependence]:
    """Expand: also of something that no position owns, to as many as there are positions."""
    dep, shape, after = v.dep(0), v.shape(0), v.out_shape()
    if dep.axis is not None:
        if shape is None or after is None:
            return v.opaque("unknown shape")
        place = dep.axis + len(after) - len(shape)
        if v.dep(1).kind != Kind.FREE and _length_axis(v, 1, after) != place:
            return v.all(dep.at(place).resized(v.name, "shape"))
        return v.all(dep.at(place))
    repeated = _length_axis(v, 1, after)
    if repeated is None:
        return v.all(dep)
    if after is not None and shape is not None:
        own = repeated - len(after) + len(shape)
        if own >= 0 and shape[own] != 1:
            return v.all(v.broken(Kind.LENGTH, "position", repeated))
    return v.all(_uniform(v, dep, repeated, after))


def constant_of_shape(v: NodeView) -> Sequence[Dependence]:
    after = v.out_shape()
    place = _length_axis(v, 0, after)
    if place is None:
        return v.all(FREE)
    return v.all(_uniform(v, FREE, place, after))


def _length_axis(v: NodeView, operand: int, after: Shape | None) -> int | None:
    """The axis whose size a shape operand takes from the number of positions, as a multiple of it;
    -1 for several or an unknown one, None for none."""
    if v.dep(operand).kind == Kind.FREE:
        return None
    target = v.known(operand)
    if target is None or after is None or target.tainted is None:
        return -1
    marks = target.tainted.reshape(-1)
    places = np.flatnonzero(marks)
    if len(places) != 1 or marks[places[0]] != PROPORTIONAL:
        return -1
    return int(places[0]) + len(after) - target.array.size


def _uniform(v: NodeView, dep: Dependence, place: int, after: Shape | None) -> Dependence:
    size = None if after is None or place < 0 else after[place]
    if not size or size % v.positions:
        return v.broken(Kind.LENGTH, "shape", place if place >= 0 else None)
    made = Dependence(
        Kind.INDEPENDENT, place, 1, size // v.positions, is_uniform=True, coupled=dep.coupled
    )
    return join(made, dep, v.name)


def tile(v: NodeView) -> Sequence[Dependence]:
    dep, repeats = v.dep(0), v.known(1)
    if dep.axis is not None:
        if repeats is None or v.dep(1).kind != Kind.FREE:
            return v.all(v.lost(dep, Kind.GATHERED, "repeated"))
        if int(repeats.array.reshape(-1)[dep.axis]) != 1:
            return v.all(v.lost(dep, Kind.GATHERED, "repeated"))
        return v.all(dep)
    place = _length_axis(v, 1, v.out_shape())
    if place is None:
        return v.all(dep)
    if place < 0 or v.size(0, place) is None:
        return v.all(v.broken(Kind.LENGTH, "shape"))
    found = _uniform(v, dep, place, v.out_shape())
    # Every position has all that is repeated: alike, but not the same element over and over.
    return v.all(replace(found, is_uniform=found.is_uniform and v.size(0, place) == 1))


def concat(v: NodeView) -> Sequence[Dependence]:
    """Concat; also of positions with indices of their own, as GatherND takes them."""
    axis = v.attr("axis", 1)
    after = v.out_shape()
    carriers = v.carriers
    if not carriers:
        return v.all(FREE)
    rank = len(after) if after is not None else v.rank(carriers[0])
    if rank is None:
        return v.opaque("unknown rank")
    axis %= rank
    result = same_axis(v, carriers, v.name)
    first = v.dep(0)
    if any(v.dep(i).index != first.index for i in range(len(v.ins))):
        result = result.without_index()
    place = result.axis
    if place is None:
        return v.all(result)
    if place == axis:
        return v.all(_stacked(v, result, carriers))
    for index in range(len(v.proto.input)):
        if index not in carriers and v.size(index, place) != 1:
            return v.all(result.broken(Kind.LENGTH, v.name, "position"))
        if index not in carriers:
            return v.all(result.broken(Kind.OPAQUE, v.name, "unknown size"))
    if axis == rank - 1 and first.index == POSITIONS and v.size(0, axis) == 1:
        rest = [v.dep(i) for i in range(1, len(v.proto.input))]
        if rest and all(dep.is_own for dep in rest):
            return v.all(replace(first, index=None, how=OWN_INDEX))
    return v.all(result)


def _stacked(v: NodeView, result: Dependence, carriers: Sequence[int]) -> Dependence:
    """Several times all positions, one after the other: as many outer blocks."""
    counts = {v.size(i, result.axis or 0) for i in carriers}
    is_all = len(carriers) == len(v.proto.input) and len(counts) == 1 and None not in counts
    if not is_all or result.kind > Kind.INDEPENDENT or result.is_uniform:
        return v.lost(result, Kind.GATHERED, "concatenation")
    return result.at(result.axis, result.outer * len(carriers))


def same_axis(v: NodeView, carriers: Sequence[int], node: str) -> Dependence:
    """Return the layout that several inputs of equal rank share, or a broken one."""
    leader = next((i for i in carriers if not v.dep(i).is_uniform), carriers[0])
    result = v.dep(leader)
    for index in carriers:
        other = v.dep(index)
        if other.axis != result.axis:
            return v.lost(result, Kind.PAIRED, "different axes")
        if not result.has_blocks_of(other):
            return v.lost(result, Kind.FACTORED, "different blocks")
        result = join(result, other, node)
    return result


def split(v: NodeView) -> Sequence[Dependence]:
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
    """Some of the outer blocks, each of which has all positions."""
    block = v.positions * dep.inner
    if end is None or dep.outer == 1 or dep.is_uniform or start % block or end % block:
        return v.lost(dep, Kind.GATHERED, "split")
    if end <= start:
        return v.lost(dep, Kind.GATHERED, "split")
    return dep.at(dep.axis, (end - start) // block)


def slice_(v: NodeView) -> Sequence[Dependence]:
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
            found = at_least(own, found)
        elif any(marks) and dep.axis is None and dep.kind == Kind.FREE:
            found = v.broken(Kind.LENGTH, "position", axis)
        elif any(marks):
            found = found.resized(v.name, "slice by length")
    return v.all(found)


def _mark(v: NodeView, index: int, place: int) -> int:
    """How an element of an operand depends on the number of positions."""
    found = v.known(index)
    return 0 if found is None or found.tainted is None else int(found.tainted.reshape(-1)[place])


def _unknown_slice(v: NodeView, dep: Dependence) -> Sequence[Dependence]:
    """Bounds that follow from values: of axes other than the positions' they pick features."""
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
    """The slice of the positions themselves."""
    size = v.size(0, dep.axis or 0)
    tainted = any(marks)
    is_whole = (
        step == 1
        and not marks[2]
        and ((start == 0 and not marks[0]) or (size is not None and start <= -size))
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
        # Counted from the end, or up to a fixed number of positions.
        return v.lost(dep, Kind.GATHERED, "slice")
    # What is cut off at the end has to be there all the same.
    return dep.windowed(window(start, step, 1 - min(end, 0)), v.name, "slice")


def gather(v: NodeView) -> Sequence[Dependence]:
    data, indices = v.dep(0), v.dep(1)
    rank, picks = v.rank(0), v.rank(1)
    if data.axis is None and indices.axis is None:
        return v.all(join(FREE, indices, v.name))
    if rank is None or picks is None:
        return v.opaque("unknown rank")
    axis = v.attr("axis", 0) % rank
    if data.axis is not None and indices.axis is not None:
        is_one = data.outer == 1 and (indices.outer, indices.inner) == (1, 1)
        if data.axis == axis and is_one and picks_own(indices.index, data.inner):
            return v.all(replace(data, axis=indices.axis + axis, inner=1, index=None))
        kind = Kind.PAIRED if data.axis != axis else Kind.GATHERED
        found = v.lost(data, kind, "indices")
    elif data.axis is None:
        found = indices.at((indices.axis or 0) + axis)
    elif data.axis == axis:
        found = v.lost(data, Kind.GATHERED, "indices")
    else:
        found = data.at(data.axis if data.axis < axis else data.axis + picks - 1)
    return v.all(join(found, indices, v.name))


def picks_own(index: Index | None, count: int) -> bool:
    """Return whether every index is one of the `count` elements of its own position."""
    return index is not None and index.scale == count and 0 <= index.low <= index.high < count


def elementwise_gather(v: NodeView) -> Sequence[Dependence]:
    """GatherElements and ScatterElements: data and indices alike on every axis but one."""
    rank = v.rank(0)
    carriers = v.carriers
    if not carriers:
        return v.all(FREE)
    if rank is None:
        return v.opaque("unknown rank")
    result = same_axis(v, carriers, v.name)
    if result.axis is None:
        return v.all(result)
    is_scatter = v.op.startswith("Scatter")
    if v.attr("axis", 0) % rank == result.axis:
        if not is_scatter and v.dep(0).kind == Kind.FREE and carriers == [1]:
            return v.all(result)  # a fixed table, picked from along this axis
        return v.all(v.lost(result, Kind.GATHERED, "indices"))
    needed = range(3 if is_scatter else 2)
    if any(i not in carriers for i in needed):
        return v.all(v.lost(result, Kind.GATHERED, "indices of other rows"))
    return v.all(result)


def gather_nd(v: NodeView) -> Sequence[Dependence]:
    data, indices = v.dep(0), v.dep(1)
    batch, last = v.attr("batch_dims", 0), v.size(1, -1)
    picks = v.rank(1)
    if data.axis is None and indices.axis is None:
        return v.all(join(FREE, indices, v.name))
    if picks is None or last is None:
        return v.opaque("unknown rank")
    if data.axis == indices.axis == batch == 0 and _names_own(v, data, indices, last):
        return v.all(data)
    if indices.axis == picks - 1:
        found = v.lost(indices, Kind.GATHERED, "indices")
    elif data.axis is None:
        found = indices
        if (indices.axis or 0) < batch:  # each position has data of its own
            found = indices.broken(Kind.LENGTH, v.name, "position")
    elif indices.axis is None and data.axis >= batch + last:
        found = data.at(picks - 1 + data.axis - batch - last)
    elif data.axis == indices.axis and data.axis < batch and data.has_blocks_of(indices):
        found = data
    else:
        found = v.lost(data, Kind.GATHERED, "indices")
    return v.all(join(found, indices, v.name))


def _names_own(v: NodeView, data: Dependence, indices: Dependence, last: int) -> bool:
    """Whether the first number of every index is the position that it stands at."""
    if last == 1:
        return indices.index == POSITIONS and (data.outer, data.inner) == (1, 1)
    return indices.how == OWN_INDEX and (data.outer, data.inner) == (1, 1)


def scatter_nd(v: NodeView) -> Sequence[Dependence]:
    data, indices, updates = v.dep(0), v.dep(1), v.dep(2)
    last, picks = v.size(1, -1), v.rank(1)
    if not v.carriers:
        return v.all(join(FREE, indices, v.name))
    if last is None or picks is None or data.axis is None:
        return v.all(v.broken(Kind.GATHERED, "indices"))
    if indices.kind == Kind.FREE and data.axis >= last:
        # Whole slices along the positions are replaced, at places that are the same for all.
        place = picks - 1 + data.axis - last
        if updates.axis == place and data.has_blocks_of(updates):
            return v.all(join(data, updates, v.name))
    is_own = data.axis == indices.axis == updates.axis == 0 and data.has_blocks_of(updates)
    if is_own and _names_own(v, data, indices, last):
        return v.all(join(data, updates, v.name))
    return v.all(join(v.lost(data, Kind.GATHERED, "indices"), indices, v.name))


def pad(v: NodeView) -> Sequence[Dependence]:
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
    if dep.axis not in where:
        is_fixed = known is None or not known.is_tainted
        return v.all(dep if is_fixed else dep.resized(v.name, "padding"))
    place = where.index(dep.axis)
    begin, end = int(pads[place]), int(pads[place + len(axes)])
    if begin == end == 0:
        return v.all(dep)
    mode = v.attr("mode", b"constant").decode()
    if dep.inner != 1 or dep.outer != 1 or mode not in ("constant", "edge", "reflect"):
        return v.all(v.lost(dep, Kind.GATHERED, f"{mode} padding"))
    front, back = max(begin, 0), max(end, 0)
    before, after = {
        "constant": (0, 0),
        "edge": (back, front),  # the first and the last are read again
        "reflect": (2 * back, 2 * front),
    }[mode]
    shifted = window(-begin - before, 1, before + 1 + after)
    return v.all(dep.windowed(shifted, v.name, f"{mode} padding"))


def center_crop_pad(v: NodeView) -> Sequence[Dependence]:
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


def one_hot(v: NodeView) -> Sequence[Dependence]:
    dep, rank = v.dep(0), v.rank(0)
    if any(v.dep(i).kind != Kind.FREE for i in (1, 2)):
        return v.all(v.broken(Kind.LENGTH, "depth"))
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    axis = v.attr("axis", -1)
    axis = axis % (rank + 1)
    return v.all(dep.at(dep.axis + (axis <= dep.axis)))


def depth_to_space(v: NodeView) -> Sequence[Dependence]:
    """DepthToSpace and SpaceToDepth: blocks of pixels become channels, or the other way round."""
    dep, block = v.dep(0), v.attr("blocksize", 1)
    if dep.axis is None or dep.axis == 0:
        return v.all(dep)
    if dep.axis == 1 or dep.inner != 1 or dep.outer != 1:
        return v.all(v.lost(dep, Kind.FACTORED, "channels and pixels"))
    if v.op == "SpaceToDepth":
        return v.all(dep.windowed(window(0, block, block), v.name, "blocks of pixels"))
    grown = window(0, 1, 1)._replace(stride=window(0, 1, 1).stride / block)
    return v.all(dep.windowed(grown, v.name, "blocks of pixels"))


def trilu(v: NodeView) -> Sequence[Dependence]:
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    if dep.axis >= rank - 2:
        return v.all(dep.broken(Kind.LENGTH, v.name, "triangle"))
    return v.all(dep)


def range_(v: NodeView) -> Sequence[Dependence]:
    """Range: the positions themselves, if it counts them from 0."""
    start, delta, after = v.constant(0), v.constant(2), v.out_shape()
    if all(dep.kind == Kind.FREE for dep in v.ins):
        return v.all(FREE)
    counts = start is not None and delta is not None and not start.any() and delta.item() == 1
    limit = v.known(1)
    is_multiple = limit is not None and (limit.marks == PROPORTIONAL).all()
    if counts and is_multiple and after == (v.positions,):
        found = v.broken(Kind.LENGTH, "positions", 0)
        return v.all(replace(found, index=POSITIONS, is_resized=False))
    return v.all(v.broken(Kind.LENGTH, "range"))


def shape_of(v: NodeView) -> Sequence[Dependence]:
    """Numbers that say how much there is, where they could not be worked out."""
    if all(dep.kind == Kind.FREE for dep in v.ins):
        return v.all(FREE)
    return v.all(v.broken(Kind.LENGTH, "length"))
