"""Rules of operators that gather elements by indices, or scatter them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dask_onnx.analysis.axes.dependence import (
    FREE,
    POSITION_VECTORS,
    POSITIONS,
    Dependence,
    Index,
    Kind,
)
from dask_onnx.analysis.axes.layout_rules import same_axis
from dask_onnx.analysis.axes.view import NodeView, join


def gather(v: NodeView) -> Sequence[Dependence]:
    """Follow positions of data and indices through Gather.

    Where both carry them along the gathered axis, the indices must pick elements of their own
    position.
    """
    data, indices = v.dep(0), v.dep(1)
    rank, picks = v.rank(0), v.rank(1)
    if data.axis is None and indices.axis is None:
        return v.all(join(FREE, indices, v.name))
    if rank is None or picks is None:
        return v.opaque("unknown rank")
    axis = v.attr("axis", 0) % rank
    if data.axis is not None and indices.axis is not None:
        is_one = data.outer == 1 and (indices.outer, indices.inner) == (1, 1)
        if data.axis == axis and is_one and picks_own_elements(indices.index, data.inner):
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


def table_lookup(v: NodeView) -> Sequence[Dependence]:
    """Follow positions of the indices through a lookup in a quantised table, which has none."""
    indices, rank = v.dep(1), v.rank(0)
    if v.carriers not in ([], [1]):
        return v.opaque("positions in a table")
    if indices.axis is None:
        return v.all(FREE)
    if rank is None:
        return v.opaque("unknown rank")
    return v.all(indices.at(indices.axis + v.attr("gather_axis", 0) % rank))


def picks_own_elements(index: Index | None, count: int) -> bool:
    """Return whether each index is one of the `count` consecutive elements of its position."""
    return index is not None and index.scale == count and 0 <= index.low <= index.high < count


def elementwise_gather(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through GatherElements and ScatterElements.

    Data and indices have equal layouts on every axis but the attribute's.
    """
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
            return v.all(result)  # each index picks from a constant table
        return v.all(v.lost(result, Kind.GATHERED, "indices"))
    needed = range(3 if is_scatter else 2)
    if any(i not in carriers for i in needed):
        return v.all(v.lost(result, Kind.GATHERED, "indices of other rows"))
    return v.all(result)


def gather_nd(v: NodeView) -> Sequence[Dependence]:
    """Follow positions of data and index vectors through GatherND."""
    data, indices = v.dep(0), v.dep(1)
    batch, last = v.attr("batch_dims", 0), v.size(1, -1)
    picks = v.rank(1)
    if data.axis is None and indices.axis is None:
        return v.all(join(FREE, indices, v.name))
    if picks is None or last is None:
        return v.opaque("unknown rank")
    if data.axis == indices.axis == batch == 0 and _start_with_position(v, data, indices, last):
        return v.all(data)
    if indices.axis == picks - 1:
        found = v.lost(indices, Kind.GATHERED, "indices")
    elif data.axis is None:
        found = indices
        if (indices.axis or 0) < batch:  # constant data has a batch entry for each position
            found = indices.broken(Kind.LENGTH, v.name, "position")
    elif indices.axis is None and data.axis >= batch + last:
        found = data.at(picks - 1 + data.axis - batch - last)
    elif data.axis == indices.axis and data.axis < batch and data.has_blocks_of(indices):
        found = data
    else:
        found = v.lost(data, Kind.GATHERED, "indices")
    return v.all(join(found, indices, v.name))


def _start_with_position(v: NodeView, data: Dependence, indices: Dependence, last: int) -> bool:
    """Return whether the first element of each index vector is the vector's own position."""
    if last == 1:
        return indices.index == POSITIONS and (data.outer, data.inner) == (1, 1)
    return indices.how == POSITION_VECTORS and (data.outer, data.inner) == (1, 1)


def scatter_nd(v: NodeView) -> Sequence[Dependence]:
    """Follow positions of data, index vectors and updates through ScatterND."""
    data, indices, updates = v.dep(0), v.dep(1), v.dep(2)
    last, picks = v.size(1, -1), v.rank(1)
    if not v.carriers:
        return v.all(join(FREE, indices, v.name))
    if last is None or picks is None or data.axis is None:
        return v.all(v.broken(Kind.GATHERED, "indices"))
    if indices.kind == Kind.FREE and data.axis >= last:
        # Constant indices name axes before the positions' axis: slices along it are replaced.
        place = picks - 1 + data.axis - last
        if updates.axis == place and data.has_blocks_of(updates):
            return v.all(join(data, updates, v.name))
    is_aligned = data.axis == indices.axis == updates.axis == 0 and data.has_blocks_of(updates)
    if is_aligned and _start_with_position(v, data, indices, last):
        return v.all(join(data, updates, v.name))
    return v.all(join(v.lost(data, Kind.GATHERED, "indices"), indices, v.name))
