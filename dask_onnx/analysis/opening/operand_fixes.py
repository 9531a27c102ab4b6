"""Fixes of nodes with constant operands that were exported for a fixed number of rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.opening.constants import (
    counts_rows,
    first_row,
    numbered_rows,
    row_numbers,
    step_of,
)
from dask_onnx.analysis.opening.draft import Layout, Rows
from dask_onnx.analysis.opening.site import Alternative, Fix, Site, single
from dask_onnx.modelio.operator_names import standard_op_type


def repeated(site: Site) -> list[Alternative]:
    """Return alternatives of Expand, Tile and ConstantOfShape with constant operands.

    Each size of the target that equals the exported number of rows may mean the number of rows.
    """
    operand = {"Expand": 1, "Tile": 1, "ConstantOfShape": 0}.get(standard_op_type(site.facts) or "")
    target = site.constant(operand) if operand is not None else None
    if operand is None or target is None:
        return site.keep()
    shape = site.shape(0) or ()
    shift = len(target) - len(shape)
    found = site.keep()
    for place, size in enumerate(target):
        is_one = operand == 0 or place < shift or shape[place - shift] == 1
        if size == site.draft.rows and is_one:
            found.append(Alternative(("repeated", place), _repeater(site, operand, target, place)))
    return found


def _repeater(site: Site, operand: int, target: Sequence[int], place: int) -> Callable[[], None]:
    """Return the function that writes the node with the number of rows at `place` of its target."""

    def write() -> None:
        parts = [Rows() if i == place else size for i, size in enumerate(target)]
        site.proto.input[operand] = site.draft.shape_vector(parts, site.name)
        site.emit("repeats for each row")

    return write


def broadcast(site: Site, last: int = 0) -> list[Alternative]:
    """Reduce constant operands with a row for each exported row to a single row.

    Fits elementwise operators and, with the `last` axes excluded, batched products.
    """
    inputs = [i for i in range(len(site.original.input)) if site.has(i)]
    shapes = {i: site.shape(i) for i in inputs}
    carriers = site.carriers(inputs)
    if not carriers or any(shape is None for shape in shapes.values()):
        return site.keep()
    lead = site.dep(carriers[0])
    assert lead.axis is not None
    from_end = len(shapes[carriers[0]] or ()) - lead.axis
    if from_end <= last:
        return site.keep()

    def write() -> None:
        changed = []
        for index in inputs:
            shape = shapes[index] or ()
            layout = (len(shape) - from_end, lead.outer, lead.inner)
            if not site.has_exported_rows(index, layout) or shape[layout[0]] == 1:
                continue
            changed.append(site.original.input[index])
            if lead.outer != 1 or lead.inner != 1:
                site.repeat(index, layout)
                continue
            row = numbered_rows if _is_numbered(site, index, layout) else first_row
            site.proto.input[index] = row(
                site.draft, site.constants, changed[-1], layout, site.name
            )
        site.emit(f"uses one row of {', '.join(changed)}" if changed else "")

    return single(write)


def _is_numbered(site: Site, index: int, layout: Layout) -> bool:
    """Return whether an addend holds offsets that grow from row to row, as of flattened rows."""
    array = site.constants.of(site.original.input[index])
    return (
        standard_op_type(site.facts) == "Add"
        and array is not None
        and step_of(array, layout[0]) > 0
    )


def matmul(site: Site) -> list[Alternative]:
    """Reduce a constant operand of MatMul with a matrix for each row to a single matrix."""
    return broadcast(site, last=2)


def fused_matmul(site: Site) -> list[Alternative]:
    """Repeat constant operands of com.microsoft FusedMatMul.

    With transBatchA or transBatchB, which make the first axis the last but one, it adds a
    Transpose.
    """
    transposed = [i for i, side in enumerate("AB") if site.attribute(f"transBatch{side}", 0)]
    ranks = [len(site.shape(index) or ()) for index in (0, 1)]
    carriers = site.carriers((0, 1))
    if not transposed or 0 in ranks or not carriers:
        return matmul(site)
    lead = site.dep(carriers[0])
    assert lead.axis is not None
    # Axis of the rows in the product, whose batch axes come first, counted from the last.
    from_end = ranks[carriers[0]] - lead.axis + (carriers[0] in transposed)

    def write() -> None:
        for index in (0, 1):
            axis = ranks[index] - from_end + (index in transposed)
            layout = (axis, lead.outer, lead.inner)
            if site.has_exported_rows(index, layout) and (site.shape(index) or ())[axis] > 1:
                site.repeat(index, layout)
        for index in transposed:
            order = [*range(1, ranks[index] - 1), 0, ranks[index] - 1]
            name = site.proto.input[index]
            site.proto.input[index] = site.draft.helper("Transpose", [name], name, perm=order)
            site.set(f"transBatch{'AB'[index]}", 0)
        site.emit("transposes the batch separately")

    return single(write)


def gemm(site: Site) -> list[Alternative]:
    """Repeat the addend of Gemm if it was exported with a row for each row."""
    lead, addend = site.dep(0), site.shape(2) or ()
    layout = (len(addend) - 2, lead.outer, lead.inner)
    if lead.axis is None or lead.axis != site.attribute("transA", 0):
        return site.keep()
    if not site.has_exported_rows(2, layout) or addend[layout[0]] == 1:
        return site.keep()
    return single(lambda: site.repeat_all({2: layout}))


def concat(site: Site) -> list[Alternative]:
    """Repeat constant inputs of Concat for each row, or compute them if they are row numbers."""
    carriers = site.carriers()
    after = site.out_shape()
    if not carriers or after is None:
        return site.keep()
    lead = site.dep(carriers[0])
    assert lead.axis is not None
    axis = site.attribute("axis", 1) % len(after)
    layout = (lead.axis, lead.outer, lead.inner)
    free = [i for i in range(len(site.original.input)) if site.has_exported_rows(i, layout)]
    if lead.axis == axis and lead.outer == 1 and free:  # stacks several batches
        return single(lambda: site.repeat_all(dict.fromkeys(free, layout)))
    if lead.axis == axis or not free:
        return site.keep()
    found = single(lambda: site.repeat_all(dict.fromkeys(free, layout)), "equal rows")
    numbered = [i for i in free if _counts(site, i, lead.axis)]
    if numbered and (lead.outer, lead.inner) == (1, 1):
        number = Alternative("row numbers", lambda: _number_rows(site, free, layout, numbered))
        # One row numbered 0 may be a constant 0; several numbered rows cannot be equal.
        found = [*found, number] if site.draft.rows == 1 else [number]
    return found


def _counts(site: Site, index: int, axis: int) -> bool:
    """Return whether an input holds the row numbers along an axis."""
    array = site.constants.of(site.original.input[index])
    return array is not None and counts_rows(array, axis, site.draft.rows)


def _number_rows(site: Site, free: Sequence[int], layout: Layout, numbered: Sequence[int]) -> None:
    """Write Concat with the `numbered` inputs computed, and the other `free` inputs repeated."""
    for index in free:
        if index not in numbered:
            site.repeat(index, layout)
            continue
        shape = site.shape(index) or ()
        if not site.draft.is_fixed(site.original.input[index]):
            raise site.refuse(Kind.OPAQUE, "other dynamic axes besides the rows")
        numbers = row_numbers(site.draft, len(shape), layout[0])
        target: list[int | Rows] = list(shape)
        target[layout[0]] = Rows()
        vector = site.draft.shape_vector(target, site.name)
        site.proto.input[index] = site.draft.helper("Expand", [numbers, vector], site.name)
    site.emit("computes row numbers")


def operands(*axes: Mapping[int, int]) -> Fix:
    """Return the fix that repeats constant inputs which need an entry for each row.

    `axes` are the alternatives of an operator: index of an input to the axis of the batch in it.
    """

    def fix(site: Site) -> list[Alternative]:
        for layout in axes:
            carriers = [i for i in site.carriers() if layout.get(i) == site.dep(i).axis]
            if not carriers:
                continue
            lead = site.dep(carriers[0])
            free = {
                i: (axis, lead.outer, lead.inner)
                for i, axis in layout.items()
                if site.has_exported_rows(i, (axis, lead.outer, lead.inner))
            }
            if free:
                return single(functools.partial(site.repeat_all, free))
        return site.keep()

    return fix


def recurrent(site: Site) -> list[Alternative]:
    """Repeat constant initial states and sequence lengths of RNN, GRU and LSTM."""
    batch = 0 if site.attribute("layout", 0) else 1
    dep = site.dep(0)
    if dep.axis != batch:
        return site.keep()
    layouts = {
        index: (axis, dep.outer, dep.inner)
        for index, axis in ((4, 0), (5, batch), (6, batch))
        if site.has_exported_rows(index, (axis, dep.outer, dep.inner))
    }
    if not layouts:
        return site.keep()

    def write() -> None:
        for index, layout in layouts.items():
            array = site.constants.of(site.original.input[index]) if index > 4 else None
            if array is not None and not array.any():
                site.proto.input[index] = ""  # zeros are the default
            else:
                site.repeat(index, layout)
        site.emit("repeats the initial state for each row")

    return single(write)


def elementwise_gather(site: Site) -> list[Alternative]:
    """Repeat constant inputs of GatherElements and ScatterElements on the axis of the rows."""
    carriers = site.carriers()
    if not carriers:
        return site.keep()
    axis = site.dep(carriers[0]).axis
    assert axis is not None
    count = 3 if site.facts.op_type.startswith("Scatter") else 2
    return operands(dict.fromkeys(range(count), axis))(site)


def attention_of_onnx(site: Site) -> list[Alternative]:
    """Repeat constant keys, values, past states and 4-D masks of ai.onnx Attention."""
    mask = len(site.shape(3) or ())
    return operands({0: 0, 1: 0, 2: 0, 4: 0, 5: 0} | ({3: 0} if mask == 4 else {}))(site)


def rotary_of_ort(site: Site) -> list[Alternative]:
    """Repeat constant 2-D position ids of com.microsoft RotaryEmbedding.

    1-D position ids are a common offset of all rows.
    """
    return operands({0: 0, 1: 0})(site) if len(site.shape(1) or ()) == 2 else site.keep()
