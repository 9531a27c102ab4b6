"""Generators of random elementwise and layout operators for random graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
from axes_graphs import Maker, Operator, UnfitError, Value
from onnx import TensorProto, helper

OPERATORS: list[Operator] = []
"""All generators; one listed several times is chosen more often."""

_UNARY = (
    "Relu Abs Neg Sigmoid Tanh Identity Erf Softplus Sign Cos Sin LeakyRelu Elu HardSigmoid "
    "Softsign Selu ThresholdedRelu Atan Floor"
).split()


def often(times: int) -> Any:
    """Return a decorator that adds a generator to `OPERATORS` that many times."""

    def add(function: Operator) -> Operator:
        OPERATORS.extend([function] * times)
        return function

    return add


def floating(value: Value, *ranks: int) -> Value:
    """Return a value if it is float32, and has one of the ranks if any are given.

    Raises
    ------
    UnfitError
        It is not.
    """
    if not value.is_float or (ranks and value.rank not in ranks):
        raise UnfitError
    return value


# Elementwise.


@often(3)
def unary(m: Maker, v: Value) -> None:
    m.emit(m.choice(_UNARY), floating(v))


@often(3)
def with_constant(m: Maker, v: Value) -> None:
    dims = [1 if i in v.open_axes or m.chance(0.4) else size for i, size in enumerate(v.shape)]
    constant = m.floats(*dims[m.integer(0, v.rank) :])
    op = m.choice(("Add", "Sub", "Mul", "Max", "Min", "PRelu"))
    first, second = (floating(v), constant) if op == "PRelu" or m.chance(0.7) else (constant, v)
    m.emit(op, first, second)


@often(3)
def binary(m: Maker, v: Value) -> None:
    m.emit(m.choice(("Add", "Sub", "Mul", "Max", "Min", "Mean")), floating(v), m.other())


@often(1)
def where(m: Maker, v: Value) -> None:
    condition = m.one("Greater", floating(v), m.floats())
    m.emit("Where", condition, m.choice((v, m.other())), m.choice((m.floats(), m.other())))


@often(1)
def whole_numbers(m: Maker, v: Value) -> None:
    number = m.one("Cast", m.one("Round", floating(v)), to=TensorProto.INT64)
    m.emit("Mod", number, np.array(m.integer(2, 5)))
    m.emit("Cast", number, to=TensorProto.FLOAT)


@often(1)
def by_length(m: Maker, v: Value) -> None:
    size = m.one("Cast", m.size_of(v, m.axis(v)), to=TensorProto.FLOAT)
    op = m.choice(("Div", "Mul", "Sub"))
    divided = m.one(op, floating(v), size)
    if m.chance(0.3):
        m.emit("Mod", divided, size, fmod=1)


# Layout.


@often(3)
def transpose(m: Maker, v: Value) -> None:
    m.emit("Transpose", v, perm=m.rng.permutation(v.rank).tolist())


def _target(m: Maker, v: Value) -> list[int]:
    """Return random target sizes of a Reshape, at most one of them -1."""
    dims: list[int] = list(v.shape)
    for axis in v.open_axes:
        dims[axis] = -1
    kind = m.integer(0, 3)
    if kind == 0 and v.rank > 1:  # join two
        axis = m.integer(0, v.rank - 2)
        pair = dims[axis : axis + 2]
        dims[axis : axis + 2] = [-1 if -1 in pair else pair[0] * pair[1]]
    elif kind == 1:  # split one
        axis = m.axis(v)
        by = m.choice([n for n in (1, 2, 3) if dims[axis] == -1 or dims[axis] % n == 0])
        rest = -1 if dims[axis] == -1 else dims[axis] // by
        dims[axis : axis + 1] = m.choice(([rest, by], [by, rest]))
    elif kind == 2:  # two axes of anything
        by = m.choice([n for n in (1, 2, 3, 4, 6, 8) if all(a.size % n == 0 for a in v.arrays)])
        return list(m.choice(([-1, by], [by, -1], [-1])))
    else:
        dims = [0 if size == -1 or m.chance(0.3) else size for size in dims]
    if dims.count(-1) > 1:
        raise UnfitError
    return dims


@often(5)
def reshape(m: Maker, v: Value) -> None:
    m.emit("Reshape", v, np.array(_target(m, v), np.int64))


@often(3)
def reshape_by_shape(m: Maker, v: Value) -> None:
    if v.rank == 0:
        raise UnfitError
    parts: list[Any] = []
    target = _target(m, v)
    for place, size in enumerate(target):
        if size in (-1, 0) and place < v.rank and m.chance(0.7):
            parts.append(m.size_of(v, place))
        else:
            parts.append(np.array([size]))
    if not any(isinstance(part, Value) for part in parts):
        parts[0] = m.size_of(v, 0)
    m.emit("Reshape", v, m.one("Concat", *parts, axis=0, keep=False))


@often(1)
def flatten(m: Maker, v: Value) -> None:
    m.emit("Flatten", v, axis=m.integer(0, v.rank))


@often(1)
def squeeze(m: Maker, v: Value) -> None:
    ones = [i for i, size in enumerate(v.shape) if size == 1 and i not in v.open_axes]
    if m.chance(0.3):
        m.emit("Squeeze", v)
    else:
        m.along("Squeeze", v, [m.choice(ones)], 13)


@often(2)
def unsqueeze(m: Maker, v: Value) -> None:
    m.along("Unsqueeze", v, [m.integer(0, v.rank)], 13)


@often(2)
def gather(m: Maker, v: Value) -> None:
    axis = m.axis(v)
    fewest = min(array.shape[axis] for array in v.arrays)
    picks = m.rng.integers(-fewest, fewest, m.choice(((), (2,), (1,), (2, 2))))
    m.emit("Gather", v, np.asarray(picks), axis=axis)


@often(1)
def gather_by_value(m: Maker, v: Value) -> None:
    best = m.one("ArgMax", floating(v), axis=m.axis(v), keepdims=m.integer(0, 1))
    if m.chance(0.5):
        m.emit("Gather", m.floats(8, 3), best)
    else:
        m.emit("Gather", m.other(), best, axis=0)


@often(1)
def gather_elements(m: Maker, v: Value) -> None:
    axis = m.axis(floating(v))
    best = m.one("ArgMax", v, axis=axis, keepdims=1)
    m.emit("GatherElements", v, best, axis=axis)


@often(2)
def gather_own(m: Maker, v: Value) -> None:
    """Pick the best column of each row by GatherND, or by an index into the flattened value."""
    rows, columns = floating(v, 2).shape
    best = m.one("ArgMax", v, axis=1, keepdims=0)
    places = positions_of(m, v, 0)
    if m.chance(0.5):
        pair = [m.along("Unsqueeze", each, [1], 13) for each in (places, best)]
        m.emit("GatherND", v, m.one("Concat", *pair, axis=1))
    else:
        start = m.one("Mul", places, np.array(columns if m.chance(0.8) else rows))
        flat = m.one("Reshape", v, np.array([-1]))
        m.emit("Gather", flat, m.one("Add", start, best), axis=0)


def positions_of(m: Maker, v: Value, axis: int) -> Value:
    """Return 0, 1, 2 ... along an axis."""
    return m.one("Range", np.array(0), m.scalar(m.size_of(v, axis)), np.array(1))


@often(3)
def slice_(m: Maker, v: Value) -> None:
    axis = m.axis(v)
    start, end = m.choice((0, 0, 1, -2, 2)), m.choice((2, 3, 512, 512, -1, -2, 2**62))
    step = m.choice((1, 1, 1, 2, -1))
    if step < 0:
        start, end = -1, -(2**62)
    m.emit("Slice", v, *(np.array([n]) for n in (start, end, axis, step)))


@often(1)
def slice_by_shape(m: Maker, v: Value) -> None:
    axis = m.axis(v)
    size = m.size_of(m.choice((v, m.other())), m.integer(0, 1))
    if m.chance(0.4):
        size = m.one("Div", size, np.array([2]))
    bounds = (np.array([0]), size) if m.chance(0.6) else (size, np.array([512]))
    table = m.floats(12, 4) if m.chance(0.3) else v
    m.emit("Slice", table, *bounds, np.array([axis if table is v else 0]))


@often(3)
def concat(m: Maker, v: Value) -> None:
    axis = m.axis(v)
    other: Any = m.choice((v, v, m.other(like=v)))
    if m.chance(0.3):
        dims = list(v.shape)
        dims[axis] = m.integer(1, 2)
        other = m.floats(*dims)
    m.emit("Concat", *((v, other) if m.chance(0.7) else (other, v)), axis=axis)


@often(2)
def split(m: Maker, v: Value) -> None:
    axis = m.axis(v)
    parts = m.choice([n for n in (2, 3) if all(a.shape[axis] % n == 0 for a in v.arrays)])
    extra = {"num_outputs": parts} if m.opset >= 18 else {}
    found = m.emit("Split", v, outputs=parts, axis=axis, **extra)
    if m.chance(0.5):
        m.emit("Concat", *found[::-1], axis=m.axis(v))


@often(1)
def pad(m: Maker, v: Value) -> None:
    pads = np.zeros(2 * v.rank, np.int64)
    pads[m.integer(0, 2 * v.rank - 1)] = m.choice((1, 2, -1))
    m.emit("Pad", floating(v), pads, mode=m.choice(("constant", "edge", "reflect")))


@often(1)
def expand(m: Maker, v: Value) -> None:
    """Expand a constant, or v, to a shape that is computed from sizes."""
    size = m.size_of(m.other(), 0)
    kind = m.integer(0, 3)
    dims = np.array(list(v.shape[1:]) or [2], np.int64)
    shape = m.one("Concat", size, dims, axis=0, keep=False)
    if kind == 0:
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [m.integer(0, 2)])
        m.emit("ConstantOfShape", shape, value=value)
    elif kind == 1:
        m.emit("Expand", m.floats(*dims), shape)
    elif kind == 2:
        m.emit("Expand", v, shape)
    else:
        ones = np.ones(len(dims), np.int64)
        m.emit("Tile", v, m.one("Concat", size, ones, axis=0, keep=False))


@often(1)
def tile(m: Maker, v: Value) -> None:
    repeats = np.ones(v.rank, np.int64)
    repeats[m.axis(v)] = 2
    m.emit("Tile", v, repeats)


@often(1)
def positions(m: Maker, v: Value) -> None:
    places = m.one("Cast", positions_of(m, v, m.axis(v)), to=TensorProto.FLOAT)
    m.emit("Add", floating(v), places)


@often(1)
def trilu(m: Maker, v: Value) -> None:
    m.emit("Trilu", v, upper=m.integer(0, 1))


@often(1)
def one_hot(m: Maker, v: Value) -> None:
    number = m.one("Cast", floating(v), to=TensorProto.INT64)
    m.emit("OneHot", number, np.array(4), m.floats(2), axis=m.integer(-1, v.rank))


@often(1)
def scatter(m: Maker, v: Value) -> None:
    axis = m.axis(floating(v))
    if m.chance(0.5):
        best = m.one("ArgMin", v, axis=axis, keepdims=1)
        update = m.one("Neg", m.one("GatherElements", v, best, axis=axis))
        m.emit("ScatterElements", v, best, update, axis=axis)
    else:
        where = m.choice((0, 1))
        update = m.one("Gather", v, np.array([1 - where]), axis=0)
        m.emit("ScatterND", v, np.array([[where]]), update)


@often(1)
def scatter_own(m: Maker, v: Value) -> None:
    best = m.one("ArgMax", floating(v, 2), axis=1, keepdims=0)
    pair = [m.along("Unsqueeze", each, [1], 13) for each in (positions_of(m, v, 0), best)]
    updates = m.along("ReduceMin", v, [1], 18, keepdims=0)
    m.emit("ScatterND", v, m.one("Concat", *pair, axis=1), updates)


@often(1)
def pixels(m: Maker, v: Value) -> None:
    m.emit(m.choice(("DepthToSpace", "SpaceToDepth")), floating(v, 4), blocksize=2)
