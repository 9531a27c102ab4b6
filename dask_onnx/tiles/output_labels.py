"""Labels of an xarray.DataArray on the results of a tiled prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.api.model import Model
from dask_onnx.core.specs import TensorSpec
from dask_onnx.tiles.places import Place, Places


def with_labels(
    source: Any,
    value: Any,
    name: str,
    places: Places,
    untiled: Mapping[int, Place],
    is_single: bool,
) -> Any:
    """Return a result as a DataArray with the labels of the image that it still fits.

    An axis *survives* if the result has it at the same size and stride. Coordinates whose
    dimensions all survive are kept with their indexes, whatever their number of dimensions.
    Coordinates along one tiled axis of another size or stride are interpolated. Attributes are kept
    if all tiled axes survive.

    Parameters
    ----------
    source : xarray.DataArray
        The image.
    value : array
        Result, with the batch axis.
    name : str
        Name of the output and of the result.
    places : Places
        Locations of the tiled axes in the result.
    untiled : mapping of int to Place
        Other axes of the image, with the batch axis, to their locations in the result.
    is_single : bool
        Whether the image has no batch axis.
    """
    from dask_onnx.collections import labelled_arrays  # needs xarray

    shift = int(is_single)
    dims: list[Any] = labelled_arrays.new_dimensions(name, value.ndim)
    surviving: set[Any] = set()
    resampled: dict[Any, Any] = {}
    if not is_single and value.ndim and value.shape[0] == source.shape[0]:
        # The batch axis keeps its labels behind operators whose axes are unknown, too.
        dims[0] = source.dims[0]
        surviving.add(source.dims[0])
    keeps_grid = bool(places)
    for k, place in {**untiled, **places}.items():
        if k < shift:
            continue
        dim, size = source.dims[k - shift], value.shape[place.axis] if place.is_separate else -1
        if place.is_separate and place.stride == 1 and size == source.sizes[dim]:
            dims[place.axis] = dim
            surviving.add(dim)
            continue
        keeps_grid = False
        if k in places and place.is_separate:
            dims[place.axis] = dim
            resampled |= _resampled_along(source, dim, place.stride, size)
    attrs = dict(source.attrs) if keeps_grid else None
    result = labelled_arrays.label(value, dims, source, surviving, name=name, attrs=attrs)
    return result.assign_coords(resampled)


def _resampled_along(source: Any, dim: Any, stride: Fraction, size: int) -> dict[Any, Any]:
    """Return the one-dimensional numeric coordinates along a dimension at another stride."""
    coords = {label: c for label, c in source.coords.items() if c.dims == (dim,)}
    return {
        label: _resampled(coord, stride, size)
        for label, coord in coords.items()
        if coord.dtype.kind in "fiu" and len(coord) > 1
    }


def _resampled(coord: Any, stride: Fraction, size: int) -> Any:
    """Return a coordinate at the centres of larger or smaller pixels.

    Values are interpolated linearly, and extrapolated by the first and last step.
    """
    step = float(stride)
    at = np.arange(size) * step + (step - 1) / 2
    values = coord.values.astype(np.float64)
    first, last = values[1] - values[0], values[-1] - values[-2]
    found = np.interp(at, np.arange(len(values)), values)
    found = np.where(at < 0, values[0] + at * first, found)
    beyond = at - (len(values) - 1)
    found = np.where(beyond > 0, values[-1] + beyond * last, found)
    return coord.dims, found, dict(coord.attrs)


def untiled_axes(
    model: Model, spec: TensorSpec, shape: Sequence[int], tiled: Sequence[int], output: str
) -> dict[int, Place]:
    """Return where the axes that are not tiled lie in an output: bands that a model keeps apart.

    Parameters
    ----------
    model : Model
    spec : TensorSpec
        Input of the model.
    shape : sequence of int
        Shape of an image that the model accepts.
    tiled : sequence of int
        Tiled axes of the image.
    output : str
        Name of the output.

    Returns
    -------
    dict of int to Place
        Axis of the image to its location; without axes that the output does not carry, or whose
        positions the model mixes.
    """
    facts = model._facts
    specs = infer_shapes(facts.graph, {spec.name: tuple(shape)}, facts.schemas)
    sizes = specs[output].shape if output in specs else None
    found: dict[int, Place] = {}
    for axis in set(range(len(shape))) - set(tiled):
        dep = propagate(facts.graph, specs, {spec.name: axis}, facts.custom_axes).get(output)
        if dep is None or dep.is_broken or dep.axis is None or sizes is None:
            continue
        size = sizes[dep.axis]
        if isinstance(size, int):
            count = size // (dep.outer * dep.inner)
            found[axis] = Place(dep.axis, dep.outer, dep.inner, count, dep.window.stride)
    return found
