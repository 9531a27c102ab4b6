"""Cases of recurrent nodes, normalisation, reduction and reordering."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from kernel_case import Case, floats, generator, product
from onnx import helper


def _recurrent() -> Iterator[Case]:
    lengths = np.array([4, 2, 3], np.int32)
    for op, gates, functions in (("RNN", 1, 1), ("GRU", 3, 2), ("LSTM", 4, 3)):
        for given in product(
            direction=(None, "reverse", "bidirectional"),
            clip=(None, 0.3),
            layout=(None, 1),
            linear_before_reset=(None, 1) if op == "GRU" else (None,),
            input_forget=(None, 1) if op == "LSTM" else (None,),
        ):
            sides = 2 if given.get("direction") == "bidirectional" else 1
            x = floats(3, 4, 2) if given.get("layout") else floats(4, 3, 2)
            w, r = floats(sides, gates * 5, 2), floats(sides, gates * 5, 5)
            b = floats(sides, gates * 10)
            for last in (None, lengths):
                inputs = (x, w, r, b, last)
                yield Case(op, inputs, {**given, "hidden_size": 5}, outputs=2)
            state = floats(3, sides, 5) if given.get("layout") else floats(sides, 3, 5)
            yield Case(op, (x, w, r, b, None, state), {**given, "hidden_size": 5}, outputs=2)
        x, w, r = floats(4, 3, 2), floats(1, gates * 5, 2), floats(1, gates * 5, 5)
        for name in ("Relu", "Sigmoid", "Softsign"):
            activations = [name] * functions
            yield Case(op, (x, w, r), {"hidden_size": 5, "activations": activations}, outputs=2)


def _normalisations() -> Iterator[Case]:
    x = floats(2, 3, 4) * 3
    large = np.array([[0, 1000], [-2000, 0]], np.float32)
    for op, axis in itertools.product(("Softmax", "LogSoftmax", "Hardmax"), (0, 1, -1)):
        yield Case(op, (x,), {"axis": axis})
        yield Case(op, (large,), {"axis": min(axis, 1)})
        yield Case(op, (x,), {"axis": axis}, opset=11)
    for given in product(p=(1, 2), axis=(0, 1, -1)):
        yield Case("LpNormalization", (x,), given)
    for op in ("LayerNormalization", "RMSNormalization"):
        for axis in (1, -1):
            opset = 23 if op == "RMSNormalization" else 17
            scale = floats(*x.shape[axis:])
            yield Case(op, (x, scale), {"axis": axis, "epsilon": 1e-3}, opset=opset)
    yield Case("InstanceNormalization", (floats(2, 3, 5), floats(3), floats(3)), {})
    yield Case("GroupNormalization", (floats(2, 4, 5), floats(4), floats(4)), {"num_groups": 2})
    yield Case(
        "BatchNormalization",
        (floats(2, 3, 5), floats(3), floats(3), floats(3), np.abs(floats(3))),
        {},
    )
    yield Case("MeanVarianceNormalization", (floats(2, 3, 4, 5),), {})
    for size in (1, 2, 3, 5):
        yield Case("LRN", (floats(1, 5, 3, 3),), {"size": size})


def _reductions() -> Iterator[Case]:
    x = np.abs(floats(2, 3, 4)) + 1
    for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split():
        for keep in (0, 1):
            axes = np.array([0, 2])
            yield Case(f"Reduce{name}", (x, axes), {"keepdims": keep}, constants=(1,))
        yield Case(f"Reduce{name}", (x,), {})
        yield Case(f"Reduce{name}", (x,), {"noop_with_empty_axes": 1})
        yield Case(f"Reduce{name}", (x,), {"axes": [-1]}, opset=11)
        whole = np.array([[3, 4, 4], [9, 1, 2]], np.int32)
        yield Case(f"Reduce{name}", (whole,), {"keepdims": 0})
        long = (np.ones((1, 3000)) / (1500 if name == "Prod" else 1)).astype(np.float32)
        yield Case(f"Reduce{name}", (long if name != "Prod" else long[:, :2],), {})
    yield Case("GlobalAveragePool", (np.ones((1, 2, 60, 60), np.float32),), {})
    yield Case("LayerNormalization", (floats(2, 3000) + 5, floats(3000)), {"axis": -1}, opset=17)
    yield Case(
        "Conv", (np.ones((1, 3000, 1, 1), np.float32), np.ones((1, 3000, 1, 1), np.float32)), {}
    )
    yield Case("AveragePool", (np.ones((1, 1, 60, 60), np.float32),), {"kernel_shape": [60, 60]})
    yield Case("MatMul", (np.ones((1, 3000), np.float32), np.ones((3000, 1), np.float32)), {})
    yield Case("Gemm", (np.ones((1, 3000), np.float32), np.ones((3000, 1), np.float32)), {})
    yield Case("CumSum", (np.ones(3000, np.float32), np.array(0)), {})
    yield Case(
        "Einsum",
        (np.ones((1, 3000), np.float32), np.ones((3000, 1), np.float32)),
        {"equation": "ij,jk"},
    )
    yield Case(
        "Einsum",
        (np.full((1, 9), 30, np.int32), np.full((9, 1), 30, np.int32)),
        {"equation": "ij,jk"},
    )
    yield Case("ReduceLogSumExp", (np.array([[1000, 999.0]], np.float32),), {})
    for op, last in itertools.product(("ArgMax", "ArgMin"), (0, 1)):
        ties = np.array([[3, 1, 3, 1], [2, 2, 5, 5]], np.float32)
        yield Case(op, (ties,), {"axis": 1, "select_last_index": last})
        yield Case(op, (ties,), {"axis": 0, "select_last_index": last, "keepdims": 0})
    for given in product(exclusive=(0, 1), reverse=(0, 1)):
        yield Case("CumSum", (x, np.array(1)), given)
    yield Case("Det", (floats(3, 4, 4),), {})
    for equation in ("ij,jk->ik", "bij,bjk->bik", "ii->i", "ij->j", "...ij,...jk->...ik", "ij,ij"):
        rank = 3 if "b" in equation or "." in equation else 2
        parts = equation.split("->")[0].split(",")
        values = [floats(*(3,) * rank) for _ in parts]
        yield Case("Einsum", tuple(values), {"equation": equation})


def _shapes() -> Iterator[Case]:
    x = floats(3, 4, 5)
    for mode in ("constant", "reflect", "edge", "wrap"):
        for pads in ([0, 1, 2, 0, 2, 1], [0, 0, 3, 0, 0, 3], [1, -1, 0, 1, 0, -2]):
            filler = (np.array(7, np.float32),) if mode == "constant" else ()
            yield Case("Pad", (x, np.array(pads), *filler), {"mode": mode}, constants=(1,))
        yield Case("Pad", (x, np.array([2, 1]), None, np.array([2])), {"mode": mode})
    for given in product(axes=(None, [0, -1])):
        size = np.array([5, 3, 4] if "axes" not in given else [5, 3])
        yield Case("CenterCropPad", (x, size), given)
    for mode in ("DCR", "CRD"):
        yield Case("DepthToSpace", (floats(1, 8, 2, 3),), {"blocksize": 2, "mode": mode})
    yield Case("SpaceToDepth", (floats(1, 2, 4, 6),), {"blocksize": 2})
    for given in product(axis=(0, 1, -1)):
        indices = np.array([[0, -1, 1], [2, 5, 0]])
        values = np.array([0.5, 2], np.float32)
        yield Case("OneHot", (indices, np.array(3), values), given)
    for k, dtype in itertools.product((-1, 0, 2), (None, 1, 6)):
        yield Case("EyeLike", (x[0],), {"k": k, **({"dtype": dtype} if dtype else {})})
    for given in product(upper=(0, 1)):
        yield Case("Trilu", (x, np.array(1)), given)
        yield Case("Trilu", (x, np.array(-5)), given)
    yield from _picks(x)


def _picks(x: np.ndarray) -> Iterator[Case]:
    numbers = np.array([[2, 1, 1], [2, 1, 1], [3, 4, 1]], np.float32)
    for given in product(sorted=(0, 1), axis=(None, 0, 1)):
        yield Case("Unique", (numbers,), given, outputs=4)
    for given in product(largest=(0, 1), axis=(0, -1)):
        yield Case("TopK", (np.round(x), np.array([2])), given, outputs=2)
    whole = generator().integers(0, 99, (1, 2, 4, 6)).astype(np.int32)
    for mode in ("nearest", "linear"):
        for target in ([1, 2, 8, 12], [1, 2, 3, 4]):
            yield Case(
                "Resize", (whole, None, None, np.array(target)), {"mode": mode}, constants=(3,)
            )
    yield Case("TopK", (whole, np.array([2])), {}, outputs=2)
    yield Case("Unique", (whole,), {}, outputs=4)
    for op in ("Abs", "Neg", "Sign", "Relu"):
        yield Case(op, (whole,), {})
    for op in ("Add", "Mul", "Sub", "Div", "Max", "Min", "Equal", "Less", "Mod"):
        yield Case(op, (whole, whole[..., ::-1].copy() + 1), {})
    yield Case("GatherElements", (x, np.array([[[0, -1, 2, 1, 0]]])), {"axis": 0})
    yield Case("GatherElements", (x, np.zeros((3, 4, 2), np.int64)), {"axis": -1})
    yield Case("Compress", (x, np.array([True, False, True])), {"axis": 1})
    yield Case("Compress", (x, np.array([True, False, True, True])), {})
    for reduction in ("none", "add", "mul", "min", "max"):
        indices, updates = np.array([[[0, 1, 0]]]), floats(1, 1, 3)
        yield Case("ScatterElements", (x, indices, updates), {"axis": 1, "reduction": reduction})
        yield Case(
            "ScatterND",
            (x, np.array([[0, 1], [2, -1]]), floats(2, 5)),
            {"reduction": reduction},
        )
    yield Case("ReverseSequence", (x, np.array([1, 3, 2, 3])), {"time_axis": 0, "batch_axis": 1})
    yield Case("ReverseSequence", (x, np.array([1, 4, 2])), {"time_axis": 1, "batch_axis": 0})
    for given in product(fmod=(0, 1)):
        yield Case("Mod", (np.array([-7, 7, -7, 7]), np.array([3, -3, -3, 3])), given)
    yield Case("Mod", (floats(5) * 5, floats(5)), {"fmod": 1})
    signed = np.array([-128, -7, 5, 127], np.int8)
    yield Case("Div", (signed, np.array([3, 2, -3, -2], np.int8)), {})
    yield Case(
        "BitShift",
        (np.array([1, 200], np.uint8), np.array([3, 1], np.uint8)),
        {"direction": "LEFT"},
    )
    rois = np.array([[0, 0, 4, 4], [1, 0, 3, 2.5]], np.float32)
    for given in product(
        mode=("avg", "max"),
        sampling_ratio=(0, 2),
        coordinate_transformation_mode=("half_pixel", "output_half_pixel"),
    ):
        given = {**given, "output_height": 2, "output_width": 2}
        yield Case("RoiAlign", (floats(1, 2, 6, 6), rois, np.array([0, 0])), given)


def _bodies() -> Iterator[Case]:
    """Yield a Scan that adds up rows, in the form of opset 8, with an axis of batches."""
    scalar = [helper.make_tensor_value_info(n, 1, [2]) for n in ("sum", "row")]
    outs = [helper.make_tensor_value_info(n, 1, [2]) for n in ("total", "kept")]
    nodes = [
        helper.make_node("Add", ["sum", "row"], ["total"]),
        helper.make_node("Identity", ["total"], ["kept"]),
    ]
    body = helper.make_graph(nodes, "body", scalar, outs)
    inputs = (None, np.zeros((1, 2), np.float32), floats(1, 3, 2))
    yield Case("Scan", inputs, {"body": body, "num_scan_inputs": 1}, outputs=2, opset=8)


CASES = (
    _recurrent,
    _normalisations,
    _reductions,
    _shapes,
    _bodies,
)
"""Functions that yield the cases of this module."""
