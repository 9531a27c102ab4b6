"""Rules of operators that move elements: reshaping, transposing, squeezing, concatenating."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from dask_onnx.analysis.axes.dependence import (
    FREE,
    POSITION_VECTORS,
    POSITIONS,
    SAME,
    Dependence,
    Kind,
    window,
)
from dask_onnx.analysis.axes.view import DEPENDENT, NodeView, Shape, join


def reshaped(dep: Dependence, before: Shape, after: Shape, node: str) -> Dependence:
    """Return the dependence after a reshape in row-major order, exact for the sizes given.

    Let `in_front` be the product of the sizes before the positions, outer blocks included, and
    `behind` that after them. An axis of the new shape carries the positions if the sizes before and
    after it divide these two numbers, and the quotients, as outer and inner blocks, complete the
    size of the axis.

    Parameters
    ----------
    dep : Dependence
        Its `axis` must not be None.
    before, after : tuple of int or None
        Shapes; None for a size that is not known.
    node : str
        Name of the node, for the case that the reshape breaks the dependence.
    """
    axis = dep.axis
    assert axis is not None
    if before == after:
        return dep
    if axis == 0 and dep.outer == dep.inner == 1 and after and after[0] == before[0] is not None:
        return dep  # the sizes behind the first axis have equal products, known or not
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
    """Return the axes of a new shape into which one axis is split; [] if it is not.

    `size` is the size of the axis, `in_front` the product of the sizes before it.
    """
    products = list(itertools.accumulate((part or 0 for part in after), operator.mul, initial=1))
    if in_front not in products or in_front * size not in products:
        return []
    start, stop = products.index(in_front), products.index(in_front * size)
    return [place for place in range(start, stop) if after[place] != 1]


def _reshaped_inside(dep: Dependence, before: Shape, after: Shape, node: str) -> Dependence:
    """Return the same where sizes are unknown: equal leading axes keep the positions in place."""
    axis = dep.axis
    assert axis is not None
    leading = before[: axis + 1]
    if None not in leading and after[: axis + 1] == leading:
        return dep
    return replace(dep, axis=None, outer=1, inner=1).resized(node, "unknown shape", Kind.OPAQUE)


def reshape(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Reshape, by the inferred shapes or else by the target."""
    dep, before, after = v.dep(0), _completed(v), v.out_shape()
    if after is None or None in after:
        after = _target(v, before) or after
    if dep.axis is None:
        if v.dep(1).kind == Kind.LENGTH and v.dep(1).axis is None:
            # Elements without positions, in a shape computed from the number of positions.
            return v.all(v.broken(Kind.LENGTH, "shape"))
        return v.all(dep)
    if before is None or after is None:
        found = _by_target(v, dep, before)
    else:
        found = _by_length(v, reshaped(dep, before, after, v.name))
    if dep.how == POSITION_VECTORS and (not before or not after or before[-1] != after[-1]):
        found = found.without_index()
    return v.all(found)


def _completed(v: NodeView) -> Shape | None:
    """Return the input's shape, with the size of the positions' axis filled in if unknown."""
    dep, before = v.dep(0), v.shape(0)
    if before is None or dep.axis is None or dep.window != SAME or dep.is_resized:
        return before
    own = v.positions * dep.outer * dep.inner
    return (*before[: dep.axis], before[dep.axis] or own, *before[dep.axis + 1 :])


def _target(v: NodeView, before: Shape | None) -> Shape | None:
    """Return the output shape computed from the target of a Reshape; None if not possible."""
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
    """Break `dep` if the target's size of another axis depends on the number of positions."""
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
    """Return the dependence by the target alone, which may keep a leading axis of positions."""
    target = v.known(1) if v.op == "Reshape" else None
    if dep.axis == 0 and dep.outer == dep.inner == 1 and target is not None and target.array.size:
        first = int(target.array.reshape(-1)[0])
        is_copied = first == 0 and not v.attr("allowzero", 0)
        if is_copied or (before is not None and first == before[0] and target.is_tainted):
            return dep
    return v.lost(dep, Kind.OPAQUE, "unknown shape")


