"""Constant folding of shape arithmetic, with a taint mark on each element.

Elements that depend on the number of positions are marked, see `Known`; multiples of that number
keep the mark PROPORTIONAL through arithmetic that preserves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from dask_onnx.analysis.axes.dependence import FREE, SAME, Dependence, Kind
from dask_onnx.analysis.axes.view import DEPENDENT, PROPORTIONAL, Known, NodeView

MAX_FOLDED_ELEMENTS = 1024
"""Elements of the largest array that is folded; shapes have few, a larger tensor is data."""


def shape_value(v: NodeView) -> Known | None:
    """Return the value of Shape or Size; None if a size is not known."""
    shape, dep = v.shape(0), v.dep(0)
    if (known := v.known(0)) is not None:
        shape, dep = known.array.shape, FREE  # elements may vary, the length does not
    if shape is None or None in shape:
        return None
    sizes = np.array(shape, np.int64)
    tainted = np.zeros(len(shape), np.uint8)
    if dep.is_resized:
        tainted[:] = DEPENDENT
    if dep.axis is not None and dep.axis < len(shape):
        is_multiple = not dep.is_resized and dep.window == SAME
        is_multiple &= shape[dep.axis] == v.positions * dep.outer * dep.inner
        tainted[dep.axis] = PROPORTIONAL if is_multiple else DEPENDENT
    if v.op == "Size":
        return Known(np.array(sizes.prod()), np.array(_mark_of_product(tainted), np.uint8))
    part = slice(v.attr("start", 0), v.attr("end"))
    return Known(sizes[part], tainted[part])


def fold_node(v: NodeView) -> list[Known] | None:
    """Return the values of a node's outputs; None if an input or the operator is not known."""
    fold = _FOLDS.get(v.op)
    if fold is None or v.proto.domain:
        return None
    inputs = [v.known(i) for i in range(len(v.proto.input)) if v.has(i)]
    if not inputs or len(inputs) != len(v.proto.input) or any(k is None for k in inputs):
        return None
    try:
        found = fold(v, [k for k in inputs if k is not None])
    except (ValueError, IndexError, TypeError, ZeroDivisionError, KeyError):
        # The operands do not fit the operator as shapes do: leave the node to its rule.
        return None
    if found is None or any(k.array.size > MAX_FOLDED_ELEMENTS for k in found):
        return None
    return found


def folded_dependences(values: Sequence[Known]) -> list[Dependence]:
    """Return the dependence of folded outputs: LENGTH if any element is tainted, else FREE."""
    return [Dependence(Kind.LENGTH, how="length") if known.is_tainted else FREE for known in values]


def _mark_of_product(marks: np.ndarray) -> int:
    """Return the mark of a product: PROPORTIONAL if one factor is and no other is marked."""
    marked = marks[marks != 0]
    if not len(marked):
        return 0
    return PROPORTIONAL if marked.tolist() == [PROPORTIONAL] else DEPENDENT


_Fold = Callable[[NodeView, list[Known]], list[Known] | None]
"""Function from the node's view and its inputs' values to its outputs' values."""


def _moved(function: Callable[[NodeView, np.ndarray, list[np.ndarray]], Any]) -> _Fold:
    """Return the fold of an operator that moves elements of its first input.

    `function` receives the view, the first input (or its marks) and the other operands, which must
    not be tainted.
    """

    def fold(v: NodeView, inputs: list[Known]) -> list[Known] | None:
        operands = [known.array for known in inputs[1:]]
        if any(known.is_tainted for known in inputs[1:]):
            return None
        values = function(v, inputs[0].array, operands)
        marks = function(v, inputs[0].marks, operands)
        if isinstance(values, list):
            return [Known(a, m) for a, m in zip(values, marks, strict=True)]
        return [Known(values, marks)]

    return fold


