"""Fixes of nodes whose sizes, bounds or indices name a fixed number of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.opening.constants import counts_rows, first_row, row_numbers
from dask_onnx.analysis.opening.draft import Rows
from dask_onnx.analysis.opening.site import Alternative, Site, single
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.modelio.weights import subgraphs_of, with_bodies

_END = 2**63 - 1
"""End of a slice to the end of the axis."""


def expand(site: Site) -> list[Alternative]:
    """Rewrite Expand.

    Its target may name the rows of a value that has them already, or its constant input may hold
    all exported rows while the target is computed from their number.
    """
    dep, shape = site.dep(0), site.shape(0)
    if shape is None:
        return site.keep()
    if dep.kind == Kind.FREE:
        return _expand_one(site, shape)
    known = site.draft.known(site.original.input[1])
    if dep.axis is None or known is None:
        return site.keep()
    target = known.array.reshape(-1)
    place = dep.axis + len(target) - len(shape)
    is_named = place >= 0 and target[place] == shape[dep.axis] != 1
    if not is_named or (known.tainted is not None and known.tainted.reshape(-1)[place]):
        return site.keep()

    def write() -> None:
        site.proto.input[1] = site.replaced(1, len(target), place, 1)
        site.emit("keeps the number of rows")

    return single(write)


def _expand_one(site: Site, shape: Sequence[int]) -> list[Alternative]:
    """Reduce the constant input of Expand to a single row."""
    known = site.draft.known(site.original.input[1])
    if known is None or known.tainted is None or site.draft.rows == 1:
        return site.keep()
    shift = len(shape) - known.array.size
    places = [int(p) + shift for p in np.flatnonzero(known.tainted.reshape(-1))]
    if len(places) != 1 or not site.has_exported_rows(0, (places[0], 1, 1)):
        return site.keep()
    layout = (places[0], 1, 1)

    def write() -> None:
        name = site.original.input[0]
        site.proto.input[0] = first_row(site.draft, site.constants, name, layout, site.name)
        site.emit(f"uses one row of {name}")

    return single(write)


def slice_(site: Site) -> list[Alternative]:
    """Rewrite the bounds of Slice along the axis of the rows, if it takes whole batches."""
    dep, shape = site.dep(0), site.shape(0)
    if dep.axis is None or shape is None or site.draft.opset < 10 or not site.is_unmerged:
        return site.keep()
    starts, ends = site.constant(1), site.constant(2)
    axes = site.constant(3) if site.has(3) else list(range(len(starts or ())))
    steps = site.constant(4) if site.has(4) else [1] * len(starts or ())
    if starts is None or ends is None or axes is None or steps is None:
        return site.keep()
    where = [i for i, axis in enumerate(axes) if axis % len(shape) == dep.axis]
    if len(where) != 1 or steps[where[0]] != 1:
        return site.keep()
    place, size = where[0], shape[dep.axis]
    start, end = (min(n + size if n < 0 else n, size) for n in (starts[place], ends[place]))
    block = site.draft.rows * dep.inner
    if max(start, 0) % block or end % block:
        return site.keep()

    first = Rows(start // site.draft.rows) if start > 0 else 0
    last = Rows(end // site.draft.rows) if end < size else _END

    def write() -> None:
        for index, numbers, new in ((1, starts, first), (2, ends, last)):
            parts: list[int | Rows] = [*numbers[:place], new, *numbers[place + 1 :]]
            site.proto.input[index] = site.draft.shape_vector(parts, site.name)
        for index, same in ((3, axes), (4, steps)):
            if site.has(index):  # all operands must have one type
                site.proto.input[index] = site.draft.numbers(same, site.name)
        site.emit("slices whole batches")

    return single(write)


def split(site: Site) -> list[Alternative]:
    """Rewrite the sizes of Split along the axis of the rows, if the parts are whole batches."""
    dep, shape = site.dep(0), site.shape(0)
    rank = len(shape or ())
    parts = [site.out_shape(i) for i in range(len(site.original.output))]
    if dep.axis is None or not rank or site.attribute("axis", 0) % rank != dep.axis:
        return site.keep()
    if site.draft.opset < 13 or any(part is None for part in parts) or not site.is_unmerged:
        return site.keep()
    sizes = [(part or ())[dep.axis] for part in parts]
    if any(size % (site.draft.rows * dep.inner) for size in sizes):
        return site.keep()

    def write() -> None:
        vector = site.draft.shape_vector([Rows(n // site.draft.rows) for n in sizes], site.name)
        del site.proto.input[1:]
        site.proto.input.append(vector)
        site.set("num_outputs", None)
        site.emit("splits whole batches")

    return single(write)


def resize(site: Site) -> list[Alternative]:
    """Rewrite the element of Resize's sizes that names the number of rows."""
    dep, rank = site.dep(0), len(site.shape(0) or ())
    known = site.draft.known(site.original.input[3]) if site.has(3) else None
    if dep.axis is None or known is None or not rank or not site.is_unmerged:
        return site.keep()
    axes, sizes = site.attribute("axes"), known.array.reshape(-1)
    named = list(range(rank)) if axes is None else [a % rank for a in axes]
    if dep.axis not in named or len(sizes) != len(named):
        return site.keep()
    place = named.index(dep.axis)
    if known.tainted is not None and known.tainted.reshape(-1)[place]:
        return site.keep()

    def write() -> None:
        rows = Rows(int(sizes[place]) // site.draft.rows)
        site.proto.input[3] = site.replaced(3, len(sizes), place, rows)
        site.emit("keeps the number of rows")

    return single(write)


def affine_grid(site: Site) -> list[Alternative]:
    """Rewrite the first element of AffineGrid's size, the number of rows."""
    sizes = site.constant(1)
    if site.dep(0).axis != 0 or not sizes or sizes[0] != site.draft.rows:
        return site.keep()

    def write() -> None:
        site.proto.input[1] = site.draft.shape_vector([Rows(), *sizes[1:]], site.name)
        site.emit("computes a grid for each row")

    return single(write)


def gather_nd(site: Site) -> list[Alternative]:
    """Rewrite constant indices of GatherND and ScatterND that start with their own row number."""
    data = site.dep(0)
    indices = site.constants.of(site.original.input[1]) if site.dep(1).kind == Kind.FREE else None
    shape = site.shape(1)
    is_plain = (data.axis, data.outer, data.inner) == (0, 1, 1)
    if indices is None or shape is None or not is_plain or site.attribute("batch_dims", 0):
        return site.keep()
    if len(shape) < 2 or not counts_rows(indices[..., 0], 0, site.draft.rows):
        return site.keep()
    rest = indices[..., 1:]
    if not np.array_equal(rest, np.broadcast_to(rest[:1], rest.shape)):
        raise site.refuse(Kind.GATHERED, "indices differ between rows")

    def write() -> None:
        draft, middle = site.draft, list(shape[1:-1])
        numbers = row_numbers(draft, len(shape), 0)
        vector = draft.shape_vector([Rows(), *middle, 1], site.name)
        parts = [draft.helper("Expand", [numbers, vector], site.name)]
        if rest.size:
            one = draft.constant(np.ascontiguousarray(rest[:1]), site.name)
            vector = draft.shape_vector([Rows(), *([1] * (len(shape) - 1))], site.name)
            parts.append(draft.helper("Expand", [one, vector], site.name))
        joined = parts[0]
        if len(parts) > 1:
            joined = draft.helper("Concat", parts, site.name, axis=len(shape) - 1)
        site.proto.input[1] = joined
        if site.has_exported_rows(2, (0, 1, 1)):
            site.repeat(2, (0, 1, 1))
        site.emit("computes the row numbers of the indices")

    return [Alternative("row numbers", write), *site.keep()]


def control(site: Site) -> list[Alternative]:
    """Remove the shapes declared in the bodies of If, Loop and Scan, which may no longer hold."""

    def write() -> None:
        n_removed = 0
        for node in with_bodies(site.proto):
            for body in subgraphs_of(node):
                n_removed += len(body.value_info)
                del body.value_info[:]
                # The first two inputs of a Loop's body, iteration and condition, are scalars.
                inputs = body.input[2 if standard_op_type(node) == "Loop" else 0 :]
                for value in (*inputs, *body.output):
                    for dim in value.type.tensor_type.shape.dim:
                        n_removed += dim.HasField("dim_value")
                        dim.Clear()
        site.emit("removes the shapes declared in its bodies" if n_removed else "")

    return single(write)
