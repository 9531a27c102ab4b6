"""Statistics over all pixels by tiles, compared with ONNX Runtime on the untiled image."""

from __future__ import annotations

import dask.array as da
import numpy as np
import onnx
import pytest
from builders import node
from PIL import Image
from tiles.tiled_models import (
    CONSTANTS,
    assert_equals_untiled,
    conv,
    kernel,
    model_of,
    random_image,
)

import dask_onnx as dx
from dask_onnx.modelio.weights import BlobPlace
from dask_onnx.tiles.predict import predict_tiled


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


def test_squeeze_and_excite_equals_the_untiled_result():
    constants = {"w": kernel(4, 3, 3, 3), "v": kernel(4, 4, 3, 3)}
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        *squeeze_and_excite("a", "b", 4, constants),
        conv("b v", "c", pads=[1] * 4, strides=[2, 2]),
        *squeeze_and_excite("c", "y", 4, constants),
    ]
    assert_equals_untiled(model_of(nodes, constants), random_image(1, 3, 37, 41), 8)


def test_instance_normalization_equals_the_untiled_result():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("InstanceNormalization", "a scale bias", "b"),
        node("Relu", "b", "c"),
        conv("c w", "d", pads=[1] * 4),
        node("InstanceNormalization", "d scale bias", "y", epsilon=1e-3),
    ]
    constants = {"w": CONSTANTS["w"], "scale": kernel(3), "bias": kernel(3)}
    image = random_image(2, 3, 37, 41) + 100  # far from zero, where E[x**2] - E[x]**2 would fail
    assert_equals_untiled(model_of(nodes, constants), image, 8, tolerance=2e-4)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization_equals_the_untiled_result(opset):
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
    assert_equals_untiled(model_of(nodes, constants, opset=opset), random_image(1, 3, 37, 41), 8)


def test_group_normalization_as_pytorch_exports_it_equals_the_untiled_result():
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
    assert_equals_untiled(model_of(nodes, constants), random_image(2, 3, 37, 41), 8)


def test_layer_normalization_over_all_pixels_equals_the_untiled_result():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("LayerNormalization", "a scale bias", "b", axis=1),
        conv("b w", "y", pads=[1] * 4),
    ]
    constants = {
        "w": CONSTANTS["w"], "scale": random_image(3, 20, 30), "bias": random_image(3, 20, 30)
    }  # fmt: skip
    proto = model_of(nodes, constants, inputs=("N", 3, 20, 30))
    assert_equals_untiled(proto, random_image(1, 3, 20, 30), 8)


def test_mean_variance_normalization_equals_the_untiled_result():
    nodes = [node("MeanVarianceNormalization", "x", "a"), conv("a w", "y", pads=[1] * 4)]
    assert_equals_untiled(model_of(nodes, CONSTANTS), random_image(1, 3, 37, 41), 8)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_softmax_over_rows_equals_the_untiled_result(op):
    nodes = [conv("x w", "a", pads=[1] * 4), node(op, "a", "y", axis=3)]
    assert_equals_untiled(model_of(nodes, CONSTANTS), random_image(1, 3, 37, 41) * 9, 8)


REDUCTIONS = [
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
]  # fmt: skip


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions_over_pixels_equal_the_untiled_result(op, keepdims):
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
    assert_equals_untiled(proto, random_image(1, 3, 37, 41), 8, tolerance=1e-4, relative=1e-5)


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
    assert_equals_untiled(
        model_of(nodes, constants, outputs=("y", "r")), random_image(1, 3, 37, 41), 8
    )


def test_an_output_without_pixels_has_one_chunk():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("GlobalAveragePool", "a", "b"),
        node("Flatten", "b", "c"),
        node("Gemm", "c m", "y"),
    ]
    constants = {"w": CONSTANTS["w"], "m": kernel(3, 5)}
    proto = model_of(nodes, constants, outputs=("y", "a"))
    assert_equals_untiled(proto, random_image(1, 3, 37, 41), 8)
    lazy = predict_tiled(dx.load(proto), da.from_array(random_image(1, 3, 37, 41), 16), outputs="y")
    assert lazy.numblocks == (1, 1)


def test_the_image_itself_can_be_normalized_by_its_mean():
    nodes = [
        node("ReduceMean", "x", "mean", axes=[2, 3], keepdims=1),
        node("Sub", "x mean", "a"),
        conv("a w", "y", pads=[1] * 4),
    ]
    assert_equals_untiled(model_of(nodes, CONSTANTS), random_image(1, 3, 37, 41), 8)


def test_dynamic_quantization_uses_the_range_of_the_untiled_image():
    nodes = [
        node("DynamicQuantizeLinear", "x", "q scale point"),
        node("DequantizeLinear", "q scale point", "a"),
        conv("a w", "y", pads=[1] * 4),
    ]
    assert_equals_untiled(model_of(nodes, CONSTANTS), random_image(1, 3, 37, 41), 8)


@pytest.mark.real
@pytest.mark.parametrize("tile", [96, 128, 160])
def test_text_detection_equals_the_untiled_result(asset, tile):
    image = page(asset, 352, 480)
    proto = onnx.load(asset("det.onnx"))
    assert_equals_untiled(proto, image, tile, tolerance=1e-4)


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
    """Return a page of text, normalized as PP-OCR takes it."""
    with Image.open(asset("page.png")) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    repeats = (-(-height // pixels.shape[0]), -(-width // pixels.shape[1]), 1)
    pixels = np.tile(pixels, repeats)[:height, :width]
    return np.ascontiguousarray(((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None])


@pytest.mark.parametrize("order", [1, 2])
def test_columns_of_zeros_have_a_norm_that_divides_as_the_kernel_does(order):
    proto = model_of([node("LpNormalization", "x", "y", "norm", axis=2, p=order)])
    image = random_image(1, 3, 13, 11)
    image[..., 4] = 0
    assert_equals_untiled(proto, image, 5)


def test_an_image_of_zeros_is_quantised_as_the_kernel_does():
    nodes = [
        node("DynamicQuantizeLinear", "x", "q scale point", "quantise"),
        node("DequantizeLinear", "q scale point", "y"),
    ]
    proto = model_of(nodes, outputs=("y", "scale"))
    assert_equals_untiled(proto, np.zeros((1, 3, 13, 11), np.float32), 5)
