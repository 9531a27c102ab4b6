"""Rules of operators that slide over spatial axes: convolution, pooling, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind, Window, window
from dask_onnx.analysis.axes.view import PROPORTIONAL, Known, NodeView, Rule, join, with_kind_of

_FIRST_SPATIAL_AXIS = 2
"""First spatial axis of (batch, channels, spatial ...)."""


def conv(data: int = 0, weight: int = 1, addend: int | None = None) -> Rule:
    """Return the rule of a convolution.

    `data` is the index of the input, shape (batch, channels, spatial ...), `weight` that of the
    kernel, shape (output channels, input channels per group, spatial ...), `addend` that of a
    tensor of the result's shape which is added to it.
    """

    def rule(v: NodeView) -> Sequence[Dependence]:
        others = [i for i in v.carriers if i not in (data, addend)]
        if others:
            return v.all(v.lost(v.dep(others[0]), Kind.OPAQUE, "positions in a kernel"))
        result = _convolved(v, v.dep(data), weight)
        if addend is not None and v.has(addend):
            result = _with_addend(v, result, addend)
        return v.all(result)

    return rule


def _convolved(v: NodeView, dep: Dependence, weight: int) -> Dependence:
    """Return the dependence of a convolution of an input with the dependence `dep`."""
    if dep.axis is None or dep.axis == 0:
        return dep
    if v.attr("channels_last", 0):  # QLinearConv of com.microsoft
        return v.lost(dep, Kind.OPAQUE, "channels last")
    if dep.axis == 1:
        return _channels(v, dep, weight)
    if dep.outer != 1 or dep.inner != 1:
        return v.lost(dep, Kind.FACTORED, "kernel over merged axes")
    sliding = conv_window(v, dep.axis - _FIRST_SPATIAL_AXIS, weight)
    if sliding is None:
        return v.broken(Kind.OPAQUE, "unknown kernel")
    return dep.windowed(sliding, v.name, "kernel")


def _with_addend(v: NodeView, result: Dependence, index: int) -> Dependence:
    """Return the sum of a convolution and an input of the same shape."""
    other = v.dep(index)
    if other.axis is None:
        if result.axis is None or v.size(index, result.axis) == 1:
            return result
        return v.lost(result, Kind.LENGTH, "position")
    if result.axis is None:
        # Positions that the convolution combined, or none that it has, beside those of the addend.
        mixed = result if result.is_broken else other.broken(Kind.LENGTH, v.name, "position")
        return with_kind_of(mixed, other)
    if other.axis != result.axis or not result.has_blocks_of(other):
        return v.lost(result, Kind.PAIRED, "different axes")
    return join(result, other, v.name)


def _channels(v: NodeView, dep: Dependence, weight: int) -> Dependence:
    """Return the dependence of positions on channels: each has a kernel, or all are summed."""
    group = v.attr("group", 1)
    if group > 1 and v.size(weight, 1) == 1 and v.size(weight, 0) == group:
        return dep.broken(Kind.LENGTH, v.name, "kernel of a channel")
    return v.lost(dep, Kind.CONTRACTED, "channels")


def _fits(v: NodeView, place: int) -> bool:
    """Return whether the attributes of a window have an element for spatial axis `place`."""
    named = (v.attr(name) for name in ("kernel_shape", "strides", "dilations", "pads"))
    return all(each is None or len(each) > place for each in named)


def _kernel(v: NodeView, place: int, weight: int | None) -> int | None:
    """Return the kernel size along spatial axis `place`; None if unknown."""
    named = v.attr("kernel_shape")
    if named is not None:
        return int(named[place])
    return v.size(weight, _FIRST_SPATIAL_AXIS + place) if weight is not None else None


def _step(v: NodeView, name: str, place: int) -> int:
    """Return the element of "strides" or "dilations" for spatial axis `place`; 1 by default."""
    named = v.attr(name)
    return int(named[place]) if named else 1


def _begin(v: NodeView, place: int, kernel: int, stride: int, dilation: int) -> int | None:
    """Return the padding before the first position; None if it depends on the size.

    With auto_pad=SAME_UPPER and SAME_LOWER it does, unless the size is a multiple of the stride.
    """
    automatic = v.attr("auto_pad", b"NOTSET").decode(errors="replace")
    if automatic in ("NOTSET", ""):
        pads = v.attr("pads")
        return int(pads[place]) if pads else 0
    if automatic == "VALID":
        return 0
    total = dilation * (kernel - 1) + 1 - stride
    if stride != 1 and automatic.startswith("SAME"):
        size = v.size(0, _FIRST_SPATIAL_AXIS + place)
        if size is None or size % stride:
            return None
    total = max(total, 0)
    return total // 2 if automatic == "SAME_UPPER" else (total + 1) // 2


def conv_window(v: NodeView, place: int, weight: int | None) -> Window | None:
    """Return the window of a convolution or pool along one spatial axis; None if unknown.

    Parameters
    ----------
    v : NodeView
    place : int
        Number of the spatial axis: 0 for axis 2.
    weight : int or None
        Index of the kernel; None for a pool.
    """
    if not _fits(v, place):
        return None
    kernel = _kernel(v, place, weight)
    stride, dilation = _step(v, "strides", place), _step(v, "dilations", place)
    if kernel is None:
        return None
    begin = _begin(v, place, kernel, stride, dilation)
    if begin is None:
        return None
    return window(-begin, stride, dilation * (kernel - 1) + 1)


def conv_transpose(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through ConvTranspose.

    Output o sums the inputs i with ``o = i * stride - pad + k * dilation`` for k in the kernel.
    """
    dep = v.dep(0)
    others = [i for i in v.carriers if i != 0]
    if others:
        return v.all(v.lost(v.dep(others[0]), Kind.OPAQUE, "positions in a kernel"))
    if dep.axis is None or dep.axis == 0:
        return v.all(dep)
    if dep.axis == 1:
        return v.all(v.lost(dep, Kind.CONTRACTED, "channels"))
    place = dep.axis - _FIRST_SPATIAL_AXIS
    if not _fits(v, place):
        return v.opaque("unknown kernel")
    kernel = _kernel(v, place, 1)
    automatic = v.attr("auto_pad", b"NOTSET").decode(errors="replace") or "NOTSET"
    if kernel is None or automatic not in ("NOTSET", "VALID") or v.attr("output_shape"):
        return v.opaque("unknown kernel")
    if dep.outer != 1 or dep.inner != 1:
        return v.all(v.lost(dep, Kind.FACTORED, "kernel over merged axes"))
    stride, dilation = _step(v, "strides", place), _step(v, "dilations", place)
    pads = v.attr("pads")
    begin = int(pads[place]) if pads and automatic == "NOTSET" else 0
    reach = Fraction((kernel - 1) * dilation, stride)
    sliding = Window(Fraction(begin, stride) - reach, Fraction(1, stride), reach + 1)
    return v.all(dep.windowed(sliding, v.name, "kernel"))


