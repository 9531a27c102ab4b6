"""Operands that do not depend on the rows, but were made for a fixed number of them."""

from __future__ import annotations

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
from dask_onnx.analysis.opening.site import Alternative, Fix, Site, written


def repeated(site: Site) -> list[Alternative]:
    """What a constant shape repeats: as often as there are rows, if that turns out to be meant."""
    operand = {"Expand": 1, "Tile": 1, "ConstantOfShape": 0}.get(site.facts.op_type)
    target = site.constant(operand) if operand is not None else None
    if operand is None or target is None or site.facts.domain:
        return site.keep()
    shape = site.shape(0) or ()
    shift = len(target) - len(shape)
    ways = site.keep()
    for place, size in enumerate(target):
        is_one = operand == 0 or place < shift or shape[place - shift] == 1
        if size == site.draft.rows and is_one:
            ways.append(Alternative(("repeated", place), _repeater(site, operand, target, place)))
    return ways


def _repeater(site: Site, operand: int, target: Sequence[int], place: int) -> Callable[[], None]:
    def write() -> None:
        parts = [Rows() if i == place else size for i, size in enumerate(target)]
        site.proto.input[operand] = site.draft.shape_vector(parts, site.name)
        site.emit("repeated for each row")

    return write


def broadcast(site: Site, last: int = 0) -> list[Alternative]:
    """Operators element by element, and batched products (whose `last` axes are no batch)."""
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
            if not site.is_made_for_rows(index, layout) or shape[layout[0]] == 1:
                continue
            changed.append(site.original.input[index])
            if lead.outer != 1 or lead.inner != 1:
                site.spread(index, layout)
                continue
            row = numbered_rows if _is_numbered(site, index, layout) else first_row
            site.proto.input[index] = row(
                site.draft, site.constants, changed[-1], layout, site.name
            )
        site.emit(f"one row of {', '.join(changed)}" if changed else "")

    return written(write)


def _is_numbered(site: Site, index: int, layout: Layout) -> bool:
    """Whether an addend says where each row begins."""
    array = site.constants.of(site.original.input[index])
    return site.facts.op_type == "Add" and array is not None and step_of(array, layout[0]) > 0


def matmul(site: Site) -> list[Alternative]:
    """Operands of more than two axes may have been written for all rows."""
    return broadcast(site, last=2)


def fused_matmul(site: Site) -> list[Alternative]:
    """FusedMatMul of com.microsoft, which may take the first axis for the last but one."""
    turned = [i for i, side in enumerate("AB") if site.attribute(f"transBatch{side}", 0)]
    ranks = [len(site.shape(index) or ()) for index in (0, 1)]
    carriers = site.carriers((0, 1))
    if not turned or 0 in ranks or not carriers:
        return matmul(site)
    lead = site.dep(carriers[0])
    assert lead.axis is not None
    # Counted in the product, whose batch axes come first.
    from_end = ranks[carriers[0]] - lead.axis + (carriers[0] in turned)

    def write() -> None:
        for index in (0, 1):
            axis = ranks[index] - from_end + (index in turned)
            layout = (axis, lead.outer, lead.inner)
            if site.is_made_for_rows(index, layout) and (site.shape(index) or ())[axis] > 1:
                site.spread(index, layout)
        for index in turned:
            order = [*range(1, ranks[index] - 1), 0, ranks[index] - 1]
            name = site.proto.input[index]
            site.proto.input[index] = site.draft.helper("Transpose", [name], name, perm=order)
            site.set(f"transBatch{'AB'[index]}", 0)
        site.emit("transposes the batch apart")

    return written(write)


def gemm(site: Site) -> list[Alternative]:
    """The addend may have been written for all rows."""
    lead, addend = site.dep(0), site.shape(2) or ()
    layout = (len(addend) - 2, lead.outer, lead.inner)
    if lead.axis is None or lead.axis != site.attribute("transA", 0):
        return site.keep()
    if not site.is_made_for_rows(2, layout) or addend[layout[0]] == 1:
        return site.keep()
    return written(lambda: site.spread_all({2: layout}))


