"""xarray in, xarray out: dimensions and coordinates of the rows are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from dask_onnx.core.errors import InputError


def predict_dataarray(
    x: xr.DataArray,
    axis: int | None,
    output_axes: Mapping[str, int | None],
    run: Callable[[Any], Mapping[str, Any]],
) -> dict[str, xr.DataArray]:
    """A DataArray for each output.

    Parameters
    ----------
    x : the one input; in memory or of dask, which stays lazy
    axis : its batch axis
    output_axes : output to the batch axis of it
    run : the prediction on the array itself

    Raises
    ------
    InputError
        The input has no batch axis.
    """
    if axis is None:
        raise InputError(
            "the model's input has no batch axis, so no dimension is kept",
            "pass x.data, and name the dimensions of the result yourself",
        )
    rows = x.dims[axis]
    kept = {name: coord for name, coord in x.coords.items() if set(coord.dims) <= {rows}}
    return {
        name: _named(name, value, output_axes[name], rows, kept)
        for name, value in run(x.data).items()
    }


def _named(
    name: str, value: Any, axis: int | None, rows: Any, coords: Mapping[Any, Any]
) -> xr.DataArray:
    dims = [rows if i == axis else f"{name}_{i}" for i in range(value.ndim)]
    own = coords if axis is not None else {k: c for k, c in coords.items() if not c.dims}
    return xr.DataArray(value, dims=dims, coords=own, name=name)
