"""Rules of operators whose output size is computed: Expand, Tile, Range, ConstantOfShape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dask_onnx.analysis.axes.dependence import FREE, POSITIONS, Dependence, Kind
from dask_onnx.analysis.axes.view import PROPORTIONAL, NodeView, Shape, join


def expand(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Expand.

    A value without positions that is repeated once for each position becomes uniform along the new
    axis.
    """
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
    """Return a uniform dependence where the shape has the number of positions on one axis."""
    after = v.out_shape()
    place = _length_axis(v, 0, after)
    if place is None:
        return v.all(FREE)
    return v.all(_uniform(v, FREE, place, after))


def _length_axis(v: NodeView, operand: int, after: Shape | None) -> int | None:
    """Return the output axis whose size is a multiple of the number of positions.

    None if the shape operand does not depend on that number; -1 if several or unknown axes do.
    """
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
    """Return the dependence of `dep` repeated for each position along axis `place`."""
    size = None if after is None or place < 0 else after[place]
    if not size or size % v.positions:
        return v.broken(Kind.LENGTH, "shape", place if place >= 0 else None)
    made = Dependence(
        Kind.INDEPENDENT, place, 1, size // v.positions, is_uniform=True, coupled=dep.coupled
    )
    return join(made, dep, v.name)


def tile(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Tile, whose repeats along their axis must be 1."""
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
    # Each position gets a copy of all repeated elements; uniform only if that is one element.
    return v.all(replace(found, is_uniform=found.is_uniform and v.size(0, place) == 1))


def range_(v: NodeView) -> Sequence[Dependence]:
    """Return the dependence of Range, whose output is the positions if it counts them from 0."""
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
    """Return kind LENGTH for sizes that shape arithmetic could not evaluate."""
    if all(dep.kind == Kind.FREE for dep in v.ins):
        return v.all(FREE)
    return v.all(v.broken(Kind.LENGTH, "length"))