def concat(site: Site) -> list[Alternative]:
    """What is joined to the rows must be there for each of them."""
    carriers = site.carriers()
    after = site.out_shape()
    if not carriers or after is None:
        return site.keep()
    lead = site.dep(carriers[0])
    assert lead.axis is not None
    axis = site.attribute("axis", 1) % len(after)
    layout = (lead.axis, lead.outer, lead.inner)
    free = [i for i in range(len(site.original.input)) if site.is_made_for_rows(i, layout)]
    if lead.axis == axis and lead.outer == 1 and free:  # all rows of each, one after the other
        return written(lambda: site.spread_all(dict.fromkeys(free, layout)))
    if lead.axis == axis or not free:
        return site.keep()
    ways = written(lambda: site.spread_all(dict.fromkeys(free, layout)), "equal rows")
    numbered = [i for i in free if _counts(site, i, lead.axis)]
    if numbered and (lead.outer, lead.inner) == (1, 1):
        way = Alternative("numbers of rows", lambda: _number_rows(site, free, layout, numbered))
        ways = [*ways, way] if site.draft.rows == 1 else [way]
    return ways


def _counts(site: Site, index: int, axis: int) -> bool:
    array = site.constants.of(site.original.input[index])
    return array is not None and counts_rows(array, axis, site.draft.rows)


def _number_rows(site: Site, free: Sequence[int], layout: Layout, numbered: Sequence[int]) -> None:
    for index in free:
        if index not in numbered:
            site.spread(index, layout)
            continue
        shape = site.shape(index) or ()
        if not site.draft.is_fixed(site.original.input[index]):
            raise site.refuse(Kind.OPAQUE, "open axes beside the rows")
        numbers = row_numbers(site.draft, len(shape), layout[0])
        target: list[int | Rows] = list(shape)
        target[layout[0]] = Rows()
        vector = site.draft.shape_vector(target, site.name)
        site.proto.input[index] = site.draft.helper("Expand", [numbers, vector], site.name)
    site.emit("counts the rows of a run")


def operands(*axes: Mapping[int, int]) -> Fix:
    """Inputs that have a row for each row of the batch, on the axes that a layout of the operator
    has them on."""

    def fix(site: Site) -> list[Alternative]:
        for layout in axes:
            carriers = [i for i in site.carriers() if layout.get(i) == site.dep(i).axis]
            if not carriers:
                continue
            lead = site.dep(carriers[0])
            free = {
                i: (axis, lead.outer, lead.inner)
                for i, axis in layout.items()
                if site.is_made_for_rows(i, (axis, lead.outer, lead.inner))
            }
            if free:
                return written(lambda free=free: site.spread_all(free))  # type: ignore[misc]
        return site.keep()

    return fix


def recurrent(site: Site) -> list[Alternative]:
    """RNN, GRU and LSTM: initial states and lengths."""
    batch = 0 if site.attribute("layout", 0) else 1
    dep = site.dep(0)
    if dep.axis != batch:
        return site.keep()
    layouts = {
        index: (axis, dep.outer, dep.inner)
        for index, axis in ((4, 0), (5, batch), (6, batch))
        if site.is_made_for_rows(index, (axis, dep.outer, dep.inner))
    }
    if not layouts:
        return site.keep()

    def write() -> None:
        for index, layout in layouts.items():
            array = site.constants.of(site.original.input[index]) if index > 4 else None
            if array is not None and not array.any():
                site.proto.input[index] = ""  # zeros are what a state begins with by default
            else:
                site.spread(index, layout)
        site.emit("initial state for each row")

    return written(write)


def elementwise_gather(site: Site) -> list[Alternative]:
    """GatherElements and ScatterElements: all inputs have the rows on one axis."""
    carriers = site.carriers()
    if not carriers:
        return site.keep()
    axis = site.dep(carriers[0]).axis
    assert axis is not None
    count = 3 if site.facts.op_type.startswith("Scatter") else 2
    return operands(dict.fromkeys(range(count), axis))(site)


def attention_of_onnx(site: Site) -> list[Alternative]:
    """Attention of ai.onnx: keys, values and past states; a mask broadcasts."""
    mask = len(site.shape(3) or ())
    return operands({0: 0, 1: 0, 2: 0, 4: 0, 5: 0} | ({3: 0} if mask == 4 else {}))(site)


def rotary_of_ort(site: Site) -> list[Alternative]:
    """RotaryEmbedding of com.microsoft: places of two axes; one of one axis is an offset of all."""
    return operands({0: 0, 1: 0})(site) if len(site.shape(1) or ()) == 2 else site.keep()