def pool(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through AveragePool, MaxPool and LpPool."""
    dep = v.dep(0)
    if any(i != 0 for i in v.carriers):
        return v.opaque("positions in a parameter")
    if v.attr("channels_last", 0):  # QLinearAveragePool
        return v.all(dep if dep.axis in (None, 0) else v.lost(dep, Kind.OPAQUE, "channels last"))
    if dep.axis is None or dep.axis < _FIRST_SPATIAL_AXIS:
        if dep.axis is not None and len([o for o in v.proto.output if o]) > 1:
            # MaxPool's indices count from the first element of the whole tensor.
            return [dep, dep.broken(Kind.LENGTH, v.name, "positions")]
        return v.all(dep)
    if dep.outer != 1 or dep.inner != 1:
        return v.all(v.lost(dep, Kind.FACTORED, "kernel over merged axes"))
    sliding = conv_window(v, dep.axis - _FIRST_SPATIAL_AXIS, None)
    if sliding is None or len([o for o in v.proto.output if o]) > 1:
        return v.opaque("unknown kernel")
    return v.all(dep.windowed(sliding, v.name, "kernel"))


def global_pool(how: str) -> Rule:
    """Return the rule of a pool over all spatial axes; `how` names the statistic."""

    def rule(v: NodeView) -> Sequence[Dependence]:
        dep = v.dep(0)
        if dep.axis is None or dep.axis < _FIRST_SPATIAL_AXIS:
            return v.all(dep)
        return v.all(v.lost(dep, Kind.REDUCED, how))

    return rule


def local_response_norm(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through LRN, which reads a window of channels."""
    dep, size = v.dep(0), v.attr("size", 1)
    if dep.axis != 1:
        return v.all(dep)
    return v.all(dep.windowed(window(-((size - 1) // 2), 1, size), v.name, "channels"))


def resize(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Resize and Upsample.

    The result is a window if the ratio does not depend on the size, and a simple fraction.
    """
    dep, before, after = v.dep(0), v.shape(0), v.out_shape()
    if dep.axis is None:
        lengths = [i for i in range(1, len(v.ins)) if v.dep(i).kind != Kind.FREE]
        return v.all(v.broken(Kind.LENGTH, "sizes") if lengths else dep)
    if before is None or after is None:
        return v.opaque("unknown shape")
    old, new = before[dep.axis], after[dep.axis]
    if not old or not new:
        return v.opaque("unknown size")
    if _resizes_by_length(v, dep.axis):
        return v.all(dep.resized(v.name, "resizing by size"))
    if old == new and _keeps(v, dep.axis):
        return v.all(dep)
    if dep.outer != 1 or dep.inner != 1:
        return v.all(v.lost(dep, Kind.FACTORED, "resizing merged axes"))
    ratio = _ratio(v, dep.axis, old, new)
    sliding = None if ratio is None else _resize_window(v, ratio, old, new)
    if sliding is None:
        return v.all(dep.broken(Kind.LENGTH, v.name, "resizing by size"))
    return v.all(dep.windowed(sliding, v.name, "resizing"))


def _place(v: NodeView, axis: int) -> int | None:
    """Return the element of sizes and scales that stands for an axis; None if none does."""
    axes, rank = v.attr("axes"), v.rank(0) or 1
    if axes is None:
        return axis
    named = [a % rank for a in axes]
    return named.index(axis) if axis in named else None


def _operands(v: NodeView) -> tuple[Known | None, Known | None]:
    """Return scales and sizes, of which a node has one; None for the other or if unknown."""
    scales = v.known(2 if v.op == "Resize" and v.opset >= 11 else 1)
    if scales is None and v.attr("scales") is not None:
        scales = Known(np.array(v.attr("scales"), np.float32))
    return _filled(scales), _filled(v.known(3))


def _filled(known: Known | None) -> Known | None:
    """Return an operand, or None if it is empty, which ONNX treats as omitted."""
    return known if known is not None and known.array.size else None


def _resizes_by_length(v: NodeView, axis: int) -> bool:
    """Return whether a scale, or the size of another axis, depends on the number of positions."""
    place, (scales, sizes) = _place(v, axis), _operands(v)
    marks = [] if sizes is None else sizes.marks.reshape(-1).tolist()
    others = [mark for index, mark in enumerate(marks) if index != place]
    return any(others) or (scales is not None and scales.is_tainted)


def _keeps(v: NodeView, axis: int) -> bool:
    """Return whether an axis keeps any size that it has: scale 1, or a size computed from it."""
    place, (scales, sizes) = _place(v, axis), _operands(v)
    if place is None:
        return True
    where, nearest = v.attr("coordinate_transformation_mode"), v.attr("nearest_mode")
    if where == b"tf_crop_and_resize":
        return False  # crops to a region of interest
    if where == b"tf_half_pixel_for_nn" and nearest not in (None, b"floor", b"round_prefer_floor"):
        return False
    if sizes is not None:
        return bool(sizes.marks.reshape(-1)[place] == PROPORTIONAL)
    return scales is not None and float(scales.array.reshape(-1)[place]) == 1.0


def _ratio(v: NodeView, axis: int, old: int, new: int) -> Fraction | None:
    """Return output elements per input element; None for a scale that is no simple fraction."""
    place, (scales, _) = _place(v, axis), _operands(v)
    if scales is None or place is None:
        return Fraction(new, old)
    scale = float(scales.array.reshape(-1)[place])
    simple = Fraction(scale).limit_denominator(_MAX_DENOMINATOR)
    return simple if np.float32(float(simple)) == np.float32(scale) else None


_MAX_DENOMINATOR = 64
"""Largest denominator of a scale that is recognised as a fraction behind its float32 rounding."""
_TAPS = {"nearest": 2, "linear": 2, "cubic": 4, "bilinear": 2}
"""Input elements that one output element reads, by mode; "nearest" may round either way."""


def _resize_window(v: NodeView, ratio: Fraction, old: int, new: int) -> Window | None:
    """Return the window of Resize along one axis; None for modes that depend on the size.

    ``shift`` is the input coordinate of output 0, from the formulas of the ONNX operator Resize for
    each coordinate_transformation_mode.
    """
    mode = v.attr("mode", b"nearest").decode(errors="replace")
    default = b"half_pixel" if v.op == "Resize" and v.opset >= 11 else b"asymmetric"
    where = v.attr("coordinate_transformation_mode", default).decode(errors="replace")
    if ratio.numerator != 1 and ratio.denominator != 1:
        return None
    if where == "pytorch_half_pixel" and new == 1:
        return None  # this mode reads position 0 if the output has one element
    if where == "half_pixel_symmetric" and old * ratio != new:
        return None
    shift = {
        "half_pixel": 1 / (2 * ratio) - Fraction(1, 2),
        "pytorch_half_pixel": 1 / (2 * ratio) - Fraction(1, 2),
        "half_pixel_symmetric": 1 / (2 * ratio) - Fraction(1, 2),
        "asymmetric": Fraction(0),
        "tf_half_pixel_for_nn": 1 / (2 * ratio),
    }.get(where)
    if shift is None or mode not in _TAPS:
        return None
    taps = Fraction(_TAPS[mode])
    if v.attr("antialias", 0) and ratio < 1:
        taps = taps / ratio
    return Window(shift - (taps / 2 - 1), 1 / ratio, taps)


def grid_sample(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch, and the spatial axes of the grid, through GridSample."""
    image, grid = v.dep(0), v.dep(1)
    if image.axis is None and grid.axis is None:
        return v.all(FREE)
    if image.axis is not None and image.axis > 1:
        return v.all(v.lost(image, Kind.GATHERED, "coordinates"))
    if image.axis == 1 and grid.axis is not None:
        return v.all(v.lost(image, Kind.PAIRED, "coordinates"))
    if image.axis == 1:
        return v.all(image)
    if image.axis == 0:
        if grid.axis == 0 and image.has_blocks_of(grid):
            return v.all(join(image, grid, v.name))
        return v.all(image.broken(Kind.LENGTH, v.name, "position"))
    rank = v.rank(1)
    assert grid.axis is not None
    if grid.axis == 0 or rank is None or grid.axis == rank - 1:
        return v.all(grid.broken(Kind.LENGTH, v.name, "position"))
    return v.all(grid.at(grid.axis + 1))
