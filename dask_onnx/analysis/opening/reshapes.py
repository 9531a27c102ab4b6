"""Fixes of operators that change the shape only: Reshape, Flatten, Squeeze and Unsqueeze.

Also of Gather where it removes the axis of the single row, or picks from a flattened tensor by
constant indices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.opening.draft import Layout, Rows
from dask_onnx.analysis.opening.site import Alternative, Site


def placements(
    before: Sequence[int], after: Sequence[int], dep: Dependence, rows: int
) -> list[Layout]:
    """Return the possible layouts of the rows after a reshape, the most likely first.

    With one row there may be several: axes of size 1, and axes that the row is merged with.

    Parameters
    ----------
    before, after : sequence of int
        Shapes at the exported number of rows.
    dep : Dependence
        Layout of the rows before; its `axis` must not be None.
    rows : int
        The exported number of rows.
    """
    assert dep.axis is not None
    in_front = math.prod(before[: dep.axis]) * dep.outer
    behind = math.prod(before[dep.axis + 1 :]) * dep.inner
    found: list[Layout] = []
    prefix = 1
    for place, size in enumerate(after):
        suffix = math.prod(after[place + 1 :])
        if prefix and suffix and not in_front % prefix and not behind % suffix:
            outer, inner = in_front // prefix, behind // suffix
            if size == outer * rows * inner:
                found.append((place, outer, inner))
        prefix *= size
    axis = dep.axis

    def likelihood(layout: Layout) -> tuple[bool, bool, int]:
        place, outer, inner = layout
        return (outer * inner > 1, outer > 1, abs(place - axis))

    return sorted(found, key=likelihood)


def reshape(site: Site) -> list[Alternative]:
    """Return the alternatives of Reshape and operators equivalent to it: one per layout of rows."""
    dep, before, after = site.dep(0), site.shape(0), site.out_shape()
    if dep.axis is None or before is None or after is None or 0 in (*before, *after):
        return site.keep()
    inferred = site.draft.inferred(site.proto)
    as_it_is = inferred[0].shape if inferred else None
    found = placements(before, after, dep, site.draft.rows)
    if site.has(1) and site.draft.dep(site.original.input[1]).kind == Kind.LENGTH:
        # The target is computed from the number of rows, so prefer the layout that it implies.
        found.sort(key=lambda layout: site.draft.grown_shape(after, layout[0]) != as_it_is)
    return [
        Alternative((site.facts.op_type, before, after, layout), _writer(site, layout, as_it_is))
        for layout in found
    ] or site.keep()


def _writer(site: Site, layout: Layout, as_it_is: object) -> Callable[[], None]:
    """Return the function that writes a reshape with the rows at `layout`.

    `as_it_is` is the shape that the node has at `PROBE` rows if it is kept; None if unknown.
    """

    def write() -> None:
        after = site.out_shape() or ()
        if site.draft.grown_shape(after, layout[0]) == as_it_is:
            site.emit()
        else:
            site.draft.emit(
                _rewritten(site, layout), f"reshapes any number of rows, on axis {layout[0]}"
            )
        dep = site.draft.dep(site.original.output[0])
        if not dep.is_uniform and (dep.axis, dep.outer, dep.inner) != layout:
            raise site.refuse(Kind.FACTORED, "reshape")

    return write


def _rewritten(site: Site, layout: Layout) -> onnx.NodeProto:
    """Return the Reshape that replaces a node."""
    proto = onnx.NodeProto()
    proto.name, proto.op_type = site.original.name, "Reshape"
    target = _target(site, layout)
    proto.input.extend([site.original.input[0], target])
    proto.output.extend(site.original.output)
    return proto


def _target(site: Site, layout: Layout) -> str:
    """Return the name of the target of a Reshape with the rows at `layout`."""
    draft, after, (place, outer, inner) = site.draft, site.out_shape() or (), layout
    dep, is_reshape = site.dep(0), site.facts.op_type == "Reshape"
    is_kept = layout == (dep.axis, dep.outer, dep.inner)
    exported = site.constant(1) if is_reshape else list(after) if draft.is_static else None
    if exported is None:
        if not is_reshape:
            raise site.refuse(Kind.OPAQUE, "other dynamic axes besides the rows")
        return _computed(site, layout, is_kept)
    target = [
        after[i] if i != place and size == 0 and i == dep.axis else size
        for i, size in enumerate(exported)
    ]
    others = [i for i, size in enumerate(target) if size == -1 and i != place]
    if is_kept:
        target[place] = 0
    elif not others:
        target[place] = -1
    elif draft.is_static:
        target = [after[i] if i in others else size for i, size in enumerate(target)]
        target[place] = -1
    else:
        parts: list[int | Rows] = list(target)
        parts[place] = Rows(outer * inner)
        return draft.shape_vector(parts, site.name)
    return draft.numbers(target, site.name)


def _computed(site: Site, layout: Layout, is_kept: bool) -> str:
    """Return the same where the target is computed: a copy of it with one element replaced."""
    draft, (place, outer, inner) = site.draft, layout
    known, rank = draft.known(site.original.input[1]), len(site.out_shape() or ())
    others = None if known is None else np.delete(known.array.reshape(-1), place)
    if others is None or 0 in others:
        raise site.refuse(Kind.OPAQUE, "unknown shape")
    if is_kept:
        return site.replaced(1, rank, place, 0)
    if -1 not in others:
        return site.replaced(1, rank, place, -1)
    if not draft.is_static and (outer != 1 or inner != 1):
        raise site.refuse(Kind.OPAQUE, "other dynamic axes besides the rows")
    return site.replaced(1, rank, place, Rows(outer * inner))


def gather(site: Site) -> list[Alternative]:
    """Return the alternatives of Gather along the axis of the rows.

    Its indices may select the single row, or elements of the flattened rows.
    """
    data, shape, after = site.dep(0), site.shape(0), site.out_shape()
    if data.axis is None or shape is None or after is None:
        return site.keep()
    if site.attribute("axis", 0) % len(shape) != data.axis:
        return site.keep()
    if site.dep(1).axis is not None:
        return _computed_indices(site)
    places = site.constants.of(site.original.input[1])
    if places is None:
        return site.keep()
    places = np.where(places < 0, places + shape[data.axis], places)
    if shape[data.axis] == places.size == 1:  # the single row
        return reshape(site)
    if data.outer == 1 and data.inner > 1 and site.draft.is_static:
        return _flat(site, places)
    return site.keep()


def _flat(site: Site, places: np.ndarray) -> list[Alternative]:
    """Return the alternatives of constant indices into flattened rows, equal for each row.

    Exporters write ``as_strided`` so.
    """
    rows, inner, shape = site.draft.rows, site.dep(0).inner, site.shape(0) or ()
    axis = site.dep(0).axis or 0
    found = []
    for place, size in enumerate(places.shape):
        first = np.take(places, [0], place)
        steps = np.arange(rows).reshape([-1 if i == place else 1 for i in range(places.ndim)])
        is_equal_by_row = size == rows and np.array_equal(places, first + steps * inner)
        if is_equal_by_row and first.min() >= 0 and first.max() < inner:
            found.append(
                Alternative(
                    ("flat", shape, places.shape, place),
                    functools.partial(_pick, site, first, axis, place),
                )
            )
    return found or site.keep()


def _pick(site: Site, first: np.ndarray, axis: int, place: int) -> None:
    """Write a Gather within each row: unflatten the rows, gather, and restore the axis order.

    `first` are the indices of the first row, which lie along axis `place` of the original indices;
    `axis` is the axis of the flattened rows.
    """
    draft, shape = site.draft, site.shape(0) or ()
    inner = site.dep(0).inner
    apart = [*shape[:axis], -1, inner, *shape[axis + 1 :]]
    data = draft.reshape(site.original.input[0], apart, site.name)
    index = draft.constant(np.squeeze(first, place).astype(np.int64), site.name)
    node = helper.make_node("Gather", [data, index], list(site.original.output), site.name)
    node.attribute.append(helper.make_attribute("axis", axis + 1))
    if place == 0:
        draft.emit(node, "gathers within each row")
        return
    picked = draft.helper("Gather", [data, index], site.name, axis=axis + 1)
    order = list(range(len(site.out_shape() or ())))
    order.insert(axis + place, order.pop(axis))
    last = helper.make_node("Transpose", [picked], list(site.original.output), site.name)
    last.attribute.append(helper.make_attribute("perm", order))
    draft.emit(last, "gathers within each row")


def _computed_indices(site: Site) -> list[Alternative]:
    """Return the alternatives of indices that each row computes into a flattened tensor.

    With one exported row they are indices into the row, so GatherND with batch_dims may replace it.
    """
    data, index = site.dep(0), site.dep(1)
    is_plain = (index.outer, index.inner) == (1, 1) and data.outer == 1
    if site.draft.rows > 1 or not is_plain or index.kind != Kind.INDEPENDENT:
        return site.keep()

    shape, places = site.shape(0) or (), site.shape(1) or ()
    can_batch = data.axis == index.axis == 0 and site.draft.opset >= 12 and site.draft.is_static

    def write() -> None:
        draft = site.draft
        rows = draft.reshape(site.original.input[0], [-1, data.inner, *shape[1:]], site.name)
        which = draft.reshape(site.original.input[1], [-1, *places[1:], 1], site.name)
        node = helper.make_node("GatherND", [rows, which], list(site.original.output), site.name)
        node.attribute.append(helper.make_attribute("batch_dims", 1))
        draft.emit(node, "gathers within each row")

    return [*site.keep(), *([Alternative("indices within a row", write)] if can_batch else [])]
