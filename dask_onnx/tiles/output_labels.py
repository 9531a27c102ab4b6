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
from dask_onnx.tiles.image_borders import Borders
from dask_onnx.tiles.places import Place, Places

_SAME = (Fraction(0), Fraction(1))
"""Grid of the image itself: start and stride in pixels."""


def with_labels(
    source: Any,
    value: Any,
    name: str,
    places: Places,
    borders: Borders,
    untiled: Mapping[int, Place],
    is_single: bool,
) -> Any:
    """Return a result as a DataArray with the labels of the image that it still fits.

    An axis *survives* if each position of the result is one pixel of the image: all of them, or
    those that an unpadded convolution leaves. Coordinates whose dimensions all survive are kept
    with their indexes, whatever their number of dimensions. Coordinates along one tiled axis of
    another stride are interpolated. Attributes are kept if the result has the image's grid.

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
    borders : Borders
        Where the first position of the result starts on the image, along tiled axes.
    untiled : mapping of int to Place
        Other axes of the image, with the batch axis, to their locations in the result.
    is_single : bool
        True if the image has no batch axis.
    """
    from dask_onnx.collections import geotransform, labelled_arrays  # needs xarray

    shift = int(is_single)
    dims: list[Any] = labelled_arrays.new_dimensions(name, value.ndim)
    grids: dict[Any, tuple[Fraction, Fraction]] = {}
    if not is_single and value.ndim and value.shape[0] == source.shape[0]:
        # The batch axis keeps its labels behind operators whose axes are unknown, too.
        dims[0] = source.dims[0]
        grids[source.dims[0]] = _SAME
    for k, place in {**untiled, **places}.items():
        if k < shift or not place.is_separate:
            continue
        dim = source.dims[k - shift]
        is_whole = place.stride == 1 and value.shape[place.axis] == source.sizes[dim]
        if k in places:
            dims[place.axis] = dim
            if k in borders:
                grids[dim] = borders[k], place.stride
        elif is_whole:
            dims[place.axis] = dim
            grids[dim] = _SAME
    sizes = {dim: value.shape[axis] for axis, dim in enumerate(dims) if dim in grids}
    parts = {dim: _pixels(grids[dim], sizes[dim], source.sizes[dim]) for dim in grids}
    surviving = {dim: part for dim, part in parts.items() if part is not None}
    tiled = {source.dims[k - shift] for k in places if k >= shift}
    keeps_grid = bool(places) and all(
        grids.get(dim) == _SAME and sizes[dim] == source.sizes[dim] for dim in tiled
    )
    attrs = dict(source.attrs) if keeps_grid else None
    cut = source.isel(surviving)
    result = labelled_arrays.label(value, dims, cut, surviving, name=name, attrs=attrs)
    resampled: dict[Any, Any] = {}
    for dim in set(grids) - set(surviving):
        resampled |= _resampled_along(source, dim, grids[dim], sizes[dim])
    return geotransform.with_transform_of(result.assign_coords(resampled), source, grids)


def _pixels(grid: tuple[Fraction, Fraction], size: int, pixels: int) -> slice | None:
    """Return the pixels of the image that positions stand for; None if these are no pixels.

    Parameters
    ----------
    grid : tuple of Fraction
        Start and stride of the positions, in pixels.
    size : int
        Number of positions.
    pixels : int
        Pixels of the image.
    """
    border, stride = grid
    if stride != 1 or border.denominator != 1 or not 0 <= border <= pixels - size:
        return None
    return slice(int(border), int(border) + size)


def _resampled_along(
    source: Any, dim: Any, grid: tuple[Fraction, Fraction], size: int
) -> dict[Any, Any]:
    """Return the one-dimensional coordinates along a dimension at the positions of another grid.

    They are numbers or times; others cannot be interpolated.
    """
    coords = {label: c for label, c in source.coords.items() if c.dims == (dim,)}
    return {
        label: _resampled(coord, grid, size)
        for label, coord in coords.items()
        if coord.dtype.kind in "fiuM" and len(coord) > 1
    }


def _resampled(coord: Any, grid: tuple[Fraction, Fraction], size: int) -> Any:
    """Return a coordinate at the centres of pixels of another grid.

    Values are interpolated linearly, and extrapolated by the first and last step.
    """
    border, step = (float(number) for number in grid)
    at = border + (np.arange(size) + 0.5) * step - 0.5
    values, first_time = coord.values, None
    if values.dtype.kind == "M":  # relative to the first, for the precision of float64
        first_time, unit = values[0], np.diff(values[:1]).dtype
        values = (values - first_time).astype(unit).astype(np.int64)
    values = values.astype(np.float64)
    first, last = values[1] - values[0], values[-1] - values[-2]
    found = np.interp(at, np.arange(len(values)), values)
    found = np.where(at < 0, values[0] + at * first, found)
    beyond = at - (len(values) - 1)
    found = np.where(beyond > 0, values[-1] + beyond * last, found)
    if first_time is not None:
        found = first_time + np.round(found).astype(np.int64).astype(unit)
    return coord.dims, found, dict(coord.attrs)


def untiled_axes(
    model: Model,
    spec: TensorSpec,
    shape: Sequence[int],
    tiled: Sequence[int],
    output: str,
    others: Mapping[str, tuple[int, ...]] | None = None,
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
    others : mapping of str to tuple of int, optional
        Shapes of the other inputs.

    Returns
    -------
    dict of int to Place
        Axis of the image to its location; without axes that the output does not carry, or whose
        positions the model mixes.
    """
    facts = model._facts
    shapes = {**(others or {}), spec.name: tuple(shape)}
    specs = infer_shapes(facts.graph, shapes, facts.schemas)
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
