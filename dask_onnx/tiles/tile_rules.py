"""Effect of one node on a tiled axis: its location in the outputs, and the positions that are read.

Most rules are those of `analysis.axes.table`. This module adds rules that are more precise for one
known size: resizing and slicing by computed sizes, padding by reflection, and shapes that split an
axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import onnx

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind, Window, window
from dask_onnx.analysis.axes.layout_rules import reshaped
from dask_onnx.analysis.axes.table import CustomAxes, rule_of
from dask_onnx.analysis.axes.view import Known, NodeView, Shape
from dask_onnx.tiles.places import UNCHANGED, Place, ReceptiveField, Reflection, sliding_window
from dask_onnx.tiles.resize_modes import is_longer_than_one

_LARGEST_DENOMINATOR = 64
"""Largest numerator or denominator of a Resize scale; with other scales no tile would align."""


class AxisOutcome(NamedTuple):
    """Effect of a node on a tiled axis, for one output."""

    dep: Dependence
    """Dependence of the output; `kind` is above WINDOW where the axis cannot be cut."""
    place: Place | None
    """Location of the axis in the output; None if the output does not carry it."""
    receptive_field: ReceptiveField = UNCHANGED
    """Input positions that output positions need."""


class NodeRules:
    """Rules of one node, applied for the size of the whole image.

    Parameters
    ----------
    proto : onnx.NodeProto
    shape_of : callable
        Returns the shape of a value, or None.
    constant : callable
        Returns a small tensor that is known, or None.
    size_dependent : collection of str
        Values that follow from the size of the image.
    opset : int
        Version of ai.onnx.
    custom_axes : CustomAxes
        Axes that the caller's custom operators declare.
    """

    def __init__(
        self,
        proto: onnx.NodeProto,
        shape_of: Callable[[str], Shape | None],
        constant: Callable[[str], Known | None],
        size_dependent: Collection[str],
        opset: int,
        custom_axes: CustomAxes,
    ) -> None:
        self.proto, self.shape_of, self.constant = proto, shape_of, constant
        self.size_dependent, self.opset = size_dependent, opset
        self.entry = rule_of(proto.domain, proto.op_type, custom_axes)

    def outcomes(self, places: Sequence[Place | None], *, is_only_axis: bool) -> list[AxisOutcome]:
        """Return the outcome of a tiled axis for each output.

        Parameters
        ----------
        places : sequence of Place or None
            Location of the axis in each input; None where the input does not carry it.
        is_only_axis : bool
            True if no other tiled axis lies on the same axis of the first input.
        """
        found = self._outcomes(places)
        first = places[0] if places else None
        is_factored = any(o.dep.kind == Kind.FACTORED for o in found)
        if is_factored and is_only_axis and first is not None and first.inner > 1 == first.outer:
            # A Reshape may split between elements of one position, as pixel shuffle does: trace
            # single elements, and count their windows in blocks of a position.
            fine = Place(first.axis, 1, 1, first.size * first.inner, first.stride / first.inner)
            again = self._outcomes([fine, *places[1:]])
            if not any(o.dep.is_broken for o in again):
                return [_in_blocks(outcome, first.inner) for outcome in again]
        return found

    def _outcomes(self, places: Sequence[Place | None]) -> list[AxisOutcome]:
        carriers = [place for place in places if place is not None]
        ins = [
            FREE if p is None else Dependence(Kind.INDEPENDENT, p.axis, p.outer, p.inner)
            for p in places
        ]
        v = NodeView(
            self.proto,
            self.proto.name,
            list(self.proto.input),
            ins,
            self.shape_of,
            self.constant,
            self.opset,
            carriers[0].size,
        )
        if len({place.stride for place in carriers}) > 1:
            broken = v.broken(Kind.OPAQUE, "inputs of different strides")
            return [AxisOutcome(broken, None)] * len(self.proto.output)
        special = None if self.proto.domain else _SPECIAL.get(self.proto.op_type)
        if special is not None and places[0] is not None:
            outcome = special(self, v, places[0])
            if outcome is not None:
                return [outcome] * len(self.proto.output)
        deps = list(self.entry.rule(v))
        return [self._outcome(v, dep, i, carriers[0]) for i, dep in enumerate(deps)]

    def _outcome(self, v: NodeView, dep: Dependence, output: int, first: Place) -> AxisOutcome:
        if dep.is_broken:
            is_kept = dep.axis is not None and dep.kind == Kind.REDUCED
            place = self._place(v, dep, output, first) if is_kept else None
            return AxisOutcome(dep, place)
        if dep.axis is None:
            return AxisOutcome(v.broken(Kind.OPAQUE, "lost axis"), None)
        place = self._place(v, dep, output, first)
        if place is None:
            return AxisOutcome(v.broken(Kind.OPAQUE, "unknown size"), None)
        return AxisOutcome(dep, place, sliding_window(dep.window))

    def _place(self, v: NodeView, dep: Dependence, output: int, first: Place) -> Place | None:
        shape = v.out_shape(output)
        size = None if shape is None or dep.axis is None else shape[dep.axis]
        if size is None or dep.axis is None or size % (dep.outer * dep.inner):
            return None
        positions = size // (dep.outer * dep.inner)
        return Place(dep.axis, dep.outer, dep.inner, positions, first.stride * dep.window.stride)

    def is_size_dependent(self, index: int) -> bool:
        """Return whether an input follows from the size of the image."""
        return index < len(self.proto.input) and self.proto.input[index] in self.size_dependent


def _in_blocks(outcome: AxisOutcome, blocks: int) -> AxisOutcome:
    return outcome._replace(receptive_field=sliding_window(outcome.dep.window, blocks))


def _windowed(
    v: NodeView, place: Place, over: Window, how: str, receptive_field: ReceptiveField | None = None
) -> AxisOutcome:
    """Return the outcome of a window along a tiled axis that is an axis of its own."""
    shape = v.out_shape()
    size = None if shape is None else shape[place.axis]
    if size is None:
        return AxisOutcome(v.broken(Kind.OPAQUE, "unknown size"), None)
    dep = Dependence(Kind.WINDOW, place.axis, window=over, node=v.name, how=how)
    after = Place(place.axis, 1, 1, size, place.stride * over.stride)
    return AxisOutcome(
        dep, after, sliding_window(over) if receptive_field is None else receptive_field
    )


def _broken(v: NodeView, kind: Kind, how: str) -> AxisOutcome:
    return AxisOutcome(v.broken(kind, how), None)


def _reshape(rules: NodeRules, v: NodeView, place: Place) -> AxisOutcome | None:
    """Return the outcome of splitting an axis into groups of k positions, and k; else None."""
    before, after = v.shape(0), v.out_shape()
    if before is None or after is None or None in before or None in after:
        return None
    if reshaped(v.dep(0), before, after, v.name).axis is not None:
        return None
    old = [size or 0 for size in before]
    new = [size or 0 for size in after]
    in_front = math.prod(old[: place.axis]) * place.outer
    behind = math.prod(old[place.axis + 1 :]) * place.inner
    prefix = 1
    for axis, size in enumerate(new):
        suffix = math.prod(new[axis + 1 :])
        if prefix == in_front and size > 1 and place.size % size == 0:
            k = place.size // size
            if k > 1 and suffix == behind * k:
                dep = Dependence(Kind.WINDOW, axis, window=window(0, k, k), node=v.name)
                split = Place(axis, 1, 1, size, place.stride * k)
                return AxisOutcome(dep, split, sliding_window(window(0, k, k)))
        prefix *= size
    return None


# Slice and Pad.


def _slice(rules: NodeRules, v: NodeView, place: Place) -> AxisOutcome | None:
    """Return the outcome of a Slice; None where the general rule applies."""
    bounds = slice_bounds(v)
    if bounds is None or place.axis not in bounds:
        return None
    start, step, is_to_end = bounds[place.axis]
    size = place.size
    if not place.is_separate:
        return None
    if step < 1 or start < 0:
        return _broken(v, Kind.GATHERED, "flipping" if step < 0 else "slice from the end")
    if start == 0 and step == 1 and v.out_shape() == v.shape(0):
        return AxisOutcome(v.dep(0), place)
    if not is_to_end and not any(rules.is_size_dependent(i) for i in (1, 2)):
        return _broken(v, Kind.GATHERED, f"slice up to a fixed position of {size}")
    return _windowed(v, place, window(start, step, 1), "slice")


def slice_bounds(v: NodeView) -> dict[int, tuple[int, int, bool]] | None:
    """Return start, step and ``is_to_end`` for each axis that a Slice names.

    Starts are counted from the first position; -1 is a start that is counted from the end. An end
    that is counted from the end, or lies beyond it, makes ``is_to_end`` true. The result is None if
    the bounds are not known.
    """
    rank, shape = v.rank(0), v.shape(0)
    if rank is None or shape is None:
        return None
    if v.opset < 10:
        starts, ends = v.attr("starts", []), v.attr("ends", [])
        axes, steps = v.attr("axes") or list(range(len(starts))), [1] * len(starts)
    else:
        bounds = [v.known(i) for i in range(1, 5)]
        if any(v.has(i) and bounds[i - 1] is None for i in range(1, 5)):
            return None
        starts, ends = ([int(n) for n in b.array.reshape(-1)] for b in bounds[:2] if b is not None)
        axes, steps = (
            default if b is None else [int(n) for n in b.array.reshape(-1)]
            for b, default in (
                (bounds[2], list(range(len(starts)))),
                (bounds[3], [1] * len(starts)),
            )
        )
    found = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = shape[axis % rank]
        if size is None:
            return None
        first = max(start + size, 0) if start < 0 else start
        first = -1 if start < 0 < first else first  # counted from the end
        found[axis % rank] = first, step, end < 0 or end >= size
    return found


def _pad(rules: NodeRules, v: NodeView, place: Place) -> AxisOutcome | None:
    """Return the outcome of a Pad; None where the general rule applies."""
    begin_end = pad_bounds(v, place.axis)
    if begin_end is None:
        return None
    begin, end = begin_end
    if begin == end == 0:
        return AxisOutcome(v.dep(0), place)
    if not place.is_separate:
        return None
    mode = v.attr("mode", b"constant").decode()
    if mode not in ("constant", "edge", "reflect"):
        return _broken(v, Kind.GATHERED, f"{mode} padding")
    receptive_field = Reflection(begin, end) if mode == "reflect" else None
    return _windowed(v, place, window(-begin, 1, 1), f"{mode} padding", receptive_field)


def pad_bounds(v: NodeView, axis: int) -> tuple[int, int] | None:
    """Return the positions that a Pad adds before and after an axis; None if not known."""
    rank = v.rank(0)
    if v.has(1):
        known = v.known(1)
        pads = None if known is None else known.array.reshape(-1)
    else:
        pads = v.attr("pads") or v.attr("paddings")
    if rank is None or pads is None:
        return None
    axes = list(range(rank))
    if v.has(3):
        named = v.known(3)
        if named is None:
            return None
        axes = [int(a) % rank for a in named.array.reshape(-1)]
    if axis not in axes or len(pads) != 2 * len(axes):
        return (0, 0) if axis not in axes else None
    place = axes.index(axis)
    return int(pads[place]), int(pads[place + len(axes)])


# Resize.

_TAPS = {"nearest": 2, "linear": 2, "cubic": 4, "bilinear": 2}
"""Input positions that one output position reads; 2 for nearest, since it may round either way."""


def _resize(rules: NodeRules, v: NodeView, place: Place) -> AxisOutcome | None:
    """Return the outcome of a Resize or Upsample; None where the general rule applies."""
    before, after = v.shape(0), v.out_shape()
    if before is None or after is None:
        return None
    old, new = before[place.axis], after[place.axis]
    if not old or not new:
        return None
    scale = resize_scale(v, place.axis)
    if scale == 1 or (scale is None and old == new):
        return AxisOutcome(v.dep(0), place)
    if not place.is_separate:
        return None
    ratio = Fraction(new, old) if scale is None else scale
    over = _resize_window(v, ratio, old) if _is_local(v, before, after) else None
    if over is None:
        return _broken(v, Kind.LENGTH, f"resizing {old} to {new}")
    return _windowed(v, place, over, "resizing")


def _is_local(v: NodeView, before: Shape, after: Shape) -> bool:
    """Return whether a Resize computes on a tile what it does on the whole image.

    Where ``pytorch_half_pixel`` remains (see `resize_modes`), an axis has one output element.
    """
    mode = v.attr("coordinate_transformation_mode", b"")
    return mode != b"pytorch_half_pixel" or is_longer_than_one(before, after)


def resize_scale(v: NodeView, axis: int) -> Fraction | None:
    """Return the scale that a Resize or Upsample gives for an axis; None if it gives sizes."""
    scales = v.known(2 if v.op == "Resize" and v.opset >= 11 else 1)
    values = v.attr("scales") if scales is None else scales.array.reshape(-1)
    if values is None or not len(values):
        return None
    axes = v.attr("axes")
    if axes is not None:
        rank = v.rank(0) or 1
        named = [a % rank for a in axes]
        if axis not in named:
            return Fraction(1)
        return _fraction(float(values[named.index(axis)]))
    return _fraction(float(values[axis]))


def _fraction(scale: float) -> Fraction:
    """Return the simple fraction that a float32 approximates, or else its exact value."""
    exact = Fraction(scale)
    simple = exact.limit_denominator(_LARGEST_DENOMINATOR)
    return simple if np.float32(float(simple)) == np.float32(scale) else exact


def _resize_window(v: NodeView, ratio: Fraction, size: int) -> Window | None:
    """Return the window of a Resize; None where it depends on the size of the image.

    Parameters
    ----------
    v : NodeView
    ratio : Fraction
        Output positions for each input position.
    size : int
        Input positions.
    """
    mode = v.attr("mode", b"nearest").decode()
    default = b"half_pixel" if v.op == "Resize" and v.opset >= 11 else b"asymmetric"
    where = v.attr("coordinate_transformation_mode", default).decode()
    if max(ratio.numerator, ratio.denominator) > _LARGEST_DENOMINATOR or mode not in _TAPS:
        return None
    half = 1 / (2 * ratio) - Fraction(1, 2)
    shift = {
        "half_pixel": half,
        "pytorch_half_pixel": half,
        "half_pixel_symmetric": half if (ratio * size).denominator == 1 else None,
        "asymmetric": Fraction(0),
        "tf_half_pixel_for_nn": 1 / (2 * ratio),
    }.get(where)
    is_stretched = v.attr("keep_aspect_ratio_policy", b"stretch") == b"stretch"
    if shift is None or not is_stretched:
        return None
    taps = Fraction(_TAPS[mode])
    if v.attr("antialias", 0) and ratio < 1:
        taps = taps / ratio
    return Window(shift - (taps / 2 - 1), 1 / ratio, taps)


_SPECIAL: Mapping[str, Callable[[NodeRules, NodeView, Place], AxisOutcome | None]] = {
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
}
