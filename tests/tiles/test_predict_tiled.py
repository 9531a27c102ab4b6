"""Tiled predictions against ONNX Runtime on the whole picture."""

from __future__ import annotations

from unittest import mock

import dask
import dask.array as da
import numpy as np
import onnx
import pytest
from builders import make_model, node, run_onnx, value
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.tiles import predict
from dask_onnx.tiles.passes import split
from dask_onnx.tiles.predict import predict_tiled, tiling_drift
from dask_onnx.weights import BlobPlace

RNG = np.random.default_rng(0)


def kernel(*shape: int) -> np.ndarray:
    """Weights whose sums keep the size of their inputs."""
    scale = 1 / np.sqrt(np.prod(shape[1:]))
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def picture(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(nodes, weights=None, *, inputs=("N", 3, "H", "W"), outputs=("y",), opset=17):
    return make_model(
        nodes,
        [value("x", inputs)],
        [value(name, None) for name in outputs],
        weights or {},
        opset=opset,
    )


def assert_equals_whole(proto, image, tile, *, tolerance=2e-5, **options):
    """Compare every output with ONNX Runtime on the whole."""
    whole = run_onnx(proto, {proto.graph.input[0].name: image})
    names = [output.name for output in proto.graph.output]
    found = predict_tiled(dx.load(proto), image, tile=tile, outputs=names, **options)
    for name, expected in zip(names, whole, strict=True):
        assert found[name].shape == expected.shape, name
        assert found[name].dtype == expected.dtype, name
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=tolerance, err_msg=name)


def no_scheduler(*_args, **_kwargs):
    raise AssertionError("building a tiled prediction must run nothing")


# Windows.


def conv(inputs, output, **attributes):
    return node("Conv", inputs, output, **attributes)


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
CONSTANTS = {
    "w": kernel(3, 3, 3, 3),
    "pads": np.array([0, 0, 2, 3, 0, 0, 1, 2]),
    "one": np.array([1, 1]),
    "zero": np.array([0, 0]),
    "two": np.array([2, 2]),
    "far": np.array([2**31 - 1] * 2),
    "minus_one": np.array([-1, -2]),
    "two_three": np.array([2, 3]),
}
EVEN_ONLY = {"SpaceToDepth", "every second pixel"}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_over_pixels_equal_the_whole(name):
    sizes = [(36, 44)] if name in EVEN_ONLY else [(36, 44), (37, 53)]
    for size in sizes:
        assert_equals_whole(model_of(WINDOWS[name], CONSTANTS), picture(1, 3, *size), (8, 12))


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
def test_resizing_by_a_scale_equals_the_whole(mode, where, scale, nearest, is_antialiased):
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
    assert_equals_whole(proto, picture(1, 3, 36, 40), 8)
    if scale == 0.5:
        assert_equals_whole(proto, picture(1, 3, 37, 41), 8)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizing_to_the_size_of_another_value_equals_the_whole(mode):
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
    assert_equals_whole(model_of(nodes, constants), picture(1, 3, 36, 40), 8)


def u_net(levels=3, dims=2, *, pads_to_match=False):
    """Convolutions down and up with skips; `pads_to_match` pads what comes up to the skip's
    size, as models for any size do."""
    nodes, constants, skips = [], {}, []
    last, width = "x", 2
    ones, twos = [1] * (2 * dims), [2] * dims
    for level in range(levels):
        channels = 3 if level == 0 else width * 2 ** (level - 1)
        constants[f"d{level}"] = kernel(width * 2**level, channels, *[3] * dims)
        nodes += [
            conv(f"{last} d{level}", f"c{level}", pads=ones),
            node("Relu", f"c{level}", f"r{level}"),
        ]
        last = f"r{level}"
        if level < levels - 1:
            skips.append(last)
            nodes.append(node("MaxPool", last, f"p{level}", kernel_shape=twos, strides=twos))
            last = f"p{level}"
    for level in reversed(range(levels - 1)):
        deep, wide = width * 2 ** (level + 1), width * 2**level
        constants[f"t{level}"] = kernel(deep, wide, *twos)
        constants[f"u{level}"] = kernel(wide, 2 * wide, *[3] * dims)
        nodes.append(node("ConvTranspose", f"{last} t{level}", f"up{level}", strides=twos))
        up = f"up{level}"
        if pads_to_match:
            nodes += padding_to(skips[level], up, f"m{level}")
            up = f"m{level}"
        nodes += [
            node("Concat", f"{skips[level]} {up}", f"cat{level}", axis=1),
            conv(f"cat{level} u{level}", f"o{level}", pads=ones),
            node("Relu", f"o{level}", f"or{level}"),
        ]
        last = f"or{level}"
    constants["head"] = kernel(1, width, *[1] * dims)
    nodes.append(conv(f"{last} head", "y"))
    constants |= {
        "i2": np.array([2]), "i4": np.array([4]), "i0": np.array([0]),
        "half": np.array([2]), "none": np.array([0, 0]),
    }  # fmt: skip
    inputs = ("N", 3, *("D", "H", "W")[3 - dims :])
    return model_of(nodes, constants, inputs=inputs)


