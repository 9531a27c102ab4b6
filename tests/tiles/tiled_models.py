"""Models for tiled prediction, and the comparison with the untiled result."""

from __future__ import annotations

import numpy as np
from builders import make_model, node, run_onnx, value

import dask_onnx as dx
from dask_onnx.tiles.predict import predict_tiled

RNG = np.random.default_rng(0)


def kernel(*shape: int) -> np.ndarray:
    """Return random weights that keep the scale of their inputs."""
    scale = 1 / np.sqrt(np.prod(shape[1:]))
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def random_image(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(nodes, weights=None, *, inputs=("N", 3, "H", "W"), outputs=("y",), opset=17):
    return make_model(
        nodes,
        [value("x", inputs)],
        [value(name, None) for name in outputs],
        weights or {},
        opset=opset,
    )


def assert_equals_untiled(proto, image, tile, *, tolerance=2e-5, relative=0.0, **options):
    """Compare every output with ONNX Runtime on the untiled image."""
    untiled = run_onnx(proto, {proto.graph.input[0].name: image})
    names = [output.name for output in proto.graph.output]
    found = predict_tiled(dx.load(proto), image, tile=tile, outputs=names, **options)
    for name, expected in zip(names, untiled, strict=True):
        assert found[name].shape == expected.shape, name
        assert found[name].dtype == expected.dtype, name
        np.testing.assert_allclose(
            found[name], expected, rtol=relative, atol=tolerance, err_msg=name
        )


def no_scheduler(*_args, **_kwargs):
    raise AssertionError("building a tiled prediction must run nothing")


def conv(inputs, output, **attributes):
    return node("Conv", inputs, output, **attributes)


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


def u_net(levels=3, dims=2, *, pads_to_match=False):
    """Return a U-Net; `pads_to_match` pads upsampled maps to the size of the skip connection."""
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
    """Return the nodes to which PyTorch exports ``F.pad(up, [dx // 2, dx - dx // 2, ...])``."""
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


def attention_block(x, out, width, heads, constants):
    """Return multi-head attention over tokens (N, T, width), as PyTorch exports it."""
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
    """Return a vision transformer with an output for each pixel, for multiples of `patch`."""
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


def two_passes():
    """Return a convolution, a normalization over all pixels, and another convolution."""
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("InstanceNormalization", "a s b", "c"),
        conv("c w", "y", pads=[2] * 4, dilations=[2, 2]),
    ]
    return model_of(nodes, {"w": CONSTANTS["w"], "s": kernel(3), "b": kernel(3)})
