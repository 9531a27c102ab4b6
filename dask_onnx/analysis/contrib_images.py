"""Stand-ins of ONNX Runtime's own operators on images: convolution, pooling, layouts."""

from __future__ import annotations

from dask_onnx.analysis.contrib_parts import SAME, Call, Rule, Table, permuted, resized, unknown
from dask_onnx.analysis.pool_sizes import floor_padding

BLOCKED = "com.microsoft.nchwc"
"""Domain of operators on blocks of channels, which ONNX Runtime writes at its highest optimization
level."""
_WINDOW = (
    "auto_pad: string = @auto_pad, ceil_mode: int = @ceil_mode, dilations: ints = @dilations, "
    "group: int = @group, kernel_shape: ints = @kernel_shape, pads: ints = @pads, "
    "strides: ints = @strides, output_padding: ints = @output_padding"
)
"""Attributes of convolutions and pooling, passed on from the call where it has them."""


def _first(result: str, x: str) -> str:
    """Return statements: `result` is `x` with the channels moved from the last axis to axis 1."""
    return permuted(result, x, (0, 1), (-1, None), (1, -1))


def _last(result: str, x: str) -> str:
    """Return statements: `result` is `x` with the channels moved from axis 1 to the last."""
    return permuted(result, x, (0, 1), (2, None), (1, 2))


def _window(operator: str, parameters: str = "x", *, channels_last: bool = False) -> Rule:
    """Return the rule of pooling, or of a convolution.

    Parameters
    ----------
    operator : str
        The standard operator.
    parameters : str
        Parameters of the function. With ``w`` it is a convolution; the result has the dtype of
        ``zero`` if that is among them, else of ``x``.
    channels_last : bool
        True if channels are on the last axis whatever the attribute of that name says.
    """
    names = parameters.split(", ")

    def rule(call: Call) -> str:
        x, y = "x", "c"
        before = after = ""
        if channels_last or call.integer("channels_last"):
            x, y = "a", "b"
            before, after = _first("a", "x"), _last("c", "b")
        operands = f"{x}, w" if "w" in names else x
        result = "CastLike (c, zero)" if "zero" in names else "Identity (c)"
        body = f"{before} {y} = {operator} <{_attributes(call)}> ({operands}) {after}"
        return f"({parameters}) => (y) {{ {body} y = {result} }}"

    return rule


def _attributes(call: Call) -> str:
    """Return the attributes of a window; with ``ceil_mode`` those of ONNX Runtime's sizes."""
    kernel = call.integers("kernel_shape")
    if not call.integer("ceil_mode") or not kernel or call.text("auto_pad").startswith("SAME"):
        return _WINDOW
    ones = [1] * len(kernel)
    strides, dilations = call.integers("strides") or ones, call.integers("dilations") or ones
    pads = call.integers("pads") if call.text("auto_pad") != "VALID" else []
    pads = floor_padding(kernel, strides, dilations, pads or [0] * 2 * len(kernel))
    return (
        f"dilations: ints = @dilations, kernel_shape: ints = @kernel_shape, pads = {pads}, "
        "strides: ints = @strides"
    )


def _transposed_convolution(call: Call) -> str | None:
    attributes = _WINDOW
    if call.has(2):
        pads = call.constant(2)
        if pads is None:
            return None
        attributes = _WINDOW.replace("pads: ints = @pads", f"pads = {list(map(int, pads))}")
    return f"(x, w) => (y) {{ y = ConvTranspose <{attributes}> (x, w) }}"


def _crop(call: Call) -> str:
    sizes = call.constant(3)
    if sizes is None:
        parts = [unknown("b", "a", 2), unknown("y", "b", 3)]
    else:
        parts = [resized("b", "a", 2, int(sizes[0])), resized("y", "b", 3, int(sizes[1]))]
    return f"(x, _, images) => (y) {{ a = Gather (x, images) {' '.join(parts)} }}"


def _convolved_with_state(call: Call) -> str | None:
    # The state of a channel has as many values as the kernel looks back.
    weights = call.tensor(1)
    if call.integer("input_channels"):
        return None
    if call.has(3):
        state = "state = Identity (past)"
    elif weights is None or len(weights.dims) != 3 or call.integer("channels_last"):
        return SAME
    else:
        length = (weights.dims[2] - 1) * call.integer("dilation", 1)
        state = resized("state", "x", -1, length)
    return f"(x, _, _, past) => (y, state) {{ y = Identity (x) {state} }}"


def _upsampled(call: Call) -> str | None:
    scales = [float(scale) for scale in call.integers("scales")]
    if not scales:
        return None
    return f"(x) => (y) {{ s = Constant <value_floats = {scales}> () y = Resize (x, , s) }}"


def _to_blocks(call: Call) -> str:
    # Channels are padded to whole blocks, whose size depends on the processor: it is known from the
    # weights of the convolution that reads them, shape (out, in / group, ...).
    first = _first("a", "x") if call.integer("channels_last") else "a = Identity (x)"
    reader = call.convolutions.get(call.node.output[0])
    weights = None if reader is None else call.constants.get(reader.input[1])
    if reader is None or weights is None:
        channels = unknown("y", "a", 1)
    else:
        groups = next((a.i for a in reader.attribute if a.name == "group"), 1)
        channels = resized("y", "a", 1, groups * weights.dims[1])
    return f"(x) => (y) {{ {first} {channels} }}"


def _from_blocks(call: Call) -> str:
    last = _last("y", "a") if call.integer("channels_last") else "y = Identity (a)"
    return f"(x) => (y) {{ {resized('a', 'x', 1, call.integer('channels'))} {last} }}"


IMAGES: Table = {
    "FusedConv": _window("Conv", "x, w"),
    "NhwcConv": _window("Conv", "x, w", channels_last=True),
    "NhwcFusedConv": _window("Conv", "x, w", channels_last=True),
    "QLinearConv": _window("Conv", "x, _, _, w, _, _, _, zero"),
    "ConvTransposeWithDynamicPads": _transposed_convolution,
    "CausalConvWithState": _convolved_with_state,
    "MaxpoolWithMask": _window("MaxPool"),
    "NhwcMaxPool": _window("MaxPool", channels_last=True),
    "QLinearAveragePool": _window("AveragePool"),
    "QLinearGlobalAveragePool": _window("GlobalAveragePool"),
    "CropAndResize": _crop,
    "GridSample": "(x, grid) => (y) { y = GridSample (x, grid) }",
}
"""Stand-ins of operators on images in ONNX Runtime's domain."""

BLOCKS: Table = {
    "Conv": _window("Conv", "x, w"),
    "MaxPool": _window("MaxPool"),
    "AveragePool": _window("AveragePool"),
    "GlobalMaxPool": _window("GlobalMaxPool"),
    "GlobalAveragePool": _window("GlobalAveragePool"),
    "Upsample": _upsampled,
    "ReorderInput": _to_blocks,
    "ReorderOutput": _from_blocks,
}
"""Stand-ins of operators on blocks of channels."""
