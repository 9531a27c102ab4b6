"""Pictures as callers have them, as arrays that a model takes, and results in the same form."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np
from dask.base import compute

from dask_onnx.collections.kinds import is_dataarray
from dask_onnx.core.errors import InputError
from dask_onnx.core.peers import is_inside_task
from dask_onnx.core.specs import TensorSpec, dtype_name
from dask_onnx.tiles.places import Place


@dataclass(frozen=True, slots=True)
class Picture:
    """What the caller has passed."""

    data: Any
    """numpy or dask, of the model's rank."""
    is_lazy: bool
    is_single: bool
    """It came without the batch axis."""
    labelled: Any = None
    """The DataArray that it was, if it was one."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)


def as_picture(image: Any, spec: TensorSpec) -> Picture:
    """Return a picture of the model's rank.

    Raises
    ------
    InputError
        Another kind of collection, dtype, rank or fixed size than the model takes.
    """
    labelled = image if is_dataarray(image) else None
    data = image.data if labelled is not None else image
    is_lazy = isinstance(data, da.Array)
    if not is_lazy:
        data = np.asarray(data)
    rank = len(spec.shape) if spec.shape is not None else data.ndim
    is_single = data.ndim == rank - 1
    if is_single:
        data = data[None]
    _check(data, spec, is_single=is_single)
    return Picture(data, is_lazy, is_single, labelled)


def _check(data: Any, spec: TensorSpec, *, is_single: bool) -> None:
    if spec.dtype is not None and data.dtype != spec.dtype:
        raise InputError(
            f"the picture has dtype {data.dtype}; the model takes {spec}",
            f"convert it: .astype({dtype_name(spec.dtype)!r})",
        )
    if spec.shape is None:
        return
    shape = data.shape[1:] if is_single else data.shape
    if data.ndim != len(spec.shape):
        raise InputError(
            f"the picture has rank {data.ndim}, shape {shape}; the model takes {spec}",
            "give every axis that the model names; the batch axis may be left out",
        )
    if any(size != size for size in data.shape):
        raise InputError(
            f"the picture has an unknown size, shape {shape}",
            "call compute_chunk_sizes() on it first",
        )
    if 0 in data.shape:
        raise InputError(f"the picture is empty: shape {shape}", "pass one with pixels")
    for axis, (size, dim) in enumerate(zip(data.shape, spec.shape, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise InputError(
                f"the picture has size {size} on axis {axis}; the model takes {spec}",
                "a model of a fixed size can be run on overlapping tiles of that size: pass "
                "exact=False, or use detect_sliced for a detector"
                if axis > 1
                else f"make axis {axis} {dim} long",
            )


def padded(data: Any, shape: Sequence[int], multiple: int) -> Any:
    """Return a picture with its last pixels repeated up to `shape`, and say so."""
    widths = [(0, new - old) for old, new in zip(data.shape, shape, strict=True)]
    if not any(after for _, after in widths):
        return data
    warnings.warn(
        f"the model takes multiples of {multiple} pixels: the picture of {tuple(data.shape)} is "
        f"padded to {tuple(shape)} with its last pixels, and the result cut back. Near the end it "
        "is what the model gives of the padded picture",
        stacklevel=4,
    )
    module = da if isinstance(data, da.Array) else np
    return module.pad(data, widths, mode="edge")


def cut_back(value: Any, places: Mapping[int, Place], lengths: Mapping[int, int]) -> Any:
    """Return a result without what padding has added to it.

    Parameters
    ----------
    lengths : axis of the picture to its pixels before they were padded
    """
    index: list[slice] = [slice(None)] * value.ndim
    for k, place in places.items():
        if k in lengths and place.outer == place.inner == 1:
            index[place.axis] = slice(0, -(-Fraction(lengths[k]) // place.stride))
    return value[tuple(index)]


def computed(arrays: Mapping[str, da.Array]) -> dict[str, Any]:
    """Return the arrays, computed together on the scheduler that Dask would use; inside a task
    here and now."""
    scheduler = {"scheduler": "sync"} if is_inside_task() else {}
    return dict(zip(arrays, compute(*arrays.values(), **scheduler), strict=True))


def as_given(picture: Picture, value: Any, name: str, places: Mapping[int, Place]) -> Any:
    """Return a result in the form of the picture: without the batch axis, with labels."""
    is_single = picture.is_single and value.ndim > 0 and value.shape[0] == 1
    labelled = picture.labelled
    if labelled is not None:
        value = _labelled(picture, value, name, places)
    return value[0] if is_single else value


def _labelled(picture: Picture, value: Any, name: str, places: Mapping[int, Place]) -> Any:
    xarray = importlib.import_module("xarray")
    source = picture.labelled
    shift = int(picture.is_single)
    dims = [f"{name}_{axis}" for axis in range(value.ndim)]
    coords: dict[Any, Any] = {}
    if not picture.is_single and value.ndim and value.shape[0] == source.shape[0]:
        dims[0] = source.dims[0]
        coords |= {n: c for n, c in source.coords.items() if c.dims == (source.dims[0],)}
    is_same = bool(places)
    for k, place in places.items():
        if place.outer != 1 or place.inner != 1:
            is_same = False
            continue
        dim = source.dims[k - shift]
        size = value.shape[place.axis]
        dims[place.axis] = dim
        is_grid = place.stride == 1 and size == source.sizes[dim]
        is_same &= is_grid
        for label, coord in source.coords.items():
            if coord.dims == (dim,):
                coords[label] = coord if is_grid else _resampled(coord, place.stride, size)
    coords |= {n: c for n, c in source.coords.items() if not c.dims}
    attrs = dict(source.attrs) if is_same else None
    coords = {n: c for n, c in coords.items() if c is not None}
    return xarray.DataArray(value, dims=dims, coords=coords, name=name, attrs=attrs)


def _resampled(coord: Any, stride: Fraction, size: int) -> Any:
    """A coordinate at the centres of larger or smaller pixels; None for one that is no number."""
    if coord.dtype.kind not in "fiu" or len(coord) < 2:
        return None
    step = float(stride)
    at = np.arange(size) * step + (step - 1) / 2
    values = coord.values.astype(np.float64)
    first, last = values[1] - values[0], values[-1] - values[-2]
    found = np.interp(at, np.arange(len(values)), values)
    found = np.where(at < 0, values[0] + at * first, found)
    beyond = at - (len(values) - 1)
    found = np.where(beyond > 0, values[-1] + beyond * last, found)
    return coord.dims, found, dict(coord.attrs)
