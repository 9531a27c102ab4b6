"""Convolutions, pools, resizing and layout by tiles, compared with the untiled result."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import node
from tiles.tiled_models import (
    CONSTANTS,
    assert_equals_untiled,
    conv,
    kernel,
    model_of,
    random_image,
    u_net,
)

WINDOWS = {
    "same padding": [conv("x w", "y", pads=[1, 1, 1, 1])],
    "no padding": [conv("x w", "y")],
    "uneven padding": [conv("x w", "y", pads=[0, 2, 1, 0])],
    "stride and dilation": [conv("x w", "y", strides=[2, 3], dilations=[2, 1], pads=[2, 1, 2, 1])],
    "SAME_UPPER": [conv("x w", "y", auto_pad="SAME_UPPER", strides=[2, 2])],
    "SAME_LOWER": [conv("x w", "y", auto_pad="SAME_LOWER", strides=[2, 2])],
    "two strides": [
        conv("x w", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        conv("b w", "y", strides=[2, 2], pads=[1, 1, 1, 1]),
    ],
    "ConvTranspose": [node("ConvTranspose", "x w", "y", strides=[2, 2], pads=[1, 1, 1, 1])],
    "ConvTranspose with output padding": [
        node("ConvTranspose", "x w", "y", strides=[3, 2], output_padding=[1, 1])
    ],
    "ConvTranspose SAME": [
        node("ConvTranspose", "x w", "y", strides=[2, 2], auto_pad="SAME_UPPER")
    ],
    "average with padding counted": [
        node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    ],
    "average without padding": [
        node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    ],
    "maximum, rounded up": [
        node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    ],
    "maximum SAME": [
        node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER")
    ],
    "LpPool": [node("LpPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])],
    "LRN": [node("LRN", "x", "a", size=3), conv("a w", "y")],
    "reflection": [
        node("Pad", "x pads", "a", mode="reflect"),
        conv("a w", "b"),
        node("Pad", "b pads", "y", mode="reflect"),
    ],
    "edge": [node("Pad", "x pads", "a", mode="edge"), conv("a w", "y")],
    "constant": [node("Pad", "x pads", "a"), conv("a w", "y", strides=[2, 2])],
    "crop": [node("Slice", "x one minus_one two_three", "a"), conv("a w", "y", pads=[1] * 4)],
    "every second pixel": [
        node("Slice", "x zero far two_three two", "a"),
        node("Slice", "x one far two_three two", "b"),
        node("Concat", "a b", "y", axis=1),
    ],
    "SpaceToDepth": [
        node("SpaceToDepth", "x", "a", blocksize=2),
        node("DepthToSpace", "a", "b", blocksize=2),
        conv("b w", "y"),
    ],
}
EVEN_ONLY = {"SpaceToDepth", "every second pixel"}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_over_pixels_equal_the_untiled_result(name):
    sizes = [(36, 44)] if name in EVEN_ONLY else [(36, 44), (37, 53)]
    for size in sizes:
        assert_equals_untiled(
            model_of(WINDOWS[name], CONSTANTS), random_image(1, 3, *size), (8, 12)
        )


RESIZES = [
    (mode, where, scale, nearest, is_antialiased)
    for mode, where, nearest, is_antialiased in (
        ("nearest", "asymmetric", "floor", 0),
        ("nearest", "half_pixel", "round_prefer_floor", 0),
        ("nearest", "half_pixel", "ceil", 0),
        ("linear", "half_pixel", "floor", 0),
        ("linear", "asymmetric", "floor", 0),
        ("linear", "pytorch_half_pixel", "floor", 0),
        ("cubic", "half_pixel", "floor", 0),
        ("linear", "half_pixel", "floor", 1),
        ("cubic", "half_pixel", "floor", 1),
    )
    for scale in (2.0, 3.0, 0.5, 1.5)
]


@pytest.mark.parametrize(("mode", "where", "scale", "nearest", "is_antialiased"), RESIZES)
def test_resizing_by_a_scale_equals_the_untiled_result(mode, where, scale, nearest, is_antialiased):
    resize = node(
        "Resize",
        "a - scales",
        "b",
        mode=mode,
        coordinate_transformation_mode=where,
        nearest_mode=nearest,
        antialias=is_antialiased,
    )
    nodes = [conv("x w", "a", pads=[1] * 4), resize, conv("b w", "y", pads=[1] * 4)]
    constants = {"w": CONSTANTS["w"], "scales": np.array([1, 1, scale, scale], np.float32)}
    proto = model_of(nodes, constants, opset=18)
    assert_equals_untiled(proto, random_image(1, 3, 36, 40), 8)
    if scale == 0.5:
        assert_equals_untiled(proto, random_image(1, 3, 37, 41), 8)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizing_to_the_size_of_another_value_equals_the_untiled_result(mode):
    nodes = [
        conv("x w", "skip", pads=[1] * 4),
        node("MaxPool", "skip", "low", kernel_shape=[2, 2], strides=[2, 2]),
        conv("low w", "deep", pads=[1] * 4),
        node("Shape", "skip", "shape"),
        node("Slice", "shape two_1 four_1 zero_1", "space"),
        node("Shape", "deep", "deep_shape"),
        node("Slice", "deep_shape zero_1 two_1 zero_1", "front"),
        node("Concat", "front space", "sizes", axis=0),
        node("Resize", "deep - - sizes", "up", mode=mode),
        node("Concat", "skip up", "both", axis=1),
        conv("both w2", "y", pads=[1] * 4),
    ]
    constants = {
        "w": CONSTANTS["w"],
        "w2": kernel(2, 6, 3, 3),
        "zero_1": np.array([0]),
        "two_1": np.array([2]),
        "four_1": np.array([4]),
    }
    assert_equals_untiled(model_of(nodes, constants), random_image(1, 3, 36, 40), 8)


def test_a_u_net_with_skips_equals_the_untiled_result():
    assert_equals_untiled(u_net(), random_image(1, 3, 48, 64), (12, 20))


@pytest.mark.parametrize("size", [(49, 63), (50, 61), (51, 62)])
def test_a_u_net_that_pads_to_its_skips_equals_the_untiled_result_at_odd_sizes(size):
    assert_equals_untiled(u_net(pads_to_match=True), random_image(1, 3, *size), (12, 20))


def test_a_volume_is_cut_along_three_axes():
    assert_equals_untiled(u_net(2, 3), random_image(1, 3, 16, 20, 24), (8, 8, 10))


def test_a_volume_is_cut_along_the_axes_that_are_named():
    assert_equals_untiled(u_net(2, 3), random_image(1, 3, 16, 20, 24), 8, axes=(2,))


def test_a_signal_is_cut_along_its_one_axis():
    nodes = [
        conv("x w", "a", pads=[4, 0], dilations=[2]),
        node("Relu", "a", "b"),
        conv("b w", "y", strides=[2]),
    ]
    proto = model_of(nodes, {"w": kernel(2, 2, 3)}, inputs=("N", 2, "T"))
    assert_equals_untiled(proto, random_image(2, 2, 101), 16)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_super_resolution_equals_the_untiled_result(mode):
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("Relu", "a", "b"),
        node("DepthToSpace", "b", "c", blocksize=2, mode=mode),
        conv("c v", "y", pads=[1] * 4),
    ]
    proto = model_of(nodes, {"w": kernel(8, 3, 3, 3), "v": kernel(2, 2, 3, 3)})
    assert_equals_untiled(proto, random_image(1, 3, 25, 31), 8)


def test_super_resolution_by_reshape_and_transpose_equals_the_untiled_result():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("Shape", "a", "shape"),
        node("Gather", "shape two", "h", axis=0),
        node("Gather", "shape three", "w_", axis=0),
        node("Concat", "one two two two h w_", "apart", axis=0),
        node("Reshape", "a apart", "b"),
        node("Transpose", "b", "c", perm=[0, 1, 4, 2, 5, 3]),
        node("Mul", "h two", "hh"),
        node("Mul", "w_ two", "ww"),
        node("Concat", "one two hh ww", "joined", axis=0),
        node("Reshape", "c joined", "d"),
        conv("d v", "y", pads=[1] * 4),
    ]
    constants = {
        "w": kernel(8, 3, 3, 3), "v": kernel(2, 2, 3, 3),
        "one": np.array([1]), "two": np.array([2]), "three": np.array([3]),
    }  # fmt: skip
    assert_equals_untiled(model_of(nodes, constants), random_image(1, 3, 24, 30), 8)


def test_two_outputs_of_different_strides_equal_the_untiled_result():
    nodes = [
        conv("x w", "y", pads=[1] * 4),
        conv("y w", "z", pads=[1] * 4, strides=[4, 4]),
        node("ConvTranspose", "y w", "u", strides=[2, 2]),
    ]
    proto = model_of(nodes, CONSTANTS, outputs=("y", "z", "u"))
    assert_equals_untiled(proto, random_image(1, 3, 35, 43), 12)


def test_coordinates_computed_from_the_size_are_those_of_the_untiled_image():
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape three", "width", axis=0),
        node("Range", "zero width one", "columns"),
        node("Cast", "columns", "grid", to=onnx.TensorProto.FLOAT),
        node("Cast", "width", "as_number", to=onnx.TensorProto.FLOAT),
        node("Div", "grid as_number", "share"),
        node("Add", "x share", "a"),
        conv("a w", "y", pads=[1] * 4),
    ]
    constants = {
        "w": CONSTANTS["w"],
        "zero": np.array(0), "one": np.array(1), "three": np.array(3),
    }  # fmt: skip
    assert_equals_untiled(model_of(nodes, constants), random_image(1, 3, 20, 37), 8)


def test_an_embedding_of_fixed_size_is_cut_like_the_image():
    nodes = [node("Add", "x position", "a"), conv("a w", "y", pads=[1] * 4)]
    constants = {"w": CONSTANTS["w"], "position": random_image(1, 3, 20, 30)}
    proto = model_of(nodes, constants, inputs=(1, 3, 20, 30))
    assert_equals_untiled(proto, random_image(1, 3, 20, 30), 8)


def test_a_tile_holds_all_rows_of_a_batch():
    assert_equals_untiled(u_net(2), random_image(3, 3, 20, 24), 8)


def test_channels_may_be_last():
    nodes = [
        node("Transpose", "x", "a", perm=[0, 3, 1, 2]),
        conv("a w", "b", pads=[1] * 4),
        node("Transpose", "b", "y", perm=[0, 2, 3, 1]),
    ]
    proto = model_of(nodes, CONSTANTS, inputs=("N", "H", "W", 3))
    assert_equals_untiled(proto, random_image(1, 21, 26, 3), 8)


def test_nodes_without_windows_equal_the_untiled_result():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("BatchNormalization", "a scale bias mean variance", "b"),
        node("PRelu", "b slope", "c"),
        node("Clip", "c low high", "y"),
        node("ArgMax", "a", "z", axis=1, keepdims=0),
    ]
    constants = {
        "w": CONSTANTS["w"], "scale": kernel(3), "bias": kernel(3), "mean": kernel(3),
        "variance": np.abs(kernel(3)) + 0.1, "slope": kernel(3, 1, 1),
        "low": np.float32(-1), "high": np.float32(1),
    }  # fmt: skip
    constants = {name: np.asarray(array) for name, array in constants.items()}
    proto = model_of(nodes, constants, outputs=("y", "z"))
    proto.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    assert_equals_untiled(proto, random_image(1, 3, 33, 44), 16)


def test_quantised_convolutions_equal_the_untiled_result():
    nodes = [
        node("QuantizeLinear", "x scale point", "q"),
        node("QLinearConv", "q scale point w w_scale w_point scale point", "r", pads=[1] * 4),
        node("DequantizeLinear", "r scale point", "y"),
    ]
    constants = {
        "scale": np.array(0.05, np.float32), "point": np.array(128, np.uint8),
        "w": np.arange(81, dtype=np.uint8).reshape(3, 3, 3, 3) + np.uint8(90),
        "w_scale": np.array(0.01, np.float32), "w_point": np.array(120, np.uint8),
    }  # fmt: skip
    assert_equals_untiled(model_of(nodes, constants), random_image(1, 3, 33, 44), 16)


def test_concatenated_maps_of_several_strides_are_gathered():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        conv("x w", "b", pads=[1] * 4, strides=[2, 2]),
        node("Reshape", "a flat", "fa"),
        node("Reshape", "b flat", "fb"),
        node("Concat", "fa fb", "y", axis=2),
    ]
    constants = {**CONSTANTS, "flat": np.array([0, 3, -1])}
    assert_equals_untiled(model_of(nodes, constants), random_image(1, 3, 32, 40), 16)
