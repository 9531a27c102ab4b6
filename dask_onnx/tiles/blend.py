"""Blending of overlapping tiles: an approximation for models that have no exact tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np

from dask_onnx.api.model import Model
from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.tiles.blend_axes import as_places, output_axes
from dask_onnx.tiles.blend_graph import BlendGraph
from dask_onnx.tiles.image_input import (
    InputImage,
    as_input_image,
    compute_together,
    crop_padding,
    in_form_of,
)
from dask_onnx.tiles.output_labels import untiled_axes
from dask_onnx.tiles.ramps import axis_tiling
from dask_onnx.tiles.tiling_analysis import window_axes

DEFAULT_OVERLAP = 64
"""Pixels that neighbouring tiles share unless the caller says otherwise."""


def blend(
    model: Model,
    image: Any,
    spec: TensorSpec,
    *,
    tile: Any,
    axes: Sequence[int] | None,
    outputs: Outputs,
    overlap: int | Sequence[int] | None,
) -> Any:
    """Run the whole model on overlapping tiles and blend them with linear ramps.

    Parameters
    ----------
    model, image, tile, axes, outputs, overlap
        As for `predict_tiled`.
    spec : TensorSpec
        Input of the model.

    Returns
    -------
    as `predict_tiled`

    Raises
    ------
    InputError
        The overlap exceeds half of the tile, the model does not accept tiles of that size, or an
        output does not grow with the image.
    """
    given = as_input_image(image, TensorSpec(spec.name, spec.dtype, _without_sizes(spec)))
    facts = model._facts
    if axes is None:
        tiled = window_axes(facts.graph, facts.schemas, facts.custom_axes, spec, given.shape)
    else:
        tiled = tuple(sorted(axis % len(given.shape) for axis in axes))
    lengths = _tile_lengths(tile, tiled, spec, given)
    overlaps = _overlaps(overlap, tiled, lengths)
    wanted = resolve_outputs(outputs, model.facts.outputs, facts.known_values)
    locations = {n: output_axes(model, spec, given.shape, lengths, n) for n in wanted.names}
    align = {
        k: math.lcm(1, *(found[k].ratio.denominator for found in locations.values() if k in found))
        for k in tiled
    }
    padded = _padded(given, spec, lengths, align)
    tilings = {k: axis_tiling(padded.shape[k], lengths[k], overlaps[k], align[k]) for k in tiled}
    arrays = BlendGraph(model, spec, padded, tilings, locations, wanted.names).arrays()
    for name, value in arrays.items():
        places = as_places(locations[name], value.shape)
        arrays[name] = crop_padding(value, places, {k: given.shape[k] for k in tiled})
    values: Mapping[str, Any] = arrays if given.is_lazy else compute_together(arrays)
    results = {}
    for name, value in values.items():
        places, others = as_places(locations[name], value.shape), {}
        if given.labelled is not None:
            shape = [lengths.get(axis, size) for axis, size in enumerate(given.shape)]
            others = untiled_axes(model, spec, shape, tiled, name)
        starts = dict.fromkeys(places, Fraction(0))
        results[name] = in_form_of(given, value, name, places, starts, others)
    return wanted.shape_result(results)


def _padded(
    image: InputImage, spec: TensorSpec, lengths: Mapping[int, int], align: Mapping[int, int]
) -> InputImage:
    """Return the image, padded at the end so that tiles of the model's fixed size cover it."""
    shape = list(image.shape)
    for k, length in lengths.items():
        if spec.shape is not None and isinstance(spec.shape[k], int):
            shape[k] = length + -(-max(shape[k] - length, 0) // align[k]) * align[k]
    widths = [(0, new - old) for old, new in zip(image.shape, shape, strict=True)]
    if not any(after for _, after in widths):
        return image
    pad = da.pad if image.is_lazy else np.pad
    return replace(image, data=pad(image.data, widths, mode="edge"))


def _without_sizes(spec: TensorSpec) -> tuple[Any, ...] | None:
    """Return the model's shape without the sizes behind axis 1, which may be those of a tile."""
    if spec.shape is None:
        return None
    return tuple(None if axis > 1 else dim for axis, dim in enumerate(spec.shape))


def _tile_lengths(
    tile: Any, tiled: Sequence[int], spec: TensorSpec, image: InputImage
) -> dict[int, int]:
    """Return the pixels of a tile along each axis: the model's own where that is fixed."""
    fixed = {k: dim for k in tiled if spec.shape and isinstance(dim := spec.shape[k], int)}
    if isinstance(tile, str):
        if len(fixed) != len(tiled):
            raise InputError(
                f"tile is {tile!r}; with exact=False a tile size is chosen only for a model of "
                "fixed size",
                "give pixels, such as tile=1024",
                option="tile",
                suggestions=[Suggestion("tile", 1024)],
            )
        sizes = [fixed[k] for k in tiled]
    else:
        sizes = [tile] * len(tiled) if isinstance(tile, int) else [int(size) for size in tile]
    if len(sizes) != len(tiled) or any(size < 1 for size in sizes):
        raise InputError(
            f"tile is {tile!r}; axes {tuple(tiled)} are tiled",
            "give a positive number of pixels, or one for each of these axes",
            option="tile",
        )
    lengths = dict(zip(tiled, sizes, strict=True))
    for k, dim in fixed.items():
        if lengths[k] != dim:
            raise InputError(
                f"tile is {lengths[k]} on axis {k}; the model takes {spec}",
                f"pass {dim} for that axis, or tile='auto'",
                option="tile",
                input=spec.name,
                axis=k,
                numbers={"tile": lengths[k], "expected_tile": dim},
                suggestions=[Suggestion("tile", "auto")],
            )
    return {
        k: length if k in fixed else min(length, image.shape[k]) for k, length in lengths.items()
    }


def _overlaps(
    overlap: int | Sequence[int] | None, tiled: Sequence[int], lengths: Mapping[int, int]
) -> dict[int, int]:
    """Return the pixels that neighbours share along each axis."""
    overlap = DEFAULT_OVERLAP if overlap is None else overlap
    each = [overlap] * len(tiled) if isinstance(overlap, int) else list(overlap)
    found = dict(zip(tiled, each, strict=False))
    if len(each) != len(tiled) or any(
        not isinstance(size, int) or not 0 <= 2 * size <= lengths[k] for k, size in found.items()
    ):
        raise InputError(
            f"overlap is {overlap!r}; tiles have {tuple(lengths.values())} pixels",
            "give pixels, at most half of the tile along each axis",
            option="overlap",
            numbers={"largest_overlap": min(lengths.values()) // 2},
            suggestions=[Suggestion("overlap", min(lengths.values()) // 2)],
        )
    return found
