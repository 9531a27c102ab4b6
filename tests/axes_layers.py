"""Generators of random reductions, windows, products, layers and control flow for random graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
from axes_graphs import Maker, UnfitError, Value
from axes_operators import OPERATORS, floating, often
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["OPERATORS"]

_REDUCTIONS = (
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp"
).split()

# Along axes.


@often(3)
def reduce(m: Maker, v: Value) -> None:
    op = m.choice(_REDUCTIONS)
    axes = sorted({m.axis(floating(v)) for _ in range(m.choice((1, 1, 2)))})
    m.along(op, v, axes, 13 if op == "ReduceSum" else 18, keepdims=m.integer(0, 1))


@often(2)
def softmax(m: Maker, v: Value) -> None:
    m.emit(m.choice(("Softmax", "Softmax", "LogSoftmax", "Hardmax")), floating(v), axis=m.axis(v))


@often(1)
def arg(m: Maker, v: Value) -> None:
    found = m.one(
        m.choice(("ArgMax", "ArgMin")), floating(v), axis=m.axis(v), keepdims=m.integer(0, 1)
    )
    m.emit("Cast", found, to=TensorProto.FLOAT)


@often(1)
def top_k(m: Maker, v: Value) -> None:
    m.emit("TopK", floating(v), np.array([m.integer(1, 2)]), outputs=2, axis=m.axis(v))


@often(1)
def cumulative(m: Maker, v: Value) -> None:
    flags = {"exclusive": m.integer(0, 1), "reverse": m.integer(0, 1)}
    m.emit("CumSum", floating(v), np.array(m.axis(v)), **flags)


@often(2)
def normalise(m: Maker, v: Value) -> None:
    kind = m.integer(0, 4)
    channels = floating(v).shape[1] if v.rank > 1 else 1
    scale, bias = m.floats(channels), m.floats(channels)
    if kind == 0:
        axis = m.axis(v)
        m.emit("LayerNormalization", v, m.floats(*v.shape[axis:]), axis=axis)
    elif kind == 1:
        m.emit("InstanceNormalization", v, scale, bias)
    elif kind == 2:
        m.emit("BatchNormalization", v, scale, bias, bias, np.ones(channels, np.float32))
    elif kind == 3:
        m.emit("LpNormalization", v, axis=m.axis(v), p=m.integer(1, 2))
    else:
        m.emit("GroupNormalization", v, scale, bias, num_groups=m.choice((1, 2)))


# Windows.


@often(3)
def convolve(m: Maker, v: Value) -> None:
    """Add Conv or ConvTranspose over the last one or two axes."""
    pixels = floating(v, 3, 4).rank - 2
    group = m.choice([g for g in (1, 1, 2, v.shape[1]) if v.shape[1] % g == 0])
    kernel = [m.integer(1, 3) for _ in range(pixels)]
    options: dict[str, Any] = {
        "strides": [m.choice((1, 1, 2, 3)) for _ in range(pixels)],
        "dilations": [m.choice((1, 1, 2)) for _ in range(pixels)],
        "group": group,
    }
    if m.chance(0.3):
        options["auto_pad"] = m.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
        options["dilations"] = [1] * pixels
    else:
        options["pads"] = [m.integer(0, 1) for _ in range(2 * pixels)]
    if m.chance(0.75):
        m.emit("Conv", v, m.floats(2 * group, v.shape[1] // group, *kernel), **options)
    else:
        m.emit("ConvTranspose", v, m.floats(v.shape[1], 2, *kernel), **options)


@often(2)
def pool(m: Maker, v: Value) -> None:
    pixels = floating(v, 3, 4).rank - 2
    if m.chance(0.25):
        m.emit(m.choice(("GlobalAveragePool", "GlobalMaxPool")), v)
        return
    options: dict[str, Any] = {
        "kernel_shape": [m.integer(1, 3) for _ in range(pixels)],
        "strides": [m.choice((1, 2)) for _ in range(pixels)],
        "pads": [0, 1] * pixels if m.chance(0.3) else [0] * 2 * pixels,
    }
    op = m.choice(("MaxPool", "AveragePool", "LpPool"))
    if op != "LpPool":
        options["ceil_mode"] = m.integer(0, 1)
    if op == "AveragePool":
        options["count_include_pad"] = m.integer(0, 1)
    m.emit(op, v, **options)


@often(2)
def resize(m: Maker, v: Value) -> None:
    scales = np.ones(v.rank, np.float32)
    scales[m.axis(floating(v))] = m.choice((2, 0.5, 3, 1.5, 1))
    options: dict[str, Any] = {
        "mode": m.choice(("nearest", "linear")),
        "coordinate_transformation_mode": m.choice(
            ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        ),
    }
    if options["mode"] == "nearest":
        options["nearest_mode"] = m.choice(("floor", "ceil", "round_prefer_floor"))
    if m.chance(0.7):
        m.emit("Resize", v, None, scales, **options)
    else:
        grown = np.floor(np.array(v.shape) * scales).astype(np.int64)
        sizes = [
            m.size_of(v, axis) if axis in v.open_axes else np.array([size])
            for axis, size in enumerate(grown)
        ]
        m.emit("Resize", v, None, None, m.one("Concat", *sizes, axis=0, keep=False), **options)


# Products.


@often(4)
def matmul(m: Maker, v: Value) -> None:
    kind = m.integer(0, 4)
    if kind < 2:
        lead = [v.shape[0]] if v.rank == 3 and m.chance(0.3) else []
        m.emit("MatMul", v, m.floats(*lead, floating(v).shape[-1], 3))
    elif kind == 2:
        m.emit("MatMul", m.floats(3, floating(v, 2, 3, 4).shape[-2]), v)
    elif kind == 3:
        order = list(range(floating(v, 2, 3, 4).rank))
        order[-2:] = order[:-3:-1]
        pair = [v, m.one("Transpose", v, perm=order)]
        m.emit("MatMul", *(pair if m.chance(0.5) else pair[::-1]))
    else:
        m.emit("MatMul", floating(v), m.other())


@often(1)
def gemm(m: Maker, v: Value) -> None:
    flags = {"transA": m.integer(0, 1), "transB": m.integer(0, 1)}
    inner = floating(v, 2).shape[0 if flags["transA"] else 1]
    weight: Any = m.floats(*((3, inner) if flags["transB"] else (inner, 3)))
    operands = (v, m.other() if m.chance(0.2) else weight)
    bias = m.choice((m.floats(3), m.floats(1, 3), m.other()))
    m.emit("Gemm", *operands, bias, **flags)


@often(1)
def einsum(m: Maker, v: Value) -> None:
    if floating(v, 2, 3).rank == 2:
        if m.chance(0.5):
            equation, other = m.choice((("ij,jk->ik", 1), ("ij,ik->jk", 0), ("ij,ik->ijk", 0)))
            m.emit("Einsum", v, m.floats(v.shape[other], 3), equation=equation)
        else:
            equation = m.choice(("ij,ij->i", "ij,ij->j", "ij,kj->ik", "ij,ik->jk", "ij,ij->ij"))
            m.emit("Einsum", v, m.choice((v, m.other())), equation=equation)
    else:
        equation = m.choice(("bij,bkj->bik", "bij,bik->bjk", "...ij,...kj->...ik", "bij,bij->bj"))
        m.emit("Einsum", v, m.choice((v, m.other())), equation=equation)


# Layers.


@often(1)
def recurrent(m: Maker, v: Value) -> None:
    op, gates = m.choice((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    features = floating(v, 3).shape[2]
    size, outputs = 2, 3 if op == "LSTM" else 2
    way, n = m.choice((("forward", 1), ("reverse", 1), ("bidirectional", 2)))
    weights = m.floats(n, gates * size, features), m.floats(n, gates * size, size)
    m.emit(op, v, *weights, outputs=outputs, hidden_size=size, direction=way)


@often(1)
def fused(m: Maker, v: Value) -> None:
    """Add an operator of com.microsoft."""
    width = floating(v, 2, 3).shape[-1]
    kind = m.integer(0, 3)
    if kind == 0:
        m.emit("BiasGelu", v, m.floats(width), domain="com.microsoft")
    elif kind == 1:
        other = m.choice((v, m.other(like=v)))
        m.emit(
            "SkipLayerNormalization",
            v,
            other,
            m.floats(width),
            m.floats(width),
            domain="com.microsoft",
        )
    else:
        flags = {"transA": m.integer(0, 1), "transB": m.integer(0, 1)}
        m.emit("FusedMatMul", v, m.choice((v, m.other())), domain="com.microsoft", **flags)


# Bodies.


def _declared(name: str, elem_type: int = TensorProto.FLOAT, rank: int | None = None) -> Any:
    shape = None if rank is None else [None] * rank
    return helper.make_tensor_value_info(name, elem_type, shape)


def _node(op: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


@often(2)
def condition(m: Maker, v: Value) -> None:
    """Add an If with a condition on the number of positions, a constant, or values."""
    kind = m.integer(0, 3)
    if kind == 0:
        test: Any = m.one("Greater", m.size_of(v, m.axis(v)), np.array([m.choice((3, 5, 1))]))
    elif kind == 1:
        test = np.array([m.chance(0.5)])
    else:
        largest = m.along("ReduceMax", floating(v), list(range(v.rank)), 18, keepdims=0)
        test = m.one("Greater", largest, m.floats())
    name = v.name
    bodies = []
    for place, op in enumerate((m.choice(("Neg", "Identity", "Relu")), m.choice(("Neg", "Abs")))):
        made = f"{name}_{m.integer(0, 10**9)}_{place}"
        bodies.append(helper.make_graph([_node(op, name, made)], made, [], [_declared(made)]))
    m.emit("If", test, captured=[floating(v)], then_branch=bodies[0], else_branch=bodies[1])


@often(2)
def loop(m: Maker, v: Value) -> None:
    """Add a Loop that scales a state in each iteration, and stacks its absolute values."""
    name = f"l{m.integer(0, 10**9)}_"
    n = [name + part for part in ("i", "go", "state", "next", "kept", "more", "half", "mean")]
    step = [_node("Mul", f"{n[2]} {n[6]}", n[3])]
    if m.chance(0.3):
        step = [
            _node("Neg", n[2], n[7]) if m.chance(0.5) else _node("Softmax", n[2], n[7], axis=-1),
            _node("Add", f"{n[2]} {n[7]}", n[3]),
        ]
    body = helper.make_graph(
        [_node("Identity", n[1], n[5]), *step, _node("Abs", n[2], n[4])],
        name + "body",
        [_declared(n[0], TensorProto.INT64), _declared(n[1], TensorProto.BOOL), _declared(n[2])],
        [_declared(n[5], TensorProto.BOOL), _declared(n[3]), _declared(n[4])],
        [numpy_helper.from_array(np.array(0.5, np.float32), n[6])],
    )
    count: Any = np.array(2)
    if m.chance(0.2):
        count = m.scalar(m.size_of(v, m.axis(v)))
    m.emit("Loop", count, np.array(True), floating(v), outputs=2, body=body)


@often(2)
def scan(m: Maker, v: Value) -> None:
    """Add a Scan along some axis, with or without a state."""
    name = f"s{m.integer(0, 10**9)}_"
    n = [name + part for part in ("state", "x", "next", "y")]
    axis = m.axis(floating(v))
    rest = [size for i, size in enumerate(v.shape) if i != axis]
    out_axis = m.integer(0, len(rest))
    shared = {"num_scan_inputs": 1, "scan_input_axes": [axis], "scan_output_axes": [out_axis]}
    if m.chance(0.5):
        body = helper.make_graph(
            [_node("Tanh", n[1], n[3])],
            name,
            [_declared(n[1])],
            [_declared(n[3], rank=len(rest))],
        )
        m.emit("Scan", v, body=body, **shared)
        return
    if any(i != axis for i in v.open_axes) and m.chance(0.5):
        raise UnfitError
    start: Any = m.floats(*([] if m.chance(0.3) else rest))
    if m.chance(0.4):
        start = m.one("Gather", v, np.array(0), axis=axis)
    body = helper.make_graph(
        [
            _node("Add", f"{n[0]} {n[1]}", n[2]),
            _node("Relu", n[2] if m.chance(0.7) else n[1], n[3]),
        ],
        name,
        [_declared(n[0]), _declared(n[1])],
        [_declared(n[2]), _declared(n[3], rank=len(rest))],
    )
    m.emit("Scan", start, v, outputs=2, body=body, **shared)
