"""The affine transform of a georeferenced DataArray, for results on another grid.

rioxarray keeps six numbers as text in the attribute ``GeoTransform`` of a scalar coordinate, and
prefers them to the coordinates: a result on another grid must not carry those of its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import xarray as xr

_ATTRIBUTE = "GeoTransform"
_NAMED_DIMENSIONS = (("y", "x"), ("latitude", "longitude"))
"""Names of rows and columns that rioxarray knows."""

Grid = tuple[Fraction, Fraction]
"""Start of the first pixel and pixels from one to the next, in pixels of the source."""


def with_transform_of(
    result: xr.DataArray, source: xr.DataArray, grids: Mapping[Any, Grid]
) -> xr.DataArray:
    """Return a result whose ``GeoTransform`` is that of its own grid.

    Parameters
    ----------
    result : xarray.DataArray
        With the scalar coordinates of `source`.
    source : xarray.DataArray
    grids : mapping of hashable to Grid
        Dimension of `source` to the grid of `result` along it; dimensions are left out where the
        grid is not known.

    Returns
    -------
    xarray.DataArray
        Without the attribute where the grid of rows or columns is not known.
    """
    held = {
        name: source.coords[name]
        for name in result.coords
        if name in source.coords and _ATTRIBUTE in source.coords[name].attrs
    }
    changed = {
        name: (coord.dims, coord.values, _attributes(coord.attrs, _grids_of(source, grids)))
        for name, coord in held.items()
        if coord.ndim == 0
    }
    return result.assign_coords(changed) if changed else result


def _grids_of(source: xr.DataArray, grids: Mapping[Any, Grid]) -> tuple[Grid, Grid] | None:
    """Return the grids of rows and columns; None where one of them is not known."""
    pairs = [pair for pair in _NAMED_DIMENSIONS if set(pair) <= set(source.dims)]
    pair = pairs[0] if pairs else source.dims[-2:]
    if len(pair) < len(_NAMED_DIMENSIONS[0]) or not set(pair) <= set(grids):
        return None
    return grids[pair[0]], grids[pair[1]]


def _attributes(attrs: Mapping[Any, Any], grids: tuple[Grid, Grid] | None) -> dict[Any, Any]:
    """Return attributes with the transform of a grid, or without one if that is not known."""
    found = dict(attrs)
    text = found.pop(_ATTRIBUTE)
    try:
        x, dx, turn_x, y, turn_y, dy = (float(part) for part in str(text).split())
    except ValueError:  # not the six numbers of GDAL
        return found
    if grids is None:
        return found
    (row, row_step), (column, column_step) = ((float(a), float(b)) for a, b in grids)
    if (row, row_step, column, column_step) == (0.0, 1.0, 0.0, 1.0):
        return {**found, _ATTRIBUTE: text}
    numbers = (
        x + column * dx + row * turn_x,
        dx * column_step,
        turn_x * row_step,
        y + column * turn_y + row * dy,
        turn_y * column_step,
        dy * row_step,
    )
    return {**found, _ATTRIBUTE: " ".join(repr(number) for number in numbers)}