def padding_to(skip, up, out):
    """What ``F.pad(up, [dx // 2, dx - dx // 2, ...])`` becomes."""
    return [
        node("Shape", skip, f"{out}s"),
        node("Shape", up, f"{out}u"),
        node("Sub", f"{out}s {out}u", f"{out}d"),
        node("Slice", f"{out}d i2 i4 i0", f"{out}dd"),
        node("Div", f"{out}dd half", f"{out}begin"),
        node("Sub", f"{out}dd {out}begin", f"{out}end"),
        node("Concat", f"none {out}begin none {out}end", f"{out}pads", axis=0),
        node("Pad", f"{up} {out}pads", out),
    ]


def test_a_u_net_with_skips_equals_the_whole():
    assert_equals_whole(u_net(), picture(1, 3, 48, 64), (12, 20))


@pytest.mark.parametrize("size", [(49, 63), (50, 61), (51, 62)])
def test_a_u_net_that_pads_to_its_skips_equals_the_whole_at_odd_sizes(size):
    assert_equals_whole(u_net(pads_to_match=True), picture(1, 3, *size), (12, 20))


def test_a_volume_is_cut_along_three_axes():
    assert_equals_whole(u_net(2, 3), picture(1, 3, 16, 20, 24), (8, 8, 10))


def test_a_volume_is_cut_along_the_axes_that_are_named():
    assert_equals_whole(u_net(2, 3), picture(1, 3, 16, 20, 24), 8, axes=(2,))


def test_a_signal_is_cut_along_its_one_axis():
    nodes = [
        conv("x w", "a", pads=[4, 0], dilations=[2]),
        node("Relu", "a", "b"),
        conv("b w", "y", strides=[2]),
    ]
    proto = model_of(nodes, {"w": kernel(2, 2, 3)}, inputs=("N", 2, "T"))
    assert_equals_whole(proto, picture(2, 2, 101), 16)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_super_resolution_equals_the_whole(mode):
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("Relu", "a", "b"),
        node("DepthToSpace", "b", "c", blocksize=2, mode=mode),
        conv("c v", "y", pads=[1] * 4),
    ]
    proto = model_of(nodes, {"w": kernel(8, 3, 3, 3), "v": kernel(2, 2, 3, 3)})
    assert_equals_whole(proto, picture(1, 3, 25, 31), 8)


def test_super_resolution_by_reshape_and_transpose_equals_the_whole():
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
    assert_equals_whole(model_of(nodes, constants), picture(1, 3, 24, 30), 8)


def test_two_outputs_of_different_strides_equal_the_whole():
    nodes = [
        conv("x w", "y", pads=[1] * 4),
        conv("y w", "z", pads=[1] * 4, strides=[4, 4]),
        node("ConvTranspose", "y w", "u", strides=[2, 2]),
    ]
    proto = model_of(nodes, CONSTANTS, outputs=("y", "z", "u"))
    assert_equals_whole(proto, picture(1, 3, 35, 43), 12)


def test_coordinates_made_of_the_size_are_those_of_the_whole():
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
    assert_equals_whole(model_of(nodes, constants), picture(1, 3, 20, 37), 8)


def test_an_embedding_of_fixed_size_is_cut_like_the_picture():
    nodes = [node("Add", "x position", "a"), conv("a w", "y", pads=[1] * 4)]
    constants = {"w": CONSTANTS["w"], "position": picture(1, 3, 20, 30)}
    proto = model_of(nodes, constants, inputs=(1, 3, 20, 30))
    assert_equals_whole(proto, picture(1, 3, 20, 30), 8)


def test_a_whole_batch_goes_through_each_tile():
    assert_equals_whole(u_net(2), picture(3, 3, 20, 24), 8)


def test_channels_may_be_last():
    nodes = [
        node("Transpose", "x", "a", perm=[0, 3, 1, 2]),
        conv("a w", "b", pads=[1] * 4),
        node("Transpose", "b", "y", perm=[0, 2, 3, 1]),
    ]
    proto = model_of(nodes, CONSTANTS, inputs=("N", "H", "W", 3))
    assert_equals_whole(proto, picture(1, 21, 26, 3), 8)


# Sizes that a model refuses.


def test_a_size_that_the_model_refuses_is_padded_with_its_last_pixels():
    image = picture(1, 3, 45, 62)
    proto = u_net()
    padded = np.pad(image, ((0, 0), (0, 0), (0, 3), (0, 2)), mode="edge")
    expected = run_onnx(proto, {"x": padded})[0][:, :, :45, :62]
    with pytest.warns(UserWarning, match="multiples of 4"):
        found = predict_tiled(dx.load(proto), image, tile=16)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


# Statistics over all pixels.


def squeeze_and_excite(x, out, channels, constants):
    constants |= {f"{out}1": kernel(2, channels, 1, 1), f"{out}2": kernel(channels, 2, 1, 1)}
    return [
        node("GlobalAveragePool", x, f"{out}g"),
        conv(f"{out}g {out}1", f"{out}a"),
        node("Relu", f"{out}a", f"{out}b"),
        conv(f"{out}b {out}2", f"{out}c"),
        node("Sigmoid", f"{out}c", f"{out}d"),
        node("Mul", f"{x} {out}d", out),
    ]