def _computed(function: Callable[..., Any]) -> _Fold:
    """Return the fold of an elementwise operator; any tainted operand makes a DEPENDENT element."""

    def fold(v: NodeView, inputs: list[Known]) -> list[Known]:
        with np.errstate(all="ignore"):
            values = np.asarray(function(*[known.array for known in inputs]))
        marks = np.broadcast_arrays(*[known.marks for known in inputs])
        combined = (np.max(marks, axis=0) > 0).astype(np.uint8) * DEPENDENT
        return [Known(values, np.broadcast_to(combined, values.shape))]

    return fold


def _multiplied(v: NodeView, inputs: list[Known]) -> list[Known]:
    """Fold Mul: a multiple of the number of positions times a constant stays a multiple."""
    (known,) = _computed(np.multiply)(v, inputs) or [inputs[0]]
    a, b = np.broadcast_arrays(*(known.marks for known in inputs))
    return [Known(known.array, np.where((a == 0) | (b == 0), a | b, DEPENDENT).astype(np.uint8))]


def _divided(v: NodeView, inputs: list[Known]) -> list[Known]:
    """Fold Div: the number of positions cancels out of the quotient of two multiples."""
    (known,) = _computed(_divide)(v, inputs) or [inputs[0]]
    a, b = np.broadcast_arrays(*(known.marks for known in inputs))
    top, bottom = np.broadcast_arrays(inputs[0].array, inputs[1].array)
    marks = np.where((a == 0) & (b == 0), 0, DEPENDENT)
    marks = np.where((a == PROPORTIONAL) & (b == PROPORTIONAL), 0, marks)
    with np.errstate(all="ignore"):
        # n * c / b stays a multiple of n if b divides c.
        is_exact = (a == PROPORTIONAL) & (b == 0) & (top // v.positions % bottom == 0)
    return [Known(known.array, np.where(is_exact, PROPORTIONAL, marks).astype(np.uint8))]


def _added(v: NodeView, inputs: list[Known]) -> list[Known]:
    """Fold Add: the sum of two multiples is a multiple."""
    (known,) = _computed(np.add)(v, inputs) or [inputs[0]]
    a, b = np.broadcast_arrays(*(known.marks for known in inputs))
    return [Known(known.array, np.where(a == b, a, DEPENDENT).astype(np.uint8))]


def _smallest(v: NodeView, inputs: list[Known]) -> list[Known]:
    """Fold Min: the minimum of elements with equal marks keeps the mark."""
    arrays, marks = _aligned(inputs)
    found = np.where(np.all(marks == marks[0], axis=0), marks[0], DEPENDENT)
    return [Known(np.minimum.reduce(arrays), found.astype(np.uint8))]


def _largest(v: NodeView, inputs: list[Known]) -> list[Known]:
    """Fold Max: the maximum of multiples is a multiple.

    So is the maximum of multiples and constants if no constant exceeds the largest multiple at one
    position, and hence at any number of positions.
    """
    arrays, marks = _aligned(inputs)
    values = np.maximum.reduce(arrays)
    at_one = np.where(marks == PROPORTIONAL, arrays // v.positions, arrays)
    is_multiple = np.all(marks != DEPENDENT, axis=0) & np.any(marks == PROPORTIONAL, axis=0)
    largest = np.where(marks == PROPORTIONAL, at_one, np.iinfo(np.int64).min).max(axis=0)
    is_multiple &= np.where(marks == 0, at_one, largest).max(axis=0) <= largest
    is_multiple &= (largest >= 0) | np.all(marks == PROPORTIONAL, axis=0)
    found = np.where(np.all(marks == 0, axis=0), 0, np.where(is_multiple, PROPORTIONAL, DEPENDENT))
    return [Known(values, found.astype(np.uint8))]


def _aligned(inputs: list[Known]) -> tuple[np.ndarray, np.ndarray]:
    """Return the values and the marks of several inputs, stacked along a new first axis."""
    return (
        np.stack(np.broadcast_arrays(*(known.array for known in inputs))),
        np.stack(np.broadcast_arrays(*(known.marks for known in inputs))),
    )


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.sign(a) * np.sign(b) * (abs(a) // abs(b)), a.dtype)
    return np.asarray(a / b)


def _concat(v: NodeView, inputs: list[Known]) -> list[Known]:
    axis = v.attr("axis", 0)
    return [
        Known(
            np.concatenate([k.array for k in inputs], axis),
            np.concatenate([k.marks for k in inputs], axis),
        )
    ]


def _where(v: NodeView, inputs: list[Known]) -> list[Known]:
    condition, yes, no = inputs
    values = np.where(condition.array, yes.array, no.array)
    marks = np.where(condition.array, yes.marks, no.marks)
    marks = np.where(condition.marks > 0, DEPENDENT, marks).astype(np.uint8)
    return [Known(values, np.broadcast_to(marks, values.shape))]


def _reduced(function: Callable[..., Any]) -> _Fold:
    def fold(v: NodeView, inputs: list[Known]) -> list[Known] | None:
        if len(inputs) > 1 and inputs[1].is_tainted:
            return None
        named = v.axes(1 if len(inputs) > 1 else None)
        axes = tuple(named) if named else None
        keeps = bool(v.attr("keepdims", 1))
        values = np.asarray(function(inputs[0].array, axis=axes, keepdims=keeps))
        if function is np.prod and values.size == 1:
            marks = np.full(values.shape, _mark_of_product(inputs[0].marks.reshape(-1)))
        else:
            marks = np.asarray(inputs[0].marks.any(axis=axes, keepdims=keeps)) * DEPENDENT
        return [Known(values, marks.astype(np.uint8))]

    return fold


def _gather(v: NodeView, data: np.ndarray, operands: list[np.ndarray]) -> np.ndarray:
    return np.asarray(np.take(data, operands[0], axis=v.attr("axis", 0)))


def _slice(v: NodeView, data: np.ndarray, operands: list[np.ndarray]) -> np.ndarray:
    if operands:
        starts, ends = (o.reshape(-1).tolist() for o in operands[:2])
        axes = operands[2].reshape(-1).tolist() if len(operands) > 2 else range(len(starts))
        steps = operands[3].reshape(-1).tolist() if len(operands) > 3 else [1] * len(starts)
    else:
        starts, ends = v.attr("starts"), v.attr("ends")
        axes, steps = v.attr("axes") or range(len(starts)), [1] * len(starts)
    index = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -data.shape[axis] else end
        index[axis] = slice(start, stop, step)
    part: np.ndarray = data[tuple(index)]
    return part


def _squeeze(v: NodeView, data: np.ndarray, operands: list[np.ndarray]) -> np.ndarray:
    axes = operands[0].reshape(-1).tolist() if operands else v.attr("axes")
    return np.asarray(np.squeeze(data, axis=tuple(axes) if axes else None))


def _unsqueeze(v: NodeView, data: np.ndarray, operands: list[np.ndarray]) -> np.ndarray:
    axes = operands[0].reshape(-1).tolist() if operands else v.attr("axes")
    return np.expand_dims(data, tuple(axes))


def _reshape(v: NodeView, data: np.ndarray, operands: list[np.ndarray]) -> np.ndarray:
    target = operands[0].reshape(-1).tolist()
    return data.reshape([data.shape[i] if n == 0 else n for i, n in enumerate(target)])


def _expand(v: NodeView, data: np.ndarray, operands: list[np.ndarray]) -> np.ndarray:
    shape = np.broadcast_shapes(data.shape, tuple(operands[0].reshape(-1).tolist()))
    if np.prod(shape) > MAX_FOLDED_ELEMENTS:
        raise ValueError("data")
    return np.broadcast_to(data, shape)


def _split(v: NodeView, data: np.ndarray, operands: list[np.ndarray]) -> list[np.ndarray]:
    sizes = operands[0].reshape(-1) if operands else v.attr("split")
    count = len(v.proto.output)
    ends = count if sizes is None else np.cumsum(sizes)[:-1].tolist()
    return np.split(data, ends, axis=v.attr("axis", 0))


def _transpose(v: NodeView, data: np.ndarray, operands: list[np.ndarray]) -> np.ndarray:
    return np.transpose(data, v.attr("perm"))


def _cast(v: NodeView, inputs: list[Known]) -> list[Known]:
    (known,) = inputs
    array = known.array.astype(helper.tensor_dtype_to_np_dtype(v.attr("to")))
    # A multiple that the cast rounds, or turns into a boolean, is a multiple no longer.
    is_exact = (array == known.array) & (array % v.positions == 0)
    marks = np.where(is_exact | (known.marks == 0), known.marks, DEPENDENT)
    return [Known(array, marks.astype(np.uint8))]


def _equal(v: NodeView, inputs: list[Known]) -> list[Known]:
    """Fold Equal: False whatever the number of positions if a constant is below the multiple.

    Exporters compare sizes with -1 so, to fill in the target of an Expand.
    """
    (known,) = _computed(np.equal)(v, inputs) or [inputs[0]]
    a, b = np.broadcast_arrays(*(each.marks for each in inputs))
    first, second = np.broadcast_arrays(*(each.array for each in inputs))
    at_one = np.where(a == PROPORTIONAL, first, second) // v.positions
    number = np.where(a == PROPORTIONAL, second, first)
    is_one_multiple = ((a == PROPORTIONAL) & (b == 0)) | ((b == PROPORTIONAL) & (a == 0))
    is_never = is_one_multiple & (at_one > 0) & (number < at_one)
    return [Known(known.array, np.where(is_never, 0, known.marks).astype(np.uint8))]


def _range(v: NodeView, inputs: list[Known]) -> list[Known] | None:
    if any(known.is_tainted for known in inputs):
        return None
    start, limit, delta = (known.array.item() for known in inputs)
    if delta == 0 or abs(limit - start) > MAX_FOLDED_ELEMENTS * abs(delta):
        return None
    return [Known(np.arange(start, limit, delta, dtype=inputs[0].array.dtype))]


def _full(v: NodeView, inputs: list[Known]) -> list[Known] | None:
    if inputs[0].is_tainted:
        return None
    shape = inputs[0].array.reshape(-1).tolist()
    if np.prod(shape) > MAX_FOLDED_ELEMENTS:
        return None
    value = v.attr("value")
    fill: Any = np.float32(0)
    if value is not None:
        fill = numpy_helper.to_array(value).reshape(-1)[0]
    return [Known(np.full(shape, fill))]


_FOLDS: Mapping[str, _Fold] = {
    "Identity": _moved(lambda v, data, _: data),
    "Gather": _moved(_gather),
    "Slice": _moved(_slice),
    "Squeeze": _moved(_squeeze),
    "Unsqueeze": _moved(_unsqueeze),
    "Reshape": _moved(_reshape),
    "Expand": _moved(_expand),
    "Split": _moved(_split),
    "Transpose": _moved(_transpose),
    "Cast": _cast,
    "Concat": _concat,
    "Where": _where,
    "Range": _range,
    "ConstantOfShape": _full,
    "Add": _added,
    "Sub": _computed(np.subtract),
    "Mul": _multiplied,
    "Div": _divided,
    "Mod": _computed(np.mod),
    "Pow": _computed(np.power),
    "Min": _smallest,
    "Max": _largest,
    "Equal": _equal,
    "Less": _computed(np.less),
    "LessOrEqual": _computed(np.less_equal),
    "Greater": _computed(np.greater),
    "GreaterOrEqual": _computed(np.greater_equal),
    "And": _computed(np.logical_and),
    "Or": _computed(np.logical_or),
    "Not": _computed(np.logical_not),
    "Neg": _computed(np.negative),
    "Abs": _computed(np.abs),
    "Floor": _computed(np.floor),
    "Ceil": _computed(np.ceil),
    "Sqrt": _computed(np.sqrt),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
}
