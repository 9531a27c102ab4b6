"""Inputs of a model that takes pictures: which one it is, its layout, and what feeds the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dask_onnx.collections.images.decoding import CHANNELS
from dask_onnx.collections.images.graph_hints import channels_first, conv_channels
from dask_onnx.collections.images.image_options import ImageOptions
from dask_onnx.collections.images.input_layout import InputLayout, Size, input_layout
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec, is_floating
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.runtime.input_values import as_input

EXTRA_FEEDS = {
    "orig_target_sizes": "width, height",
    "im_shape": "height, width",
    "scale_factor": "ones",
    "pixel_mask": "mask",
}
"""Inputs beside the image that detectors have, to what they are fed with."""


def image_spec(inputs: Sequence[TensorSpec], given: ImageOptions) -> TensorSpec:
    """Return the input that takes the picture.

    Raises
    ------
    InputError
        An option names an input that is not there, or several inputs may take pictures, or none.
    """
    if not isinstance(given.feeds, Mapping):
        raise InputError(
            f"feeds is a {type(given.feeds).__name__}",
            "give a dict of values by input name",
            option="feeds",
        )
    specs = {spec.name: spec for spec in inputs}
    for name in (*given.feeds, *([given.input] if given.input else ())):
        if name not in specs:
            raise InputError(
                f"there is no input {name!r} that the outputs need",
                f"the inputs are {', '.join(map(str, inputs))}",
                option="feeds" if name in given.feeds else "input",
                input=str(name),
            )
    if given.input is not None:
        return specs[given.input]
    left = [spec for spec in inputs if spec.name not in given.feeds]
    found = [s for s in left if s.rank in (3, 4) and s.name not in EXTRA_FEEDS]
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"{len(found) or 'none'} of the inputs may take a picture: "
        f"{', '.join(map(str, inputs)) or 'there is none'}",
        "name it: input=; pictures need 3 axes, or 4 with the batch axis",
        option="input",
        suggestions=[Suggestion("input", spec.name) for spec in found],
    )


def layout_of(facts: ModelFacts, spec: TensorSpec, given: ImageOptions) -> InputLayout:
    """Return the layout of the input that takes the picture.

    The axis of channels is the one that the caller names; or the only one of the first and the last
    whose size is 1, 3 or 4; or the one that the first convolution reads.

    Raises
    ------
    InputError
        The number of channels is not that of a picture, or unknown.
    """
    found = input_layout(spec)
    if not (is_floating(found.dtype) or found.dtype.kind in "iu"):
        raise InputError(
            f"input {spec} takes no numbers, and a picture is made of them",
            "name the input that takes pictures: input=",
            option="input",
            input=spec.name,
        )
    order = _order(given.layout)
    if order is None:
        order = _declared_order(facts, spec)
    found = input_layout(spec, is_channels_first=order)
    channels = found.channels
    if channels is None and found.is_channels_first:
        channels = conv_channels(facts.graph, spec.name)
    if channels is None and given.color in CHANNELS:
        channels = CHANNELS[given.color]
    if channels not in (1, 3, 4):
        raise InputError(
            f"input {spec} has {channels or 'an open number of'} channels; pictures have 1, 3 or 4",
            "name the order of the axes: layout='NCHW' or 'NHWC', and the channels: color='RGB'",
            option="layout",
            input=spec.name,
            suggestions=[Suggestion("layout", "NCHW"), Suggestion("layout", "NHWC")],
        )
    return dataclasses.replace(found, channels=channels)


def _order(given: str | None) -> bool | None:
    """Return whether channels come first, as the caller says."""
    if given is None:
        return None
    orders = {"NCHW": True, "CHW": True, "NHWC": False, "HWC": False}
    if str(given).upper() not in orders:
        raise InputError(
            f"layout is {given!r}",
            "choose NCHW or NHWC",
            option="layout",
            suggestions=[Suggestion("layout", "NCHW"), Suggestion("layout", "NHWC")],
        )
    return orders[str(given).upper()]


def _declared_order(facts: ModelFacts, spec: TensorSpec) -> bool | None:
    """Return whether channels come first, where one axis only can be that of channels."""
    first, last = (spec.shape or ())[-3], (spec.shape or ())[-1]
    may_be = [dim in (1, 3, 4) for dim in (first, last)]
    if may_be[0] != may_be[1]:
        return may_be[0]
    return channels_first(facts.graph, spec.name)


def other_feeds(
    inputs: Sequence[TensorSpec], image: TensorSpec, given: ImageOptions
) -> dict[str, Any]:
    """Return the values of the inputs beside the picture's, or the names of `EXTRA_FEEDS`.

    Parameters
    ----------
    inputs : sequence of TensorSpec
    image : TensorSpec
        Input that takes pictures.
    given : ImageOptions

    Raises
    ------
    InputError
        An input is fed by nothing, or a value does not fit its dtype.
    """
    specs = {spec.name: spec for spec in inputs}
    feeds: dict[str, Any] = {
        name: as_input(value, specs[name]) for name, value in given.feeds.items()
    }
    for spec in inputs:
        if spec.name == image.name or spec.name in feeds:
            continue
        if spec.name not in EXTRA_FEEDS:
            raise InputError(
                f"the model takes {spec} beside the picture",
                f"give its value for one picture, without the batch axis: feeds={{{spec.name!r}: "
                "...}, or choose outputs= that do not need it",
                option="feeds",
                input=spec.name,
                suggestions=[Suggestion("feeds"), Suggestion("outputs")],
            )
        feeds[spec.name] = EXTRA_FEEDS[spec.name]
    return feeds


def feed_value(kind: str, spec: TensorSpec, tensor: Size) -> Any:
    """Return the value for one picture of an input that `EXTRA_FEEDS` names.

    Boxes then are in pixels of the tensor, from where they are taken to the picture.

    Parameters
    ----------
    kind : str
        A value of `EXTRA_FEEDS`.
    spec : TensorSpec
        The input.
    tensor : (int, int)
        Height and width of the tensor.
    """
    dtype = spec.dtype or np.dtype(np.float32)
    if kind == "mask":
        sides = (spec.shape or ())[-2:]
        shape = [
            side if isinstance(side, int) else own for side, own in zip(sides, tensor, strict=True)
        ]
        return np.ones(shape, dtype)
    values = {"width, height": tensor[::-1], "height, width": tensor, "ones": (1, 1)}[kind]
    return np.array(values, dtype)