def test_squeeze_and_excite_equals_the_whole():
    constants = {"w": kernel(4, 3, 3, 3), "v": kernel(4, 4, 3, 3)}
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        *squeeze_and_excite("a", "b", 4, constants),
        conv("b v", "c", pads=[1] * 4, strides=[2, 2]),
        *squeeze_and_excite("c", "y", 4, constants),
    ]
    assert_equals_whole(model_of(nodes, constants), picture(1, 3, 37, 41), 8)


def test_instance_normalization_equals_the_whole():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("InstanceNormalization", "a scale bias", "b"),
        node("Relu", "b", "c"),
        conv("c w", "d", pads=[1] * 4),
        node("InstanceNormalization", "d scale bias", "y", epsilon=1e-3),
    ]
    constants = {"w": CONSTANTS["w"], "scale": kernel(3), "bias": kernel(3)}
    image = picture(2, 3, 37, 41) + 100  # far from zero, where E[x**2] - E[x]**2 would fail
    assert_equals_whole(model_of(nodes, constants), image, 8, tolerance=2e-4)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization_equals_the_whole(opset):
    size = 2 if opset == 18 else 4
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("GroupNormalization", "a scale bias", "b", num_groups=2),
        conv("b v", "y", pads=[1] * 4),
    ]
    constants = {
        "w": kernel(4, 3, 3, 3), "v": kernel(2, 4, 3, 3),
        "scale": kernel(size), "bias": kernel(size),
    }  # fmt: skip
    assert_equals_whole(model_of(nodes, constants, opset=opset), picture(1, 3, 37, 41), 8)


def test_group_normalization_as_pytorch_exports_it_equals_the_whole():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("Reshape", "a groups", "b"),
        node("InstanceNormalization", "b ones zeros", "c"),
        node("Shape", "a", "shape"),
        node("Reshape", "c shape", "d"),
        node("Mul", "d scale", "e"),
        node("Add", "e bias", "f"),
        conv("f v", "y", pads=[1] * 4),
    ]
    constants = {
        "w": kernel(4, 3, 3, 3), "v": kernel(2, 4, 3, 3), "groups": np.array([0, 2, -1]),
        "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32),
        "scale": kernel(4, 1, 1), "bias": kernel(4, 1, 1),
    }  # fmt: skip
    assert_equals_whole(model_of(nodes, constants), picture(2, 3, 37, 41), 8)


def test_layer_normalization_over_all_pixels_equals_the_whole():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("LayerNormalization", "a scale bias", "b", axis=1),
        conv("b w", "y", pads=[1] * 4),
    ]
    constants = {
        "w": CONSTANTS["w"], "scale": picture(3, 20, 30), "bias": picture(3, 20, 30)
    }  # fmt: skip
    proto = model_of(nodes, constants, inputs=("N", 3, 20, 30))
    assert_equals_whole(proto, picture(1, 3, 20, 30), 8)


def test_mean_variance_normalization_equals_the_whole():
    nodes = [node("MeanVarianceNormalization", "x", "a"), conv("a w", "y", pads=[1] * 4)]
    assert_equals_whole(model_of(nodes, CONSTANTS), picture(1, 3, 37, 41), 8)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_softmax_over_rows_equals_the_whole(op):
    nodes = [conv("x w", "a", pads=[1] * 4), node(op, "a", "y", axis=3)]
    assert_equals_whole(model_of(nodes, CONSTANTS), picture(1, 3, 37, 41) * 9, 8)


REDUCTIONS = [
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
]  # fmt: skip


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions_over_pixels_equal_the_whole(op, keepdims):
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("Abs", "a", "b"),
        node(op, "b axes", "y", keepdims=keepdims),
        node(op, "b row", "z", keepdims=1),
        node("Sub", "b z", "c"),
        conv("c w", "u", pads=[1] * 4),
    ]
    constants = {"w": CONSTANTS["w"], "axes": np.array([2, 3]), "row": np.array([-1])}
    proto = model_of(nodes, constants, opset=18, outputs=("y", "z", "u"))
    assert_equals_whole(proto, picture(1, 3, 37, 41), 8, tolerance=2e-3)


def test_pooling_along_one_axis_only_leaves_strips():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("ReduceMean", "a", "rows", axes=[3], keepdims=1),
        node("ReduceMean", "a", "columns", axes=[2], keepdims=1),
        conv("rows v", "r", pads=[1, 0, 1, 0]),
        conv("columns u", "c", pads=[0, 1, 0, 1]),
        node("ReduceMax", "r", "top", axes=[2], keepdims=1),
        node("Sigmoid", "r", "rs"),
        node("Sigmoid", "c", "cs"),
        node("Mul", "a rs", "b"),
        node("Mul", "b cs", "d"),
        node("Add", "d top", "y"),
    ]
    constants = {"w": CONSTANTS["w"], "v": kernel(3, 3, 3, 1), "u": kernel(3, 3, 1, 3)}
    assert_equals_whole(model_of(nodes, constants, outputs=("y", "r")), picture(1, 3, 37, 41), 8)


