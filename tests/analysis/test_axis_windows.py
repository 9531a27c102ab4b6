"""Windows: the positions that an output reads, as numbers and compared with runs."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from axes_models import dependence_of, fact_of, feeds_of, model_of, seeds_of
from axes_truth import Runner, faults_of_dependence
from builders import node, weights

from dask_onnx.analysis.axes.dependence import SAME, Kind, window
from dask_onnx.analysis.axes.window_rules import conv_window

ROWS = ("B", 2, "N")
SCALES = {"s": np.array([1, 1, 2], np.float32), "h": np.array([1, 1, 0.5], np.float32)}


def conv(kernel: int = 3, **attributes: Any) -> tuple[Any, ...]:
    return ([node("Conv", "x w", "y", "k", **attributes)], {"w": weights(2, 2, kernel)})


def transposed(kernel: int, **attributes: Any) -> tuple[Any, ...]:
    return ([node("ConvTranspose", "x w", "y", "k", **attributes)], {"w": weights(2, 2, kernel)})


def pool(op: str, kernel: int, **attributes: Any) -> tuple[Any, ...]:
    return ([node(op, "x", "y", "k", kernel_shape=[kernel], **attributes)], {})


def resize(scale: str, mode: str, where: str, **attributes: Any) -> tuple[Any, ...]:
    made = node(
        "Resize",
        f"x - {scale}",
        "y",
        "k",
        mode=mode,
        coordinate_transformation_mode=where,
        **attributes,
    )
    return ([made], SCALES)


def pad(mode: str, *pads: int) -> tuple[Any, ...]:
    return ([node("Pad", "x p", "y", "k", mode=mode)], {"p": [0, 0, pads[0], 0, 0, pads[1]]})


def cut(start: int, end: int, step: int = 1) -> tuple[Any, ...]:
    constants = {"a": [start], "e": [end], "axis": [2], "s": [step]}
    return ([node("Slice", "x a e axis s", "y", "k")], constants)


THIRD = Fraction(1, 3)
CASES: dict[str, tuple[tuple[Any, ...], tuple[Any, Any, Any]]] = {
    "conv": (conv(), (0, 1, 3)),
    "conv with pads": (conv(pads=[1, 1]), (-1, 1, 3)),
    "conv with stride": (conv(strides=[2], pads=[1, 0]), (-1, 2, 3)),
    "conv with dilation": (conv(dilations=[2], pads=[2, 2]), (-2, 1, 5)),
    "conv with stride and dilation": (conv(2, dilations=[3], strides=[2]), (0, 2, 4)),
    "conv, same upper": (conv(2, auto_pad="SAME_UPPER"), (0, 1, 2)),
    "conv, same lower": (conv(2, auto_pad="SAME_LOWER"), (-1, 1, 2)),
    "conv, same with stride": (conv(3, auto_pad="SAME_UPPER", strides=[2]), (0, 2, 3)),
    "conv, valid": (conv(2, auto_pad="VALID"), (0, 1, 2)),
    "max pool": (pool("MaxPool", 2, strides=[2]), (0, 2, 2)),
    "max pool with dilation": (pool("MaxPool", 2, dilations=[2], strides=[1]), (0, 1, 3)),
    "average pool with pads": (pool("AveragePool", 3, pads=[1, 1], strides=[1]), (-1, 1, 3)),
    "lp pool": (pool("LpPool", 2, strides=[3]), (0, 3, 2)),
    "transposed conv": (transposed(2, strides=[2]), (-Fraction(1, 2), Fraction(1, 2), 1.5)),
    "transposed conv with pads": (transposed(3, pads=[1, 1]), (-1, 1, 3)),
    "resize up, linear": (resize("s", "linear", "half_pixel"), (-Fraction(1, 4), 0.5, 2)),
    "resize up, nearest": (resize("s", "nearest", "asymmetric"), (0, 0.5, 2)),
    "resize up, cubic": (resize("s", "cubic", "half_pixel"), (-Fraction(5, 4), 0.5, 4)),
    "resize down, linear": (resize("h", "linear", "pytorch_half_pixel"), (0.5, 2, 2)),
    "resize down, antialias": (
        resize("h", "linear", "half_pixel", antialias=1),
        (-Fraction(1, 2), 2, 4),
    ),
    "zeros in front": (pad("constant", 2, 1), (-2, 1, 1)),
    "edges repeated": (pad("edge", 1, 2), (-3, 1, 4)),
    "reflection": (pad("reflect", 1, 1), (-3, 1, 5)),
    "cut off": (pad("constant", -1, 0), (1, 1, 1)),
    "all but the first": (cut(1, 2**62), (1, 1, 1)),
    "all but the last": (cut(0, -1), (0, 1, 2)),
    "every second": (cut(0, 2**62, 2), (0, 2, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_window_equals_the_positions_that_the_node_reads(case):
    (nodes, constants), expected = CASES[case]
    model = model_of(nodes, (2, 2, "N"), constants, opset=18)
    found = dependence_of(model)
    assert (found.kind, found.axis, found.node) == (Kind.WINDOW, 2, "k")
    assert found.window == window(*expected)
    runner, feeds = Runner(model), feeds_of(model)
    assert faults_of_dependence(runner, feeds, seeds_of(model), {"y": found}) == {}


@pytest.mark.parametrize("case", CASES)
def test_outputs_change_inside_their_window_only(case):
    """Outputs change inside their windows only, and most windows hold a position that matters."""
    (nodes, constants), _ = CASES[case]
    model = model_of(nodes, (2, 2, "N"), constants, opset=18)
    dep, runner, feeds = dependence_of(model), Runner(model), feeds_of(model)
    whole = runner(feeds)["y"]
    intervals = [dep.window.interval(o, o + 1) for o in range(whole.shape[2])]
    read = 0
    for position in range(feeds["x"].shape[2]):
        other = feeds["x"].copy()
        other[..., position] += 64
        changed = (runner({"x": other})["y"] != whole).any(axis=(0, 1))
        inside = np.array([start <= position < stop for start, stop in intervals])
        assert not (changed & ~inside).any()
        read += changed.sum()
    assert read > len(intervals) / 2


WITHOUT_WINDOW = {
    "auto padding that depends on the size": (
        conv(3, auto_pad="SAME_UPPER", strides=[4]),
        "opaque",
    ),
    "corners aligned": (resize("s", "linear", "align_corners"), "length"),
    "resize by 1.5": (
        (
            [node("Resize", "x - s", "y", "k", mode="linear")],
            {"s": np.array([1, 1, 1.5], np.float32)},
        ),
        "length",
    ),
    "wrapped around": (pad("wrap", 1, 1), "gathered"),
    "the last two": (cut(-2, 2**62), "gathered"),
    "the first two": (cut(0, 2), "gathered"),
    "backwards": (cut(-1, -(2**62), -1), "gathered"),
    "global pool": (([node("GlobalMaxPool", "x", "y", "k")], {}), "reduced"),
}


@pytest.mark.parametrize("case", WITHOUT_WINDOW)
def test_nodes_without_a_window_report_their_kind(case):
    (nodes, constants), kind = WITHOUT_WINDOW[case]
    found = fact_of(model_of(nodes, (2, 2, "N"), constants, opset=19))
    assert (found.kind, found.node) == (kind, "k")
    assert found.extent == float("inf")


def test_stride_of_resize_follows_the_scale_and_not_the_output_size():
    """A scale of 0.5 has stride 2, although 3 positions become 1."""
    nodes, constants = resize("h", "linear", "half_pixel")
    model = model_of(nodes, (2, 2, "N"), constants)
    assert dependence_of(model, size=3).window.stride == 2
    nodes, constants = resize("h", "linear", "pytorch_half_pixel")
    model = model_of(nodes, (2, 2, "N"), constants)
    assert dependence_of(model, size=3).kind == Kind.LENGTH  # output 0 reads position 0
    assert dependence_of(model, size=4).kind == Kind.WINDOW


def test_windows_compose_along_a_chain():
    nodes = [
        node("Conv", "x w", "a", "first", pads=[1, 1]),
        node("MaxPool", "a", "b", "second", kernel_shape=[2], strides=[2]),
        node("Conv", "b w", "y", "third", dilations=[2]),
    ]
    found = fact_of(model_of(nodes, (2, 2, "N"), {"w": weights(2, 2, 3)}), size=20)
    assert (found.offset, found.stride, found.extent) == (-1, 2, 12)
    assert found.node == "first"


def test_windows_of_branches_are_united():
    nodes = [
        node("Conv", "x w", "a", "wide", pads=[2, 2]),
        node("Add", "x a", "y"),
    ]
    found = fact_of(model_of(nodes, (2, 2, "N"), {"w": weights(2, 2, 5)}))
    assert (found.kind, found.offset, found.extent) == ("window", -2, 5)


def test_branches_of_different_strides_have_no_window():
    nodes = [
        node("Conv", "x w", "a", "by one"),
        node("MaxPool", "x", "b", "by two", kernel_shape=[2], strides=[2]),
        node("Add", "a b", "y", "sum"),
    ]
    found = fact_of(model_of(nodes, (2, 2, "N"), {"w": weights(2, 2, 4)}))
    assert (found.kind, found.node) == ("opaque", "sum")


def test_window_with_fractional_start_is_widened_in_composition():
    """After nearest by 1/2 and linear by 3, output 3 reads positions 0 and 2 of the input."""
    nodes = [
        node(
            "Resize",
            "x - h",
            "d",
            "down",
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
        node("Resize", "d - t", "y", "up", mode="linear"),
    ]
    constants = {**SCALES, "t": np.array([1, 1, 3], np.float32)}
    model = model_of(nodes, (2, 2, "N"), constants)
    found = dependence_of(model)
    start, stop = found.window.interval(3, 4)
    assert start <= 0 and stop > 2
    assert faults_of_dependence(Runner(model), feeds_of(model), seeds_of(model), {"y": found}) == {}


def test_window_composition_interval_and_union():
    assert window(1, 2, 3).after(SAME) == window(1, 2, 3) == SAME.after(window(1, 2, 3))
    assert window(-1, 2, 3).after(window(-1, 2, 3)) == window(-3, 4, 7)
    assert window(0, 2, 2).interval(1, 3) == (2, 6)
    assert window(-0.25, 0.5, 2).interval(0, 2) == (-1, 3)
    assert window(0, 1, 1).union(window(-1, 1, 3)) == window(-1, 1, 3)
    assert window(0, 1, 1).union(window(0, 2, 1)) is None


def test_convolution_along_batch_and_channels():
    nodes, constants = conv(pads=[1, 1])
    assert fact_of(model_of(nodes, ("N", 2, 8), constants)).is_independent
    nodes = [node("Conv", "x w", "y", "k", group=1)]
    found = fact_of(model_of(nodes, (2, "N", 8), {"w": weights(2, 6, 3)}))
    assert (found.kind, found.axis, found.node) == ("contracted", None, "k")
    nodes = [node("Conv", "x w", "y", "k", group=6)]
    found = fact_of(model_of(nodes, (2, "N", 8), {"w": weights(6, 1, 3)}))
    assert (found.kind, found.axis) == ("length", 1)


def test_indices_of_max_pool_count_from_the_first_row():
    nodes = [node("MaxPool", "x", "p i", "pool", kernel_shape=[2], strides=[2])]
    nodes.append(node("MaxUnpool", "p i", "y", kernel_shape=[2], strides=[2]))
    model = model_of(nodes, ("N", 2, 8), outputs="y i")
    assert fact_of(model, "i").kind == "length"
    assert fact_of(model, "y").is_independent
    given = [node("MaxUnpool", "p i", "y", "unpool", kernel_shape=[2], strides=[2])]
    inputs = {"p": ("N", 2, 4), "i": ("N", 2, 4)}
    assert fact_of(model_of(given, inputs, types={"i": 7})).kind == "gathered"


@pytest.mark.parametrize("name", ["kernel_shape", "strides", "dilations", "pads"])
def test_attributes_that_are_too_short_make_no_window(name):
    """Nothing runs such a node, but a damaged model may have one."""
    attributes = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
    view: Any = SimpleNamespace(attr=lambda key, default=None: attributes.get(key, default))
    assert conv_window(view, 1, None) == window(-1, 1, 3)
    attributes[name] = [1]
    assert conv_window(view, 1, None) is None
