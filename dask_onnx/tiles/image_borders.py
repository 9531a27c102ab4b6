"""Offsets of values against the image: the border of the first position, in pixels.

Unpadded convolutions, crops and paddings move the positions of their output against those of the
image. The *border* of a value is the start of the area that its positions cover, so that position p
has its centre at ``border + (p + 1/2) * stride - 1/2`` pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.tiles.flow import Edge, Flow, Step
from dask_onnx.tiles.places import UNCHANGED, Places, Reflection, SlidingWindow

_HALF = Fraction(1, 2)
_RESIZING = ("Resize", "Upsample")

Borders = Mapping[int, Fraction]
"""Tiled axis to the start, in pixels, of the area that a value covers."""


def borders_on_image(
    flow: Flow, deficits: Mapping[tuple[str, int], Fraction], output: str
) -> dict[int, Fraction]:
    """Return where the first position of an output starts on the image, along each tiled axis.

    A node whose output covers as many pixels as its input, padded as it may be, leaves the border
    where it is; so an image and a mask of the same size share their grid. Otherwise the centre of
    its window is the centre of its first position.

    Parameters
    ----------
    flow : Flow
    deficits : mapping of (str, int) to Fraction
        Value and tiled axis to the positions that an aligned crop lacks; see `deficits_of`.
    output : str
        Name of a value.

    Returns
    -------
    dict of int to Fraction
        In pixels; without the axes along which the location is unknown, as behind nodes that run on
        untiled values and change their size.
    """
    found: dict[str, dict[int, Fraction]] = {}
    for name, traced in flow.values.items():
        index = flow.facts.producer.get(name)
        step = None if index is None else flow.steps.get(index)
        if step is None:  # the image itself
            found[name] = dict.fromkeys(traced.places, Fraction(0))
            continue
        found[name] = {}
        for k, place in traced.places.items():
            lost = deficits.get((name, k), Fraction(0)) * place.stride
            border = Fraction(0) if lost == 0 else _border(flow, deficits, found, step, k, lost)
            if border is not None:
                found[name][k] = border
    return found.get(output, {})


def _border(
    flow: Flow,
    deficits: Mapping[tuple[str, int], Fraction],
    found: Mapping[str, Borders],
    step: Step,
    k: int,
    lost: Fraction,
) -> Fraction | None:
    """Return the border of a node's output from those of the first input whose border is known.

    Parameters
    ----------
    flow : Flow
    deficits : mapping
    found : mapping of str to Borders
        Borders of the values before the node.
    step : Step
    k : int
        Tiled axis.
    lost : Fraction
        Pixels that the output covers less than the image.
    """
    output = flow.values[step.node.outputs[0]].places
    for edge in step.edges:
        before = found.get(edge.value, {}).get(k)
        if before is None:
            continue
        places = edge.places or flow.values[edge.value].places
        if k not in places:
            continue
        if deficits.get((edge.value, k), Fraction(0)) * places[k].stride == lost:
            return before
        if k in edge.receptive_fields:
            return _centred(step, edge, k, before, places, output)
    return None


def _centred(
    step: Step, edge: Edge, k: int, before: Fraction, places: Places, output: Places
) -> Fraction:
    """Return the border of an output whose first position is at the centre of its window."""
    stride = places[k].stride
    centre = before + stride * (_HALF + _window_centre(step, edge, k))
    return centre - output[k].stride * _HALF if k in output else centre - stride * _HALF


def _window_centre(step: Step, edge: Edge, k: int) -> Fraction:
    """Return the centre of the window of output position 0, in positions of the input."""
    field = edge.receptive_fields[k]
    if isinstance(field, Reflection):
        return Fraction(-field.begin)
    assert isinstance(field, SlidingWindow)
    unit = field.unit * field.blocks
    offset, extent = Fraction(field.offset, unit), Fraction(field.extent, unit)
    # The taps of a Resize are counted from the position at or before the one that it samples.
    is_resized = standard_op_type(step.node) in _RESIZING and field != UNCHANGED
    return offset + (extent / 2 - 1 if is_resized else (extent - 1) / 2)