def test_an_output_without_pixels_is_given_whole():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("GlobalAveragePool", "a", "b"),
        node("Flatten", "b", "c"),
        node("Gemm", "c m", "y"),
    ]
    constants = {"w": CONSTANTS["w"], "m": kernel(3, 5)}
    proto = model_of(nodes, constants, outputs=("y", "a"))
    assert_equals_whole(proto, picture(1, 3, 37, 41), 8)
    lazy = predict_tiled(dx.load(proto), da.from_array(picture(1, 3, 37, 41), 16), outputs="y")
    assert lazy.numblocks == (1, 1)


def test_the_picture_itself_may_be_normalised_by_its_mean():
    nodes = [
        node("ReduceMean", "x", "mean", axes=[2, 3], keepdims=1),
        node("Sub", "x mean", "a"),
        conv("a w", "y", pads=[1] * 4),
    ]
    assert_equals_whole(model_of(nodes, CONSTANTS), picture(1, 3, 37, 41), 8)


def test_dynamic_quantisation_takes_the_range_of_the_whole():
    nodes = [
        node("DynamicQuantizeLinear", "x", "q scale point"),
        node("DequantizeLinear", "q scale point", "a"),
        conv("a w", "y", pads=[1] * 4),
    ]
    assert_equals_whole(model_of(nodes, CONSTANTS), picture(1, 3, 37, 41), 8)


@pytest.mark.real
@pytest.mark.parametrize("tile", [96, 128, 160])
def test_text_detection_equals_the_whole(asset, tile):
    image = page(asset, 352, 480)
    proto = onnx.load(asset("det.onnx"))
    assert_equals_whole(proto, image, tile, tolerance=1e-4)


@pytest.mark.real
def test_building_reads_no_weights(asset, monkeypatch):
    model = dx.load(asset("det.onnx"))

    def refuse(*_args):
        raise AssertionError("building must read no weights")

    image = da.zeros((1, 3, 352, 480), dtype="f4", chunks=160)
    with monkeypatch.context() as patch:
        patch.setattr(BlobPlace, "read", refuse)
        lazy = predict_tiled(model, image, tile=160)
    assert float(lazy[..., :160, :160].max().compute()) < 1


