"""Cases of pooling, convolution and resizing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from kernel_case import AUTO_PADS, Case, floats, generator, product


def _pools() -> Iterator[Case]:
    x, nan = floats(1, 2, 7, 8), floats(1, 1, 6, 6)
    nan[0, 0, 2, 3] = np.nan
    for op in ("AveragePool", "MaxPool", "LpPool"):
        extra = {"AveragePool": {"count_include_pad": (None, 1)}, "LpPool": {"p": (None, 1)}}
        for given in product(
            kernel_shape=([3, 3], [2, 3]),
            strides=(None, [2, 2], [3, 2]),
            dilations=(None, [2, 2]),
            ceil_mode=(None, 1),
            pads=(None, [1, 1, 1, 1], [0, 1, 1, 0]),
            **extra.get(op, {}),
        ):
            yield Case(op, (x,), given)
        for given in product(
            kernel_shape=([3, 3],),
            strides=(None, [2, 2]),
            auto_pad=AUTO_PADS[1:],
            ceil_mode=(None, 1),
        ):
            yield Case(op, (x,), given)
        if op != "MaxPool":  # what ONNX Runtime makes of NaN depends on its place
            yield Case(op, (nan,), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})
        yield Case(op, (floats(2, 3, 9),), {"kernel_shape": [3], "strides": [2]})
        yield Case(op, (floats(1, 2, 5, 5, 4),), {"kernel_shape": [2, 2, 2]})
        for opset in (10, 11, 18):
            yield Case(op, (x,), {"kernel_shape": [3, 3], "strides": [2, 2]}, opset=opset)
    for given in product(
        kernel_shape=([2, 2],),
        strides=(None, [2, 2]),
        pads=(None, [1, 1, 0, 0]),
        storage_order=(None, 1),
    ):
        yield Case("MaxPool", (x,), given, outputs=2)
    small = generator().integers(0, 99, (1, 1, 5, 5)).astype(np.uint8)
    for given in product(kernel_shape=([3, 3],), pads=(None, [1] * 4), ceil_mode=(None, 1)):
        yield Case("MaxPool", (small,), given)
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield from (Case(op, (floats(2, 3, 4, 5),), {}), Case(op, (floats(2, 3, 4),), {}))


def _convolutions() -> Iterator[Case]:
    x, bias = floats(1, 4, 7, 8), floats(4)
    for given in product(
        strides=(None, [2, 2], [2, 1]),
        dilations=(None, [2, 1]),
        group=(None, 2),
        pads=(None, [1, 1, 1, 1], [0, 1, 2, 1]),
    ):
        w = floats(4, 4 // given.get("group", 1), 3, 3)
        yield Case("Conv", (x, w, bias), given)
        yield Case("ConvTranspose", (x, floats(4, 2, 3, 3)), given)
    for given in product(auto_pad=AUTO_PADS[1:], strides=(None, [2, 2])):
        yield Case("Conv", (x, floats(4, 4, 3, 3)), given)
        yield Case("Conv", (x, floats(4, 4, 2, 2)), given)
        yield Case("ConvTranspose", (x, floats(4, 2, 3, 3)), given)
    for given in product(
        strides=([2, 2], [3, 3]), output_padding=(None, [1, 1]), auto_pad=(None, "SAME_UPPER")
    ):
        yield Case("ConvTranspose", (x, floats(4, 2, 3, 3)), given)
    for given in product(
        strides=([2, 2], [3, 2]),
        output_shape=([15, 17], [14, 16]),
        auto_pad=(None, "SAME_UPPER", "SAME_LOWER"),
    ):
        yield Case("ConvTranspose", (x, floats(4, 2, 3, 3)), given)
    yield Case("Conv", (floats(2, 3, 9), floats(4, 3, 3)), {"pads": [1, 1]})
    yield Case("Conv", (floats(1, 2, 4, 5, 4), floats(3, 2, 2, 2, 2)), {})
    yield Case("ConvTranspose", (floats(1, 2, 5), floats(2, 3, 3)), {"strides": [2]})
    yield Case("ConvTranspose", (floats(1, 2, 3, 4, 3), floats(2, 3, 2, 2, 2)), {})
    yield Case("Col2Im", (floats(1, 8, 9), np.array([4, 4]), np.array([2, 2])), {})
    integers = generator().integers(0, 255, (1, 2, 6, 6)).astype(np.uint8)
    weights = generator().integers(0, 255, (3, 2, 3, 3)).astype(np.uint8)
    zero = np.array(7, np.uint8)
    for given in product(pads=(None, [1, 1, 1, 1]), strides=(None, [2, 2])):
        yield Case("ConvInteger", (integers, weights, zero, zero), given)
        yield Case("ConvInteger", (integers, weights), given)


_COORDINATES = "half_pixel half_pixel_symmetric pytorch_half_pixel align_corners asymmetric".split()


def _resizes() -> Iterator[Case]:
    x = floats(1, 2, 5, 7)
    sizes = ([1, 1, 2.0, 2.0], [1, 1, 0.6, 0.6], [1, 1, 0.2, 1.7], [1, 1, 3.0, 0.5])
    for given in product(mode=("linear", "cubic"), coordinate_transformation_mode=_COORDINATES):
        for scales in sizes:
            inputs = (x, None, np.array(scales, np.float32))
            yield Case("Resize", inputs, given, constants=(2,))
        for target in ([1, 2, 10, 14], [1, 2, 3, 4], [1, 2, 1, 9]):
            yield Case("Resize", (x, None, None, np.array(target)), given, constants=(3,))
    for given in product(
        mode=("nearest",),
        coordinate_transformation_mode=_COORDINATES,
        nearest_mode=("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    ):
        for target in ([1, 2, 10, 14], [1, 2, 3, 4], [1, 2, 1, 9]):
            yield Case("Resize", (x, None, None, np.array(target)), given, constants=(3,))
        for scales in sizes:
            inputs = (x, None, np.array(scales, np.float32))
            yield Case("Resize", inputs, given, constants=(2,))
    yield from _special_resizes(x)


def _special_resizes(x: np.ndarray) -> Iterator[Case]:
    for given in product(mode=("linear", "cubic"), antialias=(1,)):
        for target in ([1, 2, 10, 14], [1, 2, 3, 4]):
            yield Case("Resize", (x, None, None, np.array(target)), given, constants=(3,))
    for given in product(mode=("cubic",), exclude_outside=(1,), cubic_coeff_a=(None, -0.5)):
        yield Case("Resize", (x, None, None, np.array([1, 2, 8, 9])), given, constants=(3,))
    for given in product(
        mode=("nearest", "linear"),
        axes=([2, 3], [3, 2]),
        keep_aspect_ratio_policy=(None, "not_larger", "not_smaller"),
    ):
        yield Case("Resize", (x, None, None, np.array([8, 9])), given, constants=(3,))
    roi = np.array([0, 0, 0.2, 0.1, 1, 1, 0.8, 1.4], np.float32)
    for given in product(
        mode=("linear", "nearest"), coordinate_transformation_mode=("tf_crop_and_resize",)
    ):
        yield Case("Resize", (x, roi, None, np.array([1, 2, 6, 6])), given, constants=(1, 3))
    for mode in ("nearest", "linear"):
        scales = np.array([1, 1, 2, 3], np.float32)
        yield Case("Upsample", (x, scales), {"mode": mode}, opset=9, constants=(1,))
    grid = (generator().random((1, 4, 5, 2)) * 2.4 - 1.2).astype(np.float32)
    for given in product(
        mode=("linear", "nearest", "cubic"),
        padding_mode=("zeros", "border", "reflection"),
        align_corners=(0, 1),
    ):
        yield Case("GridSample", (x, grid), given)


CASES = (
    _pools,
    _convolutions,
    _resizes,
)
"""Functions that yield the cases of this module."""