def transpose(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Transpose."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    order = v.attr("perm") or list(range(rank))[::-1]
    return v.all(dep.at(list(order).index(dep.axis)))


def squeeze(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Squeeze; without named axes the rank depends on their number."""
    dep, shape, after = v.dep(0), v.shape(0), v.out_shape()
    if dep.axis is None:
        return v.all(dep)
    if not v.has(1) and v.attr("axes") is None:
        # All axes of size 1 are removed, which includes the positions' axis if there is one.
        if shape is None or None in shape or shape[dep.axis] == 1:
            return v.all(v.lost(dep, Kind.LENGTH, "squeezed if the size is 1"))
        ones = sum(size == 1 for size in shape[: dep.axis])
        return v.all(dep.at(dep.axis - ones).resized(v.name, "squeezed if the size is 1"))
    axes = v.axes(1 if v.opset >= 13 else None)
    if shape is None or axes is None:
        return v.opaque("unknown axes")
    gone = {a % len(shape) for a in axes}
    if not axes:
        if None in shape:
            return v.opaque("unknown shape")
        gone = {i for i, size in enumerate(shape) if size == 1}
    if dep.axis in gone or (after is not None and len(after) != len(shape) - len(gone)):
        return v.all(v.lost(dep, Kind.OPAQUE, "squeezed"))
    return v.all(dep.at(dep.axis - sum(a < dep.axis for a in gone)))


def unsqueeze(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Unsqueeze."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    axes = v.axes(1 if v.opset >= 13 else None)
    if rank is None or not axes:
        return v.opaque("unknown axes")
    new = {a % (rank + len(axes)) for a in axes}
    kept = [i for i in range(rank + len(axes)) if i not in new]
    return v.all(dep.at(kept[dep.axis]))


def expand_dims(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through com.microsoft.ExpandDims, which inserts one axis."""
    dep, rank, axis = v.dep(0), v.rank(0), v.constant(1)
    if dep.axis is None:
        return v.all(dep)
    if rank is None or axis is None:
        return v.opaque("unknown axis")
    return v.all(dep.at(dep.axis + (int(axis.reshape(-1)[0]) % (rank + 1) <= dep.axis)))


def concat(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Concat.

    Recognises index vectors that start with their own position, see `POSITION_VECTORS`.
    """
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
        if rest and all(dep.is_independent for dep in rest):
            return v.all(replace(first, index=None, how=POSITION_VECTORS))
    return v.all(result)


def _stacked(v: NodeView, result: Dependence, carriers: Sequence[int]) -> Dependence:
    """Return the dependence of Concat along the axis of the positions, as outer blocks.

    Each input must have all positions.
    """
    counts = {v.size(i, result.axis or 0) for i in carriers}
    is_all = len(carriers) == len(v.proto.input) and len(counts) == 1 and None not in counts
    if not is_all or result.kind > Kind.INDEPENDENT or result.is_uniform:
        return v.lost(result, Kind.GATHERED, "concatenation")
    return result.at(result.axis, result.outer * len(carriers))


def quantized_concat(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through com.microsoft.QLinearConcat.

    Inputs are the output's scale and zero point, then (tensor, scale, zero point) for each tensor.
    """
    data = range(2, len(v.proto.input), 3)
    if not v.carriers:
        return v.all(FREE)
    result, rank = same_axis(v, v.carriers, v.name), v.rank(2)
    if result.axis is None or rank is None or list(data) != v.carriers:
        return v.opaque("positions in some of the inputs")
    if v.attr("axis", 1) % rank == result.axis:
        return v.all(v.lost(result, Kind.GATHERED, "concatenation"))
    return v.all(result)


def same_axis(v: NodeView, carriers: Sequence[int], node: str) -> Dependence:
    """Return the joined dependence of inputs of equal rank that share one layout.

    Inputs of different axes are PAIRED, of different blocks FACTORED.
    """
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


def one_hot(v: NodeView) -> Sequence[Dependence]:
    """Follow positions of the indices through OneHot, which inserts an axis."""
    dep, rank = v.dep(0), v.rank(0)
    if any(v.dep(i).kind != Kind.FREE for i in (1, 2)):
        return v.all(v.broken(Kind.LENGTH, "depth"))
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    axis = v.attr("axis", -1) % (rank + 1)
    return v.all(dep.at(dep.axis + (axis <= dep.axis)))


def depth_to_space(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through DepthToSpace and SpaceToDepth.

    Along a spatial axis an element reads a window: `blocksize` pixels, or a fraction of one.
    """
    dep, block = v.dep(0), v.attr("blocksize", 1)
    if dep.axis is None or dep.axis == 0:
        return v.all(dep)
    if dep.axis == 1 or dep.inner != 1 or dep.outer != 1:
        return v.all(v.lost(dep, Kind.FACTORED, "channels and pixels"))
    if v.op == "SpaceToDepth":
        return v.all(dep.windowed(window(0, block, block), v.name, "blocks of pixels"))
    return v.all(dep.windowed(window(0, Fraction(1, block), 1), v.name, "blocks of pixels"))


def trilu(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Trilu; on the last two axes elements depend on their index."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    if dep.axis >= rank - 2:
        return v.all(dep.broken(Kind.LENGTH, v.name, "triangle"))
    return v.all(dep)