def page(asset, height, width):
    """A page of text as PP-OCR takes it."""
    image_module = pytest.importorskip("PIL.Image")
    with image_module.open(asset("page.png")) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    repeats = (-(-height // pixels.shape[0]), -(-width // pixels.shape[1]), 1)
    pixels = np.tile(pixels, repeats)[:height, :width]
    return np.ascontiguousarray(((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None])


# Attention.


def attention_block(x, out, width, heads, constants):
    """Multi-head attention over tokens (N, T, width), as PyTorch exports it."""
    for name in "qkv":
        constants[f"{out}{name}"] = kernel(width, width)
    constants |= {
        "heads": np.array([0, 0, heads, width // heads]),
        "joined": np.array([0, 0, width]),
        "scale": np.array((width // heads) ** -0.5, np.float32),
        f"{out}s": kernel(width), f"{out}b": kernel(width), f"{out}m": kernel(width, width),
    }  # fmt: skip
    nodes = [node("LayerNormalization", f"{x} {out}s {out}b", f"{out}n", axis=-1)]
    for name, order in zip("qkv", ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True):
        nodes += [
            node("MatMul", f"{out}n {out}{name}", f"{out}{name}1"),
            node("Reshape", f"{out}{name}1 heads", f"{out}{name}2"),
            node("Transpose", f"{out}{name}2", f"{out}{name}3", perm=order),
        ]
    return [
        *nodes,
        node("MatMul", f"{out}q3 {out}k3", f"{out}scores"),
        node("Mul", f"{out}scores scale", f"{out}scaled"),
        node("Softmax", f"{out}scaled", f"{out}share", axis=-1),
        node("MatMul", f"{out}share {out}v3", f"{out}o"),
        node("Transpose", f"{out}o", f"{out}o1", perm=[0, 2, 1, 3]),
        node("Reshape", f"{out}o1 joined", f"{out}o2"),
        node("Add", f"{x} {out}o2", f"{out}r"),
        node("MatMul", f"{out}r {out}m", f"{out}r1"),
        node("Relu", f"{out}r1", f"{out}r2"),
        node("Add", f"{out}r {out}r2", out),
    ]


def vision_transformer(blocks=2, width=8, patch=4):
    """Patches, tokens, attention, and back to pixels: for pictures of any multiple of `patch`."""
    constants = {
        "patches": kernel(width, 3, patch, patch), "back": kernel(width, 2, patch, patch),
        "smooth": kernel(2, 2, 3, 3),
        "two": np.array([2]), "four": np.array([4]), "zero": np.array([0]),
        "flat": np.array([0, width, -1]), "front": np.array([1, width]),
    }  # fmt: skip
    nodes = [
        conv("x patches", "p", strides=[patch] * 2),
        node("Shape", "p", "shape"),
        node("Slice", "shape two four zero", "space"),
        node("Reshape", "p flat", "f"),
        node("Transpose", "f", "t0", perm=[0, 2, 1]),
    ]
    for block in range(blocks):
        nodes += attention_block(f"t{block}", f"t{block + 1}", width, 2, constants)
    nodes += [
        node("Transpose", f"t{blocks}", "g", perm=[0, 2, 1]),
        node("Concat", "front space", "grid", axis=0),
        node("Reshape", "g grid", "h"),
        node("ConvTranspose", "h back", "i", strides=[patch] * 2),
        conv("i smooth", "y", pads=[1] * 4),
    ]
    return model_of(nodes, constants, outputs=("y", f"t{blocks}"))


def test_a_vision_transformer_runs_its_tokens_on_the_whole_where_they_are_few():
    assert_equals_whole(vision_transformer(), picture(1, 3, 36, 44), 12)


def test_a_vision_transformer_runs_by_blocks_of_queries_where_tokens_are_many():
    proto = vision_transformer()
    assert_equals_whole(proto, picture(1, 3, 36, 44), 12, memory_limit=60_000)


def test_memory_too_small_for_the_keys_and_values_is_refused():
    with pytest.raises(dx.InputError, match="memory_limit"):
        predict_tiled(
            dx.load(vision_transformer()), picture(1, 3, 36, 44), tile=12, memory_limit=2_000
        )


def test_a_class_token_makes_the_rest_run_on_the_whole():
    constants = {
        "patches": kernel(8, 3, 4, 4), "flat": np.array([0, 8, -1]), "class": kernel(1, 1, 8),
        "first": np.array(0), "m": kernel(8, 3),
    }  # fmt: skip
    nodes = [
        conv("x patches", "p", strides=[4, 4]),
        node("Reshape", "p flat", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        node("Concat", "class t", "t0", axis=1),
        *attention_block("t0", "t1", 8, 2, constants),
        node("Gather", "t1 first", "c", axis=1),
        node("MatMul", "c m", "y"),
    ]
    proto = model_of(nodes, constants, inputs=(1, 3, "H", "W"))
    assert_equals_whole(proto, picture(1, 3, 36, 44), 12)


def test_an_embedding_that_is_resized_to_the_picture_is_cut_like_its_tokens():
    constants = {
        "patches": kernel(8, 3, 4, 4), "flat": np.array([0, 8, -1]),
        "embedding": kernel(1, 8, 5, 5), "two": np.array([2]), "four": np.array([4]),
        "zero": np.array([0]), "front": np.array([1, 8]),
    }  # fmt: skip
    nodes = [
        conv("x patches", "p", strides=[4, 4]),
        node("Shape", "p", "shape"),
        node("Slice", "shape two four zero", "space"),
        node("Concat", "front space", "grid", axis=0),
        node("Resize", "embedding - - grid", "e", mode="cubic"),
        node("Reshape", "e flat", "e1"),
        node("Reshape", "p flat", "f"),
        node("Add", "f e1", "g"),
        node("Reshape", "g grid", "h"),
        conv("h v", "y", pads=[1] * 4),
    ]
    constants["v"] = kernel(2, 8, 3, 3)
    assert_equals_whole(model_of(nodes, constants), picture(1, 3, 36, 44), 12)


def test_window_attention_has_exact_tiles():
    """Reshapes cut the picture into windows of 4 x 4 pixels, which attend within themselves."""
    constants = {
        "m": kernel(3, 3), "v": kernel(3, 3, 3, 3), "tokens": np.array([-1, 16, 3]),
        "four": np.array([4]), "two": np.array([2]), "three": np.array([3]),
        "one": np.array([1]), "hw": np.array([2, 3]),
    }  # fmt: skip
    nodes = [
        conv("x v", "a", pads=[1] * 4),
        node("Shape", "a", "shape"),
        node("Gather", "shape hw", "space", axis=0),
        node("Div", "space four", "windows"),
        node("Gather", "windows zero_", "rows", axis=0),
        node("Gather", "windows one", "columns", axis=0),
        node("Concat", "one three rows four columns four", "apart", axis=0),
        node("Reshape", "a apart", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 4, 3, 5, 1]),
        node("Reshape", "c tokens", "d"),
        node("MatMul", "d m", "q"),
        node("Transpose", "d", "k", perm=[0, 2, 1]),
        node("MatMul", "q k", "scores"),
        node("Softmax", "scores", "share", axis=-1),
        node("MatMul", "share d", "e"),
        node("Concat", "one rows columns four four three", "back", axis=0),
        node("Reshape", "e back", "f"),
        node("Transpose", "f", "g", perm=[0, 5, 1, 3, 2, 4]),
        node("Concat", "one three space", "whole", axis=0),
        node("Reshape", "g whole", "h"),
        conv("h v", "y", pads=[1] * 4),
    ]
    constants["zero_"] = np.array([0])
    assert_equals_whole(model_of(nodes, constants), picture(1, 3, 32, 48), 12)


# Collections.


def test_dask_stays_lazy_and_has_a_chunk_for_each_tile():
    proto, image = u_net(), picture(1, 3, 48, 64)
    with dask.config.set(scheduler=no_scheduler):
        lazy = predict_tiled(dx.load(proto), da.from_array(image, (1, 2, 17, 23)), tile=(16, 32))
    assert lazy.chunks == ((1,), (1,), (16, 16, 16), (32, 32))
    assert lazy.dtype == np.float32
    np.testing.assert_allclose(lazy.compute(), run_onnx(proto, {"x": image})[0], rtol=0, atol=2e-5)


def test_the_same_request_has_the_same_keys():
    model, image = dx.load(u_net()), da.ones((1, 3, 48, 64), dtype="f4", chunks=16)
    first, second = (predict_tiled(model, image, tile=16) for _ in range(2))
    assert first.name == second.name
    assert predict_tiled(model, image, tile=32).name != first.name


def test_a_part_of_the_result_takes_only_the_tiles_that_it_needs():
    read = []

    def load(block, block_info=None):
        read.append(block_info[0]["chunk-location"][2:])
        return block

    image = da.ones((1, 3, 96, 96), dtype="f4", chunks=(1, 3, 16, 16))
    image = image.map_blocks(load, dtype="f4", meta=np.empty((0,) * 4, "f4"))
    lazy = predict_tiled(dx.load(u_net(2)), image, tile=16)
    lazy[:, :, :16, :16].compute(scheduler="sync")
    assert set(read) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_each_pass_has_a_task_for_each_tile():
    nodes = [conv("x w", "a", pads=[1] * 4), node("InstanceNormalization", "a s b", "y")]
    constants = {"w": CONSTANTS["w"], "s": kernel(3), "b": kernel(3)}
    image = da.ones((1, 3, 64, 96), dtype="f4", chunks=32)
    lazy = predict_tiled(dx.load(model_of(nodes, constants)), image, tile=32)
    names = [key[0] for key in lazy.__dask_graph__() if isinstance(key, tuple)]
    for start in ("tile0_", "tile1_"):
        assert sum(name.startswith(start) for name in names) == 6


def test_a_picture_without_the_batch_axis_has_a_result_without_it():
    proto, image = u_net(2), picture(3, 20, 24)
    found = predict_tiled(dx.load(proto), image, tile=8)
    expected = run_onnx(proto, {"x": image[None]})[0][0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_labels_and_attributes_of_a_dataarray_are_kept():
    xarray = pytest.importorskip("xarray")
    image = xarray.DataArray(
        picture(3, 20, 24),
        dims=("band", "y", "x"),
        coords={"y": np.arange(20) * -10.0 + 5, "x": np.arange(24) * 10.0, "time": 7},
        attrs={"crs": "EPSG:32633"},
    )
    nodes = [conv("x w", "y", pads=[1] * 4), conv("y w", "z", pads=[1] * 4, strides=[2, 2])]
    model = dx.load(model_of(nodes, CONSTANTS, outputs=("y", "z")))
    found = predict_tiled(model, image, tile=8)
    assert found["y"].dims[1:] == ("y", "x")
    np.testing.assert_array_equal(found["y"].coords["x"], image.coords["x"])
    assert found["y"].attrs == image.attrs
    assert found["z"].attrs == {}
    np.testing.assert_array_equal(found["z"].coords["y"], np.arange(10) * -20.0)
    assert int(found["z"].coords["time"]) == 7


def test_an_automatic_tile_fits_the_memory_that_a_task_may_take():
    image = da.ones((1, 3, 256, 256), dtype="f4", chunks=64)
    small = predict_tiled(dx.load(u_net()), image, tile="auto", memory_limit="64KiB")
    large = predict_tiled(dx.load(u_net()), image, tile="auto", memory_limit="1MiB")
    assert small.npartitions > large.npartitions


def two_passes():
    """A convolution, a norm over all pixels, and a convolution behind it."""
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("InstanceNormalization", "a s b", "c"),
        conv("c w", "y", pads=[2] * 4, dilations=[2, 2]),
    ]
    return model_of(nodes, {"w": CONSTANTS["w"], "s": kernel(3), "b": kernel(3)})


def test_a_tiled_prediction_runs_inside_a_task():
    proto, image = two_passes(), picture(1, 3, 40, 48)
    inner = dask.delayed(predict_tiled)(dx.load(proto), image, tile=16)
    expected = run_onnx(proto, {"x": image})[0]
    np.testing.assert_allclose(inner.compute(), expected, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def workers(store_directory):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        yield client


@pytest.mark.cluster
def test_workers_cut_what_neighbours_need_before_it_travels(workers):
    proto, image = two_passes(), picture(1, 3, 64, 96)
    lazy = predict_tiled(dx.load(proto), da.from_array(image, 32), tile=32)
    names = {key[0].partition("_")[0] for key in lazy.__dask_graph__() if isinstance(key, tuple)}
    assert {"tile0", "tile1", "cut"} <= names
    expected = run_onnx(proto, {"x": image})[0]
    np.testing.assert_allclose(lazy.compute(), expected, rtol=0, atol=2e-5)


@pytest.mark.cluster
def test_numpy_is_computed_on_the_workers(workers):
    proto, image = vision_transformer(), picture(1, 3, 36, 44)
    assert_equals_whole(proto, image, 12)
    assert_equals_whole(proto, image, 12, memory_limit=60_000)


# Refusals.

SIDE = {"axis": np.array(2)}


@pytest.mark.parametrize(
    ("nodes", "constants", "kind"),
    [
        ([node("CumSum", "x axis", "y")], SIDE, "scanned"),
        ([node("Transpose", "x", "a", perm=[3, 0, 2, 1]),
          node("Reshape", "a three", "b"), node("RNN", "b w r", "y", hidden_size=2)],
         {"three": np.array([0, -1, 3]), "w": kernel(1, 2, 3), "r": kernel(1, 2, 2)}, "scanned"),
        ([node("TopK", "x k", "y i", axis=3)], {"k": np.array([2])}, "gathered"),
        ([node("Slice", "x start end side step", "y")],
         {"start": np.array([-1]), "end": np.array([-(2**31)]), "side": np.array([3]),
          "step": np.array([-1])}, "gathered"),
        ([node("Resize", "x - - size", "y", mode="linear",
               coordinate_transformation_mode="align_corners")],
         {"size": np.array([1, 3, 90, 100])}, "length"),
    ],
)  # fmt: skip
def test_what_has_no_exact_tiles_is_refused_with_node_and_kind(nodes, constants, kind):
    model = dx.load(model_of(nodes, constants))
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(model, picture(1, 3, 32, 40), tile=8, axes=(2, 3))
    assert kind in caught.value.cause
    assert model.facts.nodes[-1].name in caught.value.cause
    assert "exact=False" in caught.value.next_step


def test_random_numbers_are_refused():
    nodes = [node("RandomNormalLike", "x", "a"), node("Add", "x a", "y")]
    with pytest.raises(dx.InputError, match="random"):
        predict_tiled(dx.load(model_of(nodes)), picture(1, 3, 32, 40), tile=8)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": 0},
        {"tile": "large"},
        {"tile": (8, 8, 8)},
        {"axes": (7,)},
        {"axes": (2, 2)},
        {"overlap": 8},
        {"memory_limit": "much"},
        {"tile": "auto", "memory_limit": 100},
        {"outputs": "nothing"},
    ],
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(dx.InputError):
        predict_tiled(dx.load(u_net()), picture(1, 3, 48, 64), **options)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 3, 32, 32)),
        np.zeros((1, 4, 32, 32), np.float32),
        np.zeros((32, 32), np.float32),
    ],
)
def test_pictures_that_do_not_fit_the_model_are_refused(image):
    with pytest.raises(dx.InputError):
        predict_tiled(dx.load(u_net()), image)


def test_a_model_of_two_inputs_is_refused():
    proto = make_model(
        [node("Add", "x z", "y")],
        [value("x", ["N", 3, "H", "W"]), value("z", ["N", 3, "H", "W"])],
        [value("y", None)],
    )
    with pytest.raises(dx.InputError, match="2 inputs"):
        predict_tiled(dx.load(proto), picture(1, 3, 32, 32))


# Blending.


def test_blended_tiles_of_a_local_model_equal_the_whole_away_from_borders():
    proto = model_of([conv("x w", "y", pads=[1] * 4)], CONSTANTS)
    image = picture(1, 3, 50, 61)
    found = predict_tiled(dx.load(proto), image, tile=24, exact=False, overlap=8)
    expected = run_onnx(proto, {"x": image})[0]
    assert found.shape == expected.shape
    assert np.median(np.abs(found - expected)) < 1e-5
    drift = tiling_drift(dx.load(proto), image, 24, 8)["y"]
    assert drift.largest == pytest.approx(np.abs(found - expected).max())
    assert 0 < drift.mean < drift.largest


def test_blended_tiles_of_a_pointwise_model_equal_the_whole_everywhere():
    nodes = [
        node("Sigmoid", "x", "y"),
        node("MaxPool", "y", "z", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    proto = model_of(nodes, outputs=("y", "z"))
    image = picture(1, 3, 50, 62)
    found = predict_tiled(dx.load(proto), image, tile=(16, 20), exact=False, overlap=(4, 6))
    for name, expected in zip("yz", run_onnx(proto, {"x": image}), strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6)


def test_a_model_of_one_size_runs_on_blended_tiles_of_that_size():
    nodes = [
        node("Sigmoid", "x", "a"),
        node("AveragePool", "a", "y", kernel_shape=[4, 4], strides=[4, 4]),
    ]
    proto = model_of(nodes, inputs=(1, 3, 16, 16))
    image = picture(1, 3, 37, 41)
    with dask.config.set(scheduler=no_scheduler):
        lazy = predict_tiled(
            dx.load(proto), da.from_array(image, 13), tile="auto", exact=False, overlap=4
        )
    assert lazy.shape == (1, 3, 10, 11)
    open_model = model_of(nodes)
    expected = run_onnx(open_model, {"x": image})[0]
    np.testing.assert_allclose(lazy[..., :9, :10], expected, rtol=0, atol=1e-6)


def test_blending_needs_outputs_with_pixels():
    proto = model_of([node("GlobalAveragePool", "x", "y")])
    with pytest.raises(dx.InputError, match="no pixels"):
        predict_tiled(dx.load(proto), picture(1, 3, 48, 48), tile=16, exact=False, overlap=4)


@pytest.mark.parametrize("options", [{"tile": 16, "overlap": 9}, {"tile": "auto"}, {"tile": 0}])
def test_blending_options_that_do_not_fit_are_refused(options):
    with pytest.raises(dx.InputError):
        predict_tiled(dx.load(u_net()), picture(1, 3, 48, 48), exact=False, **options)


# Properties.


@st.composite
def small_graphs(draw):
    """A random DAG of convolutions, pools, resizes, pads and joins, of up to nine nodes."""
    constants = {
        "two": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 2, 0, 0, 2, 0]),
    }
    values = {"x": (2, 0)}  # value: channels, how many times it was halved
    nodes = []
    for i in range(draw(st.integers(1, 9))):
        name, (source, (channels, depth)) = f"v{i}", draw(st.sampled_from(sorted(values.items())))
        kind = draw(
            st.sampled_from(
                ["conv", "strided", "pool", "up", "transposed", "pad", "norm", "gate", "add"]
            )
        )
        if kind in ("conv", "strided"):
            size = draw(st.sampled_from([1, 3, 5]))
            constants[f"w{i}"] = kernel(2, channels, size, size)
            stride = 2 if kind == "strided" else 1
            if size == 1 and stride == 2:
                continue
            dilation = draw(st.sampled_from([1, 2]))
            pad = dilation * (size - 1) // 2
            nodes.append(
                conv(f"{source} w{i}", name, pads=[pad] * 4, strides=[stride] * 2,
                     dilations=[dilation] * 2)
            )  # fmt: skip
            values[name] = (2, depth + (stride == 2))
        elif kind == "pool":
            op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            nodes.append(node(op, source, name, kernel_shape=[2, 2], strides=[2, 2]))
            values[name] = (channels, depth + 1)
        elif kind == "up" and depth:
            mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
            nodes.append(node("Resize", f"{source} - two", name, mode=mode))
            values[name] = (channels, depth - 1)
        elif kind == "transposed" and depth:
            constants[f"w{i}"] = kernel(channels, 2, 2, 2)
            nodes.append(node("ConvTranspose", f"{source} w{i}", name, strides=[2, 2]))
            values[name] = (2, depth - 1)
        elif kind == "pad":
            mode = draw(st.sampled_from(["constant", "edge", "reflect"]))
            constants[f"w{i}"] = kernel(2, channels, 3, 4)
            constants["even"] = np.array([0, 0, 1, 2, 0, 0, 1, 1])
            nodes.append(node("Pad", f"{source} even", f"{name}p", mode=mode))
            nodes.append(conv(f"{name}p w{i}", name))
            values[name] = (2, depth)
        elif kind == "norm":
            constants |= {f"s{i}": kernel(channels), f"b{i}": kernel(channels)}
            nodes.append(node("InstanceNormalization", f"{source} s{i} b{i}", name))
            values[name] = (channels, depth)
        elif kind == "gate":
            nodes.append(node("GlobalAveragePool", source, f"{name}g"))
            nodes.append(node("Sigmoid", f"{name}g", f"{name}s"))
            nodes.append(node("Mul", f"{source} {name}s", name))
            values[name] = (channels, depth)
        elif kind == "add":
            alike = sorted(v for v, shape in values.items() if shape == (channels, depth))
            nodes.append(node("Add", f"{source} {draw(st.sampled_from(alike))}", name))
            values[name] = (channels, depth)
    made = [name for name in values if name != "x"]
    if not made:
        nodes.append(node("Relu", "x", "v"))
        made = ["v"]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    most = max(depth for _, depth in values.values())
    size = [draw(st.integers(4, 14)) * 2**most for _ in range(2)]
    return model_of(nodes, constants, inputs=("N", 2, "H", "W"), outputs=outputs), size


def assert_any_tiles_equal_the_whole(made, height, width):
    proto, size = made
    if size[0] * size[1] > 40 * height * width:  # not thousands of tiles
        height, width = height + 16, width + 16
    assert_equals_whole(proto, picture(1, 2, *size), (height, width), tolerance=1e-4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(), st.integers(1, 40), st.integers(1, 40))
def test_any_small_graph_equals_the_whole_on_any_tiles(made, height, width):
    assert_any_tiles_equal_the_whole(made, height, width)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(small_graphs(), st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 8]))
def test_any_small_graph_equals_the_whole_with_small_maps_in_passes_of_their_own(
    made, height, width, stride
):
    with mock.patch.object(predict, "with_passes", lambda plan, costs: split(plan, stride)):
        assert_any_tiles_equal_the_whole(made, height, width)
